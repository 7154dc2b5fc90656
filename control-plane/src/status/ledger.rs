//! What is known of each object with status: how many nodes need it, which of this replica's have it, and whether its status is still to be
//! looked at. Pure: it asks the index, the hub and the source, and writes nothing.
//!
//! A change is counted where it is: [`Ledger::recount`] looks at the objects that it is told, and at all only where everything may differ.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::nodes::{Differs, NAMED_MAX, Nodes, Others};
use crate::index::Index;
use crate::push::{Held, Hub};
use crate::source::ObjectKey;
use crate::source::subjects::{Subject, Subjects};
use crate::stale::Which;

/// An object with status, and the nodes.
pub(super) struct Counted {
    pub(super) subject: Arc<Subject>,
    /// How many need it.
    need: usize,
    /// Of those that are connected here.
    pub(super) own: Held,
}

/// What the other replicas have to know: of an object (by its UID) its generation and this replica's nodes; None: it is gone.
pub(super) type News = Vec<(String, Option<(i64, Held)>)>;

#[derive(Default)]
pub(super) struct Ledger {
    counted: BTreeMap<ObjectKey, Counted>,
    by_uid: HashMap<String, ObjectKey>,
    /// Those whose status may not stand as it should.
    pub(super) due: BTreeSet<ObjectKey>,
    /// The nodes that are connected here.
    pub(super) connected: BTreeSet<Arc<str>>,
}

impl Ledger {
    /// Counts again what may have changed. What it looked at is due.
    pub(super) fn recount(&mut self, which: Which, subjects: &Subjects, index: &Index, hub: &Hub) -> News {
        let keys = match which {
            Which::These(keys) => keys,
            Which::All => {
                self.connected = hub.connected();
                let gone = self.counted.keys().cloned();
                subjects.all().into_iter().map(|(key, _)| key).chain(gone).collect()
            }
        };
        keys.into_iter().flat_map(|key| self.recount_one(key, subjects, index, hub)).collect()
    }

    fn recount_one(&mut self, key: ObjectKey, subjects: &Subjects, index: &Index, hub: &Hub) -> News {
        let mut news = News::new();
        let subject = subjects.of(&key);
        if let Some(old) = self.counted.remove(&key)
            && subject.as_ref().is_none_or(|subject| subject.uid != old.subject.uid)
        {
            self.by_uid.remove(&old.subject.uid);
            news.push((old.subject.uid.clone(), None));
        }
        let Some(subject) = subject else {
            self.due.remove(&key);
            return news;
        };
        let (mut need, mut own) = (0, Held::default());
        if subject.refused.is_none() {
            let wanted = index.wanted_for(&key);
            (need, own) = (wanted.len(), hub.held(&wanted, NAMED_MAX));
        }
        news.push((subject.uid.clone(), Some((subject.generation, own.clone()))));
        self.by_uid.insert(subject.uid.clone(), key.clone());
        self.due.insert(key.clone());
        self.counted.insert(key, Counted { subject, need, own });
        news
    }

    /// The status of everything has to be looked at: it was another replica's to write.
    pub(super) fn all_due(&mut self) {
        self.due = self.counted.keys().cloned().collect();
    }

    /// Other replicas tell something else than before.
    pub(super) fn others_differ(&mut self, differs: Differs) {
        match differs {
            Differs::All => self.all_due(),
            Differs::Objects(uids) => {
                self.due.extend(uids.iter().filter_map(|uid| self.by_uid.get(uid)).cloned());
            }
        }
    }

    pub(super) fn of(&self, key: &ObjectKey) -> Option<&Counted> {
        self.counted.get(key)
    }

    /// The nodes of all replicas.
    pub(super) fn nodes(&self, index: &Index, key: &ObjectKey, counted: &Counted, others: &Others) -> Nodes {
        let Counted { subject, need, own } = counted;
        let object = (subject.uid.clone(), subject.generation);
        let have = own.have + others.have(&object);
        let mut nodes = Nodes { have, need: *need, missing: Vec::new() };
        if have < *need {
            let wanted = index.wanted_for(key);
            nodes.missing = others.missing(&object, wanted.keys(), own, &self.connected);
        }
        nodes
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
