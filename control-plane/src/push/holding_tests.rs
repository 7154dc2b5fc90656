//! What is promised of [`Holding`]: whatever changes and whatever nodes answer, it is what the node really holds.

use proptest::prelude::*;

use super::*;
use crate::index::tests::{index, relabelled, world};
use crate::source::Event;

/// A session, and what its node really has.
struct Node {
    name: &'static str,
    holding: Holding,
    pending: Pending,
    refused: Refused,
    outstanding: Option<Difference>,
    has: HashMap<ResourceKey, u64>,
}

impl Node {
    /// It says itself what it has, of which nothing is right.
    fn new(name: &'static str) -> Self {
        let has: HashMap<ResourceKey, u64> = [
            (ResourceKey::Service("shop/backend".parse().unwrap()), 1),
            (ResourceKey::Service("shop/of-before".parse().unwrap()), 2),
        ]
        .into();
        let pending = Pending::everything();
        let (refused, outstanding) = (Refused::new(), None);
        Self { name, holding: Holding::told(has.clone()), pending, refused, outstanding, has }
    }

    /// Whether there is something to send; only what the node does not have already.
    fn delta(&mut self, index: &Index) -> bool {
        let pending = std::mem::take(&mut self.pending);
        let difference = self.holding.difference(index, self.name, pending, &self.refused);
        for (key, version) in difference.outcome() {
            assert_ne!(self.has.get(key).copied(), version, "{}: {key:?} again", self.name);
        }
        if !difference.is_empty() {
            self.outstanding = Some(difference);
        }
        self.outstanding.is_some()
    }

    fn ack(&mut self) {
        let Some(difference) = self.outstanding.take() else { return };
        for (key, version) in difference.outcome() {
            self.refused.remove(key);
            match version {
                Some(version) => drop(self.has.insert(key.clone(), version)),
                None => drop(self.has.remove(key)),
            }
        }
    }

    /// Refuses so many resources of the delta.
    fn nack(&mut self, count: usize) {
        let Some(difference) = self.outstanding.take() else { return };
        let refused = difference.outcome().take(count).map(|(key, version)| (key.clone(), version));
        self.refused.extend(refused);
        self.holding.undo(self.name, difference, &mut self.pending);
    }

    fn check(&self, index: &Index) {
        let mut wanted: HashMap<ResourceKey, u64> =
            index.all(self.name).into_iter().map(|sent| (sent.key.clone(), sent.version)).collect();
        // What it refused stays as it was.
        for (key, version) in &self.refused {
            if wanted.get(key).copied() == *version {
                match self.has.get(key) {
                    Some(has) => drop(wanted.insert(key.clone(), *has)),
                    None => drop(wanted.remove(key)),
                }
            }
        }
        assert_eq!(self.has, wanted, "{}", self.name);
        assert_eq!(self.holding.resources(), self.has.len());
        let common = |key: &ResourceKey| index.common(key).filter(|_| index.is_active(self.name));
        for (key, version) in &self.holding.explicit {
            assert_eq!(self.has.get(key).copied(), *version);
            assert_ne!(*version, common(key), "{}: {key:?} is as everywhere", self.name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn it_is_what_the_node_really_holds(
        steps in proptest::collection::vec((0usize..13, 0u8..3, proptest::array::uniform4(0u8..6)), 1..50)
    ) {
        let (world, relabelled) = (world(), relabelled());
        let mut index = index();
        let mut nodes = ["n1", "n2", "n3", "n4"].map(Node::new);
        for (which, what, answers) in steps {
            let event = match what {
                0 => Event::Apply(world[which].clone()),
                1 => Event::Apply(relabelled[which].clone()),
                _ => Event::Delete(world[which].key()),
            };
            let changes = Arc::new(index.apply(vec![event]));
            for (node, answer) in nodes.iter_mut().zip(answers) {
                node.pending.push(node.name, &changes);
                match answer {
                    // A node that is slow: what changes meanwhile is merged.
                    0 | 1 => {}
                    2 => node.ack(),
                    3 => node.nack(1),
                    4 => node.nack(usize::MAX),
                    _ if node.outstanding.is_none() => assert_eq!(node.delta(&index), node.outstanding.is_some()),
                    _ => {}
                }
            }
        }
        for node in &mut nodes {
            node.ack();
            if node.delta(&index) {
                node.ack();
            }
            prop_assert!(!node.delta(&index));
            node.check(&index);
        }
    }
}

#[test]
fn many_batches_are_merged_into_one() {
    let mut index = index();
    index.apply(vec![Event::Reset(world())]);
    let mut node = Node::new("n1");
    node.delta(&index);
    node.ack();
    for turn in 0..4 * BATCHES_MAX {
        let object = if turn % 2 == 0 { &relabelled()[8] } else { &world()[8] };
        let changes = Arc::new(index.apply(vec![Event::Apply(object.clone())]));
        node.pending.push("n1", &changes);
        assert!(node.pending.batches.len() <= BATCHES_MAX);
    }
    // Back to what it was: nothing to send.
    assert!(!node.delta(&index));
    node.check(&index);
}
