//! Which node needs what: counts of enrolled pods per node, per namespace and per policy.
//!
//! Counts make "the first" and "the last" known at once, so that a node is told when its interest begins or ends.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use weft_proto::identity::NamespacedName;

/// A count that became positive or zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edge {
    None,
    Crossed,
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Interest {
    enrolled: BTreeMap<Arc<str>, usize>,
    namespaces: BTreeMap<(Arc<str>, Arc<str>), usize>,
    policies: BTreeMap<NamespacedName, BTreeMap<Arc<str>, usize>>,
}

fn add<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) -> Edge {
    let count = counts.entry(key).or_default();
    *count += 1;
    if *count == 1 { Edge::Crossed } else { Edge::None }
}

fn subtract<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) -> Edge {
    match counts.entry(key) {
        Entry::Occupied(mut entry) if *entry.get() > 1 => {
            *entry.get_mut() -= 1;
            Edge::None
        }
        Entry::Occupied(entry) => {
            entry.remove();
            Edge::Crossed
        }
        Entry::Vacant(_) => Edge::None,
    }
}

impl Interest {
    /// Has enrolled pods.
    pub(super) fn active(&self, node: &str) -> bool {
        self.enrolled.contains_key(node)
    }

    pub(super) fn has_pods_of(&self, node: &str, namespace: &Arc<str>) -> bool {
        self.namespaces.contains_key(&(node.into(), namespace.clone()))
    }

    pub(super) fn needs_policy(&self, node: &str, policy: &NamespacedName) -> bool {
        self.policies.get(policy).is_some_and(|nodes| nodes.contains_key(node))
    }

    /// Nodes with enrolled pods.
    pub(super) fn active_nodes(&self) -> impl Iterator<Item = &Arc<str>> {
        self.enrolled.keys()
    }

    pub(super) fn nodes_of_policy(&self, policy: &NamespacedName) -> Vec<Arc<str>> {
        self.policies.get(policy).map(|nodes| nodes.keys().cloned().collect()).unwrap_or_default()
    }

    /// Whether the node became active.
    pub(super) fn add_pod(&mut self, node: &Arc<str>, namespace: &Arc<str>) -> (Edge, Edge) {
        (add(&mut self.enrolled, node.clone()), add(&mut self.namespaces, (node.clone(), namespace.clone())))
    }

    pub(super) fn remove_pod(&mut self, node: &Arc<str>, namespace: &Arc<str>) -> (Edge, Edge) {
        let whole = subtract(&mut self.enrolled, node.clone());
        (whole, subtract(&mut self.namespaces, (node.clone(), namespace.clone())))
    }

    pub(super) fn add_policy(&mut self, node: &Arc<str>, policy: &NamespacedName) -> Edge {
        add(self.policies.entry(policy.clone()).or_default(), node.clone())
    }

    pub(super) fn remove_policy(&mut self, node: &Arc<str>, policy: &NamespacedName) -> Edge {
        let Some(nodes) = self.policies.get_mut(policy) else { return Edge::None };
        let edge = subtract(nodes, node.clone());
        if nodes.is_empty() {
            self.policies.remove(policy);
        }
        edge
    }
}
