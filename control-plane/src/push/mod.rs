//! Pushing: one session per node, woken by the keys that changed. What a node holds is compared with what it should hold.
//!
//! A session has its own task and its own set of changed keys (bounded by the keys there are): a slow node never blocks
//! another, and what changes while it is slow is merged. Start at [`Hub::changed`], then `session`.

mod holding;
mod service;
mod session;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use weft_proto::model::ResourceKey;

use self::holding::Pending;
pub use self::service::DiscoveryService;
pub use self::wire::DiscoveryServer;
use crate::index::{Changes, Wanted};
use crate::source::ObjectKey;
use crate::stale::Stale;

/// Nodes of a large cluster, twice.
const SESSIONS_MAX: usize = 10_000;
/// Nodes whose status is kept, those that went included: autoscaling names nodes anew for ever.
const STATUSES_MAX: usize = 2 * SESSIONS_MAX;
/// Upper bounds of the push time histogram, in milliseconds.
pub const PUSH_MS_BUCKETS: [u64; 8] = [5, 10, 25, 50, 100, 250, 1000, 5000];

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

/// Connected nodes that need something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    pub have: usize,
    /// The first of those that do not have it.
    pub lack: Vec<Arc<str>>,
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
    /// What is counted from has changed: what nodes should hold, or what they do.
    pub stale: Stale,
}

pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Hub {
    /// Tells the sessions which keys to look at again. Called while the index is still held for writing: what a session then sees of
    /// the index, and what it was told of, is the same.
    pub fn changed(&self, mut changes: Changes) {
        self.stale.add(std::mem::take(&mut changes.status));
        if changes.is_empty() {
            return;
        }
        let changes = Arc::new(changes);
        for session in self.sessions.lock().by_node.values() {
            if session.pending.lock().push(&session.node, &changes) {
                session.wake.notify_one();
            }
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
            pending: Mutex::new(Pending::everything()),
            wake: Notify::new(),
            replaced: CancellationToken::new(),
        });
        if let Some(old) = sessions.by_node.insert(node.clone(), session.clone()) {
            old.replaced.cancel();
        }
        let status = sessions.status.entry(node.clone()).or_default();
        status.connected = true;
        status.agent_version = agent_version;
        // It is told everything, too.
        self.stale.add_all();
        Some(session)
    }

    fn leave(&self, session: &Session) {
        let mut sessions = self.sessions.lock();
        if sessions.by_node.get(&session.node).is_some_and(|current| current.id == session.id) {
            sessions.by_node.remove(&session.node);
            sessions.held.remove(&session.node);
            self.stale.add_all();
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

    /// What a node holds now (None: no more), with the objects whose status counts it.
    fn holding(
        &self,
        node: &Arc<str>,
        resources: Vec<(ResourceKey, Option<u64>)>,
        counted_by: BTreeSet<ObjectKey>,
    ) {
        if resources.is_empty() {
            return;
        }
        let mut sessions = self.sessions.lock();
        let held = sessions.held.entry(node.clone()).or_default();
        for (key, version) in resources {
            match version {
                Some(version) => drop(held.insert(key, version)),
                None => drop(held.remove(&key)),
            }
        }
        drop(sessions);
        self.stale.add(counted_by);
    }

    /// Of these nodes, in their order: those that are connected here, by whether they hold all of what they should.
    pub fn held(&self, wanted: &Wanted, lack_max: usize) -> Held {
        let sessions = self.sessions.lock();
        let mut found = Held::default();
        for (node, resources) in wanted.iter().filter(|(node, _)| sessions.by_node.contains_key(*node)) {
            let held = sessions.held.get(node);
            if held.is_some_and(|held| resources.iter().all(|(key, version)| held.get(key) == Some(version)))
            {
                found.have += 1;
            } else if found.lack.len() < lack_max {
                found.lack.push(node.clone());
            }
        }
        found
    }

    /// The nodes that are connected here.
    pub fn connected(&self) -> BTreeSet<Arc<str>> {
        self.sessions.lock().by_node.keys().cloned().collect()
    }

    fn pushed(&self, ms: u64) {
        let mut sessions = self.sessions.lock();
        let bucket = PUSH_MS_BUCKETS.iter().position(|max| ms <= *max).unwrap_or(PUSH_MS_BUCKETS.len());
        sessions.push_ms[bucket] += 1;
        sessions.push_ms_sum += ms;
    }
}
