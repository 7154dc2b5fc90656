//! Istio's families: one label set per flow, resolved once, then only atomic additions.
//!
//! A flow is looked up by its parts (pods by pointer, so nothing is formatted); two flows with equal labels share a
//! series. Series are bounded ([`FLOW_SERIES_MAX`]; more are counted as `overflow`) and leave when idle.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use weft_proto::identity::{NamespacedName, SpiffeId};
use weft_proto::model::Workload;

use super::names::{self, Family};
use super::text::{Writer, push_label};
use super::to_f64;
use crate::telemetry::context::TraceId;
use crate::telemetry::{Flow, Party, Reporter, Security};

/// Distinct label sets: 4,096 pairs of workloads are far more than a node's pods speak to, and about 10 MB of text.
pub(crate) const FLOW_SERIES_MAX: usize = 4096;
/// Looked-up flows; when it is full, it is emptied and fills again.
const CACHE_MAX: usize = 2 * FLOW_SERIES_MAX;
/// Distinct (status, flags, gRPC status) per flow. Applications choose their codes: more share one series.
const RESPONSES_MAX: usize = 64;
/// A series without an event for an hour goes; Prometheus handles its return as a counter reset.
const IDLE_MAX: Duration = Duration::from_secs(3600);
/// Envoy's default bounds, which Istio uses for milliseconds and bytes alike.
pub(crate) const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// `request_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    Tcp,
    Http,
    Grpc,
}

impl Protocol {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// A pod by its pointer: held, so the address cannot be reused while the key lives.
struct ByPointer(Option<Arc<Workload>>);

impl ByPointer {
    fn address(&self) -> usize {
        self.0.as_ref().map_or(0, |workload| Arc::as_ptr(workload) as usize)
    }
}
impl PartialEq for ByPointer {
    fn eq(&self, other: &Self) -> bool {
        self.address() == other.address()
    }
}
impl Eq for ByPointer {}
impl Hash for ByPointer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address().hash(state);
    }
}

#[derive(PartialEq, Eq, Hash)]
struct FlowKey {
    reporter: Reporter,
    security: Security,
    protocol: Protocol,
    source: ByPointer,
    source_principal: Option<SpiffeId>,
    destination: ByPointer,
    destination_principal: Option<SpiffeId>,
    service: Option<NamespacedName>,
}

impl FlowKey {
    fn new(flow: &Flow, protocol: Protocol) -> Self {
        Self {
            reporter: flow.reporter,
            security: flow.security,
            protocol,
            source: ByPointer(flow.source.workload.clone()),
            source_principal: flow.source.principal.clone(),
            destination: ByPointer(flow.destination.workload.clone()),
            destination_principal: flow.destination.principal.clone(),
            service: flow.service.clone(),
        }
    }
}

/// How a request was answered, as labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Response {
    /// 0: none.
    pub(crate) code: u16,
    pub(crate) flags: &'static str,
    pub(crate) grpc_status: Option<u32>,
}

#[derive(Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// In thousandths, so that it adds up without floating-point loops.
    sum_thousandths: AtomicU64,
}

impl Histogram {
    fn observe(&self, value: f64) -> usize {
        let bucket = BOUNDS.partition_point(|bound| *bound < value);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "durations and sizes")]
        self.sum_thousandths.fetch_add((value * 1000.0) as u64, Ordering::Relaxed);
        bucket
    }
}

/// A trace for the bucket of the slowest requests seen lately.
struct Exemplar {
    bucket: usize,
    trace: TraceId,
    value: f64,
    unix_s: f64,
}

#[derive(Default)]
pub(crate) struct RequestSeries {
    total: AtomicU64,
    duration_ms: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    exemplar: Mutex<Option<Exemplar>>,
}

/// The counters of one label set.
pub(crate) struct FlowSeries {
    labels: String,
    used_s: AtomicU64,
    tcp_opened: AtomicU64,
    tcp_closed: AtomicU64,
    /// Towards the client, as Istio counts "sent".
    tcp_sent: AtomicU64,
    tcp_received: AtomicU64,
    responses: RwLock<HashMap<Response, Arc<RequestSeries>>>,
}

impl FlowSeries {
    fn new(labels: String) -> Self {
        Self {
            labels,
            used_s: AtomicU64::new(0),
            tcp_opened: AtomicU64::new(0),
            tcp_closed: AtomicU64::new(0),
            tcp_sent: AtomicU64::new(0),
            tcp_received: AtomicU64::new(0),
            responses: RwLock::default(),
        }
    }

    pub(crate) fn opened(&self) {
        self.tcp_opened.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn closed(&self) {
        self.tcp_closed.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn bytes(&self, to_server: u64, to_client: u64) {
        self.tcp_received.fetch_add(to_server, Ordering::Relaxed);
        self.tcp_sent.fetch_add(to_client, Ordering::Relaxed);
    }

    pub(crate) fn request(
        &self,
        response: Response,
        duration: Duration,
        to_server: u64,
        to_client: u64,
        trace: Option<TraceId>,
    ) {
        let series = self.response(response);
        series.total.fetch_add(1, Ordering::Relaxed);
        let duration_ms = duration.as_secs_f64() * 1000.0;
        let bucket = series.duration_ms.observe(duration_ms);
        series.request_bytes.observe(to_f64(to_server));
        series.response_bytes.observe(to_f64(to_client));
        // Never waits: an exemplar is one of many.
        if let (Some(trace), Some(mut slot)) = (trace, series.exemplar.try_lock()) {
            let unix_s =
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
            let replace =
                slot.as_ref().is_none_or(|old| bucket >= old.bucket || unix_s - old.unix_s > EXEMPLAR_AGE_S);
            if replace {
                *slot = Some(Exemplar { bucket, trace, value: duration_ms, unix_s });
            }
        }
    }

    fn response(&self, response: Response) -> Arc<RequestSeries> {
        if let Some(series) = self.responses.read().get(&response) {
            return Arc::clone(series);
        }
        let mut responses = self.responses.write();
        let full = responses.len() >= RESPONSES_MAX && !responses.contains_key(&response);
        let key = if full { Response { code: 0, flags: OVERFLOW, grpc_status: None } } else { response };
        Arc::clone(responses.entry(key).or_default())
    }
}

/// After a minute a faster trace may replace the exemplar of a slow one.
const EXEMPLAR_AGE_S: f64 = 60.0;
/// The value of every label of the overflow series.
const OVERFLOW: &str = "overflow";

/// All flows' series.
pub(crate) struct Flows {
    cluster_domain: Arc<str>,
    cache: RwLock<HashMap<FlowKey, Arc<FlowSeries>>>,
    series: Mutex<HashMap<String, Arc<FlowSeries>>>,
    overflowed: AtomicU64,
    /// Seconds since the start, for expiry; advanced by whoever knows the time.
    now_s: AtomicU64,
}

impl Flows {
    pub(super) fn new(cluster_domain: &str) -> Self {
        Self {
            cluster_domain: cluster_domain.into(),
            cache: RwLock::default(),
            series: Mutex::default(),
            overflowed: AtomicU64::new(0),
            now_s: AtomicU64::new(0),
        }
    }

    /// The counters of a flow.
    pub(crate) fn resolve(&self, flow: &Flow, protocol: Protocol) -> Arc<FlowSeries> {
        let key = FlowKey::new(flow, protocol);
        let now_s = self.now_s.load(Ordering::Relaxed);
        if let Some(series) = self.cache.read().get(&key) {
            series.used_s.store(now_s, Ordering::Relaxed);
            return Arc::clone(series);
        }
        let labels = self.labels(flow, protocol);
        let mut all = self.series.lock();
        let full = all.len() >= FLOW_SERIES_MAX && !all.contains_key(&labels);
        let labels = if full {
            self.overflowed.fetch_add(1, Ordering::Relaxed);
            overflow_labels(protocol)
        } else {
            labels
        };
        let series =
            Arc::clone(all.entry(labels.clone()).or_insert_with(|| Arc::new(FlowSeries::new(labels))));
        drop(all);
        series.used_s.store(now_s, Ordering::Relaxed);
        // An overflowing flow is not remembered, so that it gets its own series once there is room.
        if !full {
            let mut cache = self.cache.write();
            if cache.len() >= CACHE_MAX {
                cache.clear();
            }
            cache.insert(key, Arc::clone(&series));
        }
        series
    }

    /// Drops what was idle for [`IDLE_MAX`] and is held by no live flow.
    pub(super) fn expire(&self, now: Duration) {
        self.now_s.store(now.as_secs(), Ordering::Relaxed);
        let idle = |series: &FlowSeries| {
            now.as_secs().saturating_sub(series.used_s.load(Ordering::Relaxed)) > IDLE_MAX.as_secs()
        };
        // Both locks are held: who holds a series from `resolve` is seen in its count.
        let mut cache = self.cache.write();
        let mut all = self.series.lock();
        cache.retain(|_, series| !idle(series));
        all.retain(|_, series| !idle(series) || Arc::strong_count(series) > 1);
    }

    pub(super) fn count(&self) -> u64 {
        self.series.lock().len() as u64
    }
    pub(super) fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    fn labels(&self, flow: &Flow, protocol: Protocol) -> String {
        let mut out = String::with_capacity(1024);
        let reporter = match flow.reporter {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        };
        push_label(&mut out, "reporter", reporter);
        party_labels(&mut out, "source", &flow.source);
        party_labels(&mut out, "destination", &flow.destination);
        match &flow.service {
            Some(service) => {
                let host = format!("{}.{}.svc.{}", service.name, service.namespace, self.cluster_domain);
                push_label(&mut out, "destination_service", &host);
                push_label(&mut out, "destination_service_name", &service.name);
                push_label(&mut out, "destination_service_namespace", &service.namespace);
            }
            None => {
                push_label(&mut out, "destination_service", UNKNOWN);
                push_label(&mut out, "destination_service_name", UNKNOWN);
                let namespace =
                    flow.destination.workload.as_ref().map_or(UNKNOWN, |workload| &workload.namespace);
                push_label(&mut out, "destination_service_namespace", namespace);
            }
        }
        push_label(&mut out, "request_protocol", protocol.as_str());
        push_label(&mut out, "connection_security_policy", flow.security.as_str());
        out
    }

    pub(super) fn render(&self, out: &mut Writer) {
        let mut all: Vec<Arc<FlowSeries>> = self.series.lock().values().cloned().collect();
        all.sort_unstable_by(|a, b| a.labels.cmp(&b.labels));
        let requests: Vec<(&FlowSeries, String, Arc<RequestSeries>)> =
            all.iter().flat_map(|flow| responses(flow)).collect();
        out.header(&names::ISTIO_REQUESTS);
        for (flow, response, series) in &requests {
            let total = to_f64(series.total.load(Ordering::Relaxed));
            out.sample(names::ISTIO_REQUESTS.name, &[&flow.labels, response], total);
        }
        for (family, pick) in HISTOGRAMS {
            out.header(family);
            for (flow, response, series) in &requests {
                let exemplar = std::ptr::eq(family, &names::ISTIO_REQUEST_DURATION)
                    .then(|| series.exemplar.lock())
                    .and_then(|slot| {
                        let e = slot.as_ref()?;
                        Some((e.bucket, (e.trace.to_string(), e.value, e.unix_s)))
                    });
                histogram(out, family, &[&flow.labels, response], pick(series), exemplar.as_ref());
            }
        }
        for (family, pick) in TCP {
            out.header(family);
            for flow in all.iter().filter(|flow| flow.tcp_opened.load(Ordering::Relaxed) > 0) {
                out.sample(family.name, &[&flow.labels], to_f64(pick(flow).load(Ordering::Relaxed)));
            }
        }
    }
}

type PickHistogram = fn(&RequestSeries) -> &Histogram;
static HISTOGRAMS: [(&Family, PickHistogram); 3] = [
    (&names::ISTIO_REQUEST_DURATION, |series| &series.duration_ms),
    (&names::ISTIO_REQUEST_BYTES, |series| &series.request_bytes),
    (&names::ISTIO_RESPONSE_BYTES, |series| &series.response_bytes),
];

type PickCounter = fn(&FlowSeries) -> &AtomicU64;
static TCP: [(&Family, PickCounter); 4] = [
    (&names::ISTIO_TCP_SENT, |flow| &flow.tcp_sent),
    (&names::ISTIO_TCP_RECEIVED, |flow| &flow.tcp_received),
    (&names::ISTIO_TCP_OPENED, |flow| &flow.tcp_opened),
    (&names::ISTIO_TCP_CLOSED, |flow| &flow.tcp_closed),
];

/// Istio's word for what is not known.
const UNKNOWN: &str = "unknown";

fn responses(flow: &FlowSeries) -> Vec<(&FlowSeries, String, Arc<RequestSeries>)> {
    let mut all: Vec<_> = flow
        .responses
        .read()
        .iter()
        .map(|(response, series)| {
            let mut labels = String::new();
            push_label(&mut labels, "response_code", &response.code.to_string());
            push_label(&mut labels, "response_flags", response.flags);
            let grpc = response.grpc_status.map(|status| status.to_string()).unwrap_or_default();
            push_label(&mut labels, "grpc_response_status", &grpc);
            (flow, labels, Arc::clone(series))
        })
        .collect();
    all.sort_unstable_by(|a, b| a.1.cmp(&b.1));
    all
}

fn histogram(
    out: &mut Writer,
    family: &Family,
    labels: &[&str; 2],
    histogram: &Histogram,
    exemplar: Option<&(usize, (String, f64, f64))>,
) {
    let name = format!("{}_bucket", family.name);
    let mut count = 0;
    for (i, bucket) in histogram.buckets.iter().enumerate() {
        count += bucket.load(Ordering::Relaxed);
        let le = BOUNDS.get(i).map_or_else(|| "le=\"+Inf\"".to_owned(), |bound| format!("le=\"{bound}\""));
        let exemplar = exemplar.filter(|(at, _)| *at == i).map(|(_, exemplar)| exemplar);
        out.exemplar(&name, &[labels[0], labels[1], &le], to_f64(count), exemplar);
    }
    let sum = to_f64(histogram.sum_thousandths.load(Ordering::Relaxed)) / 1000.0;
    out.sample(&format!("{}_sum", family.name), labels, sum);
    out.sample(&format!("{}_count", family.name), labels, to_f64(count));
}

fn party_labels(out: &mut String, side: &str, party: &Party) {
    let of = |pick: fn(&Workload) -> &Arc<str>| {
        party
            .workload
            .as_deref()
            .map(|workload| &**pick(workload))
            .filter(|v| !v.is_empty())
            .unwrap_or(UNKNOWN)
    };
    for (label, value) in [
        ("workload", of(|w| &w.workload_name)),
        ("workload_namespace", of(|w| &w.namespace)),
        ("canonical_service", of(|w| &w.canonical_service)),
        ("canonical_revision", of(|w| &w.canonical_revision)),
        ("app", of(|w| &w.app)),
        ("version", of(|w| &w.app_version)),
    ] {
        push_label(out, &format!("{side}_{label}"), value);
    }
    let principal = party.principal.as_ref().map_or_else(|| UNKNOWN.to_owned(), ToString::to_string);
    push_label(out, &format!("{side}_principal"), &principal);
}

fn overflow_labels(protocol: Protocol) -> String {
    let mut out = String::new();
    for label in ["reporter", "source_workload", "destination_workload", "destination_service"] {
        push_label(&mut out, label, OVERFLOW);
    }
    push_label(&mut out, "request_protocol", protocol.as_str());
    out
}
