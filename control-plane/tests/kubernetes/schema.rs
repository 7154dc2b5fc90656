//! What the CRDs' schema accepts and what the parser accepts is the same; and what a list of policies shows.

use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use weft_control::source::kinds::Parsed;
use weft_control::source::manifest;

use super::api_server::ApiServer;
use super::cluster::{api_of, apply, crds, install};

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
    ("{action: DENY, rules: [{to: [{headers: [{name: x-a, value: 'b*'}]}]}]}", true),
    ("{action: DENY, rules: [{to: [{headers: [{name: 'x a', value: b}]}]}]}", false),
    ("{action: DENY, rules: [{to: [{headers: [{name: x-a}]}]}]}", false),
    ("{action: DENY, rules: [{to: [{headers: [{name: x-a, value: ''}]}]}]}", false),
    ("{action: DENY, rules: [{to: [{headers: [{name: x-a, value: 'b*c'}]}]}]}", false),
];

const STARRED: &[(&str, bool)] = &[
    ("'*'", true),
    ("'a*', '*a', 'spiffe://a/ns/b/sa/c'", true),
    ("'a*b'", false),
    ("'**'", false),
    ("'*a*'", false),
    ("''", false),
    ("\"a\\tb\"", false),
];
const NAMES: &[(&str, bool)] = &[
    ("a.b-c, '0'", true),
    ("A", false),
    ("a-", false),
    ("-a", false),
    ("a_b", false),
    ("'*'", false),
    ("''", false),
];
const CIDRS: &[(&str, bool)] = &[
    ("10.0.0.0/8, 'fd00::/8'", true),
    ("10.0.0.1/8", true),
    ("10.0.0.1", false),
    ("10.0.0.0/33", false),
    ("10.0.0.0/-1", false),
    ("''", false),
];
const PORTS: &[(&str, bool)] =
    &[("1, 65535", true), ("0", false), ("65536", false), ("-1", false), ("1.5", false), ("'80'", false)];
const METHODS: &[(&str, bool)] =
    &[("GET, X-OWN, get, '!#$%&*+.^_`|~'", true), ("'G T'", false), ("'G/T'", false), ("''", false)];

/// Lists of an entry of `from` or `to`, each with its opposite: what may and what may not be in them, and the characters of one value
/// (0: it is no text).
type Lists = (&'static str, [&'static str; 2], &'static [(&'static str, bool)], usize);
const LISTS: &[Lists] = &[
    ("from", ["principals", "notPrincipals"], STARRED, 2048),
    ("from", ["namespaces", "notNamespaces"], NAMES, 253),
    ("from", ["cidrs", "notCidrs"], CIDRS, 0),
    ("to", ["ports", "notPorts"], PORTS, 0),
    ("to", ["methods", "notMethods"], METHODS, 64),
    ("to", ["paths", "notPaths"], STARRED, 2048),
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

/// A kind, its spec, and whether it is accepted.
type Row = (&'static str, String, bool);

fn listed() -> Vec<Row> {
    let mut rows = Vec::new();
    for (entry, fields, values, _) in LISTS {
        for field in fields {
            rows.extend(values.iter().map(|(values, expected)| {
                let spec = format!("{{action: DENY, rules: [{{{entry}: [{{{field}: [{values}]}}]}}]}}");
                ("AuthorizationPolicy", spec, *expected)
            }));
        }
    }
    rows
}

/// Of everything that has a length as much as there may be, and one more.
fn limits() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut at_most = |kind, max: usize, spec: &dyn Fn(usize) -> String| {
        rows.push((kind, spec(max), true));
        rows.push((kind, spec(max + 1), false));
    };
    let times = |item: &str, count: usize| vec![item; count].join(", ");
    let labels = |count: usize| (0..count).map(|at| format!("l{at}: v")).collect::<Vec<_>>().join(", ");

    let authorization = "AuthorizationPolicy";
    let deny = |rules: String| format!("{{action: DENY, rules: [{rules}]}}");
    at_most(authorization, 256, &|count| deny(times("{}", count)));
    at_most(authorization, 64, &|count| {
        format!("{{action: DENY, selector: {{matchLabels: {{{}}}}}}}", labels(count))
    });
    for (entry, fields, values, chars_max) in LISTS {
        let one = values[0].0.split(", ").next().unwrap();
        at_most(authorization, 64, &|count| {
            deny(format!("{{{entry}: [{}]}}", times(&format!("{{{}: [{one}]}}", fields[0]), count)))
        });
        for field in fields {
            let of = |values: String| deny(format!("{{{entry}: [{{{field}: [{values}]}}]}}"));
            at_most(authorization, 256, &|count| of(times(one, count)));
            if *chars_max > 0 {
                at_most(authorization, *chars_max, &|length| of("a".repeat(length)));
            }
        }
    }
    let header = |name: String, value: String| {
        deny(format!("{{to: [{{headers: [{{name: {name}, value: {value}}}]}}]}}"))
    };
    at_most(authorization, 256, &|length| header("a".repeat(length), "b".into()));
    // Characters, whatever they take in bytes.
    at_most(authorization, 2048, &|length| header("a".into(), "\u{10348}".repeat(length)));
    at_most(authorization, 64, &|count| {
        deny(format!("{{to: [{{headers: [{}]}}]}}", times("{name: a, value: b}", count)))
    });

    let traffic = "TrafficPolicy";
    at_most(traffic, 256, &|count| {
        format!("{{targetRefs: [{}], maxConnections: 1}}", times("{name: a}", count))
    });
    at_most(traffic, 253, &|length| {
        format!("{{targetRefs: [{{name: {}}}], maxConnections: 1}}", "a".repeat(length))
    });
    at_most(traffic, 64, &|count| {
        format!("{{selector: {{matchLabels: {{{}}}}}, inbound: {{mode: STRICT}}}}", labels(count))
    });
    at_most(traffic, 256, &|count| format!("{{retry: {{codes: [{}]}}}}", times("503", count)));
    at_most(traffic, 256, &|count| format!("{{retry: {{methods: [{}]}}}}", times("GET", count)));
    at_most(traffic, 64, &|length| format!("{{retry: {{methods: [{}]}}}}", "A".repeat(length)));
    for (before, after) in [
        ("connectTimeout: ", ""),
        ("retry: {backoff: ", "}"),
        ("retry: {perTryTimeout: ", "}"),
        ("ejection: {consecutiveFailures: 1, baseEjectionTime: ", "}"),
    ] {
        let of = |duration: String| format!("{{{before}{duration}{after}}}");
        at_most(traffic, 4, &|parts| of("99999ms".repeat(parts)));
        at_most(traffic, 5, &|digits| of("9".repeat(digits) + "h"));
    }
    rows
}

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
    let mut rows = listed();
    rows.extend(limits());
    for (kind, table) in [("AuthorizationPolicy", AUTHORIZATION), ("TrafficPolicy", TRAFFIC)] {
        rows.extend(table.iter().map(|(spec, expected)| {
            let spec = if spec.starts_with('{') { (*spec).to_owned() } else { format!("{{{spec}}}") };
            (kind, spec, *expected)
        }));
    }
    let mut disagreements = Vec::new();
    for (kind, spec, expected) in rows {
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
        let parsed = parser_accepts(&text);
        if (kept, parsed) != (expected, expected) {
            let spec: String = spec.chars().take(200).collect();
            let error = answer.err();
            disagreements
                .push(format!("{kind} {spec}: schema {kept}, parser {parsed}, wanted {expected}: {error:?}"));
        }
    }
    assert!(disagreements.is_empty(), "{disagreements:#?}");
}

/// Without what the API server fills in.
fn without_defaults(spec: &Value) -> String {
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

/// As `kubectl get` asks, without `-o wide`.
#[tokio::test]
async fn a_list_of_policies_shows_why_one_does_not_count_and_which_nodes_have_it() {
    let server = ApiServer::start(&[]).await;
    let client = server.client().await;
    for crd in crds() {
        install(&client, &crd).await;
    }
    for (kind, plural, spec) in [
        ("AuthorizationPolicy", "authorizationpolicies", "{action: DENY}"),
        ("TrafficPolicy", "trafficpolicies", "{maxConnections: 1}"),
    ] {
        let policy = format!(
            "{{apiVersion: weft.dev/v1alpha1, kind: {kind}, metadata: {{name: p, namespace: default}}, spec: {spec}}}"
        );
        apply(&client, &policy).await.unwrap();
        let condition = |kind: &str, reason: &str, message: &str| {
            json!({"type": kind, "status": "False", "reason": reason, "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let conditions = [
            condition("Accepted", "Conflicted", "not for Service x"),
            condition("Programmed", "Pending", "1 of 2 nodes have it, not b"),
        ];
        let object: DynamicObject = serde_yaml_ng::from_str(&policy).unwrap();
        let status = Patch::Merge(json!({"status": {"conditions": conditions}}));
        api_of(&client, &object).patch_status("p", &PatchParams::default(), &status).await.unwrap();

        let request = http::Request::get(format!("/apis/weft.dev/v1alpha1/namespaces/default/{plural}"))
            .header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
            .body(Vec::new())
            .unwrap();
        let table: Value = client.request(request).await.unwrap();
        let columns = table["columnDefinitions"].as_array().unwrap().iter();
        let cells = columns.zip(table["rows"][0]["cells"].as_array().unwrap());
        let shown = cells.filter(|(column, _)| column["priority"] == 0);
        let shown: Vec<String> = shown.map(|(column, cell)| format!("{} {cell}", column["name"])).collect();
        for (name, cell) in [
            ("Accepted", "False"),
            ("Reason", "Conflicted"),
            ("Programmed", "False"),
            ("Nodes", "1 of 2 nodes have it, not b"),
        ] {
            assert!(shown.contains(&format!("{name:?} {cell:?}")), "{kind}: no {name} {cell} in {shown:?}");
        }
    }
}
