//! Objects whose status Weft writes, as a source last saw them. Empty with a source that has nowhere to write to.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

use super::ObjectKey;

#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    pub uid: String,
    pub generation: i64,
    pub resource_version: String,
    /// Why this generation cannot be used.
    pub refused: Option<String>,
    /// What of it is passed over.
    pub warnings: Vec<String>,
    /// `spec.parentRefs` of a route, as written.
    pub parents: Vec<Value>,
    /// Every `backendRefs` entry of a route, and the `backendRef` of every mirror.
    pub backends: Vec<Value>,
    /// As it stands.
    pub status: Value,
}

#[derive(Debug, Default)]
pub struct Subjects {
    current: Mutex<BTreeMap<ObjectKey, Arc<Subject>>>,
    pub changed: Notify,
}

impl Subjects {
    pub fn set(&self, key: &ObjectKey, subject: Option<Subject>) {
        match subject {
            Some(subject) => drop(self.current.lock().insert(key.clone(), Arc::new(subject))),
            None => drop(self.current.lock().remove(key)),
        }
        self.changed.notify_one();
    }

    pub fn all(&self) -> Vec<(ObjectKey, Arc<Subject>)> {
        self.current.lock().iter().map(|(key, subject)| (key.clone(), subject.clone())).collect()
    }
}
