//! Telemetry end to end inside the process: records in, metrics, log lines and OTLP messages out.

use std::sync::atomic::Ordering;
use std::sync::mpsc;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use weft_proto::model::InboundMode;

use super::*;

const WAIT_MAX: Duration = Duration::from_secs(20);

fn workload(name: &str, service: &str) -> Arc<Workload> {
    Arc::new(Workload {
        uid: format!("uid-{name}").parse().unwrap(),
        namespace: "shop".into(),
        name: name.into(),
        service_account: "default".into(),
        node: "n1".into(),
        ips: vec!["10.0.0.1".parse().unwrap()],
        enrolled: true,
        inbound_mode: InboundMode::Strict,
        workload_name: service.into(),
        workload_kind: "Deployment".into(),
        canonical_service: service.into(),
        canonical_revision: "v1".into(),
        app: service.into(),
        app_version: "v1".into(),
        zone: "".into(),
        authorization_policies: Vec::new(),
        excluded_inbound_ports: Vec::new(),
        excluded_outbound_ports: Vec::new(),
        excluded_outbound_cidrs: Vec::new(),
        redirect: true,
        ready: true,
        terminating: false,
        port_protocols: std::collections::BTreeMap::new(),
        probe_ports: Vec::new(),
    })
}

fn party(name: &str, service: &str) -> Party {
    Party {
        workload: Some(workload(name, service)),
        principal: Some(format!("spiffe://cluster.local/ns/shop/sa/{service}").parse().unwrap()),
        address: Some("10.0.0.1:8080".parse().unwrap()),
    }
}

fn flow(reporter: Reporter) -> Flow {
    Flow {
        reporter,
        source: party("frontend-1", "frontend"),
        destination: party("backend-1", "backend"),
        service: Some("shop/backend".parse().unwrap()),
        security: Security::MutualTls,
    }
}

fn request(telemetry: &Telemetry, reporter: Reporter, headers: &HeaderMap) -> RequestRecord {
    let start = RequestStart {
        method: &Method::GET,
        path: "/items/7?secret=1",
        authority: Some("backend:80"),
        version: Version::HTTP_11,
        headers,
    };
    telemetry.request(flow(reporter), &start)
}

fn line<'a>(text: &'a str, start: &str, containing: &[&str]) -> &'a str {
    text.lines()
        .find(|line| line.starts_with(start) && containing.iter().all(|part| line.contains(part)))
        .unwrap_or_else(|| panic!("no {start} with {containing:?} in\n{text}"))
}

#[test]
fn a_connection_is_counted_while_it_lives_and_once_at_its_end() {
    let telemetry = Telemetry::start(&TelemetrySettings::default()).unwrap();
    let mut record = telemetry.connection(flow(Reporter::Source));
    record.destination(party("backend-1", "backend"), Security::MutualTls);
    record.bytes().sent.store(100, Ordering::Relaxed);
    record.bytes().received.store(7, Ordering::Relaxed);
    assert_eq!(telemetry.connections().flows.len(), 1);
    let text = telemetry.metrics(TextFormat::Prometheus);
    let value = |text: &str, name: &str| {
        line(text, name, &["reporter=\"source\""]).rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(value(&text, "istio_tcp_received_bytes_total"), "100");
    assert_eq!(value(&text, "istio_tcp_sent_bytes_total"), "7");
    assert_eq!(value(&text, "istio_tcp_connections_opened_total"), "1");
    assert_eq!(value(&text, "istio_tcp_connections_closed_total"), "0");
    assert!(text.contains("weft_connections_live 1\n"));
    record.bytes().sent.store(150, Ordering::Relaxed);
    record.finish(CloseReason::Ok, None);
    let text = telemetry.metrics(TextFormat::Prometheus);
    assert_eq!(value(&text, "istio_tcp_received_bytes_total"), "150");
    assert_eq!(value(&text, "istio_tcp_connections_closed_total"), "1");
    assert!(text.contains("weft_connections_live 0\n"));
    assert!(text.contains("weft_connections_closed_total{reporter=\"source\",reason=\"ok\"} 1\n"));
    assert!(telemetry.connections().flows.is_empty());
}

/// The text that dashboards read, to the letter.
#[test]
fn requests_have_the_labels_that_kiali_needs() {
    let telemetry = Telemetry::start(&TelemetrySettings::default()).unwrap();
    let record = request(&telemetry, Reporter::Destination, &HeaderMap::new());
    record.bytes().received.store(42, Ordering::Relaxed);
    record.finish(Some(StatusCode::OK), None, CloseReason::Ok);
    drop(request(&telemetry, Reporter::Destination, &HeaderMap::new()));
    let text = telemetry.metrics(TextFormat::Prometheus);
    let expected = concat!(
        "istio_requests_total{reporter=\"destination\",source_workload=\"frontend\",",
        "source_workload_namespace=\"shop\",source_canonical_service=\"frontend\",",
        "source_canonical_revision=\"v1\",source_app=\"frontend\",source_version=\"v1\",",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/frontend\",",
        "destination_workload=\"backend\",destination_workload_namespace=\"shop\",",
        "destination_canonical_service=\"backend\",destination_canonical_revision=\"v1\",",
        "destination_app=\"backend\",destination_version=\"v1\",",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/backend\",",
        "destination_service=\"backend.shop.svc.cluster.local\",destination_service_name=\"backend\",",
        "destination_service_namespace=\"shop\",request_protocol=\"http\",",
        "connection_security_policy=\"mutual_tls\",",
        "response_code=\"200\",response_flags=\"-\",grpc_response_status=\"\"} 1\n"
    );
    assert!(text.contains(expected), "{text}");
    line(&text, "istio_requests_total{", &["response_code=\"0\",response_flags=\"DC\""]);
    for name in ["istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"] {
        line(&text, &format!("# TYPE {name} histogram"), &[]);
        assert!(line(&text, &format!("{name}_count{{"), &["response_code=\"200\""]).ends_with(" 1"));
        assert!(line(&text, &format!("{name}_bucket{{"), &["200", "le=\"+Inf\""]).ends_with(" 1"));
    }
    assert!(line(&text, "istio_response_bytes_sum{", &["200"]).ends_with(" 42"));
    assert!(line(&text, "istio_response_bytes_bucket{", &["200", "le=\"25\""]).ends_with(" 0"));
    assert!(line(&text, "istio_response_bytes_bucket{", &["200", "le=\"50\""]).ends_with(" 1"));
    let open = telemetry.metrics(TextFormat::OpenMetrics);
    assert!(open.contains("# TYPE istio_requests counter\n") && open.ends_with("# EOF\n"));
}

#[test]
fn label_sets_are_bounded_and_leave_when_idle() {
    let telemetry = Telemetry::start(&TelemetrySettings::default()).unwrap();
    for i in 0..metrics::flow::FLOW_SERIES_MAX + 5 {
        let mut flow = flow(Reporter::Source);
        flow.service = Some(format!("shop/s{i}").parse().unwrap());
        telemetry.connection(flow).finish(CloseReason::Ok, None);
    }
    let text = telemetry.metrics(TextFormat::Prometheus);
    let overflow = line(&text, "istio_tcp_connections_closed_total{", &["destination_workload=\"overflow\""]);
    assert!(overflow.parse::<u64>().is_err() && overflow.ends_with(" 5"), "{overflow}");
    let after = telemetry.inner.metrics.render(TextFormat::Prometheus, Duration::from_secs(3 * 3600));
    assert!(!after.contains("istio_tcp_connections_closed_total{"));
    assert!(after.contains("weft_metric_flow_series 0\n"));
}

#[test]
fn the_log_has_one_json_line_per_record_whatever_is_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let telemetry = Telemetry::start(&TelemetrySettings {
        log_level: LogLevel::Errors,
        log_sink: LogSink::File(path.clone()),
        ..TelemetrySettings::default()
    })
    .unwrap();
    let odd = "quote \" line\nfeed \u{1} ü";
    telemetry.connection(flow(Reporter::Source)).finish(CloseReason::Ok, None);
    telemetry.connection(flow(Reporter::Source)).finish(CloseReason::PolicyDenied, Some(odd.into()));
    let mut record = request(&telemetry, Reporter::Destination, &HeaderMap::new());
    record.policy("shop/deny".parse().unwrap());
    record.finish(Some(StatusCode::BAD_GATEWAY), None, CloseReason::Ok);
    assert!(telemetry.inner.log.as_ref().unwrap().flush(WAIT_MAX));
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(lines[0]["reason"], "policy_denied");
    assert_eq!(lines[0]["detail"], odd);
    assert_eq!(lines[0]["source_principal"], "spiffe://cluster.local/ns/shop/sa/frontend");
    assert_eq!(lines[1]["status"], 502);
    assert_eq!(lines[1]["policy"], "shop/deny");
    assert_eq!(lines[1]["path"], "/items/7");
    assert!(telemetry.metrics(TextFormat::Prometheus).contains("weft_access_log_lines_total 2\n"));
}

#[test]
fn a_full_disk_costs_lines_and_nothing_else() {
    let telemetry = Telemetry::start(&TelemetrySettings {
        log_level: LogLevel::All,
        log_sink: LogSink::File("/dev/full".into()),
        ..TelemetrySettings::default()
    })
    .unwrap();
    for _ in 0..10 {
        telemetry.connection(flow(Reporter::Source)).finish(CloseReason::Ok, None);
    }
    assert!(telemetry.inner.log.as_ref().unwrap().flush(WAIT_MAX));
    let text = telemetry.metrics(TextFormat::Prometheus);
    assert!(text.contains("weft_access_log_dropped_total{cause=\"sink\"} 10\n"), "{text}");
}

struct Receiver(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        assert_eq!(request.metadata().get("x-key").unwrap(), "v");
        self.0.send(request.into_inner()).map_err(|_| tonic::Status::internal("the test is over"))?;
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn traced(endpoint: &str, protocol: ExportProtocol) -> TelemetrySettings {
    let export = ExportSettings {
        endpoint: endpoint.parse().unwrap(),
        protocol,
        headers: vec![("x-key".parse().unwrap(), HeaderValue::from_static("v"))],
        timeout: Duration::from_secs(5),
        gzip: true,
        ca_file: None,
        client_certificate_file: None,
        client_key_file: None,
    };
    let otel = OtelSettings { export: Some(export), ..OtelSettings::default() };
    TelemetrySettings { otel, ..TelemetrySettings::default() }
}

fn attribute<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a Value> {
    attributes.iter().find(|pair| pair.key == name)?.value.as_ref()?.value.as_ref()
}

fn string(value: &str) -> Option<Value> {
    Some(Value::StringValue(value.into()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retried_request_is_a_tree_in_two_resources() {
    let (sender, received) = mpsc::channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let service =
        TraceServiceServer::new(Receiver(sender)).accept_compressed(tonic::codec::CompressionEncoding::Gzip);
    let incoming = futures_util::stream::unfold(listener, async |listener| {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let server =
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));

    let telemetry = Telemetry::start(&traced(&endpoint, ExportProtocol::Grpc)).unwrap();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", HeaderValue::from_str(&format!("00-{trace}-00f067aa0ba902b7-01")).unwrap());
    headers.insert("tracestate", HeaderValue::from_static("a=1"));
    let mut record = request(&telemetry, Reporter::Source, &headers);
    record.route("/items");
    let to = party("backend-1", "backend");
    record.attempt(1, &to).finish(Some(StatusCode::SERVICE_UNAVAILABLE), None, CloseReason::Ok);
    let second = record.attempt(2, &to);
    let mut forwarded = headers.clone();
    second.propagate(&mut forwarded);
    let mut inbound = request(&telemetry, Reporter::Destination, &forwarded);
    inbound.route("/items");
    inbound.finish(Some(StatusCode::OK), None, CloseReason::Ok);
    second.finish(Some(StatusCode::OK), None, CloseReason::Ok);
    record.finish(Some(StatusCode::OK), None, CloseReason::Ok);
    telemetry.shutdown(WAIT_MAX).await;

    let batch = received.try_recv().unwrap();
    let service_of = |attributes: &[KeyValue]| attribute(attributes, "service.name").cloned();
    let spans_of = |service: &str| -> Vec<Span> {
        let of = batch
            .resource_spans
            .iter()
            .find(|resource| service_of(&resource.resource.as_ref().unwrap().attributes) == string(service));
        of.unwrap().scope_spans[0].spans.clone()
    };
    let (clients, servers) = (spans_of("frontend"), spans_of("backend"));
    assert_eq!((batch.resource_spans.len(), clients.len(), servers.len()), (2, 2, 1));
    for span in clients.iter().chain(&servers) {
        assert_eq!(span.name, "GET /items");
        assert_eq!(span.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes());
        assert_eq!(span.trace_state, "a=1");
        assert_eq!(attribute(&span.attributes, "url.path").cloned(), string("/items/7"));
    }
    assert!(clients.iter().all(|span| span.parent_span_id == 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes()));
    assert_eq!(servers[0].parent_span_id, clients[1].span_id);
    assert_eq!(attribute(&clients[0].attributes, "error.type").cloned(), string("503"));
    assert_eq!(attribute(&clients[1].attributes, "http.request.resend_count"), Some(&Value::IntValue(1)));
    let principal = attribute(&servers[0].attributes, "weft.source.principal").cloned();
    assert_eq!(principal, string("spiffe://cluster.local/ns/shop/sa/frontend"));
    let text = telemetry.metrics(TextFormat::OpenMetrics);
    assert!(text.contains("weft_spans_exported_total 3\n"), "{text}");
    assert!(text.contains("weft_retries_total 1\n"));
    line(&text, "istio_request_duration_milliseconds_bucket", &[&format!("# {{trace_id=\"{trace}\"}}")]);
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_takes_gzipped_protobuf_at_its_path() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = Vec::new();
        let (head, length) = loop {
            stream.read_buf(&mut read).await.unwrap();
            let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
            let head = String::from_utf8(read[..end].to_vec()).unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            break (head.clone(), end + 4 + length.parse::<usize>().unwrap());
        };
        while read.len() < length {
            stream.read_buf(&mut read).await.unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        head
    });
    let telemetry = Telemetry::start(&traced(&endpoint, ExportProtocol::HttpProtobuf)).unwrap();
    // No parent, no attempt: the failure is still one span.
    let record = request(&telemetry, Reporter::Source, &HeaderMap::new());
    record.finish(Some(StatusCode::NOT_FOUND), None, CloseReason::NoRoute);
    telemetry.shutdown(WAIT_MAX).await;
    let head = server.await.unwrap();
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    for part in ["content-encoding: gzip", "content-type: application/x-protobuf", "x-key: v"] {
        assert!(head.contains(part), "{head}");
    }
    assert!(telemetry.metrics(TextFormat::Prometheus).contains("weft_spans_exported_total 1\n"));
}

#[test]
fn a_collector_that_is_down_costs_spans_and_nothing_else() {
    let mut settings = traced("http://127.0.0.1:9", ExportProtocol::Grpc);
    settings.otel.batch =
        BatchSettings { queue_spans_max: 8, batch_spans_max: 2, ..BatchSettings::default() };
    let telemetry = Telemetry::start(&settings).unwrap();
    let started = Instant::now();
    for _ in 0..100 {
        let record = request(&telemetry, Reporter::Destination, &HeaderMap::new());
        record.finish(Some(StatusCode::OK), None, CloseReason::Ok);
    }
    // 100 requests without a pause, whatever the exporter waits for: its time-out of 30 s would show.
    assert!(started.elapsed() < Duration::from_secs(5));
    let text = telemetry.metrics(TextFormat::Prometheus);
    let dropped: u64 = line(&text, "weft_spans_dropped_total{cause=\"queue\"}", &[])
        .rsplit(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(dropped >= 90, "{dropped}");
    assert!(line(&text, "istio_requests_total{", &["response_code=\"200\""]).ends_with(" 100"));
}

#[test]
fn without_an_exporter_contexts_pass_through_untouched() {
    let telemetry = Telemetry::start(&TelemetrySettings::default()).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(
        "traceparent",
        HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    );
    let mut record = request(&telemetry, Reporter::Source, &headers);
    let mut forwarded = headers.clone();
    let attempt = record.attempt(1, &Party::default());
    attempt.propagate(&mut forwarded);
    record.propagate(&mut forwarded);
    assert_eq!(forwarded, headers);
    assert_eq!(record.trace_id().as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
}
