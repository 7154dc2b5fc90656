//! Traces of a lab: an OpenTelemetry collector beside the nodes, and a listener that keeps what it exports.
//!
//! The nodes send OTLP over gRPC to the collector, which sends OTLP as JSON to the listener: what is read here went
//! through a real collector. Without one, the nodes send OTLP over HTTP straight to the listener.
//! Start reading at [`Traces::start`].

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use prost::Message as _;
use serde_json::Value;
use tokio::net::TcpListener;

use super::network::{UNDERLAY_IP, underlay_netns};
use super::process::{Place, start};
use super::{Lab, netns, wait};

/// Of the set-up script, which builds it.
const COLLECTOR: &str = "collector-0.160.0/otelcol";
const COLLECTOR_PORT: u16 = 4317;
const LISTENER_PORT: u16 = 4318;
const START_WAIT_MAX: Duration = Duration::from_secs(20);
/// A batch holds 512 spans of about 1 kB; as JSON a few times that.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Nobody reads more from one lab; further spans are not kept.
const SPANS_MAX: usize = 100_000;

/// A span as it arrived, with what tests look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub trace: String,
    pub id: String,
    /// Empty for a root.
    pub parent: String,
    pub name: String,
    /// As OTLP numbers it: 2 is a server's, 3 a client's.
    pub kind: i64,
    pub service: String,
    pub attributes: BTreeMap<String, String>,
    pub links: usize,
    pub is_error: bool,
    pub start_ns: u64,
    pub end_ns: u64,
}

impl Span {
    pub fn is_client(&self) -> bool {
        self.kind == 3
    }

    pub fn is_server(&self) -> bool {
        self.kind == 2
    }

    /// An attribute's value as text; empty if absent.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    pub fn millis(&self) -> f64 {
        Duration::from_nanos(self.end_ns.saturating_sub(self.start_ns)).as_secs_f64() * 1e3
    }
}

type Kept = Arc<Mutex<Vec<Span>>>;

/// What a lab's nodes exported so far.
#[derive(Debug)]
pub struct Traces {
    kept: Kept,
    through_collector: bool,
}

/// The collector that `scripts/setup.sh --tests` builds, if it is there.
pub fn collector() -> Option<PathBuf> {
    Some(crate::tools::cache_directory().join(COLLECTOR)).filter(|p| p.exists())
}

impl Traces {
    /// Starts the listener, and the collector before it if there is one.
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let kept = Kept::default();
        listen(&underlay_netns(lab.name()), kept.clone()).context("listening for traces")?;
        let collector = collector();
        if let Some(binary) = &collector {
            start_collector(lab, binary).context("the OpenTelemetry collector")?;
        }
        Ok(Self { kept, through_collector: collector.is_some() })
    }

    /// Whether a real collector is between the nodes and the listener.
    pub fn through_collector(&self) -> bool {
        self.through_collector
    }

    /// What makes a node send its spans here, soon.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let (port, protocol) = match self.through_collector {
            true => (COLLECTOR_PORT, "grpc"),
            false => (LISTENER_PORT, "http/protobuf"),
        };
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{UNDERLAY_IP}:{port}")),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
            ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()),
            // Only what an application asks to be traced: loads of thousands of requests are not.
            ("OTEL_TRACES_SAMPLER", "parentbased_always_off".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// The spans of one trace so far, in the order of their start.
    pub fn of(&self, trace: &str) -> Vec<Span> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut spans: Vec<Span> = kept.iter().filter(|s| s.trace == trace).cloned().collect();
        spans.sort_by_key(|s| s.start_ns);
        spans
    }
}

fn start_collector(lab: &Lab, binary: &Path) -> Result<()> {
    let directory = lab.directory().join("collector");
    fs::create_dir_all(&directory)?;
    let settings = format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: \"0.0.0.0:{COLLECTOR_PORT}\"}}}}}}}}
exporters:
  otlphttp:
    traces_endpoint: http://{UNDERLAY_IP}:{LISTENER_PORT}/v1/traces
    encoding: json
    compression: none
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines: {{traces: {{receivers: [otlp], exporters: [otlphttp]}}}}
"
    );
    let file = directory.join("settings.yaml");
    fs::write(&file, settings)?;
    let mut command = Command::new(binary);
    command.arg("--config").arg(&file);
    let netns = underlay_netns(lab.name());
    let place =
        Place { netns: netns.clone(), cgroup: lab.cgroup().join("tools/collector"), files: Vec::new() };
    let log = lab.logs_directory().join("collector.log");
    start(command, &place, &log)?;
    wait::until_true(START_WAIT_MAX, "the collector listens", || {
        netns::inside(&netns, || super::container::listens(COLLECTOR_PORT)).unwrap_or(false)
    })
    .with_context(|| super::mesh::tail(&log))
}

/// Listens inside the namespace, on a thread that lives as long as this process.
fn listen(netns: &str, kept: Kept) -> Result<()> {
    let socket = netns::inside(netns, || std::net::TcpListener::bind(("0.0.0.0", LISTENER_PORT)))??;
    socket.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("traces".into()).spawn(move || {
        // A listener that fails keeps no spans; the test that waits for them says so.
        let _ = runtime.block_on(serve(socket, kept));
    })?;
    Ok(())
}

async fn serve(socket: std::net::TcpListener, kept: Kept) -> Result<()> {
    let listener = TcpListener::from_std(socket)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let kept = kept.clone();
        let service = hyper::service::service_fn(move |request| take(request, kept.clone()));
        tokio::spawn(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
        );
    }
}

async fn take(request: Request<Incoming>, kept: Kept) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_json = request.headers().get("content-type").is_some_and(|t| t.as_bytes().ends_with(b"json"));
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    let spans = body.map_err(|e| anyhow!(e)).and_then(|body| match is_json {
        true => Ok(from_json(&serde_json::from_slice(&body.to_bytes())?)),
        false => Ok(from_wire(ExportTraceServiceRequest::decode(body.to_bytes())?)),
    });
    // An empty answer: in JSON and on the wire, "all was taken".
    let mut response = Response::new(Full::new(if is_json { Bytes::from("{}") } else { Bytes::new() }));
    match spans {
        Ok(spans) => {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            let room = SPANS_MAX.saturating_sub(kept.len());
            kept.extend(spans.into_iter().take(room));
        }
        Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    Ok(response)
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// OTLP in JSON: ids in hexadecimal, 64-bit numbers as text.
fn from_json(export: &Value) -> Vec<Span> {
    let mut spans = Vec::new();
    for resource in list(export, "resourceSpans") {
        let of_resource = json_attributes(&resource["resource"]);
        let service = of_resource.get("service.name").cloned().unwrap_or_default();
        for span in list(resource, "scopeSpans").flat_map(|scope| list(scope, "spans")) {
            let text = |key: &str| span[key].as_str().unwrap_or_default().to_owned();
            spans.push(Span {
                trace: text("traceId"),
                id: text("spanId"),
                parent: text("parentSpanId"),
                name: text("name"),
                kind: span["kind"].as_i64().unwrap_or_default(),
                service: service.clone(),
                attributes: json_attributes(span),
                links: list(span, "links").count(),
                is_error: span["status"]["code"] == 2,
                start_ns: text("startTimeUnixNano").parse().unwrap_or_default(),
                end_ns: text("endTimeUnixNano").parse().unwrap_or_default(),
            });
        }
    }
    spans
}

fn json_attributes(of: &Value) -> BTreeMap<String, String> {
    let one = |attribute: &Value| {
        let value = attribute["value"].as_object()?.values().next()?;
        let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        Some((attribute["key"].as_str()?.to_owned(), text))
    };
    list(of, "attributes").filter_map(one).collect()
}

fn from_wire(export: ExportTraceServiceRequest) -> Vec<Span> {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let mut spans = Vec::new();
    for resource in export.resource_spans {
        let of_resource = wire_attributes(resource.resource.map(|r| r.attributes).unwrap_or_default());
        let service = of_resource.get("service.name").cloned().unwrap_or_default();
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                name: span.name,
                kind: span.kind.into(),
                service: service.clone(),
                attributes: wire_attributes(span.attributes),
                links: span.links.len(),
                is_error: span.status.is_some_and(|s| s.code == 2),
                start_ns: span.start_time_unix_nano,
                end_ns: span.end_time_unix_nano,
            });
        }
    }
    spans
}

fn wire_attributes(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let one = |attribute: KeyValue| {
        let text = match attribute.value?.value? {
            any_value::Value::StringValue(text) => text,
            any_value::Value::IntValue(number) => number.to_string(),
            any_value::Value::BoolValue(flag) => flag.to_string(),
            other => format!("{other:?}"),
        };
        Some((attribute.key, text))
    };
    attributes.into_iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::AnyValue;
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as WireSpan, Status};

    use super::*;

    #[test]
    fn json_and_wire_say_the_same() {
        let text = |key: &str, value: &str| KeyValue {
            key: key.into(),
            value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.into())) }),
        };
        let wire = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource {
                    attributes: vec![text("service.name", "shop")],
                    ..Resource::default()
                }),
                scope_spans: vec![ScopeSpans {
                    spans: vec![WireSpan {
                        trace_id: vec![1; 16],
                        span_id: vec![2; 8],
                        name: "GET".into(),
                        kind: 3,
                        start_time_unix_nano: 5,
                        end_time_unix_nano: 9,
                        attributes: vec![text("url.path", "/")],
                        status: Some(Status { code: 2, ..Status::default() }),
                        ..WireSpan::default()
                    }],
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        let json = serde_json::json!({"resourceSpans": [{
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]},
            "scopeSpans": [{"spans": [{
                "traceId": "01".repeat(16), "spanId": "02".repeat(8), "name": "GET", "kind": 3,
                "startTimeUnixNano": "5", "endTimeUnixNano": "9", "status": {"code": 2},
                "attributes": [{"key": "url.path", "value": {"stringValue": "/"}}],
            }]}],
        }]});
        assert_eq!(from_json(&json), from_wire(wire));
        assert_eq!(from_json(&json)[0].attribute("url.path"), "/");
    }
}
