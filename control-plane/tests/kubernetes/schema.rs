//! What the CRDs' schema accepts and what the parser accepts is the same.

use kube::api::{DynamicObject, PostParams};
use weft_control::source::kinds::Parsed;
use weft_control::source::manifest;

use super::api_server::ApiServer;
use super::cluster::{api_of, crds, install};

const AUTHORIZATION: &[(&str, bool)] = &[
    ("action: ALLOW", true),
    ("action: MAYBE", false),
    ("rules: []", false),
    ("{action: DENY, rules: [{}]}", true),
    ("{action: DENY, rules: [{from: [{}]}]}", false),
    ("{action: DENY, rules: [{from: [{principals: []}]}]}", false),
    ("{action: DENY, rules: [{to: [{}]}]}", false),
    ("{action: DENY, rules: [{form: [{namespaces: [x]}]}]}", false),
    ("{action: DENY, selector: {}}", false),
    ("{action: DENY, selector: {matchLabels: {}}}", true),
    ("{action: DENY, rules: [{from: [{principals: ['*']}]}]}", true),
    ("{action: DENY, rules: [{from: [{principals: ['a*', '*a', 'spiffe://a/ns/b/sa/c']}]}]}", true),
    ("{action: DENY, rules: [{from: [{principals: ['a*b']}]}]}", false),
    ("{action: DENY, rules: [{from: [{principals: ['**']}]}]}", false),
    ("{action: DENY, rules: [{from: [{principals: ['*a*']}]}]}", false),
    ("{action: DENY, rules: [{from: [{principals: ['']}]}]}", false),
    ("{action: DENY, rules: [{from: [{namespaces: [a.b-c]}]}]}", true),
    ("{action: DENY, rules: [{from: [{namespaces: [A]}]}]}", false),
    ("{action: DENY, rules: [{from: [{namespaces: [a-]}]}]}", false),
    ("{action: DENY, rules: [{from: [{cidrs: [10.0.0.0/8, 'fd00::/8']}]}]}", true),
    ("{action: DENY, rules: [{from: [{cidrs: [10.0.0.1/8]}]}]}", true),
    ("{action: DENY, rules: [{from: [{cidrs: [10.0.0.1]}]}]}", false),
    ("{action: DENY, rules: [{from: [{cidrs: [10.0.0.0/33]}]}]}", false),
    ("{action: DENY, rules: [{to: [{ports: [1, 65535]}]}]}", true),
    ("{action: DENY, rules: [{to: [{ports: [0]}]}]}", false),
    ("{action: DENY, rules: [{to: [{ports: [65536]}]}]}", false),
    ("{action: DENY, rules: [{to: [{ports: ['80']}]}]}", false),
    ("{action: DENY, rules: [{to: [{methods: [GET, X-OWN]}]}]}", true),
    ("{action: DENY, rules: [{to: [{methods: ['G T']}]}]}", false),
    ("{action: DENY, rules: [{to: [{methods: ['']}]}]}", false),
    ("{action: DENY, rules: [{to: [{headers: [{name: x-a, value: 'b*'}]}]}]}", true),
    ("{action: DENY, rules: [{to: [{headers: [{name: 'x a', value: b}]}]}]}", false),
    ("{action: DENY, rules: [{to: [{headers: [{name: x-a}]}]}]}", false),
    ("{action: DENY, rules: [{to: [{headers: [{name: x-a, value: ''}]}]}]}", false),
];

const TRAFFIC: &[(&str, bool)] = &[
    ("{}", false),
    ("{inbound: {mode: PERMISSIVE}}", true),
    ("{inbound: {mode: permissive}}", false),
    ("{selector: {matchLabels: {a: b}}, inbound: {mode: STRICT}}", true),
    ("{selector: {matchLabels: {a: b}}, maxConnections: 1}", false),
    ("{targetRefs: [{name: a}], maxConnections: 1}", true),
    ("{targetRefs: [{kind: Service, group: '', name: a}], maxConnections: 1}", true),
    ("{targetRefs: [{kind: Gateway, name: a}], maxConnections: 1}", false),
    ("{targetRefs: [{name: A}], maxConnections: 1}", false),
    ("{targetRefs: [{name: a}]}", false),
    ("{maxConnections: 0}", false),
    ("{maxPendingRequests: 4294967295}", true),
    ("{maxPendingRequests: 4294967296}", false),
    ("{maxPendingRequests: -1}", false),
    ("{connectTimeout: 1h30m}", true),
    ("{connectTimeout: 0s}", true),
    ("{connectTimeout: 1.5s}", false),
    ("{connectTimeout: 5}", false),
    ("{connectTimeout: 123456s}", false),
    ("{connectTimeout: ''}", false),
    ("{retry: {}}", true),
    ("{retry: {codes: [400, 599], attempts: 10, methods: [GET], backoff: 1s, perTryTimeout: 1s}}", true),
    ("{retry: {codes: [399]}}", false),
    ("{retry: {codes: [600]}}", false),
    ("{retry: {attempts: 11}}", false),
    ("{retry: {budget: {percent: 101}}}", false),
    ("{retry: {budget: {percent: 100, minPerSecond: 0}}}", true),
    ("{retry: {atempts: 1}}", false),
    ("{ejection: {consecutiveFailures: 1}}", true),
    ("{ejection: {consecutiveFailures: 0}}", false),
    ("{ejection: {}}", false),
    ("{ejection: {consecutiveFailures: 1, baseEjectionTime: 0s}}", false),
    ("{ejection: {consecutiveFailures: 1, baseEjectionTime: 10ms, maxEjectedPercent: 100}}", true),
];

fn parser_accepts(text: &str) -> bool {
    let object = |located: &manifest::Located| matches!(located.parsed, Parsed::Object(_));
    manifest::parse("t.yaml", text).is_ok_and(|parsed| parsed.objects.iter().all(object))
}

#[tokio::test]
async fn the_schema_and_the_parser_accept_the_same() {
    let server = ApiServer::start(&[]).await;
    let client = server.client().await;
    for crd in crds() {
        install(&client, &crd).await;
    }
    let mut disagreements = Vec::new();
    for (kind, table) in [("AuthorizationPolicy", AUTHORIZATION), ("TrafficPolicy", TRAFFIC)] {
        for (spec, expected) in table {
            let spec = if spec.starts_with('{') { (*spec).to_owned() } else { format!("{{{spec}}}") };
            let text = format!(
                "{{apiVersion: weft.dev/v1alpha1, kind: {kind}, metadata: {{name: p, namespace: default}}, spec: {spec}}}\n"
            );
            let object: DynamicObject = serde_yaml_ng::from_str(&text).unwrap();
            let parameters = PostParams { dry_run: true, field_manager: None };
            // kubectl asks for strict validation; here the unknown field shows as what is left without it.
            let answer = api_of(&client, &object).create(&parameters, &object).await;
            let kept = answer.as_ref().is_ok_and(|created| {
                without_defaults(&created.data["spec"]) == without_defaults(&object.data["spec"])
            });
            if (kept, parser_accepts(&text)) != (*expected, *expected) {
                disagreements.push(format!(
                    "{kind} {spec}: schema {kept}, parser {}, wanted {expected}: {:?}",
                    parser_accepts(&text),
                    answer.err()
                ));
            }
        }
    }
    assert!(disagreements.is_empty(), "{disagreements:#?}");
}

/// Without what the API server fills in.
fn without_defaults(spec: &serde_json::Value) -> String {
    let mut spec = spec.clone();
    for target in spec["targetRefs"].as_array_mut().into_iter().flatten() {
        if let Some(target) = target.as_object_mut() {
            target.remove("kind");
            target.remove("group");
        }
    }
    if spec["targetRefs"].is_null()
        && let Some(spec) = spec.as_object_mut()
    {
        spec.remove("targetRefs");
    }
    spec.to_string()
}
