//! What happened to each pod of this node, in words, for `/status`: the last few events of each.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use serde::Serialize;
use weft_proto::identity::PodUid;

/// Events that are kept of a pod: its start, and what went wrong since.
const EVENTS_MAX: usize = 8;
/// Pods that have some: twice those that the kernel's maps hold. Those of pods that are gone go first.
const PODS_MAX: usize = 2_048;

/// Something that happened to a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    pub unix_ms: u64,
    pub text: String,
}

/// By pod, oldest first.
pub type Events = BTreeMap<PodUid, VecDeque<Event>>;

#[derive(Debug, Default)]
pub(super) struct Journal {
    events: Events,
    changed: bool,
}

impl Journal {
    /// An event that repeats the last one is not told again.
    pub(super) fn note(&mut self, uid: &PodUid, text: impl Into<String>) {
        let text = text.into();
        if self.events.len() >= PODS_MAX && !self.events.contains_key(uid) {
            return;
        }
        let events = self.events.entry(uid.clone()).or_default();
        if events.back().is_some_and(|last| last.text == text) {
            return;
        }
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        events.push_back(Event { unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX), text });
        self.changed = true;
    }

    pub(super) fn retain(&mut self, known: impl Fn(&PodUid) -> bool) {
        let before = self.events.len();
        self.events.retain(|uid, _| known(uid));
        self.changed |= before != self.events.len();
    }

    /// All of it, if it changed since the last call.
    pub(super) fn news(&mut self) -> Option<Events> {
        std::mem::take(&mut self.changed).then(|| self.events.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_of_a_pod_are_kept_without_repetition() {
        let (mut journal, uid) = (Journal::default(), "u-1".parse().unwrap());
        for i in 0..20 {
            journal.note(&uid, format!("event {}", i / 2));
        }
        let events = journal.news().unwrap();
        let texts: Vec<_> = events[&uid].iter().map(|event| event.text.as_str()).collect();
        assert_eq!(texts.len(), EVENTS_MAX);
        assert_eq!((texts[0], texts[7]), ("event 2", "event 9"));
        assert_eq!(journal.news(), None);
        journal.retain(|_| false);
        assert_eq!(journal.news(), Some(Events::new()));
    }
}
