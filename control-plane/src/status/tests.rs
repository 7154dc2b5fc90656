//! What status promises: the Gateway API's reasons, other controllers left alone, nothing written twice.

use serde_json::json;
use weft_proto::model::RouteKind;

use super::conditions::Nodes;
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
    let nodes = Nodes { have: 1, need: 2 };
    let of = |parent: Value, backend: Value, refused: Option<&str>| {
        let mut subject = subject(&json!([parent]), &json!([backend]), Value::Null);
        subject.refused = refused.map(str::to_owned);
        let parents = route::parents(&index, RouteKind::Http, &id, &subject, nodes, "now");
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
    assert_eq!(of(with("sectionName", "x".into()), backend(), None)[0], "Accepted=False:UnsupportedValue");
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
fn other_controllers_parents_stay_and_what_stands_is_not_changed() {
    let index = index(MESH);
    let id = "shop/r".parse().unwrap();
    let theirs =
        json!({"parentRef": {"name": "gateway"}, "controllerName": "example.com/x", "conditions": []});
    let before = json!({"parents": [theirs, {"parentRef": {"name": "gone"}, "controllerName": route::CONTROLLER, "conditions": []}]});
    let parents = json!([{"name": "gateway"}, backend()]);
    let mut subject = subject(&parents, &json!([]), before);
    let nodes = Nodes { have: 2, need: 2 };
    let first = route::parents(&index, RouteKind::Http, &id, &subject, nodes, "t1");
    assert_eq!((first.as_array().unwrap().len(), &first[0]), (2, &theirs));
    assert_eq!(first[1]["parentRef"], backend());
    subject.status = json!({ "parents": first });
    assert_eq!(route::parents(&index, RouteKind::Http, &id, &subject, nodes, "t2"), first);
    // No parent of ours any more: only theirs stay.
    subject.parents = vec![json!({"name": "gateway"})];
    assert_eq!(route::parents(&index, RouteKind::Http, &id, &subject, nodes, "t3"), json!([theirs]));
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
        let parents = route::parents(&index(text), kind, &id, &subject, Nodes::default(), "now");
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
    let parents = route::parents(&index(MESH), RouteKind::Http, &id, &subject, Nodes::default(), "now");
    assert_eq!(parents[0]["conditions"][0]["message"], "spec.hostnames has no meaning");
}

#[test]
fn a_parent_to_which_no_request_is_ever_addressed_accepts_no_route() {
    let id = "shop/r".parse().unwrap();
    let accepted = |text: &str| {
        let subject = subject(&json!([backend()]), &json!([]), Value::Null);
        let parents = route::parents(&index(text), RouteKind::Http, &id, &subject, Nodes::default(), "now");
        reasons(&parents, 0).remove(0)
    };
    assert_eq!(accepted(MESH), "Accepted=True:Accepted");
    assert_eq!(accepted(&MESH.replace("10.96.0.1", "None")), "Accepted=False:UnsupportedValue");
    let tcp = MESH.replace("{port: 80}", "{port: 80, appProtocol: tcp}");
    assert_eq!(accepted(&tcp), "Accepted=False:UnsupportedValue");
}

#[test]
fn of_policies_for_the_same_service_the_first_by_name_counts_and_the_other_is_told() {
    let policy = |name: &str, services: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{targetRefs: \
             [{services}], maxConnections: 1}}\n---\n"
        )
    };
    let service = |name: &str| MESH.replace("backend", name);
    let index = index(
        &[
            policy("a", "{name: x}"),
            policy("b", "{name: x}"),
            policy("c", "{name: x}, {name: y}"),
            policy("d", ""),
            policy("e", "{name: nowhere}"),
            service("x"),
            service("y"),
        ]
        .concat(),
    );
    let reason = |name: &str| {
        let key = ObjectKey { kind: Kind::TrafficPolicy, id: format!("shop/{name}").parse().unwrap() };
        let status = policy::status(
            &index,
            &key,
            &subject(&json!([]), &json!([]), Value::Null),
            Nodes::default(),
            "now",
        );
        assert_eq!(status["observedGeneration"], 2);
        let accepted = &status["conditions"][0];
        (accepted["status"].as_str().unwrap().to_owned(), accepted["reason"].as_str().unwrap().to_owned())
    };
    let accepted = ("True".to_owned(), "Accepted".to_owned());
    assert_eq!(reason("a"), accepted);
    assert_eq!(reason("b"), ("False".to_owned(), "Conflicted".to_owned()));
    assert_eq!(reason("c"), accepted);
    assert_eq!(reason("d"), accepted);
    assert_eq!(reason("e"), ("False".to_owned(), "TargetNotFound".to_owned()));
}
