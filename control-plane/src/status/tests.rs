//! What status promises: the Gateway API's reasons, other controllers left alone, nothing written twice.

use serde_json::json;
use weft_proto::model::RouteKind;

use super::nodes::Nodes;
use super::*;
use crate::index::Index;
use crate::source::Event;
use crate::source::kinds::Parsed;
use crate::source::manifest;
use crate::source::object::Kind;

const MESH: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: backend, namespace: shop}\nspec:\n  clusterIP: 10.96.0.1\n  \
    ports: [{port: 80}]\n---\n";

fn index(text: &str) -> Index {
    let mut index = Index::new("cluster.local".parse().unwrap(), "weft-system");
    let objects = manifest::parse("t.yaml", text).unwrap().objects.into_iter();
    let objects =
        objects.filter_map(|l| if let Parsed::Object(object) = l.parsed { Some(object) } else { None });
    index.apply(vec![Event::Reset(objects.collect())]);
    index
}

fn subject(parents: &Value, backends: &Value, status: Value) -> Subject {
    Subject {
        uid: "u".into(),
        generation: 2,
        resource_version: "1".into(),
        refused: None,
        warnings: Vec::new(),
        parents: parents.as_array().unwrap().clone(),
        backends: backends.as_array().unwrap().clone(),
        status,
    }
}

fn backend() -> Value {
    json!({"group": "", "kind": "Service", "name": "backend", "port": 80})
}

fn reasons(parents: &Value, at: usize) -> Vec<String> {
    let conditions = parents[at]["conditions"].as_array().unwrap().iter();
    conditions
        .map(|c| {
            format!(
                "{}={}:{}",
                c["type"].as_str().unwrap(),
                c["status"].as_str().unwrap(),
                c["reason"].as_str().unwrap()
            )
        })
        .collect()
}

#[test]
fn a_route_is_told_what_the_gateway_api_says() {
    let index = index(MESH);
    let id = "shop/r".parse().unwrap();
    let nodes = Nodes { have: 1, need: 2, missing: Vec::new() };
    let of = |parent: Value, backend: Value, refused: Option<&str>| {
        let mut subject = subject(&json!([parent]), &json!([backend]), Value::Null);
        subject.refused = refused.map(str::to_owned);
        let parents = route::parents(&index, RouteKind::Http, &id, &subject, &nodes, "now");
        reasons(&parents, 0)
    };
    let with = |name: &str, value: Value| {
        let mut reference = backend();
        reference[name] = value;
        reference
    };
    let good =
        ["Accepted=True:Accepted", "ResolvedRefs=True:ResolvedRefs", "weft.dev/Programmed=False:Pending"];
    assert_eq!(of(backend(), backend(), None), good);
    assert_eq!(of(with("name", "nowhere".into()), backend(), None)[0], "Accepted=False:NoMatchingParent");
    assert_eq!(of(with("port", 81.into()), backend(), None)[0], "Accepted=False:NoMatchingParent");
    assert_eq!(of(with("sectionName", "x".into()), backend(), None)[0], "Accepted=False:NoMatchingParent");
    assert_eq!(of(backend(), with("name", "nowhere".into()), None)[1], "ResolvedRefs=False:BackendNotFound");
    assert_eq!(of(backend(), with("port", 81.into()), None)[1], "ResolvedRefs=False:BackendNotFound");
    assert_eq!(
        of(backend(), with("namespace", "other".into()), None)[1],
        "ResolvedRefs=False:RefNotPermitted"
    );
    assert_eq!(of(backend(), with("kind", "ConfigMap".into()), None)[1], "ResolvedRefs=False:InvalidKind");
    let refused = [
        "Accepted=False:UnsupportedValue",
        "ResolvedRefs=Unknown:Pending",
        "weft.dev/Programmed=False:Invalid",
    ];
    assert_eq!(of(backend(), backend(), Some("spec.rules[0]: no")), refused);
}

#[test]
fn a_port_may_be_chosen_by_its_name_and_the_status_is_of_the_parent_as_it_was_given() {
    let id = "shop/r".parse().unwrap();
    let two = MESH.replace("{port: 80}", "{name: http, port: 80}, {name: more, port: 81}");
    let accepted = |text: &str, port: Option<u16>, name: &str| {
        let mut parent = json!({"group": "", "kind": "Service", "name": "backend", "sectionName": name});
        if let Some(port) = port {
            parent["port"] = port.into();
        }
        let subject = subject(&json!([parent]), &json!([]), Value::Null);
        let parents = route::parents(&index(text), RouteKind::Http, &id, &subject, &Nodes::default(), "now");
        assert_eq!(parents[0]["parentRef"], parent);
        let message = parents[0]["conditions"][0]["message"].as_str().unwrap().to_owned();
        (reasons(&parents, 0).remove(0), message)
    };
    let good = ("Accepted=True:Accepted".to_owned(), String::new());
    let no = |message: &str| ("Accepted=False:NoMatchingParent".to_owned(), message.to_owned());
    assert_eq!(accepted(&two, None, "http"), good);
    assert_eq!(accepted(&two, Some(81), "more"), good);
    assert_eq!(accepted(&two, None, ""), good);
    assert_eq!(accepted(&two, None, "web"), no("Service shop/backend has no port named \"web\""));
    assert_eq!(accepted(&two, Some(80), "more"), no("Service shop/backend has no port 80 named \"more\""));
    assert_eq!(accepted(MESH, None, "http"), no("Service shop/backend has no port named \"http\""));
    let tcp = two.replace("{name: more", "{appProtocol: tcp, name: more");
    assert_eq!(accepted(&tcp, None, "http"), good);
    assert_eq!(accepted(&tcp, None, "more").0, "Accepted=False:UnsupportedValue");
}

/// Two parents of one Service are two entries.
#[test]
fn each_port_of_a_service_has_a_status_of_its_own() {
    let index = index(&MESH.replace("{port: 80}", "{name: http, port: 80}"));
    let named = |name: &str| json!({"group": "", "kind": "Service", "name": "backend", "sectionName": name});
    let subject = subject(&json!([named("http"), named("web")]), &json!([]), Value::Null);
    let id = "shop/r".parse().unwrap();
    let parents = route::parents(&index, RouteKind::Grpc, &id, &subject, &Nodes::default(), "now");
    assert_eq!((&parents[0]["parentRef"], &parents[1]["parentRef"]), (&named("http"), &named("web")));
    assert_eq!(reasons(&parents, 0)[0], "Accepted=True:Accepted");
    assert_eq!(reasons(&parents, 1)[0], "Accepted=False:NoMatchingParent");
    assert_eq!(reasons(&parents, 1)[2], "weft.dev/Programmed=False:NotAccepted");
}

#[test]
fn other_controllers_parents_stay_and_what_stands_is_not_changed() {
    let index = index(MESH);
    let id = "shop/r".parse().unwrap();
    let theirs =
        json!({"parentRef": {"name": "gateway"}, "controllerName": "example.com/x", "conditions": []});
    let before = json!({"parents": [theirs, {"parentRef": {"name": "gone"}, "controllerName": route::CONTROLLER, "conditions": []}]});
    let parents = json!([{"name": "gateway"}, backend()]);
    let mut subject = subject(&parents, &json!([]), before);
    let nodes = Nodes { have: 2, need: 2, missing: Vec::new() };
    let first = route::parents(&index, RouteKind::Http, &id, &subject, &nodes, "t1");
    assert_eq!((first.as_array().unwrap().len(), &first[0]), (2, &theirs));
    assert_eq!(first[1]["parentRef"], backend());
    subject.status = json!({ "parents": first });
    assert_eq!(route::parents(&index, RouteKind::Http, &id, &subject, &nodes, "t2"), first);
    // No parent of ours any more: only theirs stay.
    subject.parents = vec![json!({"name": "gateway"})];
    assert_eq!(route::parents(&index, RouteKind::Http, &id, &subject, &nodes, "t3"), json!([theirs]));
}

const OTHERS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: far, namespace: other}\nspec:\n  clusterIP: 10.96.0.2\n  \
    ports: [{port: 80}]\n---\napiVersion: v1\nkind: Service\nmetadata: {name: near, namespace: other}\nspec:\n  clusterIP: \
    10.96.0.3\n  ports: [{port: 80}]\n---\n";
const GRANT: &str = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: other}\nspec:\n  \
    from: [{group: gateway.networking.k8s.io, kind: GRPCRoute, namespace: shop}]\n  to: [{group: '', kind: Service, name: far}]\n";

#[test]
fn another_namespaces_backend_needs_a_grant_for_its_kind_of_route_and_its_name() {
    let id = "shop/r".parse().unwrap();
    let resolved = |text: &str, kind, parent: Value, name: &str| {
        let backend = json!({"name": name, "namespace": "other", "port": 80});
        let subject = subject(&json!([parent]), &json!([backend]), Value::Null);
        let parents = route::parents(&index(text), kind, &id, &subject, &Nodes::default(), "now");
        reasons(&parents, 0).remove(1)
    };
    let (without, with) = (MESH.to_owned() + OTHERS, MESH.to_owned() + OTHERS + GRANT);
    let (resolves, refused) = ("ResolvedRefs=True:ResolvedRefs", "ResolvedRefs=False:RefNotPermitted");
    assert_eq!(resolved(&without, RouteKind::Grpc, backend(), "far"), refused);
    assert_eq!(resolved(&with, RouteKind::Grpc, backend(), "far"), resolves);
    assert_eq!(resolved(&with, RouteKind::Http, backend(), "far"), refused);
    // Whether it exists is not told.
    assert_eq!(resolved(&with, RouteKind::Grpc, backend(), "near"), refused);
    assert_eq!(resolved(&with, RouteKind::Grpc, backend(), "nowhere"), refused);
    // A consumer route shapes traffic of its namespace that goes there anyway.
    let consumed = json!({"group": "", "kind": "Service", "name": "near", "namespace": "other"});
    assert_eq!(resolved(&without, RouteKind::Http, consumed, "far"), resolves);
}

#[test]
fn what_is_passed_over_is_said_with_the_acceptance() {
    let mut subject = subject(&json!([backend()]), &json!([]), Value::Null);
    subject.warnings = vec!["spec.hostnames has no meaning".to_owned()];
    let id = "shop/r".parse().unwrap();
    let parents = route::parents(&index(MESH), RouteKind::Http, &id, &subject, &Nodes::default(), "now");
    assert_eq!(parents[0]["conditions"][0]["message"], "spec.hostnames has no meaning");
}

#[test]
fn a_parent_to_which_no_request_is_ever_addressed_accepts_no_route() {
    let id = "shop/r".parse().unwrap();
    let accepted = |text: &str| {
        let subject = subject(&json!([backend()]), &json!([]), Value::Null);
        let parents = route::parents(&index(text), RouteKind::Http, &id, &subject, &Nodes::default(), "now");
        reasons(&parents, 0).remove(0)
    };
    assert_eq!(accepted(MESH), "Accepted=True:Accepted");
    assert_eq!(accepted(&MESH.replace("10.96.0.1", "None")), "Accepted=False:UnsupportedValue");
    let tcp = MESH.replace("{port: 80}", "{port: 80, appProtocol: tcp}");
    assert_eq!(accepted(&tcp), "Accepted=False:UnsupportedValue");
}

/// A TrafficPolicy of `shop`; `created`: the second of its hour, none as in a directory.
fn traffic(name: &str, created: Option<u8>, spec: &str) -> String {
    let created = created.map(|s| format!(", creationTimestamp: '2026-01-01T00:00:{s:02}Z'"));
    let created = created.unwrap_or_default();
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop{created}}}\nspec: \
         {spec}\n---\n"
    )
}

fn service(name: &str) -> String {
    MESH.replace("backend", name)
}

fn pod(name: &str, app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: u-{name}, labels: {{app: {app}}}}}\nspec: \
         {{nodeName: n1, containers: []}}\nstatus: {{podIPs: [{{ip: 10.0.0.9}}]}}\n---\n"
    )
}

/// `Accepted` of a policy: status, reason and message; then its `Programmed`: status and reason.
fn judged(index: &Index, name: &str) -> [String; 2] {
    let key = ObjectKey { kind: Kind::TrafficPolicy, id: format!("shop/{name}").parse().unwrap() };
    let subject = subject(&json!([]), &json!([]), Value::Null);
    let status = policy::status(index, &key, &subject, &Nodes::default(), "now");
    assert_eq!(status["observedGeneration"], 2);
    let text = |at: usize, name: &str| status["conditions"][at][name].as_str().unwrap().to_owned();
    [
        format!("{} {}: {}", text(0, "status"), text(0, "reason"), text(0, "message")),
        format!("{} {}", text(1, "status"), text(1, "reason")),
    ]
}

const IN_FORCE: &str = "True Programmed";
const NOT_IN_FORCE: &str = "False NotAccepted";

#[test]
fn of_policies_for_the_same_service_the_older_counts_and_the_other_is_told_which_and_by_whom() {
    let of = |services: &str| format!("{{targetRefs: [{services}], maxConnections: 1}}");
    let index = index(
        &[
            traffic("z-old", Some(1), &of("{name: x}")),
            traffic("b", Some(2), &of("{name: x}, {name: y}")),
            traffic("a", Some(3), &of("{name: x}, {name: y}")),
            traffic("lost", Some(4), &of("{name: x}, {name: nowhere}")),
            traffic("all", Some(5), "{maxConnections: 1}"),
            traffic("all-too", Some(6), "{maxConnections: 1}"),
            traffic("e", Some(7), &of("{name: nowhere}")),
            service("x"),
            service("y"),
        ]
        .concat(),
    );
    let rule = "of policies for the same Service the oldest, then the first by name, counts, as a whole";
    for (name, accepted, programmed) in [
        ("z-old", "True Accepted: ".to_owned(), IN_FORCE),
        ("b", format!("True Accepted: not for Service x (TrafficPolicy z-old); {rule}"), IN_FORCE),
        (
            "a",
            format!(
                "False Conflicted: not for Service x (TrafficPolicy z-old), Service y (TrafficPolicy b); {rule}"
            ),
            NOT_IN_FORCE,
        ),
        (
            "lost",
            format!(
                "False Conflicted: not for Service x (TrafficPolicy z-old); {rule}; there is no Service shop/nowhere"
            ),
            NOT_IN_FORCE,
        ),
        (
            "all",
            "True Accepted: not for Service x (TrafficPolicy z-old), Service y (TrafficPolicy b); a policy that names a \
             Service counts before one for the namespace, as a whole"
                .to_owned(),
            IN_FORCE,
        ),
        (
            "all-too",
            "False Conflicted: TrafficPolicy all is for the whole namespace too, and comes first: the oldest, then by name".to_owned(),
            NOT_IN_FORCE,
        ),
        ("e", "False TargetNotFound: there is no Service shop/nowhere".to_owned(), NOT_IN_FORCE),
    ] {
        assert_eq!(judged(&index, name), [accepted, programmed.to_owned()], "{name}");
    }
}

#[test]
fn policies_without_a_time_are_ordered_by_name() {
    let spec = "{targetRefs: [{name: x}], maxConnections: 1}";
    let index = index(&[traffic("b", None, spec), traffic("a", None, spec), service("x")].concat());
    assert_eq!(judged(&index, "a")[1], IN_FORCE);
    assert_eq!(judged(&index, "b")[1], NOT_IN_FORCE);
}

#[test]
fn a_permissive_policy_is_told_which_strict_one_wins_and_for_which_pods() {
    let inbound = |mode: &str, app: &str| {
        let selector =
            if app.is_empty() { String::new() } else { format!("selector: {{matchLabels: {app}}}, ") };
        format!("{{{selector}inbound: {{mode: {mode}}}}}")
    };
    let index = index(
        &[
            traffic("open", Some(1), &inbound("PERMISSIVE", "{app: a}")),
            traffic("shut", Some(2), &inbound("STRICT", "{app: a}")),
            traffic("open-b", Some(1), &inbound("PERMISSIVE", "{tier: b}")),
            traffic("shut-all", Some(3), &inbound("STRICT", "")),
            traffic("open-all", Some(1), &inbound("PERMISSIVE", "")),
            // Its requests are still bounded, whoever decides about its pods.
            traffic("both", Some(1), "{inbound: {mode: PERMISSIVE}, maxConnections: 1}"),
            pod("a", "a"),
        ]
        .concat(),
    );
    assert_eq!(judged(&index, "shut"), ["True Accepted: ", IN_FORCE]);
    assert_eq!(
        judged(&index, "open"),
        ["False Conflicted: TrafficPolicy shut says STRICT for the same pods, which wins", NOT_IN_FORCE]
    );
    // Of what concerns no pod nobody is said to win, but that it does not.
    assert_eq!(judged(&index, "open-b"), ["True Accepted: selects no pod of namespace shop", IN_FORCE]);
    assert_eq!(
        judged(&index, "open-all"),
        ["False Conflicted: TrafficPolicy shut-all says STRICT for the same pods, which wins", NOT_IN_FORCE]
    );
    assert_eq!(
        judged(&index, "both"),
        ["True Accepted: TrafficPolicy shut-all says STRICT for the same pods, which wins", IN_FORCE]
    );
}

#[test]
fn where_pods_are_shared_in_part_the_policy_still_counts_for_the_others() {
    let index = index(
        &[
            traffic("open", None, "{selector: {matchLabels: {app: a}}, inbound: {mode: PERMISSIVE}}"),
            traffic("shut", None, "{selector: {matchLabels: {tier: x}}, inbound: {mode: STRICT}}"),
            traffic("all", None, "{inbound: {mode: STRICT}}"),
            pod("one", "a"),
            pod("two", "a, tier: x"),
        ]
        .concat(),
    );
    assert_eq!(
        judged(&index, "open"),
        ["True Accepted: TrafficPolicy shut says STRICT for some of its pods, which wins", IN_FORCE]
    );
    // The more specific word is no conflict, but is told.
    assert_eq!(
        judged(&index, "all"),
        [
            "True Accepted: TrafficPolicy open says PERMISSIVE for some of its pods, and goes before, with a selector",
            IN_FORCE
        ]
    );
}

#[test]
fn the_younger_of_two_routes_with_the_same_match_is_told() {
    let of = |name: &str, created: u8, port: &str, rules: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop, \
             creationTimestamp: '2026-01-01T00:00:{created:02}Z'}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: \
             backend{port}}}]\n  rules: [{rules}]\n---\n"
        )
    };
    let get = "{matches: [{path: {value: /a}, method: GET}]}";
    let headers = |headers: &str| format!("{{matches: [{{headers: [{headers}]}}]}}");
    let index = index(
        &[
            MESH.replace("{port: 80}", "{name: http, port: 80}"),
            of(
                "old",
                1,
                "",
                &format!("{get}, {{}}, {}", headers("{name: a, value: x}, {name: b, value: y}")),
            ),
            of("turned", 2, "", &headers("{name: B, value: y}, {name: a, value: x}, {name: a, value: z}")),
            of("fewer", 2, "", &headers("{name: a, value: x}")),
            of("new", 2, ", port: 80", "{matches: [{path: {value: /b}}, {path: {value: /a}, method: GET}]}"),
            of("same", 3, "", "{matches: [{path: {value: /}}]}"),
            of("other", 4, ", port: 80", "{matches: [{path: {value: /a}, method: POST}]}"),
            of("named", 5, ", sectionName: http", "{matches: [{path: {value: /b}}, {path: {value: /c}}]}"),
            of("after", 6, ", port: 80", "{matches: [{path: {value: /c}}]}"),
            of("nowhere", 0, ", sectionName: web", "{matches: [{path: {value: /b}}]}"),
        ]
        .concat(),
    );
    let accepted = |name: &str| {
        let id = format!("shop/{name}").parse().unwrap();
        let subject = subject(&json!([backend()]), &json!([]), Value::Null);
        let parents = route::parents(&index, RouteKind::Http, &id, &subject, &Nodes::default(), "now");
        assert_eq!(reasons(&parents, 0)[0], "Accepted=True:Accepted");
        parents[0]["conditions"][0]["message"].as_str().unwrap().to_owned()
    };
    let end = "of routes with the same match the oldest, then the first by name, gets the requests";
    assert_eq!(accepted("old"), "");
    assert_eq!(accepted("new"), format!("not rules[0].matches[1] at port 80 (HTTPRoute old); {end}"));
    assert_eq!(accepted("same"), format!("not rules[0].matches[0] at port 80 (HTTPRoute old); {end}"));
    assert_eq!(accepted("other"), "");
    assert_eq!(accepted("named"), format!("not rules[0].matches[0] at port 80 (HTTPRoute new); {end}"));
    assert_eq!(accepted("after"), format!("not rules[0].matches[0] at port 80 (HTTPRoute named); {end}"));
    assert_eq!(accepted("turned"), format!("not rules[0].matches[0] at port 80 (HTTPRoute old); {end}"));
    assert_eq!(accepted("fewer"), "");
    let told = index.route_statuses().into_iter().find(|status| status.route == "shop/new").unwrap();
    assert!(told.message.starts_with("not rules[0].matches[1]"), "{}", told.message);
}
