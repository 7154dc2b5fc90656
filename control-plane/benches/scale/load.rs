//! What stands in the API server: namespaces, nodes, pods, Services with their EndpointSlices, policies; and the nodes' tokens.
//!
//! Ten pods are a group, spread over ten nodes; ten Services lead to each group, so that a Service has ten endpoints and a pod is behind ten
//! Services. With 10,000 Services there are then 100 pods on each of the 100 nodes, about as many as a kubelet takes (110).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use http::Request;
use kube::Client;
use serde_json::{Value, json};

use super::nodes::NODES;

const NAMESPACES: usize = 10;
pub(crate) const GROUP: usize = 10;
/// Requests under way: enough to keep the API server busy.
const REQUESTS_UNDER_WAY_MAX: usize = 48;
const CRD_WAIT_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) node: usize,
    ip: String,
}

pub(crate) struct Load {
    client: Client,
    pub(crate) pods: Vec<Pod>,
    pub(crate) services: usize,
    agents: Vec<String>,
}

pub(crate) fn namespace_of(group: usize) -> String {
    // Ten groups in a row cover all nodes: each namespace has pods on every node.
    format!("team-{}", group / GROUP % NAMESPACES)
}

fn request(method: &str, path: &str, kind: &str, body: &Value) -> Request<Vec<u8>> {
    let builder = Request::builder().method(method).uri(path).header("content-type", kind);
    builder.body(serde_json::to_vec(body).unwrap()).unwrap()
}

pub(crate) fn post(path: &str, body: &Value) -> Request<Vec<u8>> {
    request("POST", path, "application/json", body)
}

pub(crate) fn merge(path: &str, body: &Value) -> Request<Vec<u8>> {
    request("PATCH", path, "application/merge-patch+json", body)
}

pub(crate) fn json_patch(path: &str, body: &Value) -> Request<Vec<u8>> {
    request("PATCH", path, "application/json-patch+json", body)
}

/// All of them, many at a time; what was answered, in order.
async fn all(client: &Client, requests: impl Iterator<Item = Request<Vec<u8>>>) -> Vec<String> {
    let ask = |request: Request<Vec<u8>>| {
        let client = client.clone();
        async move {
            let what = format!("{} {}", request.method(), request.uri());
            client.request_text(request).await.unwrap_or_else(|error| panic!("{what}: {error}"))
        }
    };
    futures_util::stream::iter(requests).map(ask).buffered(REQUESTS_UNDER_WAY_MAX).collect().await
}

fn uid(answer: &str) -> String {
    let object: Value = serde_json::from_str(answer).unwrap();
    object["metadata"]["uid"].as_str().unwrap().to_owned()
}

impl Load {
    /// The kinds, the namespaces, the nodes and their agents.
    pub(crate) async fn begin(client: Client) -> Self {
        for file in crds() {
            install(&client, &file).await;
        }
        let enrolled = (0..NAMESPACES).map(|i| {
            let labels = json!({ "weft.dev/mesh": "enabled" });
            post(
                "/api/v1/namespaces",
                &json!({ "metadata": { "name": namespace_of(i * GROUP), "labels": labels } }),
            )
        });
        all(&client, enrolled).await;
        all(
            &client,
            [post("/api/v1/namespaces", &json!({ "metadata": { "name": "weft-system" } }))].into_iter(),
        )
        .await;
        let account = json!({ "metadata": { "name": "weft-node" } });
        all(&client, [post("/api/v1/namespaces/weft-system/serviceaccounts", &account)].into_iter()).await;
        let nodes = (0..NODES).map(|node| {
            let labels = json!({ "topology.kubernetes.io/zone": zone(node) });
            post("/api/v1/nodes", &json!({ "metadata": { "name": node_name(node), "labels": labels } }))
        });
        all(&client, nodes).await;
        let agents = (0..NODES).map(|node| {
            let spec = json!({ "nodeName": node_name(node), "serviceAccountName": "weft-node", "hostNetwork": true,
                "containers": [{ "name": "c", "image": "i" }] });
            let pod = json!({ "metadata": { "name": format!("agent-{node}") }, "spec": spec });
            post("/api/v1/namespaces/weft-system/pods", &pod)
        });
        let agents = all(&client, agents).await.iter().map(|answer| uid(answer)).collect();
        Self { client, pods: Vec::new(), services: 0, agents }
    }

    /// Adds what is missing; the number of requests that it took.
    pub(crate) async fn grow_to(&mut self, services: usize) -> usize {
        assert!(
            services.is_multiple_of(GROUP) && services >= NODES,
            "{services} Services: not a multiple of ten"
        );
        let (first_pod, first_service) = (self.pods.len(), self.services);
        let made = all(&self.client, (first_pod..services).map(create_pod)).await;
        self.pods.extend(made.iter().enumerate().map(|(at, answer)| {
            let pod = first_pod + at;
            let namespace = namespace_of(pod / GROUP);
            Pod { name: format!("pod-{pod}"), namespace, uid: uid(answer), node: pod % NODES, ip: ip(pod) }
        }));
        all(&self.client, self.pods[first_pod..].iter().map(|pod| pod.status(true))).await;
        all(&self.client, (first_service..services).map(create_service)).await;
        all(&self.client, (first_service..services).map(|service| self.create_slice(service))).await;
        all(&self.client, (first_service / GROUP..services / GROUP).map(create_policy)).await;
        self.services = services;
        2 * (services - first_pod) + 2 * (services - first_service) + (services - first_service) / GROUP
    }

    /// Of pods, Services, EndpointSlices and policies.
    pub(crate) fn objects(&self) -> usize {
        self.pods.len() + 2 * self.services + self.services / GROUP
    }

    /// Pods of a Service's group.
    pub(crate) fn group(&self, group: usize) -> &[Pod] {
        &self.pods[group * GROUP..(group + 1) * GROUP]
    }

    fn create_slice(&self, service: usize) -> Request<Vec<u8>> {
        let group = service / GROUP;
        let endpoints = self.group(group).iter().map(|pod| {
            let reference =
                json!({ "kind": "Pod", "name": pod.name, "namespace": pod.namespace, "uid": pod.uid });
            json!({ "addresses": [pod.ip], "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": node_name(pod.node), "zone": zone(pod.node), "targetRef": reference })
        });
        let labels = json!({ "kubernetes.io/service-name": format!("svc-{service}") });
        let slice = json!({
            "metadata": { "name": format!("svc-{service}-a"), "labels": labels },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
            "endpoints": endpoints.collect::<Vec<_>>(),
        });
        post(&format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", namespace_of(group)), &slice)
    }

    /// A name and a token for each node, as its kubelet would hand them to the agent's pod.
    pub(crate) async fn tokens(&self) -> Vec<(String, String)> {
        let ask = self.agents.iter().enumerate().map(|(node, uid)| {
            let pod =
                json!({ "apiVersion": "v1", "kind": "Pod", "name": format!("agent-{node}"), "uid": uid });
            let spec = json!({ "audiences": ["weft-control"], "boundObjectRef": pod });
            post(
                "/api/v1/namespaces/weft-system/serviceaccounts/weft-node/token",
                &json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec }),
            )
        });
        let answers = all(&self.client, ask).await;
        let token = |answer: &String| {
            let answer: Value = serde_json::from_str(answer).unwrap();
            answer["status"]["token"].as_str().unwrap().to_owned()
        };
        answers.iter().map(token).enumerate().map(|(node, token)| (node_name(node), token)).collect()
    }
}

impl Pod {
    pub(crate) fn ip(&self) -> &str {
        &self.ip
    }

    /// What its kubelet would report.
    pub(crate) fn status(&self, ready: bool) -> Request<Vec<u8>> {
        let ready = if ready { "True" } else { "False" };
        let status = json!({ "phase": "Running", "podIP": self.ip, "podIPs": [{ "ip": self.ip }],
            "conditions": [{ "type": "Ready", "status": ready }] });
        merge(
            &format!("/api/v1/namespaces/{}/pods/{}/status", self.namespace, self.name),
            &json!({ "status": status }),
        )
    }
}

fn node_name(node: usize) -> String {
    format!("node-{node}")
}

fn zone(node: usize) -> String {
    format!("zone-{}", node % 3)
}

fn ip(pod: usize) -> String {
    format!("10.{}.{}.{}", 128 + pod / 62_500, pod / 250 % 250, pod % 250 + 1)
}

fn create_pod(pod: usize) -> Request<Vec<u8>> {
    let group = pod / GROUP;
    let labels =
        json!({ "app": format!("app-{group}"), "version": "v1", "app.kubernetes.io/part-of": "shop" });
    let spec = json!({
        "nodeName": node_name(pod % NODES),
        "containers": [{ "name": "c", "image": "i", "ports": [{ "name": "http", "containerPort": 8080 }],
            "readinessProbe": { "httpGet": { "path": "/", "port": "http" } } }],
    });
    let pod = json!({ "metadata": { "name": format!("pod-{pod}"), "labels": labels }, "spec": spec });
    post(&format!("/api/v1/namespaces/{}/pods", namespace_of(group)), &pod)
}

fn create_service(service: usize) -> Request<Vec<u8>> {
    let group = service / GROUP;
    // Every tenth has an address of its own; the others are headless. With thousands of addresses the API server takes 30 ms and more
    // to allocate one, and the load would take longer than everything that is measured.
    let address = match service % GROUP {
        0 => format!("10.96.{}.{}", 1 + service / 2500, service / 10 % 250 + 1),
        _ => "None".to_owned(),
    };
    let spec = json!({
        "clusterIP": address,
        "selector": { "app": format!("app-{group}") },
        "ports": [{ "name": "http", "port": 80, "targetPort": "http", "appProtocol": "http" }],
    });
    let object = json!({ "metadata": { "name": format!("svc-{service}") }, "spec": spec });
    post(&format!("/api/v1/namespaces/{}/services", namespace_of(group)), &object)
}

fn create_policy(group: usize) -> Request<Vec<u8>> {
    let spec = json!({ "selector": { "matchLabels": { "app": format!("app-{group}") } }, "action": "DENY",
        "rules": [{ "to": [{ "ports": [9000] }] }] });
    let policy = json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": { "name": format!("deny-{group}") }, "spec": spec });
    let namespace = namespace_of(group);
    post(&format!("/apis/weft.dev/v1alpha1/namespaces/{namespace}/authorizationpolicies"), &policy)
}

/// Weft's, and that of HTTPRoute, of the cache that the test cluster's scripts fill.
fn crds() -> Vec<PathBuf> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/weft/crds");
    let mut files = vec![own.join("authorizationpolicies.yaml"), own.join("trafficpolicies.yaml")];
    let tools = PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/weft/cluster-tools");
    let mut gateway = std::fs::read_dir(&tools).unwrap().flatten().map(|entry| entry.path());
    let gateway = gateway.find(|path| path.to_string_lossy().contains("gateway-api-"));
    let gateway =
        gateway.unwrap_or_else(|| panic!("no gateway-api in {}: `make setup-cluster`", tools.display()));
    files.push(gateway.join("standard/gateway.networking.k8s.io_httproutes.yaml"));
    files
}

async fn install(client: &Client, file: &std::path::Path) {
    let crd: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    all(client, [post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &crd)].into_iter()).await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (group, plural) = (text(&crd["spec"]["group"]), text(&crd["spec"]["names"]["plural"]));
    let versions = crd["spec"]["versions"].as_array().unwrap();
    let version = versions.iter().find(|version| version["storage"] == true).unwrap();
    let path = format!("/apis/{group}/{}/{plural}?limit=1", text(&version["name"]));
    let end = Instant::now() + CRD_WAIT_MAX;
    while client.request_text(Request::get(&path).body(Vec::new()).unwrap()).await.is_err() {
        assert!(Instant::now() < end, "{path} is not served");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
