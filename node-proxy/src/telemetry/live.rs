//! The connections and requests in flight: for `/connections`, and for counting long flows while they live.
//!
//! Bounded: what finds the table full works the same but is not listed. Start at [`LiveTable::open`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;
use weft_proto::identity::NamespacedName;

use super::metrics::flow::{FlowSeries, Flows, Protocol};
use super::{ByteCounts, Flow, Party, Reporter};

/// Listed at once: 64 Ki flows are above what one node's proxy serves, at about 500 bytes each.
const LISTED_MAX: u64 = 64 << 10;
/// Rows in one answer of `/connections`: enough to look at, and never more than a few MB.
const ROWS_MAX: usize = 5_000;
/// Locks, so that cores seldom meet.
const SHARDS: usize = 16;

/// What a request was, for the log and the spans.
#[derive(Debug, Clone)]
pub(crate) struct RequestLine {
    pub(crate) method: http::Method,
    /// Without the query, which may hold secrets.
    pub(crate) path: Arc<str>,
    pub(crate) authority: Option<Arc<str>>,
    pub(crate) version: http::Version,
    pub(crate) grpc: bool,
}

/// What changes while a connection or request lives.
pub(crate) struct LiveState {
    pub(crate) flow: Flow,
    pub(crate) policy: Option<NamespacedName>,
    /// AUDIT policies that matched.
    pub(crate) audited: Vec<NamespacedName>,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) attempts: u32,
    /// Set when the connection was counted as opened.
    series: Option<Arc<FlowSeries>>,
    /// Bytes already counted: towards the server, towards the client.
    reported: (u64, u64),
}

/// One connection or request, from its start to its record.
pub(crate) struct Live {
    id: u64,
    listed: bool,
    pub(crate) request: Option<RequestLine>,
    pub(crate) started: Instant,
    pub(crate) started_at: SystemTime,
    pub(crate) bytes: Arc<ByteCounts>,
    pub(crate) state: Mutex<LiveState>,
}

impl Live {
    pub(crate) fn sent(&self) -> u64 {
        self.bytes.sent.load(Ordering::Relaxed)
    }
    pub(crate) fn received(&self) -> u64 {
        self.bytes.received.load(Ordering::Relaxed)
    }

    /// Counts a connection as opened, once.
    pub(crate) fn opened(&self, flows: &Flows) {
        let mut state = self.state.lock();
        if state.series.is_none() {
            let series = flows.resolve(&state.flow, Protocol::Tcp);
            series.opened();
            state.series = Some(series);
        }
    }

    /// Counts the bytes of a connection since the last time.
    fn report(&self, flows: &Flows) {
        let (sent, received) = (self.sent(), self.received());
        let mut state = self.state.lock();
        let Some(series) = state.series.clone() else { return };
        series.bytes(sent.saturating_sub(state.reported.0), received.saturating_sub(state.reported.1));
        state.reported = (sent, received);
        // Looking it up keeps the series of a live flow from expiring.
        let _ = flows.resolve(&state.flow, Protocol::Tcp);
    }

    /// The last of a connection.
    pub(crate) fn closed(&self, flows: &Flows) {
        self.opened(flows);
        self.report(flows);
        if let Some(series) = &self.state.lock().series {
            series.closed();
        }
    }
}

/// All of them.
pub(crate) struct LiveTable {
    next_id: AtomicU64,
    connections: AtomicU64,
    requests: AtomicU64,
    listed: AtomicU64,
    unlisted: AtomicU64,
    shards: [Mutex<HashMap<u64, Arc<Live>>>; SHARDS],
}

/// How much is alive now.
pub(crate) struct LiveCounts {
    pub(crate) connections: u64,
    pub(crate) requests: u64,
    pub(crate) unlisted_total: u64,
}

impl LiveTable {
    pub(crate) fn new() -> Self {
        Self {
            next_id: AtomicU64::new(1),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            listed: AtomicU64::new(0),
            unlisted: AtomicU64::new(0),
            shards: Default::default(),
        }
    }

    pub(crate) fn open(&self, flow: Flow, request: Option<RequestLine>) -> Arc<Live> {
        let count = if request.is_some() { &self.requests } else { &self.connections };
        count.fetch_add(1, Ordering::Relaxed);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let listed = self.listed.fetch_add(1, Ordering::Relaxed) < LISTED_MAX;
        if !listed {
            self.listed.fetch_sub(1, Ordering::Relaxed);
            self.unlisted.fetch_add(1, Ordering::Relaxed);
        }
        let live = Arc::new(Live {
            id,
            listed,
            request,
            started: Instant::now(),
            started_at: SystemTime::now(),
            bytes: Arc::default(),
            state: Mutex::new(LiveState {
                flow,
                policy: None,
                audited: Vec::new(),
                route: None,
                attempts: 0,
                series: None,
                reported: (0, 0),
            }),
        });
        if listed {
            self.shard(id).lock().insert(id, Arc::clone(&live));
        }
        live
    }

    pub(crate) fn close(&self, live: &Live) {
        let count = if live.request.is_some() { &self.requests } else { &self.connections };
        count.fetch_sub(1, Ordering::Relaxed);
        if live.listed {
            self.shard(live.id).lock().remove(&live.id);
            self.listed.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Arc<Live>>> {
        #[expect(clippy::cast_possible_truncation, reason = "a remainder below SHARDS")]
        let index = (id % SHARDS as u64) as usize;
        &self.shards[index]
    }

    pub(crate) fn counts(&self) -> LiveCounts {
        LiveCounts {
            connections: self.connections.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            unlisted_total: self.unlisted.load(Ordering::Relaxed),
        }
    }

    /// Counts the bytes so far of every live connection.
    pub(crate) fn report(&self, flows: &Flows) {
        for shard in &self.shards {
            // Copied out, so that a scrape never makes a connection wait.
            let live: Vec<Arc<Live>> =
                shard.lock().values().filter(|live| live.request.is_none()).cloned().collect();
            for live in live {
                live.report(flows);
            }
        }
    }

    /// For `/connections`: the oldest first.
    pub(crate) fn list(&self) -> LiveList {
        let mut all: Vec<Arc<Live>> =
            self.shards.iter().flat_map(|shard| shard.lock().values().cloned().collect::<Vec<_>>()).collect();
        all.sort_unstable_by_key(|live| live.id);
        let counts = self.counts();
        let now = Instant::now();
        LiveList {
            connections: counts.connections,
            requests: counts.requests,
            shown: all.len().min(ROWS_MAX),
            flows: all.iter().take(ROWS_MAX).map(|live| Row::new(live, now)).collect(),
        }
    }
}

/// The answer of `/connections`.
#[derive(Debug, Serialize)]
pub struct LiveList {
    pub connections: u64,
    pub requests: u64,
    pub shown: usize,
    pub flows: Vec<Row>,
}

/// One connection or request in flight.
#[derive(Debug, Serialize)]
pub struct Row {
    pub id: u64,
    pub kind: &'static str,
    pub reporter: &'static str,
    pub age_ms: u64,
    pub source: Option<String>,
    pub source_address: Option<SocketAddr>,
    pub source_principal: Option<String>,
    pub destination: Option<String>,
    pub destination_address: Option<SocketAddr>,
    pub destination_principal: Option<String>,
    pub service: Option<String>,
    pub security: &'static str,
    pub policy: Option<String>,
    pub method: Option<String>,
    pub path: Option<String>,
    pub attempts: u32,
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

/// `namespace/pod`
pub(crate) fn pod_name(party: &Party) -> Option<String> {
    party.workload.as_ref().map(|workload| format!("{}/{}", workload.namespace, workload.name))
}

impl Row {
    fn new(live: &Live, now: Instant) -> Self {
        let state = live.state.lock();
        let flow = &state.flow;
        let principal = |party: &Party| party.principal.as_ref().map(ToString::to_string);
        Self {
            id: live.id,
            kind: if live.request.is_some() { "request" } else { "connection" },
            reporter: Reporter::as_str(flow.reporter),
            age_ms: u64::try_from(now.saturating_duration_since(live.started).as_millis())
                .unwrap_or(u64::MAX),
            source: pod_name(&flow.source),
            source_address: flow.source.address,
            source_principal: principal(&flow.source),
            destination: pod_name(&flow.destination),
            destination_address: flow.destination.address,
            destination_principal: principal(&flow.destination),
            service: flow.service.as_ref().map(ToString::to_string),
            security: flow.security.as_str(),
            policy: state.policy.as_ref().map(ToString::to_string),
            method: live.request.as_ref().map(|request| request.method.to_string()),
            path: live.request.as_ref().map(|request| request.path.to_string()),
            attempts: state.attempts,
            bytes_sent: live.sent(),
            bytes_received: live.received(),
        }
    }
}
