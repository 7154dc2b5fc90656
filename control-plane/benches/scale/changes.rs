//! One change after another, each when the one before it has reached every node that needs it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use http::Request;
use kube::Client;
use serde_json::json;
use weft_proto::v1;

use super::load::{GROUP, Load, json_patch, merge, namespace_of};
use super::nodes::{Key, NODES, Nodes};
use super::process::Process;

/// Of the ACKs of one change.
const ACKS_WAIT_MAX: Duration = Duration::from_secs(120);
/// No delta for so long: what a change brings has come, and what it should not bring would have.
const QUIET: Duration = Duration::from_millis(40);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Endpoint,
    Pod,
    Service,
    Policy,
    NamespaceLabel,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::Endpoint, Self::Pod, Self::Service, Self::Policy, Self::NamespaceLabel];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Endpoint => "an endpoint's readiness (EndpointSlice)",
            Self::Pod => "a pod's readiness (the pod, its endpoints of ten Services)",
            Self::Service => "a port of a Service",
            Self::Policy => "a rule of an AuthorizationPolicy of ten pods",
            Self::NamespaceLabel => "`weft.dev/mesh` of a namespace",
        }
    }
}

/// What is asked of the API server, and what of it has to reach whom.
struct Change {
    request: Request<Vec<u8>>,
    keys: HashSet<Key>,
    nodes: Vec<usize>,
}

/// Of all changes of one kind.
#[derive(Default, Clone)]
pub(crate) struct Series {
    /// From the request to the ACK of each node that needs it, and of the last of them; sorted.
    pub(crate) each_ms: Vec<f64>,
    pub(crate) last_ms: Vec<f64>,
    pub(crate) changes: usize,
    pub(crate) deltas: usize,
    pub(crate) bytes: usize,
    pub(crate) resources: usize,
    /// Nodes that were sent anything, of all changes.
    pub(crate) touched: usize,
    pub(crate) cpu_ms: f64,
    pub(crate) seconds: f64,
}

fn change(kind: Kind, turn: usize, load: &Load) -> Change {
    let everywhere: Vec<usize> = (0..NODES).collect();
    // Twice the same object: away from what stood there, and back.
    let (on, group) = (turn % 2 == 1, turn / 2 * 7 % (load.services / GROUP));
    let (namespace, pods, service) = (namespace_of(group), load.group(group), group * GROUP);
    let endpoint =
        |service: usize, ip: &str| Key::new(v1::Kind::Endpoint, &format!("{namespace}/svc-{service}/{ip}"));
    match kind {
        Kind::Endpoint => {
            let path =
                format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/svc-{service}-a");
            let patch = json!([{ "op": "replace", "path": "/endpoints/0/conditions/ready", "value": on }]);
            let keys = [endpoint(service, pods[0].ip())].into();
            Change { request: json_patch(&path, &patch), keys, nodes: everywhere }
        }
        Kind::Pod => {
            let services = service..service + GROUP;
            let mut keys: HashSet<Key> = services.map(|service| endpoint(service, pods[1].ip())).collect();
            keys.insert(Key::new(v1::Kind::Workload, &pods[1].uid));
            Change { request: pods[1].status(on), keys, nodes: everywhere }
        }
        Kind::Service => {
            let path = format!("/api/v1/namespaces/{namespace}/services/svc-{service}");
            let port = json!({ "name": "more", "port": 81, "targetPort": 8081 });
            let patch = if on {
                json!([{ "op": "remove", "path": "/spec/ports/1" }])
            } else {
                json!([{ "op": "add", "path": "/spec/ports/-", "value": port }])
            };
            // The pods hear of the further port's protocol, too.
            let keys = [Key::new(v1::Kind::Service, &format!("{namespace}/svc-{service}"))].into();
            Change { request: json_patch(&path, &patch), keys, nodes: everywhere }
        }
        Kind::Policy => {
            let path =
                format!("/apis/weft.dev/v1alpha1/namespaces/{namespace}/authorizationpolicies/deny-{group}");
            let port = if on { 9000 } else { 9001 };
            let patch = json!([{ "op": "replace", "path": "/spec/rules/0/to/0/ports/0", "value": port }]);
            let keys = [Key::new(v1::Kind::AuthorizationPolicy, &format!("{namespace}/deny-{group}"))].into();
            let mut nodes: Vec<usize> = pods.iter().map(|pod| pod.node).collect();
            nodes.sort_unstable();
            Change { request: json_patch(&path, &patch), keys, nodes }
        }
        Kind::NamespaceLabel => {
            let label = if on { "enabled" } else { "disabled" };
            let patch = json!({ "metadata": { "labels": { "weft.dev/mesh": label } } });
            let inside = load.pods.iter().filter(|pod| pod.namespace == namespace);
            let mut keys: HashSet<Key> = inside.map(|pod| Key::new(v1::Kind::Workload, &pod.uid)).collect();
            keys.insert(Key::new(v1::Kind::Mesh, "mesh"));
            Change {
                request: merge(&format!("/api/v1/namespaces/{namespace}"), &patch),
                keys,
                nodes: everywhere,
            }
        }
    }
}

pub(crate) async fn series(
    kind: Kind,
    changes: usize,
    client: &Client,
    load: &Load,
    nodes: &Nodes,
    process: &Process,
) -> Series {
    process.settle().await;
    while nodes.next(QUIET).await.is_some() {}
    let (began, cpu) = (Instant::now(), process.cpu());
    // An even number, so that all is as before.
    let mut series = Series { changes: changes.next_multiple_of(2), ..Series::default() };
    for turn in 0..series.changes {
        one(change(kind, turn, load), client, nodes, &mut series).await;
    }
    series.seconds = began.elapsed().as_secs_f64();
    series.cpu_ms = (process.cpu() - cpu).as_secs_f64() * 1000.0;
    series.each_ms.sort_by(f64::total_cmp);
    series.last_ms.sort_by(f64::total_cmp);
    series
}

async fn one(change: Change, client: &Client, nodes: &Nodes, series: &mut Series) {
    let mut missing: Vec<HashSet<Key>> = vec![HashSet::new(); NODES];
    for node in &change.nodes {
        missing[*node].clone_from(&change.keys);
    }
    let mut waiting = change.nodes.len();
    let mut touched = HashSet::new();
    let what = format!("{} {}", change.request.method(), change.request.uri());
    let began = Instant::now();
    let asked = tokio::spawn({
        let client = client.clone();
        async move { client.request_text(change.request).await }
    });
    let mut last = 0.0;
    loop {
        let wait = if waiting > 0 { ACKS_WAIT_MAX } else { QUIET };
        let Some(acked) = nodes.next(wait).await else {
            assert_eq!(waiting, 0, "{what}: nodes did not acknowledge it");
            break;
        };
        touched.insert(acked.node);
        series.deltas += 1;
        series.bytes += acked.bytes;
        series.resources += acked.keys.len();
        let of_node = &mut missing[acked.node];
        if of_node.is_empty() {
            continue;
        }
        for key in &acked.keys {
            of_node.remove(key);
        }
        if of_node.is_empty() {
            waiting -= 1;
            last = (acked.at - began).as_secs_f64() * 1000.0;
            series.each_ms.push(last);
        }
    }
    asked.await.unwrap().unwrap_or_else(|error| panic!("{what}: {error}"));
    series.last_ms.push(last);
    series.touched += touched.len();
}
