//! Puts the messages of one delta together, validating each resource as it arrives. Pure.

use weft_proto::convert;
use weft_proto::model::Revision;
use weft_proto::v1;

use crate::snapshot::Change;

/// Most changes of one delta: a hundred thousand pods with their endpoints and Services. Beyond, the delta is refused.
const CHANGES_MAX: usize = 1_000_000;
/// Most refusals that are reported: enough to see what is wrong.
const REFUSALS_MAX: usize = 64;

/// A whole delta. With refusals, nothing of it may be used.
#[derive(Debug)]
pub(super) struct Complete {
    pub(super) nonce: u64,
    pub(super) revision: Revision,
    pub(super) changes: Vec<Change>,
    pub(super) refusals: Vec<v1::Refusal>,
}

/// The messages of a delta so far.
#[derive(Default)]
pub(super) struct Assembly {
    changes: Vec<Change>,
    refusals: Vec<v1::Refusal>,
    too_large: bool,
}

impl Assembly {
    /// The whole delta with its last message.
    pub(super) fn add(&mut self, delta: v1::Delta) -> Option<Complete> {
        let room = CHANGES_MAX.saturating_sub(self.changes.len());
        if delta.upserts.len() + delta.removals.len() > room {
            self.too_large = true;
            self.changes = Vec::new();
        }
        if !self.too_large {
            // Removals first: a resource that is in both is there afterwards.
            delta.removals.iter().for_each(|key| self.remove(key));
            delta.upserts.into_iter().for_each(|resource| self.upsert(resource));
        }
        if delta.more {
            return None;
        }
        let Self { changes, mut refusals, too_large } = std::mem::take(self);
        if too_large {
            let reason = format!("the delta has more than {CHANGES_MAX} changes");
            refusals.insert(0, v1::Refusal { key: None, reason });
        }
        Some(Complete { nonce: delta.nonce, revision: Revision(delta.revision), changes, refusals })
    }

    fn remove(&mut self, key: &v1::ResourceKey) {
        match convert::resource_key(key) {
            Ok(key) => self.changes.push(Change::Remove(key)),
            Err(invalid) => self.refuse(Some(key.clone()), invalid.to_string()),
        }
    }

    fn upsert(&mut self, resource: v1::Resource) {
        let key = resource.key.clone();
        match convert::resource(resource) {
            Ok((key, version, resource)) => self.changes.push(Change::Upsert(key, version, resource)),
            Err(invalid) => self.refuse(key, invalid.to_string()),
        }
    }

    fn refuse(&mut self, key: Option<v1::ResourceKey>, reason: String) {
        if self.refusals.len() < REFUSALS_MAX {
            self.refusals.push(v1::Refusal { key, reason });
        }
    }
}
