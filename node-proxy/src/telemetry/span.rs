//! Finished spans, and turning them into OTLP messages: names and attributes by OpenTelemetry's semantic conventions.
//!
//! Runs on the exporter's thread: a request only hands over what it already has. Start at [`to_request`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Method, StatusCode};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind as WireKind};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, status};
use weft_proto::model::Workload;

use super::context::SpanId;
use super::live::{Live, RequestLine};
use super::record::Trace;
use super::{CloseReason, Flow, Party, Reporter, version_name};

/// W3C trace flags in a span's `flags` field.
const FLAG_SAMPLED: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpanKind {
    Client,
    Server,
}

/// A span, not yet written out.
pub(super) struct FinishedSpan {
    pub(super) live: Arc<Live>,
    pub(super) trace: Arc<Trace>,
    pub(super) kind: SpanKind,
    pub(super) span: SpanId,
    pub(super) link: Option<SpanId>,
    /// Of the attempt; 1 is the first.
    pub(super) number: u32,
    /// The attempt's own destination; None: the request's.
    pub(super) to: Option<Party>,
    pub(super) started_at: SystemTime,
    pub(super) duration: Duration,
    pub(super) status: Option<StatusCode>,
    pub(super) grpc_status: Option<u32>,
    pub(super) reason: CloseReason,
}

/// One export: a `ResourceSpans` per workload. `process`: attributes of `OTEL_RESOURCE_ATTRIBUTES`, which a workload's own override.
pub(super) fn to_request(batch: &[FinishedSpan], process: &[(String, String)]) -> ExportTraceServiceRequest {
    let mut by_workload: BTreeMap<&str, (Option<Arc<Workload>>, Vec<Span>)> = BTreeMap::new();
    let owners: Vec<Option<Arc<Workload>>> = batch.iter().map(owner).collect();
    for (span, owner) in batch.iter().zip(&owners) {
        let uid = owner.as_ref().map_or("", |workload| workload.uid.as_str());
        by_workload.entry(uid).or_insert_with(|| (owner.clone(), Vec::new())).1.push(to_span(span));
    }
    let resource_spans = by_workload
        .into_values()
        .map(|(workload, spans)| ResourceSpans {
            resource: Some(Resource {
                attributes: resource(workload.as_deref(), process),
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "weft-node".into(),
                    version: env!("CARGO_PKG_VERSION").into(),
                    ..InstrumentationScope::default()
                }),
                spans,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        })
        .collect();
    ExportTraceServiceRequest { resource_spans }
}

/// For whom the proxy speaks: the local pod.
fn owner(span: &FinishedSpan) -> Option<Arc<Workload>> {
    let state = span.live.state.lock();
    match state.flow.reporter {
        Reporter::Source => state.flow.source.workload.clone(),
        Reporter::Destination => state.flow.destination.workload.clone(),
    }
}

fn resource(workload: Option<&Workload>, process: &[(String, String)]) -> Vec<KeyValue> {
    let mut all: BTreeMap<&str, String> =
        process.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    match workload {
        None => drop(all.entry("service.name").or_insert_with(|| "weft-node".into())),
        Some(workload) => workload_attributes(&mut all, workload),
    }
    all.into_iter().map(|(name, value)| text(name, value)).collect()
}

fn workload_attributes(all: &mut BTreeMap<&str, String>, workload: &Workload) {
    let first = |names: &[&Arc<str>]| names.iter().find(|name| !name.is_empty()).map(ToString::to_string);
    // OpenTelemetry's order for Kubernetes: what the labels say, then the owner's name, then the pod's.
    let service =
        first(&[&workload.canonical_service, &workload.app, &workload.workload_name, &workload.name]);
    let kind = match workload.workload_kind.to_ascii_lowercase().as_str() {
        "deployment" => Some("k8s.deployment.name"),
        "statefulset" => Some("k8s.statefulset.name"),
        "daemonset" => Some("k8s.daemonset.name"),
        "replicaset" => Some("k8s.replicaset.name"),
        "job" => Some("k8s.job.name"),
        "cronjob" => Some("k8s.cronjob.name"),
        _ => None,
    };
    let instance = format!("{}.{}", workload.namespace, workload.name);
    for (name, value) in [
        (Some("service.name"), service),
        (Some("service.namespace"), first(&[&workload.namespace])),
        (Some("service.version"), first(&[&workload.app_version, &workload.canonical_revision])),
        (Some("service.instance.id"), Some(instance)),
        (Some("k8s.namespace.name"), first(&[&workload.namespace])),
        (Some("k8s.pod.name"), first(&[&workload.name])),
        (Some("k8s.pod.uid"), Some(workload.uid.to_string())),
        (Some("k8s.node.name"), first(&[&workload.node])),
        (kind, first(&[&workload.workload_name])),
        (Some("cloud.availability_zone"), first(&[&workload.zone])),
    ] {
        if let (Some(name), Some(value)) = (name, value) {
            all.insert(name, value);
        }
    }
}

fn text(name: &str, value: impl Into<String>) -> KeyValue {
    KeyValue { key: name.into(), value: Some(AnyValue { value: Some(Value::StringValue(value.into())) }) }
}

fn number(name: &str, value: u64) -> KeyValue {
    let value = Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX));
    KeyValue { key: name.into(), value: Some(AnyValue { value: Some(value) }) }
}

fn to_span(span: &FinishedSpan) -> Span {
    let request = span.live.request.as_ref().expect("only requests have spans");
    let start_ns = unix_ns(span.started_at);
    let duration_ns = u64::try_from(span.duration.as_nanos()).unwrap_or(u64::MAX);
    let trace_id = span.trace.id.to_bytes().to_vec();
    let error = error(span, request);
    Span {
        trace_id: trace_id.clone(),
        span_id: span.span.to_bytes().to_vec(),
        trace_state: span.trace.state.clone(),
        parent_span_id: span.trace.parent.map(|parent| parent.to_bytes().to_vec()).unwrap_or_default(),
        flags: FLAG_SAMPLED,
        name: name(span, request),
        kind: match span.kind {
            SpanKind::Client => WireKind::Client,
            SpanKind::Server => WireKind::Server,
        } as i32,
        start_time_unix_nano: start_ns,
        end_time_unix_nano: start_ns.saturating_add(duration_ns),
        attributes: attributes(span, request, error.as_deref()),
        links: span
            .link
            .map(|link| Link { trace_id, span_id: link.to_bytes().to_vec(), ..Link::default() })
            .into_iter()
            .collect(),
        status: error.map(|_| Status {
            code: status::StatusCode::Error as i32,
            message: if span.reason == CloseReason::Ok { String::new() } else { span.reason.as_str().into() },
        }),
        ..Span::default()
    }
}

fn unix_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// `package.Service` and `Method` of a gRPC path.
fn rpc(request: &RequestLine) -> Option<(&str, &str)> {
    let (service, method) = request.path.strip_prefix('/').filter(|_| request.grpc)?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
}

/// A closed list: other methods are the client's to invent.
fn known_method(method: &Method) -> Option<&str> {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::CONNECT,
        Method::OPTIONS,
        Method::TRACE,
        Method::PATCH,
    ];
    known.contains(method).then_some(method.as_str())
}

fn name(span: &FinishedSpan, request: &RequestLine) -> String {
    if let Some((service, method)) = rpc(request) {
        return format!("{service}/{method}");
    }
    let method = known_method(&request.method).unwrap_or("HTTP");
    match &span.live.state.lock().route {
        Some(route) => format!("{method} {route}"),
        None => method.into(),
    }
}

/// What `error.type` says; None: it went well. Client spans count 4xx as errors, server spans do not, as the conventions say.
fn error(span: &FinishedSpan, request: &RequestLine) -> Option<String> {
    if span.reason != CloseReason::Ok {
        return Some(span.reason.as_str().into());
    }
    if let Some(status) = span.grpc_status.filter(|_| request.grpc) {
        // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS are the server's fault.
        let failed = match span.kind {
            SpanKind::Client => status != 0,
            SpanKind::Server => matches!(status, 2 | 4 | 12 | 13 | 14 | 15),
        };
        return failed.then(|| status.to_string());
    }
    let status = span.status?;
    let failed = status.is_server_error() || (span.kind == SpanKind::Client && status.is_client_error());
    failed.then(|| status.as_str().to_owned())
}

fn attributes(span: &FinishedSpan, request: &RequestLine, error: Option<&str>) -> Vec<KeyValue> {
    let state = span.live.state.lock();
    let flow = &state.flow;
    let mut all = Vec::with_capacity(20);
    match known_method(&request.method) {
        Some(method) => all.push(text("http.request.method", method)),
        None => {
            all.push(text("http.request.method", "_OTHER"));
            all.push(text("http.request.method_original", request.method.as_str()));
        }
    }
    all.push(text("url.path", &*request.path));
    all.push(text("url.scheme", "http"));
    all.push(text("network.protocol.name", "http"));
    all.push(text("network.protocol.version", version_name(request.version)));
    if let Some(route) = &state.route {
        all.push(text("http.route", &**route));
    }
    if let Some(status) = span.status {
        all.push(number("http.response.status_code", u64::from(status.as_u16())));
    }
    if span.number > 1 {
        all.push(number("http.request.resend_count", u64::from(span.number - 1)));
    }
    if let Some(error) = error {
        all.push(text("error.type", error));
    }
    if let Some((service, method)) = rpc(request) {
        all.push(text("rpc.system", "grpc"));
        all.push(text("rpc.service", service));
        all.push(text("rpc.method", method));
        if let Some(status) = span.grpc_status {
            all.push(number("rpc.grpc.status_code", u64::from(status)));
        }
    }
    let to = span.to.as_ref().unwrap_or(&flow.destination);
    addresses(&mut all, span.kind, request, flow, to);
    mesh(&mut all, flow, to);
    if let Some(policy) = &state.policy {
        all.push(text("weft.policy", policy.to_string()));
    }
    for policy in &state.audited {
        all.push(text("weft.audited_by", policy.to_string()));
    }
    all.push(text("weft.close_reason", span.reason.as_str()));
    if span.kind == SpanKind::Server {
        all.push(number("http.request.body.size", span.live.sent()));
        all.push(number("http.response.body.size", span.live.received()));
    }
    all
}

/// Whom the client addressed, and who is at the other end of the connection.
fn addresses(all: &mut Vec<KeyValue>, kind: SpanKind, request: &RequestLine, flow: &Flow, to: &Party) {
    let addressed = request.authority.as_deref().and_then(|text| text.parse::<http::uri::Authority>().ok());
    if let Some(authority) = &addressed {
        all.push(text("server.address", authority.host().trim_matches(['[', ']'])));
    }
    let port = addressed.as_ref().and_then(http::uri::Authority::port_u16);
    if let Some(port) = port.or(to.address.filter(|_| addressed.is_none()).map(|address| address.port())) {
        all.push(number("server.port", u64::from(port)));
    }
    let mut peer = |address: SocketAddr| {
        all.push(text("network.peer.address", address.ip().to_string()));
        all.push(number("network.peer.port", u64::from(address.port())));
    };
    match kind {
        SpanKind::Client => {
            if let Some(address) = to.address {
                peer(address);
            }
        }
        SpanKind::Server => {
            if let Some(address) = flow.source.address {
                peer(address);
                all.push(text("client.address", address.ip().to_string()));
            }
        }
    }
}

fn mesh(all: &mut Vec<KeyValue>, flow: &Flow, to: &Party) {
    if let Some(principal) = &flow.source.principal {
        all.push(text("weft.source.principal", principal.to_string()));
    }
    if let Some(principal) = &to.principal {
        all.push(text("weft.destination.principal", principal.to_string()));
    }
    if let Some(pod) = super::live::pod_name(&flow.source) {
        all.push(text("weft.source.pod", pod));
    }
    if let Some(pod) = super::live::pod_name(to) {
        all.push(text("weft.destination.pod", pod));
    }
    if let Some(service) = &flow.service {
        all.push(text("weft.destination.service", service.to_string()));
    }
    all.push(text("weft.reporter", flow.reporter.as_str()));
    all.push(text("weft.security", flow.security.as_str()));
}
