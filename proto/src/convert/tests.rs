//! What the edge promises: what goes out comes back equal; what is wrong is refused by name of field and value.

use proptest::prelude::*;

use super::*;
use crate::v1::resource::Body;

fn workload_wire() -> v1::Workload {
    v1::Workload {
        uid: "0a1b-2c".into(),
        namespace: "shop".into(),
        name: "backend-1".into(),
        service_account: "backend".into(),
        node: "node-1".into(),
        ips: vec!["10.0.0.1".into(), "fd00::1".into()],
        enrolled: true,
        inbound_mode: v1::InboundMode::Strict.into(),
        workload_name: "backend".into(),
        workload_kind: "deployment".into(),
        port_protocols: [(8080, v1::AppProtocol::Http.into())].into(),
        ..Default::default()
    }
}

fn wire(kind: v1::Kind, name: &str, body: Body) -> v1::Resource {
    v1::Resource {
        key: Some(v1::ResourceKey { kind: kind.into(), name: name.into() }),
        version: 7,
        body: Some(body),
    }
}

fn refused(kind: v1::Kind, name: &str, body: Body) -> String {
    resource(wire(kind, name, body)).unwrap_err().to_string()
}

#[test]
fn a_bad_workload_is_refused_by_field_and_value() {
    type Break = fn(&mut v1::Workload);
    let cases: [(Break, &str); 8] = [
        (|w| w.probe_ports = vec![80, 0], "probe_ports[1]: \"0\""),
        (|w| w.ips = vec!["10.0.0.256".into()], "ips[0]: \"10.0.0.256\""),
        (|w| w.ips = vec!["::ffff:10.0.0.1".into()], "ips[0]"),
        (|w| w.inbound_mode = 9, "inbound_mode: \"9\""),
        (|w| w.port_protocols = [(70_000, 1)].into(), "port_protocols: \"70000\""),
        (|w| w.port_protocols = [(80, 77)].into(), "port_protocols: \"77\""),
        (|w| w.excluded_inbound_ports = vec![1; LIST_LENGTH_MAX + 1], "excluded_inbound_ports: \"1025\""),
        (|w| w.service_account = "../x".into(), "service_account: \"../x\""),
    ];
    for (break_it, expected) in cases {
        let mut bad = workload_wire();
        break_it(&mut bad);
        let error = refused(v1::Kind::Workload, "0a1b-2c", Body::Workload(bad));
        assert!(error.contains(expected), "{error} does not contain {expected}");
        assert!(error.contains("Workload 0a1b-2c"), "{error}");
    }
}

#[test]
fn a_pod_without_a_sandbox_is_valid() {
    let mut scheduled = workload_wire();
    scheduled.ips.clear();
    scheduled.probe_ports = vec![8080, 9090];
    let sent = wire(v1::Kind::Workload, "0a1b-2c", Body::Workload(scheduled));
    let (_, _, Resource::Workload(pod)) = resource(sent).unwrap() else { panic!("a workload") };
    assert!(pod.ips.is_empty());
    assert_eq!(pod.probe_ports, [8080, 9090]);
}

#[test]
fn the_enrolled_namespaces_are_sorted_names() {
    let mesh = |names: &[&str]| {
        let enrolled_namespaces = names.iter().map(|name| (*name).to_owned()).collect();
        let (trust_domain, roots_der) = ("cluster.local".to_owned(), vec![vec![1]]);
        Body::Mesh(v1::Mesh { trust_domain, roots_der, enrolled_namespaces })
    };
    let (_, _, Resource::Mesh(mesh_of_two)) =
        resource(wire(v1::Kind::Mesh, "mesh", mesh(&["shop", "bank"]))).unwrap()
    else {
        panic!("a mesh")
    };
    assert_eq!(mesh_of_two.enrolled_namespaces, ["bank".into(), "shop".into()]);
    let error = refused(v1::Kind::Mesh, "mesh", mesh(&["shop", "../x"]));
    assert!(error.contains("enrolled_namespaces[1]: \"../x\""), "{error}");
}

#[test]
fn a_key_must_name_the_resource_it_comes_with() {
    let error = refused(v1::Kind::Workload, "other", Body::Workload(workload_wire()));
    assert!(error.contains("key: \"other\""), "{error}");
    let error = refused(v1::Kind::Service, "shop/backend", Body::Workload(workload_wire()));
    assert!(error.contains("does not name"), "{error}");
    for (kind, name) in [(0, "mesh"), (99, "mesh"), (1, "x"), (3, "shop"), (4, "shop/b"), (4, "shop/b/1.2.3")]
    {
        assert!(resource_key(&v1::ResourceKey { kind, name: name.into() }).is_err(), "{kind} {name}");
    }
}

fn exactly(text: &str) -> Option<v1::StringMatch> {
    Some(v1::StringMatch { kind: Some(v1::string_match::Kind::Exact(text.into())) })
}

#[test]
fn each_kind_of_route_has_its_own_matches() {
    let rule = |one: v1::HttpMatch| v1::HttpRule { matches: vec![one], ..Default::default() };
    let call = |service: Option<&str>, method: Option<&str>| {
        let (service, method) = (service.and_then(exactly), method.and_then(exactly));
        v1::HttpMatch { grpc: Some(v1::GrpcMethodMatch { service, method }), ..Default::default() }
    };
    let path = v1::HttpMatch { path: exactly("/a"), ..Default::default() };
    let both = v1::HttpMatch { path: exactly("/a"), ..call(Some("a"), None) };
    let grpc = |one| refused(v1::Kind::GrpcRoute, "shop/r", Body::GrpcRoute(route_wire(rule(one))));
    for (error, expected) in [
        (grpc(path), "GRPCRoute shop/r rules[0].matches[0].path"),
        (grpc(both.clone()), "matches[0].path"),
        (grpc(call(None, None)), "matches[0].grpc: \"\""),
        (grpc(call(Some(""), None)), "matches[0].grpc.service: \"\""),
        (grpc(call(Some("a"), Some("b/c"))), "matches[0].grpc.method: \"b/c\""),
        (refused(v1::Kind::HttpRoute, "shop/r", Body::HttpRoute(route_wire(rule(both)))), "matches[0].path"),
        (
            refused(v1::Kind::HttpRoute, "shop/r", Body::HttpRoute(route_wire(rule(call(Some("a"), None))))),
            "matches[0].grpc",
        ),
        // Of one name, but not of one kind.
        (
            refused(v1::Kind::HttpRoute, "shop/r", Body::GrpcRoute(route_wire(v1::HttpRule::default()))),
            "does not name",
        ),
    ] {
        assert!(error.contains(expected), "{error} does not contain {expected}");
    }
}

fn route_wire(rule: v1::HttpRule) -> v1::HttpRoute {
    v1::HttpRoute { namespace: "shop".into(), name: "r".into(), rules: vec![rule], ..Default::default() }
}

#[test]
fn a_bad_rule_is_refused_by_field_and_value() {
    use v1::string_match::Kind::{Exact, Prefix, Regex};
    let path = |kind| v1::HttpRule {
        matches: vec![v1::HttpMatch {
            path: Some(v1::StringMatch { kind: Some(kind) }),
            ..Default::default()
        }],
        ..Default::default()
    };
    let retry = |retry| v1::HttpRule { retry: Some(retry), ..Default::default() };
    let cases = [
        (path(Exact("x".into())), "rules[0].matches[0].path.exact: \"x\""),
        (path(Prefix("/a?b".into())), "path.prefix: \"/a?b\""),
        (path(Regex("(".into())), "path.regex: \"(\""),
        (path(Regex("a)|(?:b".into())), "path.regex"),
        (path(Regex(r"[\w]{1000}{1000}".into())), "path.regex"),
        (path(Regex("a".repeat(PATTERN_BYTES_MAX + 1))), "is longer"),
        (retry(v1::Retry { codes: vec![200], ..Default::default() }), "rules[0].retry.codes[0]: \"200\""),
        (retry(v1::Retry { attempts: 1000, ..Default::default() }), "retry.attempts: \"1000\""),
        (
            v1::HttpRule {
                timeouts: Some(v1::Timeouts { request_ms: u64::MAX, backend_request_ms: 0 }),
                ..Default::default()
            },
            "timeouts.request_ms",
        ),
        (
            v1::HttpRule {
                filters: vec![v1::HttpFilter {
                    filter: Some(v1::http_filter::Filter::RequestHeaders(v1::HeaderModifier {
                        set: vec![v1::Header { name: "a b".into(), value: "v".into() }],
                        ..Default::default()
                    })),
                }],
                ..Default::default()
            },
            "rules[0].filters[0].request_headers.set[0].name: \"a b\"",
        ),
    ];
    for (rule, expected) in cases {
        let error = refused(v1::Kind::HttpRoute, "shop/r", Body::HttpRoute(route_wire(rule)));
        assert!(error.contains(expected), "{error} does not contain {expected}");
    }
}

#[test]
fn a_pattern_matches_the_whole_text_and_shows_what_was_written() {
    let pattern = pattern("a|ab").unwrap();
    assert!(pattern.0.is_match("ab") && pattern.0.is_match("a"));
    assert!(!pattern.0.is_match("abc") && !pattern.0.is_match("xa"));
    assert_eq!(pattern_text(&pattern), "a|ab");
}

#[test]
fn a_version_is_the_same_for_ever() {
    let mesh = crate::model::Mesh {
        trust_domain: "cluster.local".parse().unwrap(),
        roots: vec![vec![1, 2, 3]],
        enrolled_namespaces: Vec::new(),
    };
    assert_eq!(version_of(&Resource::Mesh(Arc::new(mesh))), Version(7_621_807_247_844_050_620));
}

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,8}"
}

fn ip() -> impl Strategy<Value = String> {
    prop_oneof![
        (1u8..=223, any::<[u8; 3]>()).prop_map(|(a, b)| format!("{a}.{}.{}.{}", b[0], b[1], b[2])),
        any::<[u16; 3]>().prop_map(|s| format!("fd00:{:x}:{:x}::{:x}", s[0], s[1], s[2])),
    ]
}

fn service_id() -> impl Strategy<Value = Option<v1::NamespacedName>> {
    (name(), name()).prop_map(|(namespace, name)| Some(v1::NamespacedName { namespace, name }))
}

fn few<T: Strategy>(element: T) -> impl Strategy<Value = Vec<T::Value>>
where
    T::Value: std::fmt::Debug,
{
    proptest::collection::vec(element, 0..4)
}

fn text_match() -> impl Strategy<Value = v1::StringMatch> {
    use v1::string_match::Kind;
    prop_oneof![
        "[ -~]{0,12}".prop_map(Kind::Exact),
        "[a-z/]{1,12}".prop_map(Kind::Prefix),
        "[a-z/]{1,12}".prop_map(Kind::Suffix),
        Just(Kind::Present(true)),
    ]
    .prop_map(|kind| v1::StringMatch { kind: Some(kind) })
}

fn value_match() -> impl Strategy<Value = Option<v1::StringMatch>> {
    use v1::string_match::Kind;
    prop_oneof![
        "[ -~]{0,12}".prop_map(Kind::Exact),
        "[a-z.*|]{0,1}[a-z]{1,5}".prop_map(|s| Kind::Regex(format!("({s})*")))
    ]
    .prop_filter("a usable regular expression", |kind| match kind {
        Kind::Regex(text) => pattern(text).is_ok(),
        _ => true,
    })
    .prop_map(|kind| Some(v1::StringMatch { kind: Some(kind) }))
}

fn workload_body() -> impl Strategy<Value = Body> {
    let protocols = proptest::collection::btree_map(1u32..=65_535, 0i32..=5, 0..4);
    let policies = few((name(), name()).prop_map(|(a, b)| format!("{a}/{b}")));
    (name(), few(ip()), ip(), protocols, policies, few(1u32..=65_535), any::<[bool; 4]>(), 1i32..=2).prop_map(
        |(name, mut ips, ip, port_protocols, authorization_policies, ports, flags, inbound_mode)| {
            ips.push(ip);
            Body::Workload(v1::Workload {
                name: name.clone(),
                uid: name,
                ips,
                port_protocols,
                authorization_policies,
                excluded_inbound_ports: ports.clone(),
                probe_ports: ports.clone(),
                excluded_outbound_ports: ports,
                excluded_outbound_cidrs: vec!["10.0.0.0/8".into()],
                enrolled: flags[0],
                redirect: flags[1],
                ready: flags[2],
                terminating: flags[3],
                inbound_mode,
                zone: "zone-a".into(),
                ..workload_wire()
            })
        },
    )
}

fn filter() -> impl Strategy<Value = v1::HttpFilter> {
    use v1::http_filter::Filter;
    let header = || (name(), "[!-~]{0,8}").prop_map(|(name, value)| v1::Header { name, value });
    let headers = || {
        (few(header()), few(header()), few(name())).prop_map(|(set, add, remove)| v1::HeaderModifier {
            set,
            add,
            remove,
        })
    };
    let path = || {
        prop_oneof![
            "/[a-z/]{0,8}".prop_map(v1::path_modifier::Kind::ReplaceFull),
            "/[a-z/]{0,8}".prop_map(v1::path_modifier::Kind::ReplacePrefix),
        ]
        .prop_map(|kind| v1::PathModifier { kind: Some(kind) })
    };
    prop_oneof![
        headers().prop_map(Filter::RequestHeaders),
        headers().prop_map(Filter::ResponseHeaders),
        (proptest::option::of(path()), 0u32..65_535, prop_oneof![Just(301), Just(308)]).prop_map(
            |(path, port, status)| {
                Filter::Redirect(v1::Redirect {
                    path,
                    port,
                    status,
                    scheme: "https".into(),
                    hostname: "a.b".into(),
                })
            }
        ),
        (proptest::option::of(path()), name())
            .prop_map(|(path, hostname)| Filter::Rewrite(v1::UrlRewrite { path, hostname })),
        (service_id(), 1u32..65_535, 0u32..=10).prop_map(|(service, port, numerator)| Filter::Mirror(
            v1::Mirror { service, port, numerator, denominator: 10 }
        )),
    ]
    .prop_map(|filter| v1::HttpFilter { filter: Some(filter) })
}

fn rule(kind: RouteKind) -> impl Strategy<Value = v1::HttpRule> {
    let named = || (name(), value_match()).prop_map(|(name, value)| v1::NamedMatch { name, value });
    let matching =
        (few(named()), few(named()), "/[a-z]{1,6}").prop_map(move |(headers, query, path)| v1::HttpMatch {
            headers,
            query,
            method: "GET".into(),
            path: (kind == RouteKind::Http)
                .then(|| v1::StringMatch { kind: Some(v1::string_match::Kind::Prefix(path.clone())) }),
            grpc: (kind == RouteKind::Grpc).then(|| v1::GrpcMethodMatch {
                service: exactly(&path[1..]),
                method: exactly(&path[1..]).filter(|_| path.len() > 3),
            }),
        });
    let backend = (service_id(), 1u32..65_535, 0u32..100, few(filter()), any::<bool>()).prop_map(
        |(service, port, weight, filters, invalid)| v1::Backend { service, port, weight, filters, invalid },
    );
    let retry = proptest::option::of((few(400u32..600), 0u32..10, 0u64..1000)).prop_map(|retry| {
        retry.map(|(codes, attempts, backoff_ms)| v1::Retry { codes, attempts, backoff_ms })
    });
    (few(matching), few(filter()), few(backend), retry, 1u64..9999).prop_map(
        |(matches, filters, backends, retry, request_ms)| v1::HttpRule {
            name: "rule".into(),
            matches,
            filters,
            backends,
            retry,
            timeouts: Some(v1::Timeouts { request_ms, backend_request_ms: request_ms / 2 }),
        },
    )
}

fn policy_body() -> impl Strategy<Value = Body> {
    let source = (few(text_match()), few(name())).prop_map(|(principals, namespaces)| v1::Source {
        not_principals: principals.clone(),
        principals,
        not_namespaces: namespaces.clone(),
        namespaces,
        cidrs: vec!["10.1.0.0/16".into()],
        not_cidrs: vec!["fd00::/8".into()],
    });
    let operation =
        (few(text_match()), few(1u32..65_535), name()).prop_map(|(paths, ports, header)| v1::Operation {
            not_ports: ports.clone(),
            ports,
            methods: vec!["GET".into()],
            not_methods: vec!["PUT".into()],
            headers: paths
                .iter()
                .map(|value| v1::NamedMatch { name: header.clone(), value: Some(value.clone()) })
                .collect(),
            not_paths: paths.clone(),
            paths,
        });
    let rule = (few(source), few(operation)).prop_map(|(from, to)| v1::PolicyRule { from, to });
    (few(rule), 1i32..=3).prop_map(|(rules, action)| {
        Body::AuthorizationPolicy(v1::AuthorizationPolicy {
            namespace: "shop".into(),
            name: "p".into(),
            action,
            rules,
        })
    })
}

fn body() -> impl Strategy<Value = Body> {
    let parent = || (service_id(), 0u32..65_535).prop_map(|(service, port)| v1::ParentRef { service, port });
    let routing = |parents, rules, created_unix_s| v1::HttpRoute {
        namespace: "shop".into(),
        name: "r".into(),
        created_unix_s,
        parents,
        rules,
    };
    let endpoint_ports = proptest::collection::btree_map(1u32..65_535, 1u32..65_535, 0..4);
    let service_port = (name(), 1u32..65_535, 0i32..=5)
        .prop_map(|(name, port, app_protocol)| v1::ServicePort { name, port, app_protocol });
    prop_oneof![
        workload_body(),
        (few(parent()), few(rule(RouteKind::Http)), any::<i64>())
            .prop_map(move |(parents, rules, created)| Body::HttpRoute(routing(parents, rules, created))),
        (few(parent()), few(rule(RouteKind::Grpc)), any::<i64>())
            .prop_map(move |(parents, rules, created)| Body::GrpcRoute(routing(parents, rules, created))),
        policy_body(),
        (few(ip()), few(service_port), any::<bool>()).prop_map(|(vips, ports, node_local)| {
            Body::Service(v1::Service { namespace: "shop".into(), name: "s".into(), vips, ports, node_local })
        }),
        (service_id(), ip(), endpoint_ports, any::<[bool; 3]>()).prop_map(|(service, ip, ports, flags)| {
            Body::Endpoint(v1::Endpoint {
                service,
                ip,
                workload_uid: "u-1".into(),
                ports,
                ready: flags[0],
                serving: flags[1],
                terminating: flags[2],
                node: "n".into(),
                zone: String::new(),
            })
        }),
        (few(name()), 0u32..10, 1u64..1000, 0u32..=100).prop_map(|(services, attempts, ms, percent)| {
            Body::TrafficPolicy(v1::TrafficPolicy {
                namespace: "shop".into(),
                name: "t".into(),
                services,
                retry: Some(v1::RetryPolicy {
                    codes: vec![503],
                    attempts,
                    backoff_ms: ms,
                    methods: vec!["GET".into()],
                    budget_percent: percent,
                    budget_min_per_s: attempts,
                    per_try_timeout_ms: ms,
                }),
                connect_timeout_ms: ms,
                ejection: Some(v1::Ejection {
                    consecutive_failures: attempts + 1,
                    base_ejection_ms: ms,
                    max_ejected_percent: percent,
                }),
                max_connections: attempts,
                max_pending_requests: attempts,
                created_unix_s: i64::from(attempts),
            })
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever is valid comes back equal after a walk over the wire, and its version with it.
    #[test]
    fn a_resource_survives_the_wire(body in body()) {
        let first = body_from_wire(body).unwrap();
        let sent = resource_to_wire(&first);
        let bytes = sent.encode_to_vec();
        let (key, version, second) = resource(v1::Resource::decode(bytes.as_slice()).unwrap()).unwrap();
        prop_assert_eq!(&first, &second);
        prop_assert_eq!(key, key_of(&first));
        prop_assert_eq!(version, version_of(&second));
    }

    /// Foreign bytes are refused or taken, and never panic.
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(wire) = v1::Resource::decode(bytes.as_slice()) {
            let _ = resource(wire);
        }
    }
}
