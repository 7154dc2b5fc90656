//! Which nodes have an object, of those that need it: this replica's own ones and, as they tell, those of the others. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use weft_proto::convert::fnv1a_64;

use crate::push::Held;

/// Nodes that a message names; the rest is a number. Replicas tell each other of no more.
pub(super) const NAMED_MAX: usize = 3;

/// Of the nodes that need an object, all replicas together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Nodes {
    pub(super) have: usize,
    pub(super) need: usize,
    /// The first of those that do not have it, as far as they are known.
    pub(super) missing: Vec<Missing>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) node: Arc<str>,
    pub(super) connected: bool,
}

impl fmt::Display for Nodes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let have = self.have.min(self.need);
        write!(out, "{have} of {} nodes have it", self.need)?;
        for (at, Missing { node, connected }) in self.missing.iter().enumerate() {
            let before = if at == 0 { ", not" } else { "," };
            let state = if *connected { "" } else { " (not connected)" };
            write!(out, "{before} {node}{state}")?;
        }
        match self.need.saturating_sub(have + self.missing.len()) {
            more if more > 0 && !self.missing.is_empty() => write!(out, " and {more} more"),
            _ => Ok(()),
        }
    }
}

/// What the other replicas tell of their nodes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Others {
    /// By the object's UID and generation.
    pub(super) objects: HashMap<(String, i64), OfOthers>,
    /// See [`key_of`].
    pub(super) connected: HashSet<u64>,
    /// A replica has more nodes than it tells of: who is not in `connected` may be connected all the same.
    pub(super) more_connected: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OfOthers {
    pub(super) have: usize,
    /// Connected, without it.
    pub(super) lack: BTreeSet<String>,
}

/// What of [`Others`] is not as before.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Differs {
    /// Which nodes are connected: any object may read otherwise.
    All,
    /// By UID.
    Objects(BTreeSet<String>),
}

/// Names of nodes have up to 253 bytes, which is too much for the name of an annotation.
pub(super) fn key_of(node: &str) -> u64 {
    fnv1a_64(node.as_bytes())
}

impl Others {
    /// What of it is not as it was.
    pub(super) fn since(&self, before: &Self) -> Differs {
        if self.connected != before.connected || self.more_connected != before.more_connected {
            return Differs::All;
        }
        let changed = |one: &Self, other: &Self| {
            let differing =
                one.objects.iter().filter(|(object, told)| other.objects.get(object) != Some(told));
            differing.map(|((uid, _), _)| uid.clone()).collect::<Vec<_>>()
        };
        Differs::Objects(changed(self, before).into_iter().chain(changed(before, self)).collect())
    }

    pub(super) fn have(&self, object: &(String, i64)) -> usize {
        self.objects.get(object).map_or(0, |others| others.have)
    }

    /// The first of `need` (in the order of their names) that do not have the object. `own`: of the nodes connected here.
    pub(super) fn missing<'a>(
        &self,
        object: &(String, i64),
        need: impl Iterator<Item = &'a Arc<str>>,
        own: &Held,
        connected_here: &BTreeSet<Arc<str>>,
    ) -> Vec<Missing> {
        let lack = self.objects.get(object).map(|others| &others.lack);
        let missing = need.filter_map(|node| {
            let connected = if connected_here.contains(node) {
                own.lack.contains(node).then_some(true)
            } else if lack.is_some_and(|lack| lack.contains(&**node)) {
                Some(true)
            } else {
                (!self.more_connected && !self.connected.contains(&key_of(node))).then_some(false)
            };
            connected.map(|connected| Missing { node: node.clone(), connected })
        });
        missing.take(NAMED_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[&str]) -> Vec<Arc<str>> {
        all.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn a_message_names_the_first_that_are_missing_and_counts_the_rest() {
        let nodes = |have, need, missing: &[(&str, bool)]| {
            let missing = missing
                .iter()
                .map(|(node, connected)| Missing { node: Arc::from(*node), connected: *connected });
            Nodes { have, need, missing: missing.collect() }.to_string()
        };
        assert_eq!(nodes(2, 2, &[]), "2 of 2 nodes have it");
        // Nodes that moved between replicas are told by both for a moment.
        assert_eq!(nodes(3, 2, &[]), "2 of 2 nodes have it");
        assert_eq!(nodes(1, 2, &[("b", false)]), "1 of 2 nodes have it, not b (not connected)");
        assert_eq!(
            nodes(1, 9, &[("b", false), ("c", true), ("d", true)]),
            "1 of 9 nodes have it, not b (not connected), c, d and 5 more"
        );
        assert_eq!(nodes(1, 9, &[]), "1 of 9 nodes have it");
    }

    #[test]
    fn who_is_missing_is_found_here_at_another_replica_or_nowhere() {
        let object = ("uid".to_owned(), 2);
        let need = names(&["a", "b", "c", "d", "e", "f", "g"]);
        let here: BTreeSet<_> = names(&["a", "b"]).into_iter().collect();
        let own = Held { have: 1, lack: names(&["b"]) };
        let lack = BTreeSet::from(["d".to_owned()]);
        let mut others = Others {
            objects: HashMap::from([(object.clone(), OfOthers { have: 1, lack })]),
            connected: ["c", "d"].into_iter().map(key_of).collect(),
            more_connected: false,
        };
        let told = |others: &Others, need: &[Arc<str>]| {
            let missing = others.missing(&object, need.iter(), &own, &here).into_iter();
            missing.map(|Missing { node, connected }| (node.to_string(), connected)).collect::<Vec<_>>()
        };
        let as_told = |all: &[(&str, bool)]| {
            all.iter().map(|(node, connected)| ((*node).to_owned(), *connected)).collect::<Vec<_>>()
        };
        assert_eq!(told(&others, &need), as_told(&[("b", true), ("d", true), ("e", false)]));
        assert_eq!(told(&others, &need[..4]), as_told(&[("b", true), ("d", true)]));
        // Nothing is said of nodes that may be connected elsewhere.
        others.more_connected = true;
        assert_eq!(told(&others, &need), as_told(&[("b", true), ("d", true)]));
        assert_eq!((others.have(&object), others.have(&("uid".to_owned(), 1))), (1, 0));
    }
}
