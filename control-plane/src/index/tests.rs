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

pub(crate) fn index() -> Index {
    let mut index = Index::new("cluster.local".parse().unwrap(), "weft-system");
    index.set_roots(vec![vec![1]]);
    index
}

pub(crate) fn world() -> Vec<Object> {
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

/// The same objects, each changed.
pub(crate) fn relabelled() -> Vec<Object> {
    objects(
        &[
            namespace("shop", "disabled"),
            namespace("other", "disabled"),
            pod("shop", "a", "n2", "10.0.0.1", "backend"),
            pod("shop", "b", "n3", "10.0.0.7", "frontend"),
            pod("shop", "c", "n1", "10.0.0.3", "x"),
            pod("other", "d", "n1", "10.0.0.4", "x"),
            pod("plain", "e", "n1", "10.0.0.5", "x"),
            SERVICE
                .replace("app: backend", "app: frontend")
                .replace("name: http, port: 80", "name: web, port: 81"),
            POLICY.replace("app: backend", "app: frontend"),
            CONSUMER.replace("1s", "2s"),
            PERMISSIVE.replace("app: backend", "app: frontend"),
            SLICE.replace("9090", "9091"),
            CONSUMER.replace("name: mine, namespace: other", "name: own, namespace: shop"),
        ]
        .concat(),
    )
}

fn names(index: &Index, node: &str) -> Vec<String> {
    let mut keys: Vec<_> = index.all(node).iter().map(|sent| sent.key.clone()).collect();
    keys.sort();
    keys.iter().map(|key| convert::resource_key_to_wire(key).name).collect()
}

fn workload(index: &Index, node: &str, uid: &str) -> v1::Workload {
    let key = ResourceKey::Workload(uid.parse().unwrap());
    let Some(v1::resource::Body::Workload(pod)) = index.wanted(node, &key).unwrap().resource().body else {
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
        let ip = |key: &ResourceKey| match key {
            ResourceKey::Endpoint { ip, .. } => Some(ip.to_string()),
            _ => None,
        };
        index.all("n1").iter().filter_map(|sent| ip(&sent.key)).collect::<Vec<_>>()
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
    // The pod, and the list of enrolled namespaces.
    assert_eq!(changes.everywhere.len(), 2);
    assert!(changes.whole.contains("n3"));
}

#[test]
fn a_pod_without_an_address_is_its_own_nodes_business() {
    let mut index = index();
    index.apply(vec![Event::Reset(world())]);
    let early = pod("shop", "early", "n1", "10.0.0.8", "frontend")
        .replace("podIPs: [{ip: 10.0.0.8}]", "phase: Pending");
    let changes = index.apply(objects(&early).into_iter().map(Event::Apply).collect());
    assert!(changes.everywhere.is_empty() && changes.whole.is_empty());
    assert_eq!(changes.by_node.keys().map(|node| &**node).collect::<Vec<_>>(), ["n1"]);
    assert!(workload(&index, "n1", "uid-shop-early").ips.is_empty());
    assert!(!names(&index, "n2").contains(&"uid-shop-early".to_owned()));
    let changes = index.apply(
        objects(&pod("shop", "early", "n1", "10.0.0.8", "frontend")).into_iter().map(Event::Apply).collect(),
    );
    assert!(changes.everywhere.contains_key(&ResourceKey::Workload("uid-shop-early".parse().unwrap())));
    assert!(names(&index, "n2").contains(&"uid-shop-early".to_owned()));
}

#[test]
fn the_mesh_names_the_enrolled_namespaces_but_never_its_own() {
    let mut index = index();
    let own = pod("weft-system", "x", "n1", "10.0.0.9", "x")
        .replace("labels: {", "labels: {weft.dev/mesh: enabled, ");
    let objects = objects(
        &[
            namespace("shop", "enabled"),
            namespace("off", "disabled"),
            namespace("weft-system", "enabled"),
            own,
        ]
        .concat(),
    );
    let changes = index.apply(vec![Event::Reset(objects)]);
    assert!(changes.everywhere.contains_key(&ResourceKey::Mesh));
    let Some(v1::resource::Body::Mesh(mesh)) =
        index.wanted("n1", &ResourceKey::Mesh).unwrap().resource().body
    else {
        panic!("not a mesh")
    };
    assert_eq!(mesh.enrolled_namespaces, ["shop"]);
    assert!(!workload(&index, "n1", "uid-weft-system-x").enrolled);
}

#[test]
fn an_endpoint_waits_for_its_pod_and_follows_its_end() {
    let mut index = index();
    index.apply(vec![Event::Reset(world())]);
    let endpoint = |index: &Index| {
        let key = ResourceKey::Endpoint {
            service: "shop/backend".parse().unwrap(),
            ip: "10.0.0.9".parse().unwrap(),
        };
        match index.wanted("n1", &key)?.resource().body {
            Some(v1::resource::Body::Endpoint(endpoint)) => Some(endpoint),
            _ => None,
        }
    };
    assert!(endpoint(&index).is_some_and(|endpoint| endpoint.ready));
    // A name that was another pod's: the slice is older than the pod, or newer.
    let stale = SLICE.replace("name: b}", "name: b, uid: uid-of-before}");
    index.apply(vec![Event::Apply(objects(&stale).remove(0))]);
    assert_eq!(endpoint(&index), None);
    index.apply(vec![Event::Apply(objects(SLICE).remove(0))]);
    let ending = pod("shop", "b", "n2", "10.0.0.9", "backend")
        .replace("uid: uid", "deletionTimestamp: '2026-01-01T00:00:00Z', uid: uid");
    let ending = objects(&ending).remove(0);
    index.apply(vec![Event::Apply(ending.clone())]);
    assert!(endpoint(&index).is_some_and(|endpoint| !endpoint.ready && endpoint.terminating));
    index.apply(vec![Event::Delete(ending.key())]);
    assert_eq!(endpoint(&index), None);
}

#[test]
fn a_pods_zone_is_its_nodes() {
    let mut index = index();
    index.apply(vec![Event::Reset(world())]);
    let node = |zone: &str| {
        objects(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n2, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n")).remove(0)
    };
    index.apply(vec![Event::Apply(node("z1"))]);
    assert_eq!(workload(&index, "n2", "uid-shop-b").zone, "z1");
    assert!(index.apply(vec![Event::Apply(node("z1"))]).is_empty());
}

/// What users expect of each kind of Service.
#[test]
fn services_of_every_type_have_what_can_be_reached() {
    let endpoints = |service: &str| {
        let mut index = index();
        let pods = [
            pod("shop", "b", "n1", "10.0.0.2", "backend"),
            pod("shop", "u", "n1", "10.0.0.3", "backend")
                .replace("status: {", "status: {conditions: [{type: Ready, status: 'False'}], "),
        ];
        index.apply(vec![Event::Reset(objects(
            &[namespace("shop", "enabled"), pods.concat(), service.to_owned()].concat(),
        ))]);
        let mut found = Vec::new();
        for sent in index.all("n1") {
            if let ResourceKey::Endpoint { ip, .. } = &sent.key {
                let Some(v1::resource::Body::Endpoint(endpoint)) = sent.resource().body else {
                    panic!("not an endpoint")
                };
                found.push((
                    ip.to_string(),
                    endpoint.ready,
                    endpoint.ports.values().copied().collect::<Vec<_>>(),
                ));
            }
        }
        found
    };
    let both = |unready: bool, ports: Vec<u32>| {
        vec![("10.0.0.2".to_owned(), true, ports.clone()), ("10.0.0.3".to_owned(), unready, ports)]
    };
    let headless = SERVICE.replace("10.96.0.1", "None");
    for (service, expected) in [
        (SERVICE.to_owned(), both(false, vec![8080])),
        (headless.clone(), both(false, vec![8080])),
        (headless.replace("spec:", "spec:\n  publishNotReadyAddresses: true"), both(true, vec![8080])),
        (SERVICE.replace("spec:", "spec:\n  type: NodePort"), both(false, vec![8080])),
        (SERVICE.replace("targetPort: web", "targetPort: nosuch"), both(false, vec![])),
        (SERVICE.replace("targetPort: web", "targetPort: 81, protocol: UDP"), both(false, vec![])),
        (SERVICE.replace("spec:", "spec:\n  type: ExternalName\n  externalName: example.com"), vec![]),
        (SERVICE.replace("app: backend", "app: nobody"), vec![]),
    ] {
        assert_eq!(endpoints(&service), expected, "{service}");
    }
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

const GRPC: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: own, namespace: shop}\nspec:\n  \
    parentRefs:\n  - {group: '', kind: Service, name: backend, port: 80}\n  rules:\n  - matches: [{method: {service: a.Greeter}}]\n    \
    backendRefs: [{name: backend, port: 80}]\n---\n";
const GRANT: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: shop}\nspec:\n  \
    from: [{group: gateway.networking.k8s.io, kind: GRPCRoute, namespace: plain}]\n  to: [{group: '', kind: Service}]\n---\n";

fn sent_route(index: &Index, node: &str, key: &ResourceKey) -> v1::HttpRoute {
    match index.wanted(node, key).unwrap().resource().body {
        Some(v1::resource::Body::HttpRoute(route) | v1::resource::Body::GrpcRoute(route)) => route,
        other => panic!("not a route: {other:?}"),
    }
}

#[test]
fn routes_of_both_kinds_may_have_one_name_and_the_grpc_route_comes_first() {
    let mut index = index();
    index.apply(vec![Event::Reset(world())]);
    let changes = index.apply(objects(GRPC).into_iter().map(Event::Apply).collect());
    let key = ResourceKey::GrpcRoute("shop/own".parse().unwrap());
    assert!(changes.everywhere.keys().eq([&key]));
    assert_eq!(names(&index, "n1").iter().filter(|name| name.contains("own")).count(), 2);
    assert_eq!(sent_route(&index, "n1", &key).rules[0].matches.len(), 1);
    let status = |index: &Index, kind: &str| {
        let statuses = index.route_statuses();
        let found = statuses.iter().find(|status| status.kind == kind && status.route == "shop/own").unwrap();
        (found.accepted, found.reason, found.message.clone())
    };
    assert_eq!(status(&index, "GRPCRoute"), (true, "Accepted", String::new()));
    let (accepted, reason, message) = status(&index, "HTTPRoute");
    assert_eq!((accepted, reason), (false, "Conflicted"));
    assert!(message.contains("GRPCRoute shop/own"), "{message}");
    // Another port stays the HTTPRoute's; other clients' routes are no conflict.
    let more = SERVICE.replace("targetPort: web}", "targetPort: web}\n  - {name: more, port: 81}");
    index.apply(objects(&more).into_iter().map(Event::Apply).collect());
    let (accepted, _, message) = status(&index, "HTTPRoute");
    assert!(accepted && message.contains("port 80"), "{message}");
    let consumers = index.route_statuses().into_iter().find(|status| status.route == "other/mine").unwrap();
    assert!(consumers.accepted && consumers.message.is_empty());
    let changes = index.apply(vec![Event::Delete(objects(GRPC)[0].key())]);
    assert!(changes.everywhere.keys().eq([&key]));
    assert_eq!(status(&index, "HTTPRoute"), (true, "Accepted", String::new()));
}

#[test]
fn a_grant_opens_a_backend_of_another_namespace_and_its_end_closes_it() {
    let mut index = index();
    index.apply(vec![Event::Reset(world())]);
    // A route of `plain` for a Service of its own, with a backend and a mirror in `shop`.
    let own = SERVICE.replace("namespace: shop", "namespace: plain").replace("10.96.0.1", "10.96.0.2");
    let route = GRPC.replace("namespace: shop}", "namespace: plain}").replace(
        "backendRefs: [{name",
        "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: backend, namespace: \
            shop, port: 80}}}]\n    backendRefs: [{namespace: shop, name",
    );
    index.apply(objects(&(own + &route)).into_iter().map(Event::Apply).collect());
    let key = ResourceKey::GrpcRoute("plain/own".parse().unwrap());
    let open = |index: &Index| {
        let route = sent_route(index, "n1", &key);
        let status = index.route_statuses().into_iter().find(|status| status.route == "plain/own").unwrap();
        (
            !route.rules[0].backends[0].invalid,
            route.rules[0].filters.len(),
            status.resolved_refs,
            status.reason,
        )
    };
    assert_eq!(open(&index), (false, 0, false, "RefNotPermitted"));
    let other = GRANT.replace("GRPCRoute", "HTTPRoute");
    assert!(index.apply(objects(&other).into_iter().map(Event::Apply).collect()).is_empty());
    let changes = index.apply(objects(GRANT).into_iter().map(Event::Apply).collect());
    assert!(changes.everywhere.keys().eq([&key]));
    assert_eq!(open(&index), (true, 1, true, "Accepted"));
    let changes = index.apply(vec![Event::Delete(objects(GRANT)[0].key())]);
    assert!(changes.everywhere.keys().eq([&key]));
    assert_eq!(open(&index), (false, 0, false, "RefNotPermitted"));
}

/// A route of `shop` for the port of this name.
fn for_port(name: &str) -> String {
    let named = CONSUMER.replace("name: mine, namespace: other", "name: named, namespace: shop");
    named.replace("name: backend, namespace: shop}", &format!("name: backend, sectionName: {name}}}"))
}

#[test]
fn a_port_that_is_chosen_by_its_name_is_the_services_as_it_is_now() {
    let mut index = index();
    index.apply(vec![Event::Reset(world())]);
    index.apply(objects(&for_port("http")).into_iter().map(Event::Apply).collect());
    let key = ResourceKey::HttpRoute("shop/named".parse().unwrap());
    let seen = |index: &Index| {
        let parents = sent_route(index, "n1", &key).parents.into_iter();
        let statuses = index.route_statuses();
        let status = statuses.iter().find(|status| status.route == "shop/named").unwrap();
        assert_eq!(status.parent, "shop/backend:http");
        (parents.map(|parent| parent.port).collect::<Vec<_>>(), status.reason)
    };
    assert_eq!(seen(&index), (vec![80], "Accepted"));
    let moved = SERVICE.replace("port: 80", "port: 81");
    let renamed = SERVICE.replace("name: http", "name: web");
    let more = SERVICE.replace("targetPort: web}", "targetPort: web}\n  - {name: more, port: 79}");
    for (service, expected) in [
        (moved, (vec![81], "Accepted")),
        (renamed, (vec![], "NoMatchingParent")),
        (more, (vec![80], "Accepted")),
    ] {
        let changes = index.apply(objects(&service).into_iter().map(Event::Apply).collect());
        assert!(changes.everywhere.contains_key(&key), "{service}");
        assert_eq!(seen(&index), expected, "{service}");
    }
    let changes = index.apply(vec![Event::Delete(objects(SERVICE)[0].key())]);
    assert!(changes.everywhere.contains_key(&key));
    assert_eq!(seen(&index), (vec![], "NoMatchingParent"));
}

/// Everything that can be seen from outside, versions included.
fn seen(index: &Index) -> Vec<(String, String, u64)> {
    let mut seen = Vec::new();
    for node in ["n1", "n2", "n3", "n4"] {
        for sent in index.all(node) {
            assert_eq!(index.wanted(node, &sent.key), Some(sent));
            seen.push((node.to_owned(), format!("{:?}", sent.key), sent.version));
        }
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the order, with objects changed, deleted and put back on the way: as if built anew.
    #[test]
    fn any_order_of_events_ends_the_same(steps in proptest::collection::vec((0usize..16, 0u8..3), 0..60)) {
        let mut world = world();
        let far = GRPC.replace("namespace: shop}", "namespace: plain}").replace("[{name", "[{namespace: shop, name");
        world.extend(objects(&(far.clone() + GRANT + &for_port("http"))));
        let variants: Vec<Vec<Object>> = [
            ("web", "web"), ("app: backend", "app: frontend"), ("enabled", "disabled"),
        ].iter().map(|_| world.clone()).collect();
        let mut relabelled = relabelled();
        let grant = GRANT.replace("GRPCRoute", "HTTPRoute");
        relabelled.extend(objects(&(far.replace("a.Greeter", "b.Greeter") + &grant + &for_port("web"))));
        let mut incremental = index();
        let mut held: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        let mut mirror: BTreeMap<(String, String), u64> = BTreeMap::new();
        let refresh = |index: &Index, mirror: &mut BTreeMap<(String, String), u64>, node: &str, key: &ResourceKey| {
            let at = (node.to_owned(), format!("{key:?}"));
            match index.wanted(node, key) {
                Some(sent) => { mirror.insert(at, sent.version); }
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
                    for sent in incremental.all(node) {
                        refresh(&incremental, &mut mirror, node, &sent.key);
                    }
                }
                for key in changes.everywhere.keys().chain(changes.by_node.get(node).into_iter().flatten()) {
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
