//! Promises of routing: the Gateway API's precedence, weights, filters, and whose routes count for which client.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use regex::Regex;
use weft_proto::identity::NamespacedName;
use weft_proto::model::{
    Backend, GrpcMethodMatch, HeaderModifier, HttpFilter, HttpMatch, HttpRoute, HttpRule, ParentRef,
    PathMatch, PathModifier, Pattern, RouteKind, Timeouts, ValueMatch,
};

use super::filter::{Origin, modify, redirect, rewrite};
use super::*;

fn id(text: &str) -> NamespacedName {
    text.parse().unwrap()
}

fn rule(name: &str, matches: Vec<HttpMatch>) -> Arc<HttpRule> {
    Arc::new(HttpRule {
        name: name.into(),
        matches,
        filters: vec![],
        backends: vec![],
        timeouts: Timeouts::default(),
        retry: None,
    })
}

fn route(name: &str, created_unix_s: i64, port: Option<u16>, rules: Vec<Arc<HttpRule>>) -> Arc<HttpRoute> {
    let parents = vec![ParentRef { service: id("shop/backend"), port }];
    Arc::new(HttpRoute { kind: RouteKind::Http, id: id(name), created_unix_s, parents, rules })
}

fn exact(path: &str) -> HttpMatch {
    HttpMatch { path: Some(PathMatch::Exact(path.into())), ..HttpMatch::default() }
}
fn prefix(path: &str) -> HttpMatch {
    HttpMatch { path: Some(PathMatch::Prefix(path.into())), ..HttpMatch::default() }
}
fn regex(path: &str) -> HttpMatch {
    HttpMatch { path: Some(PathMatch::Regex(Pattern(Regex::new(path).unwrap()))), ..HttpMatch::default() }
}
fn header(mut m: HttpMatch, name: &'static str, value: &str) -> HttpMatch {
    m.headers.push((HeaderName::from_static(name), ValueMatch::Exact(value.into())));
    m
}
fn query(mut m: HttpMatch, name: &str, value: &str) -> HttpMatch {
    m.query.push((name.into(), ValueMatch::Exact(value.into())));
    m
}
fn method(mut m: HttpMatch, method: Method) -> HttpMatch {
    m.method = Some(method);
    m
}

fn ask(
    table: &RouteTable,
    client: &str,
    port: u16,
    method: &Method,
    target: &str,
    headers: &HeaderMap,
) -> String {
    let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
    match table.find(client, port, &RequestHead { method, path, query, headers }) {
        Found::Default => "default".into(),
        Found::NoMatch => "404".into(),
        Found::Rule(matched) => matched.rule.rule.name.to_string(),
    }
}

fn get(table: &RouteTable, target: &str) -> String {
    let mut headers = HeaderMap::new();
    headers.insert("x-a", HeaderValue::from_static("1"));
    headers.insert("x-b", HeaderValue::from_static("1"));
    ask(table, "shop", 80, &Method::GET, target, &headers)
}

fn table(rules: Vec<Arc<HttpRule>>) -> RouteTable {
    RouteTable::compile(&id("shop/backend"), &[route("shop/r", 0, None, rules)])
}

#[test]
fn precedence_is_path_then_method_then_headers_then_query_then_order() {
    // Each list from the weakest to the strongest; all match the request.
    let ladders: Vec<(&str, Vec<HttpMatch>)> = vec![
        ("/a/b?q=1&r=1", vec![prefix("/"), regex("/a/.*"), prefix("/a"), prefix("/a/b"), exact("/a/b")]),
        (
            "/a?q=1&r=1",
            vec![
                prefix("/a"),
                query(prefix("/a"), "q", "1"),
                query(query(prefix("/a"), "q", "1"), "r", "1"),
                header(prefix("/a"), "x-a", "1"),
                header(header(prefix("/a"), "x-a", "1"), "x-b", "1"),
                method(prefix("/a"), Method::GET),
                exact("/a"),
            ],
        ),
    ];
    for (target, ladder) in ladders {
        for strongest in 1..ladder.len() {
            for reversed in [false, true] {
                let mut rules: Vec<_> = ladder[..=strongest]
                    .iter()
                    .enumerate()
                    .map(|(n, m)| rule(&n.to_string(), vec![m.clone()]))
                    .collect();
                if reversed {
                    rules.reverse();
                }
                assert_eq!(get(&table(rules), target), strongest.to_string(), "{target}");
            }
        }
    }
    let equal = table(vec![rule("first", vec![prefix("/a")]), rule("second", vec![prefix("/a")])]);
    assert_eq!(get(&equal, "/a"), "first");
}

#[test]
fn among_equals_the_oldest_then_the_name_decides() {
    let one = |name: &str, created| route(name, created, None, vec![rule(name, vec![prefix("/a")])]);
    let compile = |routes: &[Arc<HttpRoute>]| RouteTable::compile(&id("shop/backend"), routes);
    assert_eq!(get(&compile(&[one("shop/a", 2), one("shop/b", 1)]), "/a"), "shop/b");
    assert_eq!(get(&compile(&[one("shop/b", 1), one("shop/a", 1)]), "/a"), "shop/a");
}

#[test]
fn what_matches() {
    let cases: Vec<(HttpMatch, &str, bool)> = vec![
        (prefix("/a"), "/a", true),
        (prefix("/a"), "/a/", true),
        (prefix("/a"), "/a/b", true),
        (prefix("/a"), "/ab", false),
        (prefix("/a/"), "/a", true),
        (prefix("/"), "/anything", true),
        (exact("/a"), "/a/", false),
        (exact("/a"), "/a?x=1", true),
        (regex("/v[0-9]"), "/v1", true),
        (regex("/v[0-9]"), "/v12", false),
        (regex("/a|/ab"), "/ab", true),
        (HttpMatch::default(), "/x", true),
        (header(prefix("/"), "x-a", "1"), "/", true),
        (header(prefix("/"), "x-a", "2"), "/", false),
        (header(header(prefix("/"), "x-a", "1"), "x-a", "2"), "/", true),
        (header(prefix("/"), "x-c", "1"), "/", false),
        (query(prefix("/"), "q", "a b"), "/?q=a%20b", true),
        (query(prefix("/"), "q", "a b"), "/?q=a+b&q=c", true),
        (query(prefix("/"), "q", "c"), "/?q=a&q=c", false),
        (query(prefix("/"), "q", ""), "/?q", true),
        (query(prefix("/"), "q", "1"), "/", false),
        (method(prefix("/"), Method::POST), "/", false),
    ];
    for (m, target, want) in cases {
        let text = format!("{m:?} {target}");
        let got = get(&table(vec![rule("hit", vec![m])]), target);
        assert_eq!(got, if want { "hit" } else { "404" }, "{text}");
    }
    // Any of a rule's matches will do; one without matches takes everything.
    assert_eq!(get(&table(vec![rule("hit", vec![exact("/x"), exact("/y")])]), "/y"), "hit");
    assert_eq!(get(&table(vec![rule("hit", vec![])]), "/y"), "hit");
}

#[test]
fn consumer_routes_replace_the_producers_for_their_namespace_and_port() {
    let routes = [
        route("shop/producer", 0, None, vec![rule("producer", vec![prefix("/")])]),
        route("client/consumer", 1, Some(80), vec![rule("consumer", vec![prefix("/only")])]),
    ];
    let table = RouteTable::compile(&id("shop/backend"), &routes);
    let none = HeaderMap::new();
    let ask = |client: &str, port, path: &str| ask(&table, client, port, &Method::GET, path, &none);
    assert_eq!(ask("shop", 80, "/only"), "producer");
    assert_eq!(ask("other", 80, "/only"), "producer");
    assert_eq!(ask("client", 80, "/only"), "consumer");
    assert_eq!(ask("client", 80, "/else"), "404");
    assert_eq!(ask("client", 81, "/only"), "producer");
}

fn grpc_route(name: &str, port: Option<u16>, rules: Vec<Arc<HttpRule>>) -> Arc<HttpRoute> {
    Arc::new(HttpRoute { kind: RouteKind::Grpc, ..(*route(name, 0, port, rules)).clone() })
}

/// A name that starts with `~` is a regular expression.
fn call(service: &str, method: &str) -> HttpMatch {
    let value = |text: &str| match text.strip_prefix('~') {
        _ if text.is_empty() => None,
        Some(pattern) => Some(ValueMatch::Regex(Pattern(Regex::new(pattern).unwrap()))),
        None => Some(ValueMatch::Exact(text.into())),
    };
    let wanted = GrpcMethodMatch { service: value(service), method: value(method) };
    HttpMatch { path: Some(PathMatch::Grpc(wanted)), ..HttpMatch::default() }
}

#[test]
fn grpc_calls_are_matched_by_service_and_method() {
    for (m, path, want) in [
        (call("a.Greeter", "Hello"), "/a.Greeter/Hello", true),
        (call("a.Greeter", "Hello"), "/a.Greeter/hello", false),
        (call("a.Greeter", ""), "/a.Greeter/Anything", true),
        (call("a.Greeter", ""), "/a.GreeterX/Hello", false),
        (call("a.Greeter", ""), "/a.Greeter", false),
        (call("a.Greeter", ""), "/a.Greeter/Hello/more", false),
        (call("", "Hello"), "/any.Service/Hello", true),
        (call("", "Hello"), "/any.Service/Hellos", false),
        (call("~a[.].*", "~He.*"), "/a.Greeter/Hello", true),
        (call("~a", ""), "/ab/Hello", false),
        (call("~a|b", "~c|d"), "/b/c", true),
        (HttpMatch::default(), "/any.Service/Hello", true),
        (header(call("a", ""), "x-a", "1"), "/a/b", true),
        (header(call("a", ""), "x-a", "2"), "/a/b", false),
    ] {
        let table = RouteTable::compile(
            &id("shop/backend"),
            &[grpc_route("shop/r", None, vec![rule("hit", vec![m.clone()])])],
        );
        assert_eq!(get(&table, path), if want { "hit" } else { "404" }, "{m:?} {path}");
    }
}

#[test]
fn of_grpc_rules_the_service_then_the_method_then_the_headers_decide() {
    // From the weakest to the strongest; all match the request.
    let ladder = [
        HttpMatch::default(),
        header(HttpMatch::default(), "x-a", "1"),
        call("", "~H.*"),
        call("", "Hello"),
        call("~a[.].*", ""),
        header(call("~a[.].*", ""), "x-a", "1"),
        call("~a[.].*", "Hello"),
        call("a.Greeter", ""),
        header(call("a.Greeter", ""), "x-a", "1"),
        call("a.Greeter", "~H.*"),
        call("a.Greeter", "Hello"),
        header(call("a.Greeter", "Hello"), "x-a", "1"),
    ];
    for strongest in 1..ladder.len() {
        for reversed in [false, true] {
            let named = ladder[..=strongest].iter().enumerate();
            let mut rules: Vec<_> = named.map(|(n, m)| rule(&n.to_string(), vec![m.clone()])).collect();
            if reversed {
                rules.reverse();
            }
            let table = RouteTable::compile(&id("shop/backend"), &[grpc_route("shop/r", None, rules)]);
            assert_eq!(get(&table, "/a.Greeter/Hello"), strongest.to_string());
        }
    }
}

#[test]
fn where_both_kinds_are_attached_to_a_port_only_grpc_routes_count() {
    let http = route("shop/same", 0, None, vec![rule("http", vec![])]);
    let grpc = grpc_route("shop/same", Some(80), vec![rule("grpc", vec![call("a", "")])]);
    let consumer =
        HttpRoute { id: id("client/own"), ..(*route("x/x", 9, Some(80), vec![rule("own", vec![])])).clone() };
    let routes = [http, grpc, Arc::new(consumer)];
    let none = HeaderMap::new();
    for routes in [routes.to_vec(), routes.iter().rev().cloned().collect()] {
        let table = RouteTable::compile(&id("shop/backend"), &routes);
        let ask = |client: &str, port, path: &str| ask(&table, client, port, &Method::POST, path, &none);
        assert_eq!(ask("shop", 80, "/a/b"), "grpc");
        // Not merged: what no GRPCRoute takes is not the HTTPRoute's.
        assert_eq!(ask("shop", 80, "/b/b"), "404");
        assert_eq!(ask("shop", 81, "/b/b"), "http");
        // A consumer's route replaces the producer's of whatever kind.
        assert_eq!(ask("client", 80, "/a/b"), "own");
        assert_eq!(ask("client", 81, "/a/b"), "http");
    }
}

#[test]
fn a_port_without_a_route_goes_to_the_service_itself() {
    let routes = [
        route("shop/r", 0, Some(80), vec![rule("80", vec![prefix("/a")])]),
        route("shop/empty", 0, Some(82), vec![]),
    ];
    let table = RouteTable::compile(&id("shop/backend"), &routes);
    let none = HeaderMap::new();
    let ask = |port, path: &str| ask(&table, "x", port, &Method::GET, path, &none);
    assert_eq!(ask(80, "/a"), "80");
    assert_eq!(ask(80, "/b"), "404");
    assert_eq!(ask(81, "/a"), "default");
    assert_eq!(ask(82, "/a"), "404");
    assert!(matches!(
        RouteTable::default().find(
            "x",
            80,
            &RequestHead { method: &Method::GET, path: "/", query: None, headers: &none }
        ),
        Found::Default
    ));
}

#[test]
fn weights_hold_and_the_share_of_a_missing_backend_is_unavailable() {
    let backend = |name: &str, weight, invalid| Backend {
        service: id(name),
        port: 80,
        weight,
        filters: vec![],
        invalid,
    };
    let mut r = (*rule("r", vec![])).clone();
    let share = |r: &HttpRule, name: &str| {
        (0..1000u64)
            .filter(|n| {
                let random = n * (u64::MAX / 1000);
                match choose(r, random) {
                    Choice::Backend(backend) => backend.service == id(name),
                    Choice::Unavailable => name == "none/none",
                }
            })
            .count()
    };
    assert_eq!(share(&r, "none/none"), 1000);
    r.backends = vec![backend("a/a", 90, false), backend("b/b", 10, false), backend("c/c", 0, false)];
    assert!((899..=901).contains(&share(&r, "a/a")), "{}", share(&r, "a/a"));
    assert_eq!(share(&r, "c/c"), 0);
    r.backends[1].invalid = true;
    assert!((99..=101).contains(&share(&r, "none/none")));
    r.backends = vec![backend("a/a", 0, false)];
    assert_eq!(share(&r, "none/none"), 1000);
}

#[test]
fn prefixes_are_replaced_as_the_specifications_table_says() {
    for (path, matched, replacement, want) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo", "/", "/xyz", "/xyz/foo"),
    ] {
        let mut uri: Uri = format!("http://h{path}?q=1").parse().unwrap();
        let by = PathModifier::ReplacePrefix(replacement.into());
        rewrite(&mut uri, &mut HeaderMap::new(), Some(matched), None, Some(&by));
        assert_eq!(uri.to_string(), format!("http://h{want}?q=1"), "{path} {matched} {replacement}");
    }
}

#[test]
fn a_rewrite_changes_host_and_path_and_keeps_the_query() {
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("old:80"));
    let mut uri: Uri = "/a?x=1".parse().unwrap();
    let full = PathModifier::ReplaceFull("/new".into());
    rewrite(&mut uri, &mut headers, None, Some("new.example"), Some(&full));
    assert_eq!((uri.to_string().as_str(), headers["host"].to_str().unwrap()), ("/new?x=1", "new.example"));
    let mut uri: Uri = "http://old/a".parse().unwrap();
    rewrite(&mut uri, &mut HeaderMap::new(), None, Some("new.example"), None);
    assert_eq!(uri, "http://new.example/a");
}

#[test]
fn redirects_say_where_to() {
    let to = |scheme: Option<&str>, hostname: Option<&str>, port, path| HttpFilter::Redirect {
        scheme: scheme.map(Into::into),
        hostname: hostname.map(Into::into),
        port,
        path,
        status: StatusCode::FOUND,
    };
    let prefix = Some(PathModifier::ReplacePrefix("/b".into()));
    for (filter, port, want) in [
        (to(None, None, None, None), 80, "http://h/a/c?q"),
        (to(None, None, None, None), 8080, "http://h:8080/a/c?q"),
        (to(Some("https"), None, None, None), 8080, "https://h/a/c?q"),
        (to(Some("https"), None, Some(8443), None), 80, "https://h:8443/a/c?q"),
        (to(None, Some("x.y"), Some(80), None), 8080, "http://x.y/a/c?q"),
        (to(None, None, None, prefix), 80, "http://h/b/c?q"),
    ] {
        let origin = Origin { authority: "h:8080", port, path: "/a/c", query: Some("q"), prefix: Some("/a") };
        assert_eq!(redirect(&[filter], &origin), Some((StatusCode::FOUND, want.to_owned())));
    }
}

#[test]
fn headers_are_set_added_and_removed() {
    let name = HeaderName::from_static;
    let value = HeaderValue::from_static;
    let mut headers = HeaderMap::new();
    headers.insert("x-set", value("old"));
    headers.insert("x-add", value("a"));
    headers.insert("x-gone", value("a"));
    let by = HeaderModifier {
        set: vec![(name("x-set"), value("new"))],
        add: vec![(name("x-add"), value("b")), (name("x-new"), value("c"))],
        remove: vec![name("x-gone")],
    };
    modify(&mut headers, &by);
    assert_eq!(headers["x-set"], "new");
    assert_eq!(headers["x-add"], "a,b");
    assert_eq!(headers["x-new"], "c");
    assert!(!headers.contains_key("x-gone"));
}
