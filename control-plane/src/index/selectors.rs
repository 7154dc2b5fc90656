//! Who selects whom by labels, without looking at all of a namespace: pods filed under their labels, and Services and
//! policies under one label of their selector.
//!
//! A look-up gives candidates from one shelf or a few; whether the whole selector fits is asked of these alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use weft_proto::identity::NamespacedName;

use crate::source::object::Labels;

/// Names by label: name, value.
type Shelves = HashMap<String, HashMap<String, BTreeSet<NamespacedName>>>;

fn shelf<'a>(shelves: &'a Shelves, name: &str, value: &str) -> Option<&'a BTreeSet<NamespacedName>> {
    shelves.get(name)?.get(value)
}

fn put(shelves: &mut Shelves, name: &str, value: &str, id: &NamespacedName) {
    shelves.entry(name.to_owned()).or_default().entry(value.to_owned()).or_default().insert(id.clone());
}

fn take(shelves: &mut Shelves, name: &str, value: &str, id: &NamespacedName) {
    let Some(values) = shelves.get_mut(name) else { return };
    if let Some(ids) = values.get_mut(value) {
        ids.remove(id);
        if ids.is_empty() {
            values.remove(value);
        }
    }
    if values.is_empty() {
        shelves.remove(name);
    }
}

/// Pods by each of their labels.
#[derive(Debug, Default)]
pub(super) struct PodsByLabel(BTreeMap<Arc<str>, Shelves>);

impl PodsByLabel {
    pub(super) fn insert(&mut self, id: &NamespacedName, labels: &Labels) {
        let shelves = self.0.entry(id.namespace.clone()).or_default();
        labels.iter().for_each(|(name, value)| put(shelves, name, value, id));
    }

    pub(super) fn remove(&mut self, id: &NamespacedName, labels: &Labels) {
        let Some(shelves) = self.0.get_mut(&id.namespace) else { return };
        labels.iter().for_each(|(name, value)| take(shelves, name, value, id));
        if shelves.is_empty() {
            self.0.remove(&id.namespace);
        }
    }

    /// Pods with the label of a selector that the fewest have: every pod that it selects is among them. A selector without labels
    /// selects all pods, and has no answer here.
    pub(super) fn candidates(
        &self,
        namespace: &str,
        selector: &Labels,
    ) -> impl Iterator<Item = &NamespacedName> {
        let shelves = self.0.get(namespace);
        let of = |(name, value): (&String, &String)| shelves.and_then(|shelves| shelf(shelves, name, value));
        // One that nobody has is the smallest.
        let smallest = selector.iter().map(of).min_by_key(|ids| ids.map_or(0, BTreeSet::len));
        smallest.flatten().into_iter().flatten()
    }
}

/// Selectors of one kind of object, each filed under one of its labels.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    namespaces: BTreeMap<Arc<str>, OfNamespace>,
    /// Under which label each is filed; None: it selects every pod.
    filed: BTreeMap<NamespacedName, Option<(String, String)>>,
}

#[derive(Debug, Default)]
struct OfNamespace {
    shelves: Shelves,
    everyone: BTreeSet<NamespacedName>,
}

impl Selectors {
    /// Of the labels of a selector the one that is asked for least so far: an `app` tells more than a `part-of`.
    pub(super) fn insert(&mut self, id: &NamespacedName, selector: Option<&Labels>) {
        self.remove(id);
        let of_namespace = self.namespaces.entry(id.namespace.clone()).or_default();
        let asked = |(name, value): &(&String, &String)| {
            shelf(&of_namespace.shelves, name, value).map_or(0, BTreeSet::len)
        };
        let label = selector.and_then(|selector| selector.iter().min_by_key(asked));
        let label = label.map(|(name, value)| (name.clone(), value.clone()));
        match &label {
            Some((name, value)) => put(&mut of_namespace.shelves, name, value, id),
            None => drop(of_namespace.everyone.insert(id.clone())),
        }
        self.filed.insert(id.clone(), label);
    }

    pub(super) fn remove(&mut self, id: &NamespacedName) {
        let Some(label) = self.filed.remove(id) else { return };
        let Some(of_namespace) = self.namespaces.get_mut(&id.namespace) else { return };
        match label {
            Some((name, value)) => take(&mut of_namespace.shelves, &name, &value, id),
            None => drop(of_namespace.everyone.remove(id)),
        }
        if of_namespace.shelves.is_empty() && of_namespace.everyone.is_empty() {
            self.namespaces.remove(&id.namespace);
        }
    }

    /// By name: every selector that takes a pod with these labels is among them.
    pub(super) fn candidates(&self, namespace: &str, labels: &Labels) -> BTreeSet<&NamespacedName> {
        let Some(of_namespace) = self.namespaces.get(namespace) else { return BTreeSet::new() };
        let asked = labels.iter().filter_map(|(name, value)| shelf(&of_namespace.shelves, name, value));
        asked.flatten().chain(&of_namespace.everyone).collect()
    }
}
