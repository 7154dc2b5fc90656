//! A map that is cheap to copy with a small change: its entries lie in shards that copies share.
//!
//! A new snapshot differs from the former one in a few entries. Copying a [`ShardMap`] copies [`SHARDS`] pointers; a
//! change then copies one shard, 1/256 of the entries. A persistent tree would copy less, but is read slower by
//! every connection; with 100,000 entries a changed shard is 400 pointers, some microseconds.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

/// So many that a shard of a large cluster stays small, so few that an empty map costs 2 KiB.
const SHARDS: usize = 256;

#[derive(Debug, Clone)]
pub(super) struct ShardMap<K, V> {
    shards: Box<[Arc<HashMap<K, V>>]>,
    hasher: RandomState,
    len: usize,
}

impl<K, V> Default for ShardMap<K, V> {
    fn default() -> Self {
        let empty = Arc::new(HashMap::new());
        Self { shards: vec![empty; SHARDS].into(), hasher: RandomState::new(), len: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> ShardMap<K, V> {
    fn index<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // The remainder is below SHARDS, so the cast loses nothing.
        (self.hasher.hash_one(key) % SHARDS as u64) as usize
    }

    pub(super) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shards[self.index(key)].get(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let index = self.index(&key);
        let old = Arc::make_mut(&mut self.shards[index]).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    pub(super) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let index = self.index(key);
        // Looked up first: a key that is not there must not cost a copy.
        self.shards[index].get(key)?;
        let old = Arc::make_mut(&mut self.shards[index]).remove(key);
        self.len -= usize::from(old.is_some());
        old
    }

    /// Changes the value of a key, made by default if missing; `change` says whether to keep it.
    pub(super) fn update(&mut self, key: &K, change: impl FnOnce(&mut V) -> bool)
    where
        V: Default,
    {
        let mut value = self.get(key).cloned().unwrap_or_default();
        if change(&mut value) {
            self.insert(key.clone(), value);
        } else {
            self.remove(key);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_its_entries_and_shares_what_did_not_change() {
        let mut one = ShardMap::default();
        for i in 0..10_000_u32 {
            one.insert(i, i);
        }
        let mut two = one.clone();
        two.insert(7, 70);
        two.remove(&8);
        assert_eq!((one.get(&7), one.get(&8), one.len()), (Some(&7), Some(&8), 10_000));
        assert_eq!((two.get(&7), two.get(&8), two.len()), (Some(&70), None, 9_999));
        let copied = one.shards.iter().zip(&two.shards).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert!(copied <= 2, "{copied} shards were copied for two changes");
        assert_eq!(two.iter().count(), two.len());
    }

    #[test]
    fn removing_what_is_not_there_copies_nothing() {
        let one: ShardMap<u32, u32> = ShardMap::default();
        let mut two = one.clone();
        assert_eq!(two.remove(&1), None);
        assert!(one.shards.iter().zip(&two.shards).all(|(a, b)| Arc::ptr_eq(a, b)));
    }
}
