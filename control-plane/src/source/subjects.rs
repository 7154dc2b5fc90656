//! Objects of which Weft says something to whoever looks at them, as a source last saw them: in their status, or with events. Empty
//! with a source that has nowhere to write to.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::ObjectKey;
use crate::stale::Stale;

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

/// An object without a status of Weft's, and what is wrong with its labels and annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    pub uid: String,
    /// What is wrong, and what counts instead; never empty.
    pub warnings: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Subjects {
    current: Mutex<BTreeMap<ObjectKey, Arc<Subject>>>,
    remarks: Mutex<BTreeMap<ObjectKey, Arc<Remark>>>,
    pub stale: Stale,
}

impl Subjects {
    pub fn set(&self, key: &ObjectKey, subject: Subject) {
        self.current.lock().insert(key.clone(), Arc::new(subject));
        self.stale.add([key.clone()]);
    }

    /// None: nothing is wrong with it any more.
    pub fn remark(&self, key: &ObjectKey, remark: Option<Remark>) {
        let differs = match remark {
            Some(remark) => {
                let next = Arc::new(remark);
                self.remarks.lock().insert(key.clone(), next.clone()) != Some(next)
            }
            None => self.remarks.lock().remove(key).is_some(),
        };
        if differs {
            self.stale.wake();
        }
    }

    /// The object is gone.
    pub fn forget(&self, key: &ObjectKey) {
        let had_status = self.current.lock().remove(key).is_some();
        self.stale.add(had_status.then(|| key.clone()));
        if self.remarks.lock().remove(key).is_some() {
            self.stale.wake();
        }
    }

    pub fn remarks(&self) -> BTreeMap<ObjectKey, Arc<Remark>> {
        self.remarks.lock().clone()
    }

    pub fn of(&self, key: &ObjectKey) -> Option<Arc<Subject>> {
        self.current.lock().get(key).cloned()
    }

    pub fn all(&self) -> Vec<(ObjectKey, Arc<Subject>)> {
        self.current.lock().iter().map(|(key, subject)| (key.clone(), subject.clone())).collect()
    }
}
