//! What the merge of the watches promises: one first state, last good stays, nothing of another object's.

use serde_json::json;
use weft_proto::model::InboundMode;

use super::super::raw::{Raw, reduce};
use super::*;
use crate::source::object::{Kind, PodReference};

fn at(kind: Kind) -> usize {
    WATCHED.iter().position(|watched| watched.kind == kind).unwrap()
}

fn item(kind: Kind, value: serde_json::Value) -> Item {
    let raw: Raw = serde_json::from_value(value).unwrap();
    reduce(&WATCHED[at(kind)], raw).unwrap()
}

fn namespace(name: &str) -> Item {
    item(
        Kind::Namespace,
        json!({"metadata": {"name": name, "uid": name, "labels": {"weft.dev/mesh": "enabled"}}}),
    )
}

fn policy(uid: &str, spec: &serde_json::Value) -> Item {
    let metadata =
        json!({"name": "p", "namespace": "shop", "uid": uid, "generation": 3, "resourceVersion": "7"});
    item(Kind::AuthorizationPolicy, json!({"metadata": metadata, "spec": spec, "status": {"conditions": []}}))
}

fn names(events: &[Event]) -> Vec<String> {
    let named = events.iter().flat_map(|event| match event {
        Event::Reset(objects) => objects.iter().map(|object| format!("={}", object.key())).collect(),
        Event::Apply(object) => vec![format!("+{}", object.key())],
        Event::Delete(key) => vec![format!("-{key}")],
    });
    named.collect()
}

fn take(state: &mut State, kind: Kind, told: Told) -> Vec<String> {
    let mut events = Vec::new();
    state.take(at(kind), told, &mut events);
    names(&events)
}

/// A state whose kinds are all listed, and empty.
fn complete() -> State {
    let mut state = State::new(Arc::default());
    for watched in WATCHED {
        take(&mut state, watched.kind, Told::Listed(Vec::new()));
    }
    state
}

#[test]
fn the_first_state_is_whole_and_comes_once() {
    let mut state = State::new(Arc::default());
    for watched in WATCHED.iter().filter(|watched| watched.kind != Kind::HttpRoute) {
        assert!(take(&mut state, watched.kind, Told::Listed(Vec::new())).is_empty());
    }
    // What changes before all are listed is part of the first state.
    assert!(take(&mut state, Kind::Namespace, Told::Applied(Box::new(namespace("shop")))).is_empty());
    assert_eq!(state.awaited(), ["httproutes.gateway.networking.k8s.io"]);
    // Not even trouble makes it whole; a kind that is not installed has no objects.
    assert!(take(&mut state, Kind::HttpRoute, Told::Trouble("403".into())).is_empty());
    assert_eq!(take(&mut state, Kind::HttpRoute, Told::Absent), ["=Namespace shop"]);
    let report = state.report();
    assert!(report.warnings[0].to_string().contains("httproutes.gateway.networking.k8s.io"), "{report:?}");
    assert_eq!(take(&mut state, Kind::HttpRoute, Told::Listed(Vec::new())), [] as [&str; 0]);
    assert!(state.report().warnings.is_empty());
}

#[test]
fn a_route_of_another_controllers_is_not_ours_to_judge() {
    let route = |parents: serde_json::Value, filter: &str| {
        let rules = json!([{"filters": [{"type": filter, "extensionRef": {"group": "x", "kind": "Y", "name": "z"}}]}]);
        item(
            Kind::HttpRoute,
            json!({"metadata": {"name": "r", "namespace": "shop", "uid": "u"}, "spec": {"parentRefs": parents, "rules": rules}}),
        )
    };
    let (gateway, service) = (json!({"name": "g"}), json!({"group": "", "kind": "Service", "name": "s"}));
    let theirs = route(json!([gateway]), "ExtensionRef");
    assert_eq!((theirs.outcome, theirs.warnings), (Ok(None), Vec::new()));
    let both = route(json!([gateway, service]), "ExtensionRef");
    assert!(both.outcome.unwrap_err().contains("extensionRef"));
}

#[test]
fn mirrors_are_references_too() {
    let backend = |name: &str| json!({"name": name, "port": 80});
    let mirror = json!({"type": "RequestMirror", "requestMirror": {"backendRef": backend("copy")}});
    let rules = json!([{"filters": [mirror], "backendRefs": [backend("one")]}]);
    let parents = json!([{"group": "", "kind": "Service", "name": "s"}]);
    let metadata = json!({"name": "r", "namespace": "shop", "uid": "u"});
    let route =
        item(Kind::GrpcRoute, json!({"metadata": metadata, "spec": {"parentRefs": parents, "rules": rules}}));
    assert!(matches!(route.outcome, Ok(Some(Object::HttpRoute(_)))), "{:?}", route.outcome);
    assert_eq!(route.subject.unwrap().backends, [backend("one"), backend("copy")]);
}

#[test]
fn a_new_list_is_one_difference() {
    let mut state = complete();
    let (a, b, c) = (namespace("a"), namespace("b"), namespace("c"));
    let listed = Told::Listed(vec![a.clone(), b]);
    assert_eq!(take(&mut state, Kind::Namespace, listed), ["+Namespace a", "+Namespace b"]);
    let listed = Told::Listed(vec![a.clone(), c]);
    assert_eq!(take(&mut state, Kind::Namespace, listed), ["-Namespace b", "+Namespace c"]);
    assert!(take(&mut state, Kind::Namespace, Told::Applied(Box::new(a.clone()))).is_empty());
    assert!(take(&mut state, Kind::Namespace, Told::Trouble("gone".into())).is_empty());
    assert!(state.report().errors[0].to_string().contains("last known state stays"));
    assert_eq!(take(&mut state, Kind::Namespace, Told::Deleted(a.key)), ["-Namespace a"]);
}

#[test]
fn what_cannot_be_used_keeps_its_last_good_version_and_says_why() {
    let mut state = complete();
    let good = json!({"action": "DENY", "rules": [{"from": [{"namespaces": ["x"]}]}]});
    let bad = json!({"action": "DENY", "rules": [{"from": [{"namespace": ["x"]}]}]});
    let key = policy("u1", &good).key;
    assert_eq!(
        take(&mut state, Kind::AuthorizationPolicy, Told::Applied(Box::new(policy("u1", &good)))),
        ["+AuthorizationPolicy shop/p"]
    );
    assert!(
        take(&mut state, Kind::AuthorizationPolicy, Told::Applied(Box::new(policy("u1", &bad)))).is_empty()
    );
    let error = state.report().errors[0].to_string();
    assert!(
        error.starts_with("AuthorizationPolicy shop/p: ") && error.contains("spec.rules[0].from[0]"),
        "{error}"
    );
    let subjects = state.subjects.all();
    assert_eq!((subjects[0].1.generation, subjects[0].1.refused.is_some()), (3, true));
    // Another object of that name has nothing to keep.
    assert_eq!(
        take(&mut state, Kind::AuthorizationPolicy, Told::Applied(Box::new(policy("u2", &bad)))),
        ["-AuthorizationPolicy shop/p"]
    );
    assert!(take(&mut state, Kind::AuthorizationPolicy, Told::Deleted(key)).is_empty());
    assert!(state.report().errors.is_empty() && state.subjects.all().is_empty());
}

#[test]
fn a_static_pod_has_the_uid_of_its_kubelet_and_is_named_in_slices_by_its_mirrors() {
    let hash = "0a1b2c3d111122223333444455556666";
    let read = |change: fn(&mut serde_json::Value)| {
        let mut pod = json!({
            "metadata": {"name": "proxy-n1", "namespace": "shop", "uid": "11111111-2222-3333-4444-555555555555",
                "annotations": {"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash,
                    "kubernetes.io/config.source": "file"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n", "controller": true}]},
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
        });
        change(&mut pod["metadata"]);
        match item(Kind::Pod, pod).outcome {
            Ok(Some(Object::Pod(pod))) => pod,
            other => panic!("{other:?}"),
        }
    };
    let pod = read(|_| ());
    assert_eq!(pod.uid.as_str(), hash);
    let reference = |uid: &str| PodReference { id: pod.id.clone(), uid: Some(uid.parse().unwrap()) };
    assert!(reference("11111111-2222-3333-4444-555555555555").is(&pod) && !reference(hash).is(&pod));
    // Nobody takes another pod's place: the annotations alone are anybody's to write.
    let spoils: [fn(&mut serde_json::Value); 4] = [
        |metadata| metadata["ownerReferences"] = json!([]),
        |metadata| metadata["annotations"]["kubernetes.io/config.mirror"] = json!("x"),
        |metadata| {
            metadata["annotations"] =
                json!({"kubernetes.io/config.hash": "0a1b2c3d111122223333444455556666"});
        },
        |metadata| {
            let uid = "99999999-2222-3333-4444-555555555555";
            metadata["annotations"] =
                json!({"kubernetes.io/config.hash": uid, "kubernetes.io/config.mirror": uid});
        },
    ];
    for spoil in spoils {
        assert_eq!(read(spoil).uid.as_str(), "11111111-2222-3333-4444-555555555555");
    }
}

#[test]
fn a_pod_is_what_its_kubelet_says_and_no_more() {
    let pod = json!({
        "metadata": {"name": "a", "namespace": "shop", "uid": "u", "annotations": {"weft.dev/pod-ips": "10.0.0.1"},
            "managedFields": [{}]},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "aFieldOfTomorrow": 1}]},
        "status": {"phase": "Pending"},
    });
    let item = item(Kind::Pod, pod);
    let Ok(Some(Object::Pod(pod))) = item.outcome else { panic!("{:?}", item.outcome) };
    assert!(pod.ips.is_empty(), "an address that a pod's author claims");
    assert!(!pod.ready && item.warnings.is_empty());
}

/// What the index holds of an object that was good and then is as given, and what it holds where weft-control starts with it.
fn live_and_after_a_restart(kind: Kind, good: Item, then: &Item) -> [Option<Object>; 2] {
    let held = |state: &State| state.kinds[at(kind)].objects[&then.key].good.clone();
    let mut live = complete();
    take(&mut live, kind, Told::Applied(Box::new(good)));
    take(&mut live, kind, Told::Applied(Box::new(then.clone())));
    let mut restarted = State::new(Arc::default());
    take(&mut restarted, kind, Told::Listed(vec![then.clone()]));
    [held(&live), held(&restarted)]
}

#[test]
fn nothing_in_a_pods_labels_and_annotations_takes_it_out_of_the_configuration() {
    let pod = |field: &str, key: &str, value: &str| {
        let metadata = json!({"name": "a", "namespace": "shop", "uid": "u", field: {key: value}});
        item(
            Kind::Pod,
            json!({"metadata": metadata, "spec": {"nodeName": "n1", "containers": [{"name": "c"}]}}),
        )
    };
    let ports = (1..=33).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
    let cidrs = (1..=33).map(|n| format!("10.{n}.0.0/16")).collect::<Vec<_>>().join(",");
    let endless = "x".repeat(200_000);
    for (field, key, good, wrong, allowed) in [
        ("labels", "weft.dev/mesh", "enabled", "enabel", "enabled or disabled"),
        ("labels", "weft.dev/mesh", "disabled", "", "enabled or disabled"),
        ("annotations", "weft.dev/exclude-inbound-ports", "80", "80,http", "a port from 1 to 65535"),
        ("annotations", "weft.dev/exclude-inbound-ports", "80", "0", "a port from 1 to 65535"),
        ("annotations", "weft.dev/exclude-inbound-ports", "80", &ports, "more than 32"),
        ("annotations", "weft.dev/exclude-outbound-ports", "80", "65536", "a port from 1 to 65535"),
        ("annotations", "weft.dev/exclude-outbound-ports", "80", &ports, "more than 32"),
        ("annotations", "weft.dev/exclude-outbound-cidrs", "10.0.0.0/8", "10.0.0.0/33", "a CIDR"),
        ("annotations", "weft.dev/exclude-outbound-cidrs", "10.0.0.0/8", &cidrs, "more than 32"),
        ("annotations", "weft.dev/exclude-outbound-cidrs", "10.0.0.0/8", &endless, "a CIDR"),
        ("annotations", "weft.dev/redirect", "disabled", "disable", "enabled or disabled"),
    ] {
        let odd = pod(field, key, wrong);
        let [live, restarted] = live_and_after_a_restart(Kind::Pod, pod(field, key, good), &odd);
        assert_eq!(live, restarted, "{key}: {wrong:.20}");
        let Some(Object::Pod(held)) = live else { panic!("{key}: {wrong:.20}: no pod") };
        assert_eq!((held.mesh, held.redirect), (None, true), "{key}: {wrong:.20}");
        let excluded = held.excluded_inbound_ports.len() + held.excluded_outbound_ports.len();
        assert_eq!(excluded + held.excluded_outbound_cidrs.len(), 0, "{key}: {wrong:.20}");
        let mut state = complete();
        take(&mut state, Kind::Pod, Told::Applied(Box::new(odd)));
        let report = state.report();
        assert_eq!((report.errors.len(), report.warnings.len()), (0, 1), "{report:?}");
        let told = report.warnings[0].to_string();
        assert!(told.starts_with("Pod shop/a: ") && told.contains(key) && told.contains(allowed), "{told}");
        assert!(told.len() < 400, "{} bytes of warning", told.len());
    }
}

#[test]
fn a_wrong_label_is_remarked_until_it_is_mended_or_its_object_is_gone() {
    let pod = |uid: &str, word: &str| {
        let metadata =
            json!({"name": "a", "namespace": "shop", "uid": uid, "labels": {"weft.dev/mesh": word}});
        Told::Applied(Box::new(item(Kind::Pod, json!({ "metadata": metadata, "spec": {"containers": []} }))))
    };
    let mut state = complete();
    let subjects = state.subjects.clone();
    let remarked = || -> Vec<(String, usize)> {
        subjects.remarks().values().map(|remark| (remark.uid.clone(), remark.warnings.len())).collect()
    };
    for (told, remarks) in [
        (pod("u", "maybe"), vec![("u".to_owned(), 1)]),
        (pod("v", "maybe"), vec![("v".to_owned(), 1)]),
        (pod("v", "enabled"), vec![]),
        (pod("v", "maybe"), vec![("v".to_owned(), 1)]),
        (Told::Listed(Vec::new()), vec![]),
    ] {
        take(&mut state, Kind::Pod, told);
        assert_eq!(remarked(), remarks);
    }
}

#[test]
fn nothing_in_a_namespaces_labels_and_annotations_opens_its_pods() {
    let namespace = |labels: serde_json::Value, annotations: serde_json::Value| {
        let metadata = json!({"name": "shop", "uid": "u", "labels": labels, "annotations": annotations});
        item(Kind::Namespace, json!({ "metadata": metadata }))
    };
    let enrolled = || namespace(json!({"weft.dev/mesh": "enabled"}), json!({}));
    for (labels, annotations, key, mode) in [
        (json!({"weft.dev/mesh": "enabel"}), json!({}), "weft.dev/mesh", None),
        (json!({"weft.dev/mesh": ""}), json!({}), "weft.dev/mesh", None),
        (
            json!({"weft.dev/mesh": "enabled", "weft.dev/mtls": "permisive"}),
            json!({"weft.dev/mtls": "permissive"}),
            "weft.dev/mtls",
            Some(InboundMode::Strict),
        ),
        (
            json!({"weft.dev/mesh": "enabled"}),
            json!({"weft.dev/mtls": "off"}),
            "weft.dev/mtls",
            Some(InboundMode::Strict),
        ),
    ] {
        let odd = namespace(labels, annotations);
        let [live, restarted] = live_and_after_a_restart(Kind::Namespace, enrolled(), &odd);
        assert_eq!(live, restarted, "{key}");
        let Some(Object::Namespace(held)) = live else { panic!("{key}: no namespace") };
        assert_eq!((held.enrolled, held.inbound_mode), (true, mode), "{key}");
        assert_eq!(odd.warnings.len(), 1, "{:?}", odd.warnings);
        assert!(odd.warnings[0].contains(key), "{:?}", odd.warnings);
    }
    for out in [json!({}), json!({"weft.dev/mesh": "disabled"})] {
        let item = namespace(out, json!({}));
        let Ok(Some(Object::Namespace(held))) = item.outcome else { panic!("{:?}", item.outcome) };
        assert!(!held.enrolled && item.warnings.is_empty());
    }
}
