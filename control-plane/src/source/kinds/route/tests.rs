//! What each kind of route may say, and what of it is refused instead of passed over.

use weft_proto::model::{HttpFilter, HttpRoute, PathMatch, ValueMatch};

use super::super::super::manifest;
use super::super::Parsed;
use super::*;

fn read_route(kind: &str, parents: &str, rule: &str) -> Result<(Arc<RouteObject>, Vec<String>), String> {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\nspec:\n  parentRefs: \
         [{parents}]\n  rules:\n  - {rule}\n"
    );
    let mut read = manifest::parse("t.yaml", &text).map_err(|problems| problems[0].to_string())?;
    let warnings = read.warnings.into_iter().map(|warning| warning.message).collect();
    match read.objects.remove(0).parsed {
        Parsed::Object(Object::HttpRoute(object)) => Ok((object, warnings)),
        other => panic!("{other:?}"),
    }
}

fn read_rule(kind: &str, rule: &str) -> Result<HttpRoute, String> {
    let (object, _) = read_route(kind, "{group: '', kind: Service, name: backend, port: 80}", rule)?;
    Ok(object.route.clone())
}

#[test]
fn a_parent_is_a_service_or_its_port_by_number_or_by_name() {
    let parents = "{group: '', kind: Service, name: a}, {group: '', kind: Service, name: a, port: 80, namespace: b}, {name: gateway, \
                   sectionName: x}, {group: '', kind: Service, name: a, sectionName: http}, {group: '', kind: Service, name: a, port: \
                   80, sectionName: http}, {group: '', kind: Service, name: a, sectionName: ''}";
    for kind in ["HTTPRoute", "GRPCRoute"] {
        let (object, warnings) = read_route(kind, parents, "{}").unwrap();
        let named: Vec<String> = object.parents.iter().map(ToString::to_string).collect();
        assert_eq!(named, ["shop/a", "b/a:80", "shop/a:http", "shop/a:80:http", "shop/a"]);
        assert!(object.route.parents.is_empty());
        assert!(matches!(&warnings[..], [one] if one.starts_with("spec.parentRefs[2]")), "{warnings:?}");
    }
    let error =
        read_route("HTTPRoute", "{group: '', kind: Service, name: a, port: 65536}", "{}").unwrap_err();
    assert!(error.contains("spec.parentRefs[0].port"), "{error}");
}

#[test]
fn durations_are_those_of_the_gateway_api() {
    for (text, expected) in [
        ("250ms", Some(250)),
        ("10s", Some(10_000)),
        ("1h30m", Some(5_400_000)),
        ("0s", Some(0)),
        ("", None),
        ("1", None),
        ("1.5s", None),
        ("123456s", None),
        ("1s1s1s1s1s", None),
        ("-1s", None),
    ] {
        assert_eq!(parse_duration_ms(text), expected, "{text}");
    }
}

#[test]
fn a_grpc_route_is_a_route_with_matches_of_its_own() {
    let route = read_rule(
        "GRPCRoute",
        "{name: hello, matches: [{method: {service: a.Greeter, method: Hello}, headers: [{name: x-a, value: b}]}, {method: {type: \
         RegularExpression, method: 'He.*'}}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x, \
         value: y}]}}], backendRefs: [{name: one, port: 80, weight: 9}, {name: two, port: 80, namespace: other}]}",
    )
    .unwrap();
    assert_eq!((route.kind, &*route.rules[0].name), (RouteKind::Grpc, "hello"));
    let rule = &route.rules[0];
    let Some(PathMatch::Grpc(call)) = &rule.matches[0].path else { panic!("{:?}", rule.matches) };
    assert_eq!(call.service, Some(ValueMatch::Exact("a.Greeter".into())));
    assert_eq!((rule.matches[0].headers.len(), rule.matches[0].method.as_ref()), (1, None));
    let Some(PathMatch::Grpc(call)) = &rule.matches[1].path else { panic!("{:?}", rule.matches) };
    assert!(call.service.is_none() && matches!(call.method, Some(ValueMatch::Regex(_))));
    assert!(matches!(rule.filters[..], [HttpFilter::RequestHeaders(_)]));
    let backends: Vec<_> =
        rule.backends.iter().map(|b| (b.service.to_string(), b.weight, b.invalid)).collect();
    // Whether another namespace permits it is not this parser's to say.
    assert_eq!(backends, [("shop/one".to_owned(), 9, false), ("other/two".to_owned(), 1, false)]);
    assert!(read_rule("GRPCRoute", "{}").unwrap().rules[0].matches.is_empty());
}

#[test]
fn what_is_not_supported_is_refused_and_never_passed_over() {
    let mirror = "type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}}";
    let redirect = "type: RequestRedirect, requestRedirect: {hostname: x.y}";
    let prefix = "type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}";
    for (kind, rule, expected) in [
        ("GRPCRoute", "{matches: [{method: {}}]}".to_owned(), "needs a service, a method, or both"),
        ("GRPCRoute", "{matches: [{method: {type: Prefix, service: a}}]}".into(), "\"Prefix\""),
        ("GRPCRoute", "{matches: [{method: {service: a/b}}]}".into(), "\"a/b\""),
        ("GRPCRoute", "{matches: [{method: {type: RegularExpression, service: '('}}]}".into(), "\"(\""),
        ("GRPCRoute", "{matches: [{path: {value: /a}}]}".into(), "path"),
        ("GRPCRoute", "{matches: [{headers: [{type: Prefix, name: a, value: b}]}]}".into(), "Prefix"),
        ("GRPCRoute", "{timeouts: {request: 1s}}".into(), "timeouts"),
        ("GRPCRoute", "{sessionPersistence: {}}".into(), "sessionPersistence"),
        ("GRPCRoute", format!("{{filters: [{{{redirect}}}]}}"), "none of a GRPCRoute's"),
        ("GRPCRoute", format!("{{filters: [{{{prefix}}}]}}"), "none of a GRPCRoute's"),
        ("GRPCRoute", "{filters: [{type: ExtensionRef, extensionRef: {name: x}}]}".into(), "extensionRef"),
        ("HTTPRoute", "{filters: [{type: CORS, cors: {allowOrigins: [x]}}]}".into(), "cors"),
        ("HTTPRoute", "{sessionPersistence: {}}".into(), "sessionPersistence"),
        ("HTTPRoute", "{matches: [{method: GET, grpc: {}}]}".into(), "grpc"),
        ("HTTPRoute", "{matches: [{path: {type: Suffix, value: /a}}]}".into(), "Suffix"),
        ("HTTPRoute", "{matches: [{headers: [{type: PathPrefix, name: a, value: b}]}]}".into(), "PathPrefix"),
        (
            "HTTPRoute",
            format!("{{backendRefs: [{{name: a, port: 80, filters: [{{{mirror}}}]}}]}}"),
            "for a rule",
        ),
        (
            "HTTPRoute",
            format!("{{backendRefs: [{{name: a, port: 80, filters: [{{{redirect}}}]}}]}}"),
            "for a rule",
        ),
        (
            "HTTPRoute",
            format!("{{filters: [{{{redirect}}}], backendRefs: [{{name: a, port: 80}}]}}"),
            "exclude",
        ),
        ("HTTPRoute", format!("{{filters: [{{{redirect}}}, {{{prefix}}}]}}"), "exclude"),
        (
            "HTTPRoute",
            format!("{{matches: [{{path: {{type: Exact, value: /a}}}}], filters: [{{{prefix}}}]}}"),
            "PathPrefix",
        ),
    ] {
        let error = read_rule(kind, &rule).expect_err(&rule);
        assert!(error.contains(expected), "{rule}: {error}");
    }
    assert!(read_rule("HTTPRoute", &format!("{{filters: [{{{prefix}}}]}}")).is_ok());
}

#[test]
fn a_grant_is_for_the_kinds_and_names_that_it_says() {
    let grant = |from: &str, to: &str| {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: shop}}\nspec: {{from: \
             [{from}], to: [{to}]}}\n"
        );
        let read = manifest::parse("t.yaml", &text).map_err(|problems| problems[0].to_string())?;
        Ok::<_, String>(read.objects.into_iter().next().map(|located| located.parsed))
    };
    let http = "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}";
    let gateway = "{group: gateway.networking.k8s.io, kind: Gateway, namespace: a}";
    let of = |from: &str, to: &str| match grant(from, to).unwrap() {
        Some(Parsed::Object(Object::ReferenceGrant(grant))) => grant,
        other => panic!("{other:?}"),
    };
    let permits = |grant: &super::super::super::object::ReferenceGrant, kind, from: &str, service: &str| {
        grant.permits(kind, &from.into(), &service.into())
    };
    let all = of(http, "{group: '', kind: Service}");
    assert!(permits(&all, RouteKind::Http, "a", "x"));
    assert!(!permits(&all, RouteKind::Grpc, "a", "x") && !permits(&all, RouteKind::Http, "b", "x"));
    let one = of(http, "{group: '', kind: Service, name: x}, {group: '', kind: Secret}");
    assert!(permits(&one, RouteKind::Http, "a", "x") && !permits(&one, RouteKind::Http, "a", "y"));
    assert!(permits(
        &of(http, "{group: '', kind: Service, name: x}, {group: '', kind: Service}"),
        RouteKind::Http,
        "a",
        "y"
    ));
    assert!(grant(gateway, "{group: '', kind: Service}").unwrap().is_none());
    assert!(grant(http, "{group: '', kind: Secret}").unwrap().is_none());
    assert!(grant(http, "{group: '', kind: Service, names: [x]}").unwrap_err().contains("names"));
}
