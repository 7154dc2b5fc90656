//! The text of a dump is what people's `jq` reads: it changes on purpose, with `golden.json`.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use regex::Regex;

use super::*;
use crate::identity::NamespacedName;
use crate::model::{
    AppProtocol, Ejection, GrpcMethodMatch, InboundMode, ParentRef, Pattern, PolicyAction, Retry,
    RetryPolicy, RouteKind, ServicePort, Timeouts,
};

fn name(text: &str) -> NamespacedName {
    text.parse().unwrap()
}

fn header(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
    (HeaderName::from_static(name), HeaderValue::from_static(value))
}

fn pattern(text: &str) -> Pattern {
    Pattern(Regex::new(text).unwrap())
}

fn workload() -> Workload {
    Workload {
        uid: "0a1b-2c".parse().unwrap(),
        namespace: "shop".into(),
        name: "backend-1".into(),
        service_account: "backend".into(),
        node: "node1".into(),
        ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        enrolled: true,
        inbound_mode: InboundMode::Permissive,
        workload_name: "backend".into(),
        workload_kind: "deployment".into(),
        canonical_service: "backend".into(),
        canonical_revision: "v2".into(),
        app: "shop".into(),
        app_version: "2".into(),
        zone: "z1".into(),
        authorization_policies: vec![name("shop/only-front")],
        excluded_inbound_ports: vec![22],
        excluded_outbound_ports: vec![53],
        excluded_outbound_cidrs: vec!["192.0.2.0/24".parse().unwrap()],
        redirect: true,
        ready: true,
        terminating: false,
        port_protocols: [(8080, AppProtocol::Http)].into(),
        probe_ports: vec![8081],
    }
}

fn backend(filters: Vec<HttpFilter>) -> Backend {
    Backend { service: name("shop/backend"), port: 80, weight: 3, filters, invalid: false }
}

fn http_route() -> HttpRoute {
    let headers = HeaderModifier {
        set: vec![header("x-set", "1")],
        add: vec![header("x-add", "2")],
        remove: vec![HeaderName::from_static("x-gone")],
    };
    let matched = |path: PathMatch| HttpMatch {
        path: Some(path),
        method: Some(Method::GET),
        headers: vec![(HeaderName::from_static("a"), ValueMatch::Exact("b".into()))],
        query: vec![("q".into(), ValueMatch::Regex(pattern("[0-9]+")))],
    };
    let rule = HttpRule {
        name: "first".into(),
        matches: vec![
            matched(PathMatch::Exact("/a".into())),
            matched(PathMatch::Prefix("/b".into())),
            matched(PathMatch::Regex(pattern("/c.*"))),
        ],
        filters: vec![
            HttpFilter::RequestHeaders(headers.clone()),
            HttpFilter::Redirect {
                scheme: Some("https".into()),
                hostname: Some("example.com".into()),
                port: Some(443),
                path: Some(PathModifier::ReplaceFull("/new".into())),
                status: StatusCode::FOUND,
            },
            HttpFilter::Rewrite { hostname: None, path: Some(PathModifier::ReplacePrefix("/p".into())) },
            HttpFilter::Mirror { service: name("shop/copy"), port: 80, fraction: (1, 2) },
        ],
        backends: vec![backend(vec![HttpFilter::ResponseHeaders(headers)])],
        timeouts: Timeouts {
            request: Some(Duration::from_secs(2)),
            backend_request: Some(Duration::from_millis(500)),
        },
        retry: Some(Retry {
            codes: vec![StatusCode::BAD_GATEWAY],
            attempts: 2,
            backoff: Some(Duration::from_millis(25)),
        }),
    };
    HttpRoute {
        kind: RouteKind::Http,
        id: name("shop/split"),
        created_unix_s: 1,
        parents: vec![ParentRef { service: name("shop/backend"), port: Some(80) }],
        rules: vec![Arc::new(rule)],
    }
}

fn grpc_route() -> HttpRoute {
    let call = GrpcMethodMatch { service: Some(ValueMatch::Exact("shop.Cart".into())), method: None };
    let matched = HttpMatch { path: Some(PathMatch::Grpc(call)), ..HttpMatch::default() };
    let rule = HttpRule {
        name: "".into(),
        matches: vec![matched],
        filters: Vec::new(),
        backends: Vec::new(),
        timeouts: Timeouts::default(),
        retry: None,
    };
    let (kind, id) = (RouteKind::Grpc, name("shop/calls"));
    HttpRoute { kind, id, created_unix_s: 0, parents: Vec::new(), rules: vec![Arc::new(rule)] }
}

fn authorization() -> AuthorizationPolicy {
    let source = PolicySource {
        principals: vec![TextMatch::Exact("c/ns/shop/sa/front".into()), TextMatch::Prefix("c/ns/".into())],
        not_principals: vec![TextMatch::Suffix("/sa/bad".into()), TextMatch::Present],
        namespaces: vec!["shop".into()],
        not_namespaces: vec!["bank".into()],
        cidrs: vec!["10.0.0.0/8".parse().unwrap()],
        not_cidrs: vec!["10.1.0.0/16".parse().unwrap()],
    };
    let operation = PolicyOperation {
        ports: vec![8080],
        not_ports: vec![9090],
        methods: vec![Method::GET],
        not_methods: vec![Method::PUT],
        paths: vec![TextMatch::Prefix("/api/".into())],
        not_paths: vec![TextMatch::Exact("/api/no".into())],
        headers: vec![(HeaderName::from_static("x-team"), TextMatch::Present)],
    };
    let rules = vec![PolicyRule { from: vec![source], to: vec![operation] }];
    AuthorizationPolicy { id: name("shop/only-front"), action: PolicyAction::Allow, rules }
}

fn traffic() -> TrafficPolicy {
    TrafficPolicy {
        id: name("shop/backend"),
        created_unix_s: 5,
        services: vec!["backend".into()],
        retry: Some(RetryPolicy {
            codes: vec![StatusCode::SERVICE_UNAVAILABLE],
            attempts: 2,
            backoff: None,
            methods: vec![Method::GET],
            budget_percent: 20,
            budget_min_per_s: 10,
            per_try_timeout: Some(Duration::from_secs(1)),
        }),
        connect_timeout: Some(Duration::from_secs(3)),
        ejection: Some(Ejection {
            consecutive_failures: 5,
            base_ejection: Duration::from_secs(30),
            max_ejected_percent: 50,
        }),
        max_connections: Some(100),
        max_pending_requests: None,
    }
}

/// One of each kind, with everything that it can have.
fn resources() -> Vec<Resource> {
    let mesh = Mesh {
        trust_domain: "cluster.local".parse().unwrap(),
        roots: Vec::new(),
        enrolled_namespaces: vec!["shop".into()],
    };
    let port = ServicePort { name: "http".into(), port: 80, app_protocol: AppProtocol::Http };
    let service = Service {
        id: name("shop/backend"),
        vips: vec!["10.96.0.9".parse().unwrap()],
        ports: vec![port],
        node_local: false,
    };
    let endpoint = Endpoint {
        service: name("shop/backend"),
        ip: "10.0.0.1".parse().unwrap(),
        workload: Some("0a1b-2c".parse().unwrap()),
        ports: [(80, 8080)].into(),
        ready: true,
        serving: true,
        terminating: false,
        node: "node1".into(),
        zone: "z1".into(),
    };
    vec![
        Resource::Mesh(mesh.into()),
        Resource::Workload(workload().into()),
        Resource::Service(service.into()),
        Resource::Endpoint(endpoint.into()),
        Resource::HttpRoute(http_route().into()),
        Resource::HttpRoute(grpc_route().into()),
        Resource::AuthorizationPolicy(authorization().into()),
        Resource::TrafficPolicy(traffic().into()),
    ]
}

#[test]
fn every_kind_is_shown_whole_and_by_names() {
    let shown: Vec<Value> = resources().iter().map(|one| resource(one, Version(7))).collect();
    let golden: Value = serde_json::from_str(include_str!("golden.json")).unwrap();
    assert_eq!(Value::from(shown.clone()), golden, "{:#}", Value::from(shown));
}
