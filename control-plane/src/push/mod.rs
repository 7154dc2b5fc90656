//! Pushing: one session per node, woken by the keys that changed. What a node holds is compared with what it should hold.
//!
//! A session has its own task and its own set of changed keys (bounded by the keys there are): a slow node never blocks
//! another, and what changes while it is slow is merged. Start at [`Hub::changed`], then `session`.

mod service;
mod session;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use weft_proto::model::ResourceKey;

pub use self::service::DiscoveryService;
use crate::index::Changes;

/// Nodes of a large cluster, twice.
const SESSIONS_MAX: usize = 10_000;
/// Nodes whose status is kept, those that went included: autoscaling names nodes anew for ever.
const STATUSES_MAX: usize = 2 * SESSIONS_MAX;
/// Upper bounds of the push time histogram, in milliseconds.
pub const PUSH_MS_BUCKETS: [u64; 8] = [5, 10, 25, 50, 100, 250, 1000, 5000];

/// Keys to look at again for one node.
#[derive(Debug, Default)]
struct Pending {
    keys: BTreeSet<ResourceKey>,
    whole: bool,
    /// When the oldest of it came.
    since: Option<std::time::Instant>,
}

/// One connected node.
#[derive(Debug)]
struct Session {
    id: u64,
    node: Arc<str>,
    pending: Mutex<Pending>,
    wake: Notify,
    /// Another session of the same node took over.
    replaced: CancellationToken,
}

/// What is known of a node, also after it went.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NodeStatus {
    pub connected: bool,
    pub agent_version: String,
    pub sent_revision: u64,
    pub acked_revision: u64,
    pub last_ack_unix_s: Option<u64>,
    pub last_nack: Option<NackStatus>,
    pub acks: u64,
    pub nacks: u64,
    pub resources: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct NackStatus {
    pub unix_s: u64,
    pub revision: u64,
    pub refusals: Vec<String>,
}

#[derive(Debug, Default)]
struct Sessions {
    by_node: BTreeMap<Arc<str>, Arc<Session>>,
    status: BTreeMap<Arc<str>, NodeStatus>,
    /// What each connected node holds, as far as status is counted from it.
    held: BTreeMap<Arc<str>, HashMap<ResourceKey, u64>>,
    next_id: u64,
    push_ms: [u64; PUSH_MS_BUCKETS.len() + 1],
    push_ms_sum: u64,
}

#[derive(Debug, Default)]
pub struct Hub {
    sessions: Mutex<Sessions>,
    /// A node came, went, or answered.
    pub answered: Notify,
}

pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Hub {
    /// Tells the sessions which keys to look at again.
    pub fn changed(&self, changes: &Changes) {
        if changes.is_empty() {
            return;
        }
        for session in self.sessions.lock().by_node.values() {
            let own = changes.by_node.get(&session.node);
            let whole = changes.whole.contains(&session.node);
            if changes.everywhere.is_empty() && own.is_none() && !whole {
                continue;
            }
            let mut pending = session.pending.lock();
            pending.keys.extend(changes.everywhere.iter().chain(own.into_iter().flatten()).cloned());
            pending.whole |= whole;
            pending.since.get_or_insert_with(std::time::Instant::now);
            drop(pending);
            session.wake.notify_one();
        }
    }

    /// Whether every connected node has taken a revision, and refuses nothing.
    pub fn all_have(&self, revision: u64) -> bool {
        let sessions = self.sessions.lock();
        let mut connected = sessions.status.values().filter(|status| status.connected);
        connected.all(|status| status.acked_revision >= revision && status.last_nack.is_none())
    }

    pub fn statuses(&self) -> BTreeMap<Arc<str>, NodeStatus> {
        self.sessions.lock().status.clone()
    }

    /// Counts per bucket of [`PUSH_MS_BUCKETS`] (the last: above), and the sum.
    pub fn push_times(&self) -> ([u64; PUSH_MS_BUCKETS.len() + 1], u64) {
        let sessions = self.sessions.lock();
        (sessions.push_ms, sessions.push_ms_sum)
    }

    fn join(&self, node: &Arc<str>, agent_version: String) -> Option<Arc<Session>> {
        let mut sessions = self.sessions.lock();
        // A node that comes again takes its own place.
        if sessions.by_node.len() >= SESSIONS_MAX && !sessions.by_node.contains_key(node) {
            return None;
        }
        if sessions.status.len() >= STATUSES_MAX && !sessions.status.contains_key(node) {
            sessions.status.retain(|_, status| status.connected);
        }
        sessions.next_id += 1;
        // What an earlier session of this node held may be lost.
        sessions.held.remove(node);
        let session = Arc::new(Session {
            id: sessions.next_id,
            node: node.clone(),
            pending: Mutex::new(Pending { whole: true, ..Pending::default() }),
            wake: Notify::new(),
            replaced: CancellationToken::new(),
        });
        if let Some(old) = sessions.by_node.insert(node.clone(), session.clone()) {
            old.replaced.cancel();
        }
        let status = sessions.status.entry(node.clone()).or_default();
        status.connected = true;
        status.agent_version = agent_version;
        Some(session)
    }

    fn leave(&self, session: &Session) {
        let mut sessions = self.sessions.lock();
        if sessions.by_node.get(&session.node).is_some_and(|current| current.id == session.id) {
            sessions.by_node.remove(&session.node);
            sessions.held.remove(&session.node);
            self.answered.notify_one();
            if let Some(status) = sessions.status.get_mut(&session.node) {
                status.connected = false;
            }
        }
    }

    fn note(&self, node: &str, change: impl FnOnce(&mut NodeStatus)) {
        if let Some(status) = self.sessions.lock().status.get_mut(node) {
            change(status);
        }
    }

    /// What a node holds now (None: no more).
    fn holding(&self, node: &Arc<str>, resources: impl IntoIterator<Item = (ResourceKey, Option<u64>)>) {
        let mut sessions = self.sessions.lock();
        let held = sessions.held.entry(node.clone()).or_default();
        for (key, version) in resources {
            match version {
                Some(version) => drop(held.insert(key, version)),
                None => drop(held.remove(&key)),
            }
        }
        drop(sessions);
        self.answered.notify_one();
    }

    /// Whether a node is connected here and holds all of these.
    pub fn holds(&self, node: &str, resources: &[(ResourceKey, u64)]) -> bool {
        let sessions = self.sessions.lock();
        let held = sessions.held.get(node);
        held.is_some_and(|held| resources.iter().all(|(key, version)| held.get(key) == Some(version)))
    }

    fn pushed(&self, ms: u64) {
        let mut sessions = self.sessions.lock();
        let bucket = PUSH_MS_BUCKETS.iter().position(|max| ms <= *max).unwrap_or(PUSH_MS_BUCKETS.len());
        sessions.push_ms[bucket] += 1;
        sessions.push_ms_sum += ms;
    }
}
