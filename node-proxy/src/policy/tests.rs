//! Promises of policy: what matches, that DENY wins, that a broader rule never narrows, that paths cannot be disguised.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use weft_proto::identity::{NamespacedName, SpiffeId};
use weft_proto::model::{
    AuthorizationPolicy, PolicyAction, PolicyOperation, PolicyRule, PolicySource, TextMatch,
};

use super::*;

fn policy(name: &str, action: PolicyAction, rules: Vec<PolicyRule>) -> Arc<AuthorizationPolicy> {
    Arc::new(AuthorizationPolicy { id: NamespacedName::new("shop", name).unwrap(), action, rules })
}

fn id(name: &str) -> NamespacedName {
    NamespacedName::new("shop", name).unwrap()
}

fn spiffe(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn from(account: &str) -> PolicySource {
    PolicySource {
        principals: vec![TextMatch::Exact(format!("cluster.local/ns/shop/sa/{account}").into())],
        ..PolicySource::default()
    }
}

fn to_path(path: &str) -> PolicyOperation {
    PolicyOperation { paths: vec![TextMatch::Exact(path.into())], ..PolicyOperation::default() }
}

fn rule(from: Vec<PolicySource>, to: Vec<PolicyOperation>) -> PolicyRule {
    PolicyRule { from, to }
}

fn facts(principal: Option<&SpiffeId>) -> ConnectionFacts<'_> {
    ConnectionFacts { principal, source_ip: "10.1.0.7".parse().unwrap(), destination_port: 8080 }
}

fn ask(
    policies: &[Arc<AuthorizationPolicy>],
    who: Option<&SpiffeId>,
    method: &Method,
    path: &str,
) -> Verdict {
    authorize_request(policies, &facts(who), &RequestFacts { method, path, headers: &HeaderMap::new() })
}

fn allowed(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Allow { .. })
}

#[test]
fn without_policies_everything_is_allowed() {
    let everything = Verdict::Allow { by: None, audited: vec![] };
    assert_eq!(authorize_connection(&[], &facts(None)), everything);
    assert_eq!(ask(&[], None, &Method::GET, "/"), everything);
}

#[test]
fn an_allow_policy_denies_the_rest_and_one_without_rules_denies_all() {
    let alice = spiffe("alice");
    let bob = spiffe("bob");
    let policies = [policy("a", PolicyAction::Allow, vec![rule(vec![from("alice")], vec![])])];
    assert_eq!(
        authorize_connection(&policies, &facts(Some(&alice))),
        Verdict::Allow { by: Some(id("a")), audited: vec![] }
    );
    assert_eq!(authorize_connection(&policies, &facts(Some(&bob))), Verdict::Deny { by: None });
    assert_eq!(authorize_connection(&policies, &facts(None)), Verdict::Deny { by: None });
    let nothing = [policy("none", PolicyAction::Allow, vec![])];
    assert_eq!(authorize_connection(&nothing, &facts(Some(&alice))), Verdict::Deny { by: None });
    // A DENY without rules matches nothing.
    let deny_nothing = [policy("none", PolicyAction::Deny, vec![])];
    assert!(allowed(&authorize_connection(&deny_nothing, &facts(Some(&alice)))));
}

#[test]
fn deny_wins_over_allow_and_names_itself() {
    let alice = spiffe("alice");
    let policies = [
        policy("open", PolicyAction::Allow, vec![PolicyRule::default()]),
        policy("closed", PolicyAction::Deny, vec![rule(vec![from("alice")], vec![])]),
    ];
    assert_eq!(
        authorize_connection(&policies, &facts(Some(&alice))),
        Verdict::Deny { by: Some(id("closed")) }
    );
    assert!(allowed(&authorize_connection(&policies, &facts(None))));
}

#[test]
fn a_deny_on_requests_makes_a_connection_need_http_even_when_allowed() {
    let deny = policy("no-admin", PolicyAction::Deny, vec![rule(vec![], vec![to_path("/admin")])]);
    let open = policy("open", PolicyAction::Allow, vec![PolicyRule::default()]);
    for policies in [vec![deny.clone()], vec![open, deny.clone()]] {
        assert_eq!(authorize_connection(&policies, &facts(None)), Verdict::NeedsHttp);
        assert!(allowed(&ask(&policies, None, &Method::GET, "/ok")));
        assert_eq!(
            ask(&policies, None, &Method::GET, "/admin?x=1"),
            Verdict::Deny { by: Some(id("no-admin")) }
        );
    }
    // On another port the rule cannot decide.
    let operation = PolicyOperation { ports: vec![9090], ..to_path("/admin") };
    let elsewhere = [policy("p", PolicyAction::Deny, vec![rule(vec![], vec![operation])])];
    assert!(allowed(&authorize_connection(&elsewhere, &facts(None))));
    // No ALLOW can match any more: denied at once.
    let hopeless = [deny, policy("a", PolicyAction::Allow, vec![rule(vec![from("alice")], vec![])])];
    assert_eq!(authorize_connection(&hopeless, &facts(None)), Verdict::Deny { by: None });
}

#[test]
fn a_path_spelled_otherwise_gets_around_neither_deny_nor_allow() {
    let deny = [policy("d", PolicyAction::Deny, vec![rule(vec![], vec![to_path("/admin")])])];
    let allow = [policy("a", PolicyAction::Allow, vec![rule(vec![], vec![to_path("/admin")])])];
    let not = PolicyOperation { not_paths: vec![TextMatch::Exact("/public".into())], ..Default::default() };
    let deny_not = [policy("n", PolicyAction::Deny, vec![rule(vec![], vec![not])])];
    for path in ["//admin", "/./admin", "/x/../admin", "/%61dmin", "/%2e/admin", "/admin#x"] {
        assert!(!allowed(&ask(&deny, None, &Method::GET, path)), "{path}");
    }
    for path in ["//admin", "/x/../admin", "/%61dmin"] {
        assert!(!allowed(&ask(&allow, None, &Method::GET, path)), "{path}");
    }
    assert!(allowed(&ask(&allow, None, &Method::GET, "/admin?q")));
    assert!(allowed(&ask(&deny_not, None, &Method::GET, "/public")));
    assert!(!allowed(&ask(&deny_not, None, &Method::GET, "/x/../public")));
}

#[test]
fn every_condition_of_a_rule_counts() {
    let alice = spiffe("alice");
    let other: SpiffeId = "spiffe://cluster.local/ns/other/sa/alice".parse().unwrap();
    let source = |f: &dyn Fn(&mut PolicySource)| {
        let mut source = PolicySource::default();
        f(&mut source);
        vec![policy("p", PolicyAction::Allow, vec![rule(vec![source], vec![])])]
    };
    type Case<'a> = (&'a str, Vec<Arc<AuthorizationPolicy>>, Option<&'a SpiffeId>, bool);
    let cases: Vec<Case<'_>> = vec![
        ("namespace", source(&|s| s.namespaces = vec!["shop".into()]), Some(&alice), true),
        ("another namespace", source(&|s| s.namespaces = vec!["shop".into()]), Some(&other), false),
        ("nobody's namespace", source(&|s| s.namespaces = vec!["shop".into()]), None, false),
        ("not namespace", source(&|s| s.not_namespaces = vec!["shop".into()]), Some(&alice), false),
        ("cidr", source(&|s| s.cidrs = vec!["10.1.0.0/16".parse().unwrap()]), None, true),
        ("another cidr", source(&|s| s.cidrs = vec!["10.2.0.0/16".parse().unwrap()]), None, false),
        ("not cidr", source(&|s| s.not_cidrs = vec!["10.1.0.7/32".parse().unwrap()]), None, false),
        ("anyone known", source(&|s| s.principals = vec![TextMatch::Present]), Some(&alice), true),
        ("anyone known: nobody", source(&|s| s.principals = vec![TextMatch::Present]), None, false),
        (
            "suffix",
            source(&|s| s.principals = vec![TextMatch::Suffix("/sa/alice".into())]),
            Some(&alice),
            true,
        ),
        (
            "not principal",
            source(&|s| s.not_principals = vec![TextMatch::Suffix("/sa/alice".into())]),
            Some(&alice),
            false,
        ),
    ];
    for (name, policies, who, want) in cases {
        assert_eq!(allowed(&authorize_connection(&policies, &facts(who))), want, "{name}");
    }
    // `from` and `to` must both match.
    let operation = PolicyOperation { ports: vec![8080], not_ports: vec![1], ..Default::default() };
    let both = [policy("p", PolicyAction::Allow, vec![rule(vec![from("alice")], vec![operation])])];
    assert!(allowed(&authorize_connection(&both, &facts(Some(&alice)))));
    assert!(!allowed(&authorize_connection(
        &both,
        &ConnectionFacts { destination_port: 1, ..facts(Some(&alice)) }
    )));
}

#[test]
fn a_v4_mapped_client_is_its_v4_address() {
    let source = PolicySource { cidrs: vec!["10.1.0.0/16".parse().unwrap()], ..Default::default() };
    let policies = [policy("p", PolicyAction::Deny, vec![rule(vec![source], vec![])])];
    let facts = ConnectionFacts { source_ip: "::ffff:10.1.0.7".parse::<IpAddr>().unwrap(), ..facts(None) };
    assert!(!allowed(&authorize_connection(&policies, &facts)));
}

#[test]
fn a_header_sent_twice_gets_around_neither_deny_nor_allow() {
    let name = HeaderName::from_static("x-role");
    let operation = PolicyOperation {
        headers: vec![(name.clone(), TextMatch::Exact("admin".into()))],
        ..Default::default()
    };
    let deny = [policy("d", PolicyAction::Deny, vec![rule(vec![], vec![operation.clone()])])];
    let allow = [policy("a", PolicyAction::Allow, vec![rule(vec![], vec![operation])])];
    let ask = |policies: &[Arc<AuthorizationPolicy>], values: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), HeaderValue::from_static(value));
        }
        let request = RequestFacts { method: &Method::GET, path: "/", headers: &headers };
        allowed(&authorize_request(policies, &facts(None), &request))
    };
    assert!(!ask(&deny, &["user", "admin"]));
    assert!(ask(&deny, &["user"]));
    assert!(ask(&deny, &[]));
    assert!(ask(&allow, &["admin"]));
    assert!(!ask(&allow, &["user", "admin"]));
    assert!(!ask(&allow, &[]));
}

#[test]
fn audit_is_told_and_changes_nothing() {
    let audit = policy("audit", PolicyAction::Audit, vec![PolicyRule::default()]);
    assert_eq!(
        authorize_connection(std::slice::from_ref(&audit), &facts(None)),
        Verdict::Allow { by: None, audited: vec![id("audit")] }
    );
    let on_get = policy(
        "audit-get",
        PolicyAction::Audit,
        vec![rule(vec![], vec![PolicyOperation { methods: vec![Method::GET], ..Default::default() }])],
    );
    let policies = [audit, on_get];
    assert_eq!(
        ask(&policies, None, &Method::GET, "/"),
        Verdict::Allow { by: None, audited: vec![id("audit"), id("audit-get")] }
    );
}

fn any_source() -> impl Strategy<Value = PolicySource> {
    let account = prop::sample::select(vec!["alice", "bob"]);
    (prop::option::of(account.clone()), prop::option::of(account), prop::bool::ANY).prop_map(
        |(principal, not, namespace)| {
            let exact =
                |account: &str| TextMatch::Exact(format!("cluster.local/ns/shop/sa/{account}").into());
            PolicySource {
                principals: principal.map(exact).into_iter().collect(),
                not_principals: not.map(exact).into_iter().collect(),
                namespaces: namespace.then(|| "shop".into()).into_iter().collect(),
                ..Default::default()
            }
        },
    )
}

fn any_operation() -> impl Strategy<Value = PolicyOperation> {
    let paths = prop::sample::select(vec!["/a", "/b"]);
    let methods = prop::sample::select(vec![Method::GET, Method::POST]);
    (
        prop::option::of(prop::sample::select(vec![8080u16, 9090])),
        prop::option::of(methods.clone()),
        prop::option::of(methods),
        prop::option::of(paths.clone()),
        prop::option::of(paths),
    )
        .prop_map(|(port, method, not_method, path, not_path)| PolicyOperation {
            ports: port.into_iter().collect(),
            methods: method.into_iter().collect(),
            not_methods: not_method.into_iter().collect(),
            paths: path.map(|p| TextMatch::Exact(p.into())).into_iter().collect(),
            not_paths: not_path.map(|p| TextMatch::Prefix(p.into())).into_iter().collect(),
            ..Default::default()
        })
}

fn any_rule() -> impl Strategy<Value = PolicyRule> {
    (prop::collection::vec(any_source(), 0..3), prop::collection::vec(any_operation(), 0..3))
        .prop_map(|(from, to)| PolicyRule { from, to })
}

fn any_policies() -> impl Strategy<Value = Vec<Arc<AuthorizationPolicy>>> {
    let action = prop::sample::select(vec![PolicyAction::Allow, PolicyAction::Deny, PolicyAction::Audit]);
    prop::collection::vec((action, prop::collection::vec(any_rule(), 0..3)), 0..4).prop_map(|all| {
        all.into_iter()
            .enumerate()
            .map(|(n, (action, rules))| policy(&format!("p{n}"), action, rules))
            .collect()
    })
}

/// Every question that the generated policies can tell apart.
fn questions() -> Vec<(Option<SpiffeId>, u16, Method, &'static str)> {
    let mut all = Vec::new();
    for who in [None, Some(spiffe("alice")), Some(spiffe("bob"))] {
        for port in [8080, 9090] {
            for method in [Method::GET, Method::POST] {
                for path in ["/a", "/b", "/c", "/x/../a"] {
                    all.push((who.clone(), port, method.clone(), path));
                }
            }
        }
    }
    all
}

fn answer(
    policies: &[Arc<AuthorizationPolicy>],
    (who, port, method, path): &(Option<SpiffeId>, u16, Method, &str),
) -> (Verdict, Verdict) {
    let connection = ConnectionFacts { destination_port: *port, ..facts(who.as_ref()) };
    let headers = HeaderMap::new();
    let request = RequestFacts { method, path, headers: &headers };
    (authorize_connection(policies, &connection), authorize_request(policies, &connection, &request))
}

proptest! {
    #[test]
    fn adding_a_deny_never_widens(mut policies in any_policies(), rules in prop::collection::vec(any_rule(), 0..3)) {
        let before: Vec<_> = questions().iter().map(|q| answer(&policies, q)).collect();
        policies.push(policy("more", PolicyAction::Deny, rules));
        for (question, before) in questions().iter().zip(before) {
            let after = answer(&policies, question);
            prop_assert!(allowed(&before.1) || !allowed(&after.1));
            prop_assert!(allowed(&before.0) || !allowed(&after.0));
        }
    }

    #[test]
    fn a_rule_more_in_an_allow_set_never_narrows(mut policies in any_policies(), more in any_rule()) {
        policies.push(policy("allow", PolicyAction::Allow, vec![]));
        let before: Vec<_> = questions().iter().map(|q| answer(&policies, q).1).collect();
        policies.pop();
        policies.push(policy("allow", PolicyAction::Allow, vec![more]));
        for (question, before) in questions().iter().zip(before) {
            prop_assert!(!allowed(&before) || allowed(&answer(&policies, question).1));
        }
    }

    #[test]
    fn an_audit_changes_nothing(mut policies in any_policies(), rules in prop::collection::vec(any_rule(), 0..3)) {
        let before: Vec<_> = questions().iter().map(|q| allowed(&answer(&policies, q).1)).collect();
        policies.push(policy("audit", PolicyAction::Audit, rules));
        for (question, before) in questions().iter().zip(before) {
            prop_assert_eq!(before, allowed(&answer(&policies, question).1));
        }
    }

    #[test]
    fn what_the_connection_decides_holds_for_each_request(policies in any_policies()) {
        for question in questions() {
            match answer(&policies, &question) {
                (_, Verdict::NeedsHttp) => prop_assert!(false, "a request needs nothing more"),
                (Verdict::NeedsHttp, _) => {}
                (connection, request) => prop_assert_eq!(allowed(&connection), allowed(&request)),
            }
        }
    }
}
