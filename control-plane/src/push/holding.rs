//! What a node holds, in little memory: everything that is common to all nodes, but for what is said explicitly. Pure.
//!
//! A hundred nodes hold nearly the same hundred thousand resources. Kept one by one for each node that is gigabytes; what tells a node from
//! the others is its own pods, their policies, and what it refused. That what is common has changed comes with what it was
//! ([`Changes::everywhere`](crate::index::Changes)), so that each change is compared with what the node really has. Start at [`Holding::difference`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use weft_proto::model::ResourceKey;

use crate::index::{Changes, Index, Sent};

/// Batches of changes that wait as they are, shared by all sessions; more are merged into one.
const BATCHES_MAX: usize = 32;

/// The version that was common before it changed; None: nothing common changed.
type Before = Option<Option<u64>>;

/// Keys to look at again for one node.
#[derive(Debug, Default)]
pub(super) struct Pending {
    batches: Vec<Arc<Changes>>,
    keys: BTreeMap<ResourceKey, Before>,
    /// Everything has to be looked at.
    whole: bool,
    /// When the oldest of it came.
    pub(super) since: Option<std::time::Instant>,
}

impl Pending {
    /// Of a session that begins.
    pub(super) fn everything() -> Self {
        Self { whole: true, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.keys.is_empty() && !self.whole
    }

    /// Whether the batch concerns the node.
    pub(super) fn push(&mut self, node: &str, batch: &Arc<Changes>) -> bool {
        let whole = batch.whole.contains(node);
        if batch.everywhere.is_empty() && !batch.by_node.contains_key(node) && !whole {
            return false;
        }
        self.whole |= whole;
        self.batches.push(batch.clone());
        if self.batches.len() > BATCHES_MAX {
            self.merge(node);
        }
        self.since.get_or_insert_with(std::time::Instant::now);
        true
    }

    /// What came first counts: it tells what was before all of it.
    fn merge(&mut self, node: &str) {
        for batch in std::mem::take(&mut self.batches) {
            for (key, before) in &batch.everywhere {
                self.keys.entry(key.clone()).or_default().get_or_insert(*before);
            }
            for key in batch.by_node.get(node).into_iter().flatten() {
                self.keys.entry(key.clone()).or_default();
            }
        }
    }

    /// Puts back what was taken and led to nothing.
    pub(super) fn put_back(&mut self, node: &str, taken: Self) {
        self.merge(node);
        let later = std::mem::replace(&mut self.keys, taken.keys);
        for (key, before) in later {
            let earlier = self.keys.entry(key).or_default();
            *earlier = earlier.or(before);
        }
        self.whole |= taken.whole;
    }
}

/// What has to be sent, and how to take back that it was.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) upserts: Vec<Arc<Sent>>,
    pub(super) removals: Vec<ResourceKey>,
    taken: Pending,
    undo: Undo,
}

#[derive(Debug, Default)]
struct Undo {
    resources: usize,
    /// All of it, where everything was looked at.
    whole: Option<Holding>,
    explicit: Vec<(ResourceKey, Option<Option<u64>>)>,
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }

    /// What was sent, with the version (None: removed).
    pub(super) fn outcome(&self) -> impl Iterator<Item = (&ResourceKey, Option<u64>)> {
        let upserts = self.upserts.iter().map(|sent| (&sent.key, Some(sent.version)));
        upserts.chain(self.removals.iter().map(|key| (key, None)))
    }
}

/// What a node refused, with the version that it refused (None: the removal).
pub(super) type Refused = HashMap<ResourceKey, Option<u64>>;

#[derive(Debug, Default)]
pub(super) struct Holding {
    /// Holds what is common.
    active: bool,
    /// What it holds of these keys is this (None: nothing), whatever is common.
    explicit: HashMap<ResourceKey, Option<u64>>,
    /// How many resources it holds.
    resources: usize,
}

impl Holding {
    /// Of a node that says itself what it holds.
    pub(super) fn told(known: HashMap<ResourceKey, u64>) -> Self {
        let resources = known.len();
        let explicit = known.into_iter().map(|(key, version)| (key, Some(version))).collect();
        Self { active: false, explicit, resources }
    }

    pub(super) fn resources(&self) -> usize {
        self.resources
    }

    fn version(&self, index: &Index, key: &ResourceKey, before: Before) -> Option<u64> {
        match self.explicit.get(key) {
            Some(version) => *version,
            None if self.active => before.unwrap_or_else(|| index.common(key)),
            None => None,
        }
    }

    /// Compares with what the node should hold, and takes it for done: [`Holding::undo`] if it was not. `pending` is all that changed since the
    /// last time, up to just this state of the index.
    pub(super) fn difference(
        &mut self,
        index: &Index,
        node: &str,
        mut pending: Pending,
        refused: &Refused,
    ) -> Difference {
        pending.merge(node);
        let mut difference = Difference::default();
        difference.undo.resources = self.resources;
        if pending.whole {
            self.look_at_all(index, node, &pending.keys, refused, &mut difference);
        } else {
            self.look_at(index, node, &pending.keys, refused, &mut difference);
        }
        difference.taken = pending;
        difference
    }

    fn look_at(
        &mut self,
        index: &Index,
        node: &str,
        keys: &BTreeMap<ResourceKey, Before>,
        refused: &Refused,
        difference: &mut Difference,
    ) {
        for (key, before) in keys {
            let held = self.version(index, key, *before);
            let wanted = index.wanted(node, key);
            let after = sent(held, wanted, key, refused, difference);
            self.resources = self.resources + usize::from(after.is_some()) - usize::from(held.is_some());
            let common = if self.active { index.common(key) } else { None };
            let old = if after == common {
                self.explicit.remove(key)
            } else {
                self.explicit.insert(key.clone(), after)
            };
            if old.is_some() || after != common {
                difference.undo.explicit.push((key.clone(), old));
            }
        }
    }

    fn look_at_all(
        &mut self,
        index: &Index,
        node: &str,
        keys: &BTreeMap<ResourceKey, Before>,
        refused: &Refused,
        difference: &mut Difference,
    ) {
        let mut next = Self { active: index.is_active(node), ..Self::default() };
        let mut look = |next: &mut Self, key: &ResourceKey, wanted: Option<&Arc<Sent>>| {
            let held = self.version(index, key, keys.get(key).copied().flatten());
            let after = sent(held, wanted, key, refused, difference);
            next.resources += usize::from(after.is_some());
            let common = if next.active { index.common(key) } else { None };
            if after != common {
                next.explicit.insert(key.clone(), after);
            }
        };
        for wanted in index.all(node) {
            look(&mut next, &wanted.key, Some(wanted));
        }
        // What it may hold and should not. Of the three sorts no key is looked at twice.
        let unwanted = |key: &&ResourceKey| index.wanted(node, key).is_none();
        let explicit = self.explicit.keys();
        let common = index.all_common().filter(|key| self.active && !self.explicit.contains_key(key));
        let gone = keys.keys().filter(|key| self.active && !self.explicit.contains_key(key));
        let gone = gone.filter(|key| index.common(key).is_none());
        for key in explicit.chain(common).chain(gone).filter(unwanted) {
            look(&mut next, key, None);
        }
        difference.undo.whole = Some(std::mem::replace(self, next));
    }

    /// The difference was refused: the node holds what it did, and all of it is to be looked at again.
    pub(super) fn undo(&mut self, node: &str, difference: Difference, pending: &mut Pending) {
        match difference.undo.whole {
            Some(before) => *self = before,
            None => {
                for (key, old) in difference.undo.explicit {
                    match old {
                        Some(version) => drop(self.explicit.insert(key, version)),
                        None => drop(self.explicit.remove(&key)),
                    }
                }
                self.resources = difference.undo.resources;
            }
        }
        pending.put_back(node, difference.taken);
    }
}

/// What the node holds afterwards: what it should, unless it refused just that.
fn sent(
    held: Option<u64>,
    wanted: Option<&Arc<Sent>>,
    key: &ResourceKey,
    refused: &Refused,
    difference: &mut Difference,
) -> Option<u64> {
    let version = wanted.map(|sent| sent.version);
    if version == held || refused.get(key) == Some(&version) {
        return held;
    }
    match wanted {
        Some(sent) => difference.upserts.push(sent.clone()),
        None => difference.removals.push(key.clone()),
    }
    version
}

#[cfg(test)]
#[path = "holding_tests.rs"]
mod tests;
