//! What a snapshot promises: it depends on the resources alone, and shares what did not change.

use std::collections::BTreeMap;

use proptest::prelude::*;
use weft_proto::model::{ParentRef, Resource, RouteKind};

use super::fixtures::workload;
use super::*;

fn name(namespace: &str, name: &str) -> NamespacedName {
    NamespacedName::new(namespace, name).unwrap()
}

fn service(id: &NamespacedName, vip: Option<&str>) -> Service {
    Service {
        id: id.clone(),
        vips: vip.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: Vec::new(),
        node_local: false,
    }
}

fn endpoint(service: &NamespacedName, ip: &str, ready: bool) -> Endpoint {
    Endpoint {
        service: service.clone(),
        ip: ip.parse().unwrap(),
        workload: None,
        ports: BTreeMap::from([(80, 8080)]),
        ready,
        serving: ready,
        terminating: false,
        node: "n1".into(),
        zone: "".into(),
    }
}

fn traffic_policy(id: &NamespacedName, services: &[&str]) -> TrafficPolicy {
    TrafficPolicy {
        id: id.clone(),
        created_unix_s: 0,
        services: services.iter().map(|&name| name.into()).collect(),
        retry: None,
        connect_timeout: None,
        ejection: None,
        max_connections: None,
        max_pending_requests: None,
    }
}

fn route(id: &NamespacedName, parents: &[&NamespacedName]) -> HttpRoute {
    let parents = parents.iter().map(|&service| ParentRef { service: service.clone(), port: None }).collect();
    HttpRoute { kind: RouteKind::Http, id: id.clone(), created_unix_s: 0, parents, rules: Vec::new() }
}

fn upsert(resource: Resource) -> Change {
    let key = key_of(&resource);
    let version = weft_proto::convert::version_of(&resource);
    Change::Upsert(key, version, resource)
}

const IPS: [&str; 3] = ["10.0.0.1", "10.0.0.2", "fd00::1"];
const NODES: [&str; 2] = ["n1", "n2"];

fn any_service() -> impl Strategy<Value = NamespacedName> {
    (0..2_usize, 0..3_usize).prop_map(|(ns, n)| name(["shop", "bank"][ns], ["a", "b", "c"][n]))
}

fn any_change() -> impl Strategy<Value = Change> {
    let uid = (0..4_usize).prop_map(|n| ["u1", "u2", "u3", "u4"][n]);
    let ip = (0..3_usize).prop_map(|n| IPS[n]);
    prop_oneof![
        (uid.clone(), ip.clone(), 0..2_usize, any::<bool>()).prop_map(|(uid, ip, node, ending)| upsert(
            Resource::Workload(Arc::new(workload(uid, ip, NODES[node], ending)))
        )),
        uid.prop_map(|uid| Change::Remove(ResourceKey::Workload(uid.parse().unwrap()))),
        (any_service(), proptest::option::of(ip.clone()))
            .prop_map(|(id, vip)| upsert(Resource::Service(Arc::new(service(&id, vip))))),
        any_service().prop_map(|id| Change::Remove(ResourceKey::Service(id))),
        (any_service(), ip.clone(), any::<bool>())
            .prop_map(|(id, ip, ready)| upsert(Resource::Endpoint(Arc::new(endpoint(&id, ip, ready))))),
        (any_service(), ip).prop_map(|(service, ip)| Change::Remove(ResourceKey::Endpoint {
            service,
            ip: ip.parse().unwrap()
        })),
        (any_service(), any::<bool>()).prop_map(|(id, general)| {
            let services: &[&str] = if general { &[] } else { &["a"] };
            upsert(Resource::TrafficPolicy(Arc::new(traffic_policy(&id, services))))
        }),
        any_service().prop_map(|id| Change::Remove(ResourceKey::TrafficPolicy(id))),
        (any_service(), any_service(), any_service())
            .prop_map(|(id, one, two)| upsert(Resource::HttpRoute(Arc::new(route(&id, &[&one, &two]))))),
        any_service().prop_map(|id| Change::Remove(ResourceKey::HttpRoute(id))),
        (any_service(), any_service()).prop_map(|(id, one)| {
            let route = HttpRoute { kind: RouteKind::Grpc, ..route(&id, &[&one]) };
            upsert(Resource::HttpRoute(Arc::new(route)))
        }),
        any_service().prop_map(|id| Change::Remove(ResourceKey::GrpcRoute(id))),
    ]
}

/// Everything that can be asked, as text: equal texts, equal snapshots.
fn view(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for uid in ["u1", "u2", "u3", "u4"] {
        all.insert(format!("uid {uid}"), format!("{:?}", snapshot.workload(&uid.parse().unwrap())));
    }
    for ip in IPS {
        let ip = ip.parse().unwrap();
        all.insert(format!("ip {ip}"), format!("{:?}", snapshot.workload_by_ip(ip)));
        all.insert(format!("vip {ip}"), format!("{:?}", snapshot.service_by_vip(ip)));
    }
    for node in NODES {
        all.insert(
            format!("node {node}"),
            format!("{:?}", snapshot.workloads_of_node(node).collect::<Vec<_>>()),
        );
    }
    for namespace in ["shop", "bank"] {
        for service in ["a", "b", "c"] {
            let id = name(namespace, service);
            all.insert(format!("service {id}"), format!("{:?}", snapshot.service(&id)));
        }
    }
    let mut versions: Vec<_> = snapshot.versions().collect();
    versions.sort_by(|a, b| a.0.cmp(b.0));
    all.insert("versions".into(), format!("{versions:?}"));
    all
}

proptest! {
    #[test]
    fn any_history_gives_the_snapshot_that_its_outcome_gives(
        changes in proptest::collection::vec(any_change(), 0..60),
        cuts in proptest::collection::vec(0..60_usize, 0..6),
        backwards in any::<bool>(),
    ) {
        let mut stepwise = Snapshot::default();
        let mut rest = changes.clone();
        for cut in cuts {
            let part: Vec<_> = rest.drain(..cut.min(rest.len())).collect();
            stepwise = stepwise.apply(Revision(1), part);
        }
        stepwise = stepwise.apply(Revision(1), rest);

        let mut outcome = BTreeMap::new();
        for change in changes {
            match &change {
                Change::Upsert(key, ..) => outcome.insert(key.clone(), change),
                Change::Remove(key) => outcome.remove(key),
            };
        }
        let mut outcome: Vec<_> = outcome.into_values().collect();
        if backwards {
            outcome.reverse();
        }
        let rebuilt = Snapshot::default().apply(Revision(1), outcome);
        prop_assert_eq!(view(&stepwise), view(&rebuilt));
    }
}

#[test]
fn a_change_shares_what_it_does_not_touch() {
    let (a, b) = (name("shop", "a"), name("shop", "b"));
    let first = Snapshot::default().apply(
        Revision(1),
        [
            upsert(Resource::Service(Arc::new(service(&a, Some("10.1.0.1"))))),
            upsert(Resource::Service(Arc::new(service(&b, Some("10.1.0.2"))))),
            upsert(Resource::HttpRoute(Arc::new(route(&name("shop", "r"), &[&a])))),
        ],
    );
    let second =
        first.apply(Revision(2), [upsert(Resource::Endpoint(Arc::new(endpoint(&a, "10.0.0.1", true))))]);
    let of = |snapshot: &Snapshot, id| Arc::clone(snapshot.service(id).unwrap());
    assert!(Arc::ptr_eq(&of(&first, &b), &of(&second, &b)), "another Service is the same entry");
    assert!(Arc::ptr_eq(&of(&first, &a).routes, &of(&second, &a).routes), "routes are not compiled again");
    assert_eq!((of(&first, &a).endpoints.len(), of(&second, &a).endpoints.len()), (0, 1));
    assert_eq!((first.revision(), second.revision()), (Revision(1), Revision(2)));
}

#[test]
fn the_live_pod_answers_for_an_address_that_two_have() {
    let old = upsert(Resource::Workload(Arc::new(workload("u1", "10.0.0.1", "n1", true))));
    let new = upsert(Resource::Workload(Arc::new(workload("u2", "10.0.0.1", "n1", false))));
    let ip: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
    for changes in [[old.clone(), new.clone()], [new, old]] {
        let snapshot = Snapshot::default().apply(Revision(1), changes);
        assert_eq!(snapshot.workload_by_ip(ip).unwrap().uid.as_str(), "u2");
    }
}

#[test]
fn a_policy_that_names_a_service_wins_over_one_for_all() {
    let (a, b) = (name("shop", "a"), name("shop", "b"));
    let snapshot = Snapshot::default().apply(
        Revision(1),
        [
            upsert(Resource::TrafficPolicy(Arc::new(traffic_policy(&name("shop", "all"), &[])))),
            upsert(Resource::TrafficPolicy(Arc::new(traffic_policy(&name("shop", "for-a"), &["a"])))),
            upsert(Resource::TrafficPolicy(Arc::new(traffic_policy(&name("bank", "all"), &[])))),
            upsert(Resource::Service(Arc::new(service(&a, None)))),
            upsert(Resource::Service(Arc::new(service(&b, None)))),
        ],
    );
    let policy = |id| snapshot.service(id).unwrap().traffic_policy.clone().unwrap().id.clone();
    assert_eq!((policy(&a), policy(&b)), (name("shop", "for-a"), name("shop", "all")));
}

#[test]
fn of_policies_for_the_same_service_the_oldest_counts_then_the_first_by_name() {
    let snapshot = |services: &[&str], policies: &[(&str, i64)]| {
        let policies = policies.iter().map(|(id, created)| {
            let policy = traffic_policy(&name("shop", id), services);
            upsert(Resource::TrafficPolicy(Arc::new(TrafficPolicy { created_unix_s: *created, ..policy })))
        });
        let service = upsert(Resource::Service(Arc::new(service(&name("shop", "a"), None))));
        let snapshot = Snapshot::default().apply(Revision(1), policies.chain([service]));
        snapshot.service(&name("shop", "a")).unwrap().traffic_policy.clone().unwrap().id.name.to_string()
    };
    for services in [&["a"][..], &[]] {
        assert_eq!(snapshot(services, &[("late", 2), ("old", 1), ("a-new", 3)]), "old");
        assert_eq!(snapshot(services, &[("c", 2), ("b", 2)]), "b");
    }
}

#[test]
fn a_policy_that_is_named_but_unknown_lets_nobody_in() {
    let missing = name("shop", "deny-all");
    let mut pod = workload("u1", "10.0.0.1", "n1", false);
    pod.authorization_policies = vec![missing.clone()];
    let policies = Snapshot::default().policies(&pod);
    assert_eq!(policies.len(), 1);
    assert_eq!((&policies[0].id, policies[0].action), (&missing, PolicyAction::Allow));
    assert!(policies[0].rules.is_empty(), "an ALLOW without rules denies everything");
}
