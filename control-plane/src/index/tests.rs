//! What the index promises: the order of events does not matter, and a node gets just what it needs.

use proptest::prelude::*;

use super::*;
use crate::source::kinds::Parsed;
use crate::source::manifest;

fn objects(text: &str) -> Vec<Object> {
    let manifest = manifest::parse("t.yaml", text).unwrap();
    let parsed = manifest.objects.into_iter().map(|located| located.parsed);
    parsed.filter_map(|p| if let Parsed::Object(object) = p { Some(object) } else { None }).collect()
}

fn pod(namespace: &str, name: &str, node: &str, ip: &str, app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, uid: uid-{namespace}-{name}, \
         labels: {{app: {app}}}}}\nspec:\n  nodeName: {node}\n  containers:\n  - name: c\n    ports:\n    \
         - {{name: web, containerPort: 8080}}\nstatus: {{podIPs: [{{ip: {ip}}}]}}\n---\n"
    )
}

fn namespace(name: &str, mesh: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{weft.dev/mesh: {mesh}}}}}\n---\n"
    )
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: backend, namespace: shop}\nspec:\n  clusterIP: \
    10.96.0.1\n  selector: {app: backend}\n  ports:\n  - {name: http, port: 80, targetPort: web}\n---\n";
const POLICY: &str = "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: shop}\n\
    spec:\n  selector: {matchLabels: {app: backend}}\n  action: DENY\n  rules:\n  - to:\n    - ports: [8080]\n---\n";
const CONSUMER: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: mine, namespace: other}\n\
    spec:\n  parentRefs:\n  - {group: '', kind: Service, name: backend, namespace: shop}\n  rules:\n  - timeouts: \
    {request: 1s}\n---\n";
const PERMISSIVE: &str = "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: mode, namespace: shop}\n\
    spec:\n  selector: {matchLabels: {app: backend}}\n  inbound: {mode: PERMISSIVE}\n---\n";
const SLICE: &str = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: backend-1, namespace: shop, \
    labels: {kubernetes.io/service-name: backend}}\naddressType: IPv4\nports:\n- {name: http, port: 9090}\nendpoints:\n\
    - addresses: [10.0.0.9]\n  targetRef: {kind: Pod, name: b}\n---\n";

fn index() -> Index {
    let mut index = Index::new("cluster.local".parse().unwrap());
    index.set_roots(vec![vec![1]]);
    index
}

fn world() -> Vec<Object> {
    let route = CONSUMER.replace("name: mine, namespace: other", "name: own, namespace: shop");
    objects(
        &[
            namespace("shop", "enabled"),
            namespace("other", "enabled"),
            pod("shop", "a", "n1", "10.0.0.1", "frontend"),
            pod("shop", "b", "n2", "10.0.0.2", "backend"),
            pod("shop", "c", "n1", "10.0.0.3", "backend"),
            pod("other", "d", "n3", "10.0.0.4", "x"),
            pod("plain", "e", "n4", "10.0.0.5", "x"),
            SERVICE.into(),
            POLICY.into(),
            CONSUMER.into(),
            PERMISSIVE.into(),
            SLICE.into(),
            route,
        ]
        .concat(),
    )
}

fn names(index: &Index, node: &str) -> Vec<String> {
    index.all_keys(node).iter().map(|key| convert::resource_key_to_wire(key).name).collect()
}

fn workload(index: &Index, node: &str, uid: &str) -> v1::Workload {
    let key = ResourceKey::Workload(uid.parse().unwrap());
    let Some(v1::resource::Body::Workload(pod)) = index.wanted(node, &key).unwrap().wire.body.clone() else {
        panic!("not a workload")
    };
    pod
}

#[test]
fn a_node_gets_what_it_needs_and_no_more() {
    let mut index = index();
    index.apply(vec![Event::Reset(world())]);
    // The consumer route only where its namespace has pods; the policy only where a selected pod runs.
    assert!(names(&index, "n3").contains(&"other/mine".to_owned()));
    assert!(!names(&index, "n1").contains(&"other/mine".to_owned()));
    assert!(names(&index, "n2").contains(&"shop/deny".to_owned()));
    assert!(!names(&index, "n3").contains(&"shop/deny".to_owned()));
    assert_eq!(names(&index, "n4"), ["mesh", "uid-plain-e"]);
    assert_eq!(names(&index, "elsewhere"), ["mesh"]);
    assert_eq!(workload(&index, "n2", "uid-shop-b").authorization_policies, ["shop/deny"]);
    assert!(workload(&index, "n1", "uid-shop-b").authorization_policies.is_empty());
}

#[test]
fn a_workload_is_described_by_its_pod_its_namespace_and_its_services() {
    let mut index = index();
    index.apply(vec![Event::Reset(world())]);
    let backend = workload(&index, "n2", "uid-shop-b");
    assert!(backend.enrolled && backend.ready && backend.redirect);
    assert_eq!(backend.port_protocols, [(8080, v1::AppProtocol::Http.into())].into());
    assert_eq!(backend.inbound_mode, i32::from(v1::InboundMode::Permissive));
    assert_eq!(workload(&index, "n1", "uid-shop-a").inbound_mode, i32::from(v1::InboundMode::Strict));
    assert_eq!(
        (backend.canonical_service.as_str(), backend.canonical_revision.as_str()),
        ("backend", "latest")
    );
    assert!(!workload(&index, "n4", "uid-plain-e").enrolled);
}

#[test]
fn endpoints_come_from_slices_and_else_from_pods() {
    let mut index = index();
    index.apply(vec![Event::Reset(world())]);
    let endpoints = |index: &Index| {
        let keys = index.all_keys("n1").into_iter();
        keys.filter_map(
            |key| if let ResourceKey::Endpoint { ip, .. } = key { Some(ip.to_string()) } else { None },
        )
        .collect::<Vec<_>>()
    };
    assert_eq!(endpoints(&index), ["10.0.0.9"]);
    let slice = objects(SLICE)[0].key();
    let changes = index.apply(vec![Event::Delete(slice)]);
    assert_eq!(endpoints(&index), ["10.0.0.2", "10.0.0.3"]);
    assert_eq!(changes.everywhere.len(), 3);
}

#[test]
fn a_change_costs_what_it_touches() {
    let mut index = index();
    index.apply(vec![Event::Reset(world())]);
    let revision = index.revision();
    assert!(index.apply(vec![Event::Reset(world())]).is_empty());
    assert_eq!(index.revision(), revision);
    let changed = objects(&POLICY.replace("8080", "9090")).remove(0);
    let changes = index.apply(vec![Event::Apply(changed)]);
    assert!(changes.everywhere.is_empty() && changes.whole.is_empty());
    assert_eq!(changes.by_node.keys().map(|n| &**n).collect::<Vec<_>>(), ["n1", "n2"]);
    let unlabelled = objects(&namespace("other", "disabled")).remove(0);
    let changes = index.apply(vec![Event::Apply(unlabelled)]);
    assert_eq!(changes.everywhere.len(), 1);
    assert!(changes.whole.contains("n3"));
}

#[test]
fn a_route_to_what_is_missing_says_so() {
    let mut index = index();
    let route = CONSUMER.replace("- timeouts: {request: 1s}", "- backendRefs: [{name: nowhere, port: 80}]");
    index.apply(vec![Event::Reset(objects(&(SERVICE.to_owned() + &route)))]);
    let statuses = index.route_statuses();
    assert_eq!((statuses[0].accepted, statuses[0].reason), (true, "BackendNotFound"));
    index.apply(vec![Event::Delete(objects(SERVICE)[0].key())]);
    assert_eq!(index.route_statuses()[0].reason, "NoMatchingParent");
}

/// Everything that can be seen from outside, versions included.
fn seen(index: &Index) -> Vec<(String, String, u64)> {
    let mut seen = Vec::new();
    for node in ["n1", "n2", "n3", "n4"] {
        for key in index.all_keys(node) {
            let sent = index.wanted(node, &key).unwrap();
            seen.push((node.to_owned(), format!("{key:?}"), sent.wire.version));
        }
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the order, with objects changed, deleted and put back on the way: as if built anew.
    #[test]
    fn any_order_of_events_ends_the_same(steps in proptest::collection::vec((0usize..13, 0u8..3), 0..60)) {
        let world = world();
        let variants: Vec<Vec<Object>> = [
            ("web", "web"), ("app: backend", "app: frontend"), ("enabled", "disabled"),
        ].iter().map(|_| world.clone()).collect();
        let relabelled = objects(&[
            namespace("shop", "disabled"), namespace("other", "disabled"),
            pod("shop", "a", "n2", "10.0.0.1", "backend"), pod("shop", "b", "n3", "10.0.0.7", "frontend"),
            pod("shop", "c", "n1", "10.0.0.3", "x"), pod("other", "d", "n1", "10.0.0.4", "x"),
            pod("plain", "e", "n1", "10.0.0.5", "x"), SERVICE.replace("app: backend", "app: frontend"),
            POLICY.replace("app: backend", "app: frontend"), CONSUMER.replace("1s", "2s"),
            PERMISSIVE.replace("app: backend", "app: frontend"), SLICE.replace("9090", "9091"),
            CONSUMER.replace("name: mine, namespace: other", "name: own, namespace: shop"),
        ].concat());
        let mut incremental = index();
        let mut held: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        let mut mirror: BTreeMap<(String, String), u64> = BTreeMap::new();
        let refresh = |index: &Index, mirror: &mut BTreeMap<(String, String), u64>, node: &str, key: &ResourceKey| {
            let at = (node.to_owned(), format!("{key:?}"));
            match index.wanted(node, key) {
                Some(sent) => { mirror.insert(at, sent.wire.version); }
                None => { mirror.remove(&at); }
            }
        };
        for node in ["n1", "n2", "n3", "n4"] {
            refresh(&incremental, &mut mirror, node, &ResourceKey::Mesh);
        }
        for (which, what) in steps {
            let object = match what { 0 => &variants[0][which], 1 => &relabelled[which], _ => &world[which] };
            let changes = if what == 2 {
                held.remove(&object.key());
                incremental.apply(vec![Event::Delete(object.key())])
            } else {
                held.insert(object.key(), object.clone());
                incremental.apply(vec![Event::Apply(object.clone())])
            };
            // A node that follows the changes alone must hold what it should.
            for node in ["n1", "n2", "n3", "n4"] {
                if changes.whole.contains(node) {
                    mirror.retain(|(of, _), _| of != node);
                    for key in incremental.all_keys(node) {
                        refresh(&incremental, &mut mirror, node, &key);
                    }
                }
                for key in changes.everywhere.iter().chain(changes.by_node.get(node).into_iter().flatten()) {
                    refresh(&incremental, &mut mirror, node, key);
                }
            }
        }
        let mut rebuilt = index();
        rebuilt.apply(vec![Event::Reset(held.into_values().collect())]);
        prop_assert_eq!(seen(&incremental), seen(&rebuilt));
        let followed: BTreeMap<_, _> = seen(&incremental).into_iter().map(|(n, k, v)| ((n, k), v)).collect();
        prop_assert_eq!(mirror, followed);
    }
}
