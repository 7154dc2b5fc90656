//! What is promised of [`Changes::status`](super::super::Changes): nothing is left out that reads otherwise, and no more is named than
//! the change touches.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::tests::index;
use super::*;
use crate::source::kinds::Parsed;
use crate::source::{Event, Object, manifest};

fn objects(text: &str) -> Vec<Object> {
    let parsed = manifest::parse("t.yaml", text).unwrap().objects.into_iter().map(|located| located.parsed);
    parsed.filter_map(|p| if let Parsed::Object(object) = p { Some(object) } else { None }).collect()
}

fn namespace(name: &str, mesh: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{weft.dev/mesh: {mesh}}}}}\n---\n"
    )
}

fn pod(namespace: &str, name: &str, node: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, uid: uid-{name}, labels: {{{labels}}}}}\nspec: \
         {{nodeName: {node}, containers: [{{name: c, ports: [{{name: web, containerPort: 8080}}]}}]}}\nstatus: {{podIPs: [{{ip: \
         10.0.0.1}}]}}\n---\n"
    )
}

fn service(namespace: &str, name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  clusterIP: 10.96.0.1\n  selector: \
         {{app: {name}}}\n  ports: [{{name: http, port: {port}, targetPort: web}}]\n---\n"
    )
}

fn deny(name: &str, selector: &str, port: u16) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{selector} \
         action: DENY, rules: [{{to: [{{ports: [{port}]}}]}}]}}\n---\n"
    )
}

fn traffic_policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n---\n"
    )
}

fn http_route(namespace: &str, name: &str, parent: &str, backend: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, {parent}}}]\n  rules: [{{backendRefs: [{{{backend}, port: 80}}]}}]\n---\n"
    )
}

fn grpc_route(name: &str, parent: &str) -> String {
    http_route("shop", name, parent, "name: x").replace("HTTPRoute", "GRPCRoute")
}

fn grant(from: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: other}}\nspec:\n  from: \
         [{{group: gateway.networking.k8s.io, kind: {from}, namespace: shop}}]\n  to: [{{group: '', kind: Service}}]\n---\n"
    )
}

/// Each object as it is at first, and changed.
fn world() -> Vec<[Object; 2]> {
    let strict = "inbound: {mode: STRICT}";
    let pairs = [
        [namespace("shop", "enabled"), namespace("shop", "disabled")],
        [namespace("other", "enabled"), namespace("other", "disabled")],
        [pod("shop", "a", "n1", "app: x"), pod("shop", "a", "n2", "app: x, tier: t")],
        [pod("shop", "b", "n2", "app: y"), pod("shop", "b", "n2", "app: x")],
        [pod("shop", "c", "n1", "app: z"), pod("shop", "c", "n3", "tier: t")],
        [pod("other", "d", "n3", "app: x"), pod("other", "d", "n1", "app: x")],
        [service("shop", "x", 80), service("shop", "x", 81).replace("name: http", "name: web")],
        [service("shop", "y", 80), service("shop", "y", 80).replace("10.96.0.1", "None")],
        [service("other", "far", 80), service("other", "far", 81)],
        [deny("all", "", 1), deny("all", "", 2)],
        [
            deny("of-x", "selector: {matchLabels: {app: x}},", 1),
            deny("of-x", "selector: {matchLabels: {app: y}},", 1),
        ],
        [
            traffic_policy("mode-x", &format!("selector: {{matchLabels: {{app: x}}}}, {strict}")),
            traffic_policy(
                "mode-x",
                &format!("selector: {{matchLabels: {{app: x}}}}, {}", strict.replace("STRICT", "PERMISSIVE")),
            ),
        ],
        [
            traffic_policy("mode-t", &format!("selector: {{matchLabels: {{tier: t}}}}, {strict}")),
            traffic_policy("mode-t", "targetRefs: [{name: y}], maxConnections: 1"),
        ],
        [traffic_policy("mode", &strict.replace("STRICT", "PERMISSIVE")), traffic_policy("mode", strict)],
        [
            traffic_policy("for-x", "targetRefs: [{name: x}, {name: nowhere}], maxConnections: 1"),
            traffic_policy("for-x", "targetRefs: [{name: y}], maxConnections: 1"),
        ],
        [
            traffic_policy("for-y", "targetRefs: [{name: y}], maxConnections: 1"),
            traffic_policy("for-y", "maxConnections: 1"),
        ],
        [traffic_policy("wide", "maxConnections: 1"), traffic_policy("wide", "maxConnections: 2")],
        [http_route("shop", "r", "name: x", "name: y"), http_route("shop", "r", "name: y", "name: x")],
        [
            http_route("shop", "s", "name: x, port: 80", "name: far, namespace: other"),
            http_route("shop", "s", "name: y", "name: nowhere"),
        ],
        [
            http_route("other", "consumer", "name: x, namespace: shop", "name: far"),
            http_route("other", "consumer", "name: far", "name: far"),
        ],
        [grpc_route("g", "name: x"), grpc_route("g", "name: y, port: 80")],
        [
            http_route("shop", "named", "name: x, sectionName: http", "name: y"),
            http_route("shop", "named", "name: x, port: 81, sectionName: web", "name: y"),
        ],
        [grpc_route("h", "name: x, sectionName: http"), grpc_route("h", "name: x, sectionName: web")],
        [grant("HTTPRoute"), grant("GRPCRoute")],
    ];
    let one = |text: &String| objects(text).remove(0);
    pairs.iter().map(|[first, changed]| [one(first), one(changed)]).collect()
}

/// All that status is made of.
fn judged(index: &Index, keys: &[ObjectKey]) -> BTreeMap<ObjectKey, String> {
    let judge = |key: &ObjectKey| {
        let wanted = index.wanted_for(key);
        let Some(kind) = key.kind.route() else { return format!("{wanted:?} {:?}", index.standing(key)) };
        let Some(route) = index.objects.route(&key.id, kind) else { return format!("{wanted:?}") };
        let parents = route.parents.iter().map(|parent| {
            (index.attached(kind, &key.id.namespace, parent), index.outdone(kind, &key.id, parent))
        });
        format!("{wanted:?} {:?} {:?}", parents.collect::<Vec<_>>(), index.unresolved(route))
    };
    keys.iter().map(|key| (key.clone(), judge(key))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn nothing_is_left_out_that_reads_otherwise(
        steps in proptest::collection::vec((0usize..24, 0usize..3), 1..60),
        at_once in 1usize..4,
    ) {
        let world = world();
        let has_status = |key: &ObjectKey| {
            key.kind.route().is_some() || matches!(key.kind, Kind::AuthorizationPolicy | Kind::TrafficPolicy)
        };
        let keys: Vec<ObjectKey> = world.iter().map(|[object, _]| object.key()).filter(has_status).collect();
        let mut index = index();
        index.apply(vec![Event::Reset(world.iter().map(|[object, _]| object.clone()).collect())]);
        let mut before = judged(&index, &keys);
        for batch in steps.chunks(at_once) {
            let events = batch.iter().map(|(which, what)| match what {
                2 => Event::Delete(world[*which][0].key()),
                at => Event::Apply(world[*which][*at].clone()),
            });
            let changes = index.apply(events.collect());
            let after = judged(&index, &keys);
            for key in &keys {
                prop_assert!(
                    before[key] == after[key] || changes.status.contains(key),
                    "{key} is left out of {:?} after {batch:?}:\n{}\n{}", changes.status, before[key], after[key]
                );
            }
            before = after;
        }
    }
}

/// A namespace of so many applications, each with what it needs.
fn namespace_of(applications: usize) -> Index {
    let of = |at: usize| {
        let selector = format!("selector: {{matchLabels: {{app: app-{at}}}}}");
        [
            pod("shop", &format!("pod-{at}"), &format!("n{}", at % 3), &format!("app: app-{at}")),
            service("shop", &format!("app-{at}"), 80),
            deny(&format!("deny-{at}"), &format!("{selector},"), 1),
            traffic_policy(&format!("mode-{at}"), &format!("{selector}, inbound: {{mode: PERMISSIVE}}")),
            traffic_policy(
                &format!("for-{at}"),
                &format!("targetRefs: [{{name: app-{at}}}], maxConnections: 1"),
            ),
            http_route(
                "shop",
                &format!("route-{at}"),
                &format!("name: app-{at}"),
                &format!("name: app-{at}"),
            ),
        ]
        .concat()
    };
    let mut index = index();
    let text = namespace("shop", "enabled") + &(0..applications).map(of).collect::<String>();
    index.apply(vec![Event::Reset(objects(&text))]);
    index
}

#[test]
fn no_more_is_named_than_the_change_touches() {
    let unready = pod("shop", "pod-4", "n1", "app: app-4")
        .replace("status: {", "status: {conditions: [{type: Ready, status: 'False'}], ");
    let selector = "selector: {matchLabels: {app: app-4}},";
    let changes = [
        (unready, vec!["deny-4", "mode-4"]),
        (pod("shop", "pod-4", "n2", "app: app-4"), vec!["deny-4", "mode-4"]),
        (pod("shop", "more", "n1", "app: app-4"), vec!["deny-4", "mode-4"]),
        // Its port is another: the pod reads its protocols anew.
        (service("shop", "app-4", 81), vec!["for-4", "mode-4", "route-4"]),
        (deny("deny-4", selector, 2), vec!["deny-4"]),
        (traffic_policy("for-4", "targetRefs: [{name: app-4}], maxConnections: 2"), vec!["for-4"]),
        (http_route("shop", "route-4", "name: app-4", "name: app-5"), vec!["route-4"]),
    ];
    for applications in [10, 100] {
        for (text, expected) in &changes {
            let mut index = namespace_of(applications);
            let changes = index.apply(objects(text).into_iter().map(Event::Apply).collect());
            let mut named: Vec<&str> = changes.status.iter().map(|key| &*key.id.name).collect();
            named.sort_unstable();
            assert!(named.iter().all(|name| expected.contains(name)), "{named:?} of {applications}: {text}");
        }
    }
}
