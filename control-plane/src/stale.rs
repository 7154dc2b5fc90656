//! Routes and policies whose status may no longer read as it should. Filled as things change, emptied by each round of status, so that a
//! round looks at what changed and not at all that there is.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::source::ObjectKey;

/// More are all: where nobody writes status, nobody empties it.
const OBJECTS_MAX: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    All,
    These(BTreeSet<ObjectKey>),
}

impl Default for Which {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl Which {
    pub fn add(&mut self, more: impl IntoIterator<Item = ObjectKey>) {
        if let Self::These(objects) = self {
            objects.extend(more);
            if objects.len() > OBJECTS_MAX {
                *self = Self::All;
            }
        }
    }

    pub fn merge(&mut self, more: Self) {
        match more {
            Self::All => *self = Self::All,
            Self::These(objects) => self.add(objects),
        }
    }
}

#[derive(Debug, Default)]
pub struct Stale {
    which: Mutex<Which>,
    changed: Notify,
}

impl Stale {
    pub fn add(&self, objects: impl IntoIterator<Item = ObjectKey>) {
        let mut objects = objects.into_iter().peekable();
        if objects.peek().is_some() {
            self.which.lock().add(objects);
            self.changed.notify_one();
        }
    }

    pub fn add_all(&self) {
        *self.which.lock() = Which::All;
        self.changed.notify_one();
    }

    /// Something else that a round looks at has changed.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// Waits for a change, which may have been taken already.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub fn take(&self) -> Which {
        std::mem::take(&mut self.which.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::object::Kind;

    #[test]
    fn what_nobody_takes_stays_bounded() {
        let stale = Stale::default();
        let key =
            |at: usize| ObjectKey { kind: Kind::HttpRoute, id: format!("shop/r-{at}").parse().unwrap() };
        stale.add([key(1), key(2), key(1)]);
        assert_eq!(stale.take(), Which::These([key(1), key(2)].into()));
        assert_eq!(stale.take(), Which::default());
        stale.add((0..=OBJECTS_MAX).map(key));
        stale.add([key(1)]);
        assert_eq!(stale.take(), Which::All);
        assert_eq!(stale.take(), Which::default());
    }
}
