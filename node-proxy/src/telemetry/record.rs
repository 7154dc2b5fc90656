//! The records: one per connection, one per request, one span per attempt. Finishing consumes; dropping unfinished is
//! `Cancelled`. This is the only caller of the sinks.
//!
//! **Parents.** The source side makes a client span per attempt, whose parent is the application's span. Without one, all
//! attempts are roots of one new trace, and each retry links to the attempt before it. A request that ends before its first attempt
//! gets one client span of its own. The destination side makes one server span, whose parent is the attempt's.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, StatusCode};
use weft_proto::identity::NamespacedName;

use super::context::{Parent, SpanContext, SpanId, TraceId};
use super::live::{Live, RequestLine};
use super::log::LogEntry;
use super::metrics::flow::{Protocol, Response};
use super::metrics::{Counter, Metrics, names};
use super::span::{FinishedSpan, SpanKind};
use super::{ByteCounts, CloseReason, Flow, Inner, Party, Reporter, Security};

/// Bytes of a path or authority that are kept for the log and the spans.
const TEXT_BYTES_MAX: usize = 2048;

/// Counters of how things end, made once.
pub(super) struct Tally {
    connections: [Vec<Counter>; 2],
    requests: [Vec<Counter>; 2],
    attempts: Vec<Counter>,
    retries: Counter,
    unlisted: Counter,
}

impl Tally {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let by_reporter = |family| {
            [Reporter::Source, Reporter::Destination].map(|reporter| {
                CloseReason::ALL
                    .iter()
                    .map(|reason| {
                        let labels = [("reporter", reporter.as_str()), ("reason", reason.as_str())];
                        metrics.counter(family, &labels)
                    })
                    .collect()
            })
        };
        Self {
            connections: by_reporter(&names::CONNECTIONS_CLOSED),
            requests: by_reporter(&names::REQUESTS_FINISHED),
            attempts: CloseReason::ALL
                .iter()
                .map(|reason| metrics.counter(&names::ATTEMPTS, &[("reason", reason.as_str())]))
                .collect(),
            retries: metrics.counter(&names::RETRIES, &[]),
            unlisted: metrics.counter(&names::LIVE_UNLISTED, &[]),
        }
    }

    pub(super) fn unlisted(&self, total: u64) {
        self.unlisted.add(total.saturating_sub(self.unlisted.value()));
    }
}

/// `CloseReason::ALL` is in the order of the declaration, which a test holds.
fn count(counters: &[Counter], reason: CloseReason) {
    counters[reason as usize].increment();
}

/// An L4 connection. Finished exactly once; dropped unfinished it reports `Cancelled`.
pub struct ConnectionRecord {
    inner: Arc<Inner>,
    live: Arc<Live>,
    finished: bool,
}

impl ConnectionRecord {
    pub(super) fn open(inner: Arc<Inner>, flow: Flow) -> Self {
        // The server's side knows both ends from the start; the client's only after picking an endpoint.
        let complete = flow.reporter == Reporter::Destination;
        let live = inner.live.open(flow, None);
        if complete {
            live.opened(&inner.metrics.flows);
        }
        Self { inner, live, finished: false }
    }

    pub fn bytes(&self) -> Arc<ByteCounts> {
        Arc::clone(&self.live.bytes)
    }

    /// The destination is known only after picking an endpoint. Counts the connection as opened.
    pub fn destination(&mut self, destination: Party, security: Security) {
        {
            let flow = &mut self.live.state.lock().flow;
            flow.destination = destination;
            flow.security = security;
        }
        self.live.opened(&self.inner.metrics.flows);
    }

    /// The policy that allowed or denied.
    pub fn policy(&mut self, by: NamespacedName) {
        self.live.state.lock().policy = Some(by);
    }

    /// The AUDIT policies that matched.
    pub fn audited(&mut self, by: Vec<NamespacedName>) {
        self.live.state.lock().audited = by;
    }

    /// `detail`: words for the log; never a metric label.
    pub fn finish(mut self, reason: CloseReason, detail: Option<String>) {
        self.close(reason, detail);
    }

    fn close(&mut self, reason: CloseReason, detail: Option<String>) {
        self.finished = true;
        let inner = &self.inner;
        inner.live.close(&self.live);
        self.live.closed(&inner.metrics.flows);
        let reporter = self.live.state.lock().flow.reporter;
        count(&inner.tally.connections[reporter as usize], reason);
        if let Some(log) = &inner.log {
            log.record(LogEntry {
                live: Arc::clone(&self.live),
                duration: self.live.started.elapsed(),
                reason,
                status: None,
                grpc_status: None,
                trace: None,
                detail,
            });
        }
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        if !self.finished {
            self.close(CloseReason::Cancelled, None);
        }
    }
}

/// What is known when a request begins.
pub struct RequestStart<'a> {
    pub method: &'a http::Method,
    /// With or without the query: it is cut off here.
    pub path: &'a str,
    pub authority: Option<&'a str>,
    pub version: http::Version,
    pub headers: &'a HeaderMap,
}

impl RequestStart<'_> {
    fn line(&self) -> RequestLine {
        let path = self.path.split_once('?').map_or(self.path, |(path, _)| path);
        let grpc = self
            .headers
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        RequestLine {
            method: self.method.clone(),
            path: shortened(path).into(),
            authority: self.authority.map(|authority| shortened(authority).into()),
            version: self.version,
            grpc,
        }
    }
}

fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

/// A request's place in its trace.
pub(super) struct Trace {
    pub(super) id: TraceId,
    pub(super) parent: Option<SpanId>,
    /// The trace's `tracestate`.
    pub(super) state: String,
    pub(super) sampled: bool,
    /// The server span, or the client span of a request without attempts.
    own: SpanId,
}

impl Trace {
    /// None when no spans are made here: contexts then pass through as they came.
    fn open(inner: &Inner, parent: Option<&Parent>) -> Option<Arc<Self>> {
        inner.spans.as_ref()?;
        let (id, span, state) = match parent {
            Some(parent) => (parent.context.trace, Some(parent.context.span), parent.state.clone()),
            None => (TraceId::from_random(rand::random()), None, String::new()),
        };
        let sampled = inner.sampler.sample(parent, id);
        let own = SpanId::from_random(rand::random());
        Some(Arc::new(Self { id, parent: span, state, sampled, own }))
    }

    fn context(&self, span: SpanId) -> SpanContext {
        SpanContext { trace: self.id, span, sampled: self.sampled }
    }
}

/// A request as one proxy sees it.
pub struct RequestRecord {
    inner: Arc<Inner>,
    live: Arc<Live>,
    trace: Option<Arc<Trace>>,
    /// For the log: also known when no spans are made.
    trace_id: Option<TraceId>,
    reporter: Reporter,
    /// The attempt before, for links.
    previous: Option<SpanId>,
    finished: bool,
}

impl RequestRecord {
    pub(super) fn open(inner: Arc<Inner>, flow: Flow, start: &RequestStart<'_>) -> Self {
        let reporter = flow.reporter;
        let live = inner.live.open(flow, Some(start.line()));
        let parent = inner.propagators.extract(start.headers);
        let passing = parent.as_ref().map(|parent| parent.context.trace);
        let trace = Trace::open(&inner, parent.as_ref());
        let trace_id = trace.as_ref().map(|trace| trace.id).or(passing);
        Self { inner, live, trace, trace_id, reporter, previous: None, finished: false }
    }

    /// The matched route, for span names: never the raw path. Call it before the first attempt.
    pub fn route(&mut self, route: &str) {
        self.live.state.lock().route = Some(route.into());
    }

    pub fn destination(&mut self, destination: Party, service: Option<NamespacedName>, security: Security) {
        let flow = &mut self.live.state.lock().flow;
        flow.destination = destination;
        flow.service = service;
        flow.security = security;
    }

    pub fn policy(&mut self, by: NamespacedName) {
        self.live.state.lock().policy = Some(by);
    }

    /// The AUDIT policies that matched.
    pub fn audited(&mut self, by: Vec<NamespacedName>) {
        self.live.state.lock().audited = by;
    }

    /// Bodies' bytes: `sent` is the request's.
    pub fn bytes(&self) -> Arc<ByteCounts> {
        Arc::clone(&self.live.bytes)
    }

    /// For the log and for error answers.
    pub fn trace_id(&self) -> Option<String> {
        self.trace_id.map(|id| id.to_string())
    }

    /// Opens the client span of an attempt (client side). `number` starts at 1.
    pub fn attempt(&mut self, number: u32, to: &Party) -> Attempt {
        {
            let mut state = self.live.state.lock();
            state.attempts = state.attempts.max(number);
        }
        if number > 1 {
            self.inner.tally.retries.increment();
        }
        let span = SpanId::from_random(rand::random());
        let link = self.previous.replace(span);
        Attempt {
            inner: Arc::clone(&self.inner),
            live: Arc::clone(&self.live),
            trace: self.trace.clone(),
            span,
            link,
            number,
            to: to.clone(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            finished: false,
        }
    }

    /// Sets `traceparent`/`tracestate` for what is forwarded by the server side.
    pub fn propagate(&self, headers: &mut HeaderMap) {
        if let Some(trace) = &self.trace {
            self.inner.propagators.inject(&trace.context(trace.own), &trace.state, headers);
        }
    }

    /// `status` None: no response was sent. `grpc_status` from trailers or trailers-only.
    pub fn finish(mut self, status: Option<StatusCode>, grpc_status: Option<u32>, reason: CloseReason) {
        self.close(status, grpc_status, reason, None);
    }

    /// As [`Self::finish`], with words for the log; never a metric label.
    pub fn finish_with(
        mut self,
        status: Option<StatusCode>,
        grpc_status: Option<u32>,
        reason: CloseReason,
        detail: String,
    ) {
        self.close(status, grpc_status, reason, Some(detail));
    }

    fn close(
        &mut self,
        status: Option<StatusCode>,
        grpc_status: Option<u32>,
        reason: CloseReason,
        detail: Option<String>,
    ) {
        self.finished = true;
        let (inner, live) = (&self.inner, &self.live);
        let duration = live.started.elapsed();
        let grpc = live.request.as_ref().is_some_and(|request| request.grpc);
        let grpc_status = grpc_status.map(known_grpc_status);
        inner.live.close(live);
        let (series, attempts) = {
            let state = live.state.lock();
            let protocol = if grpc { Protocol::Grpc } else { Protocol::Http };
            (inner.metrics.flows.resolve(&state.flow, protocol), state.attempts)
        };
        let response = Response {
            code: status.map_or(0, |status| status.as_u16()),
            flags: reason.response_flags(),
            grpc_status,
        };
        let exemplar = self.trace.as_ref().filter(|trace| trace.sampled).map(|trace| trace.id);
        series.request(response, duration, live.sent(), live.received(), exemplar);
        count(&inner.tally.requests[self.reporter as usize], reason);
        if self.reporter == Reporter::Destination || attempts == 0 {
            self.span(duration, status, grpc_status, reason);
        }
        if let Some(log) = &self.inner.log {
            log.record(LogEntry {
                live: Arc::clone(&self.live),
                duration,
                reason,
                status: status.map(|status| status.as_u16()),
                grpc_status,
                trace: self.trace_id,
                detail,
            });
        }
    }

    fn span(&self, duration: Duration, status: Option<StatusCode>, grpc: Option<u32>, reason: CloseReason) {
        let Some((trace, spans)) = recorded(self.trace.as_ref(), &self.inner) else { return };
        let kind = match self.reporter {
            Reporter::Source => SpanKind::Client,
            Reporter::Destination => SpanKind::Server,
        };
        spans.submit(FinishedSpan {
            live: Arc::clone(&self.live),
            trace: Arc::clone(trace),
            kind,
            span: trace.own,
            link: None,
            number: 1,
            to: None,
            started_at: self.live.started_at,
            duration,
            status,
            grpc_status: grpc,
            reason,
        });
    }
}

/// The trace and the queue, if spans of this trace are kept.
fn recorded<'a>(
    trace: Option<&'a Arc<Trace>>,
    inner: &'a Inner,
) -> Option<(&'a Arc<Trace>, &'a super::export::SpanQueue)> {
    let trace = trace.filter(|trace| trace.sampled)?;
    Some((trace, inner.spans.as_ref()?))
}

/// Statuses above 16 do not exist; as gRPC clients do, they are read as UNKNOWN. It also bounds the label.
fn known_grpc_status(status: u32) -> u32 {
    const UNKNOWN: u32 = 2;
    if status <= 16 { status } else { UNKNOWN }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if !self.finished {
            self.close(None, None, CloseReason::Cancelled, None);
        }
    }
}

/// One attempt of a request: a client span. Dropped unfinished it reports `Cancelled`.
pub struct Attempt {
    inner: Arc<Inner>,
    live: Arc<Live>,
    trace: Option<Arc<Trace>>,
    span: SpanId,
    link: Option<SpanId>,
    number: u32,
    to: Party,
    started: Instant,
    started_at: SystemTime,
    finished: bool,
}

impl Attempt {
    /// Sets `traceparent`/`tracestate` to this attempt's span.
    pub fn propagate(&self, headers: &mut HeaderMap) {
        if let Some(trace) = &self.trace {
            self.inner.propagators.inject(&trace.context(self.span), &trace.state, headers);
        }
    }

    /// The W3C header's value, for the tunnel's CONNECT request.
    pub fn traceparent(&self) -> Option<String> {
        self.trace.as_ref().map(|trace| super::context::traceparent(&trace.context(self.span)))
    }

    pub fn finish(mut self, status: Option<StatusCode>, grpc_status: Option<u32>, reason: CloseReason) {
        self.close(status, grpc_status, reason);
    }

    fn close(&mut self, status: Option<StatusCode>, grpc_status: Option<u32>, reason: CloseReason) {
        self.finished = true;
        count(&self.inner.tally.attempts, reason);
        let Some((trace, spans)) = recorded(self.trace.as_ref(), &self.inner) else { return };
        // With an application's parent the attempts are its children, and siblings need no link.
        let link = self.link.filter(|_| trace.parent.is_none());
        spans.submit(FinishedSpan {
            live: Arc::clone(&self.live),
            trace: Arc::clone(trace),
            kind: SpanKind::Client,
            span: self.span,
            link,
            number: self.number,
            to: Some(std::mem::take(&mut self.to)),
            started_at: self.started_at,
            duration: self.started.elapsed(),
            status,
            grpc_status: grpc_status.map(known_grpc_status),
            reason,
        });
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.finished {
            self.close(None, None, CloseReason::Cancelled);
        }
    }
}
