//! What reaches nodes from a real API server, what comes back as status, and what outages do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};
use weft_control::Running;
use weft_control::settings::Settings;
use weft_control::source::Problem;

use super::api_server::ApiServer;
use super::node::{Node, WAIT_MAX};

const SHOP: &str = "\
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-1, labels: {topology.kubernetes.io/zone: z1}}}
---
{apiVersion: v1, kind: Service, metadata: {name: backend, namespace: shop}, spec: {clusterIP: 10.96.0.10, selector: {app: backend}, \
ports: [{port: 80, targetPort: 8080, appProtocol: http}]}}
";
pub(super) const ROUTE: &str = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: split, namespace: shop}, spec: \
    {parentRefs: [{group: '', kind: Service, name: backend, port: 80}], rules: [{backendRefs: [{name: backend, port: 80}]}]}}";
pub(super) const POLICY: &str = "{apiVersion: weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: deny, namespace: shop}, spec: \
    {action: DENY, rules: [{to: [{ports: [8080]}]}]}}";

pub(super) fn crds() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/weft/crds");
    ["authorizationpolicies.yaml", "trafficpolicies.yaml"].iter().map(|file| directory.join(file)).collect()
}

/// Of the cache that the test cluster's scripts fill.
fn cached(file: &str) -> PathBuf {
    let path =
        PathBuf::from(std::env::var_os("HOME").expect("there is a home")).join(".cache/weft").join(file);
    assert!(path.exists(), "{} is missing: `make cluster-up` makes it", path.display());
    path
}

/// The CRD of one kind, by its plural.
pub(super) fn gateway_api(kind: &str) -> PathBuf {
    cached(&format!("cluster-tools/gateway-api-1.6.3/standard/gateway.networking.k8s.io_{kind}.yaml"))
}

pub(super) fn api_of(client: &Client, object: &DynamicObject) -> Api<DynamicObject> {
    let types = object.types.clone().unwrap();
    let (group, version) = types.api_version.split_once('/').unwrap_or(("", &types.api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &types.kind));
    match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// As `kubectl apply --server-side` does.
pub(super) async fn apply(client: &Client, yaml: &str) -> kube::Result<()> {
    for document in yaml.split("---\n") {
        let object: DynamicObject = serde_yaml_ng::from_str(document).unwrap();
        let name = object.metadata.name.clone().unwrap();
        let parameters = PatchParams::apply("test").force().validation_strict();
        api_of(client, &object).patch(&name, &parameters, &Patch::Apply(&object)).await?;
    }
    Ok(())
}

pub(super) async fn install(client: &Client, file: &Path) {
    let text = std::fs::read_to_string(file).unwrap();
    let object: DynamicObject = serde_yaml_ng::from_str(&text).unwrap();
    let api = api_of(client, &object);
    api.create(&PostParams::default(), &object).await.unwrap();
    let name = object.metadata.name.clone().unwrap();
    until(&name, async || {
        let conditions = api.get(&name).await.unwrap().data["status"]["conditions"].to_string();
        conditions.contains("Established").then_some(())
    })
    .await;
    // Established is said a moment before it is served.
    let spec = &object.data["spec"];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    for version in spec["versions"].as_array().unwrap().iter().filter(|version| version["served"] == true) {
        let path = format!("/apis/{group}/{}/{plural}?limit=1", text(&version["name"]));
        until(&path, async || {
            let request = http::Request::get(&path).body(Vec::new()).unwrap();
            client.request_text(request).await.ok()
        })
        .await;
    }
}

/// Asks until there is an answer.
pub(super) async fn until<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let end = tokio::time::Instant::now() + WAIT_MAX;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < end, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A pod as its kubelet leaves it; without an address: before there is a sandbox.
pub(super) async fn pod(client: &Client, name: &str, app: &str, node: &str, ip: Option<&str>) {
    let yaml = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}, spec: {{nodeName: \
         {node}, containers: [{{name: c, image: i, readinessProbe: {{tcpSocket: {{port: 8080}}}}}}]}}}}"
    );
    apply(client, &yaml).await.unwrap();
    if let Some(ip) = ip {
        let object: DynamicObject = serde_yaml_ng::from_str(&yaml).unwrap();
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions":
            [{"type": "Ready", "status": "True"}]}});
        let api = api_of(client, &object);
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    }
}

pub(super) async fn uid(client: &Client, name: &str) -> String {
    let api: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client.clone(), "shop");
    api.get(name).await.unwrap().metadata.uid.unwrap()
}

pub(super) fn label(mesh: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {{weft.dev/mesh: {mesh}}}}}}}"
    )
}

/// A running control plane; all of one API server have the same authority.
pub(super) async fn control(server: &ApiServer) -> Running {
    let admin = tempfile::tempdir().unwrap().keep().join("admin.sock");
    let settings = Settings::parse_from([
        "weft-control".to_owned(),
        "--kubernetes".to_owned(),
        format!("--kubeconfig={}", server.kubeconfig().display()),
        "--listen=127.0.0.1:0".to_owned(),
        format!("--admin=unix:{}", admin.display()),
    ]);
    weft_control::start(settings).await.unwrap()
}

/// The conditions of an object, once they are as wanted.
pub(super) async fn conditions(client: &Client, yaml: &str, wanted: &[(&str, &str, &str)]) {
    let object: DynamicObject = serde_yaml_ng::from_str(yaml).unwrap();
    let (api, name) = (api_of(client, &object), object.metadata.name.clone().unwrap());
    let last = std::sync::Mutex::new(Value::Null);
    let as_wanted = async || {
        let found = api.get(&name).await.ok()?;
        let status = &found.data["status"];
        let conditions = status["parents"][0].get("conditions").unwrap_or(&status["conditions"]);
        last.lock().unwrap().clone_from(conditions);
        let has = |(kind, status, text): &(&str, &str, &str)| {
            conditions.as_array().is_some_and(|all| {
                all.iter().any(|c| {
                    c["type"] == *kind
                        && c["status"] == *status
                        && format!("{} {}", c["reason"], c["message"]).contains(text)
                        && c["observedGeneration"] == found.metadata.generation.unwrap()
                })
            })
        };
        wanted.iter().all(has).then_some(())
    };
    let end = tokio::time::Instant::now() + WAIT_MAX;
    while as_wanted().await.is_none() {
        assert!(tokio::time::Instant::now() < end, "{name}: {wanted:?} never came: {}", last.lock().unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(super) async fn shop(server: &ApiServer) -> Client {
    let client = server.client().await;
    for crd in crds() {
        install(&client, &crd).await;
    }
    let system =
        "{apiVersion: v1, kind: Namespace, metadata: {name: weft-system, labels: {weft.dev/mesh: enabled}}}";
    apply(&client, system).await.unwrap();
    apply(&client, SHOP).await.unwrap();
    pod(&client, "frontend", "frontend", "node-1", Some("10.0.1.1")).await;
    pod(&client, "backend", "backend", "node-2", Some("10.0.2.1")).await;
    client
}

#[tokio::test]
async fn a_cluster_reaches_the_nodes_and_its_status_comes_back() {
    let mut server = ApiServer::start(&[]).await;
    let client = shop(&server).await;
    let control = control(&server).await;
    let mut node = Node::connect(control.grpc_address, &client, "node-1").await;
    let (frontend, backend) = (uid(&client, "frontend").await, uid(&client, "backend").await);
    // Not enrolled: its own pod, and the mesh.
    assert_eq!(node.until(&frontend).await, ["mesh", frontend.as_str()]);
    apply(&client, &label("enabled")).await.unwrap();
    let came = node.until(&backend).await;
    assert!(
        came.contains(&"shop/backend".to_owned()) && came.contains(&"shop/backend/10.0.2.1".to_owned()),
        "{came:?}"
    );
    assert!(came.contains(&"mesh".to_owned()) && came.contains(&frontend));

    // A pod on its way is known to its node before it has an address.
    pod(&client, "early", "early", "node-1", None).await;
    node.until(&uid(&client, "early").await).await;
    pod(&client, "elsewhere", "early", "node-2", None).await;
    pod(&client, "after", "early", "node-2", Some("10.0.2.9")).await;
    let came = node.until(&uid(&client, "after").await).await;
    assert!(!came.contains(&uid(&client, "elsewhere").await), "{came:?}");

    // A CRD that is not installed is named; installed, it is followed without a restart.
    let warned = control.world.report.borrow().warnings.clone();
    assert!(warned[0].to_string().contains("httproutes.gateway.networking.k8s.io"), "{warned:?}");
    install(&client, &gateway_api("httproutes")).await;
    apply(&client, ROUTE).await.unwrap();
    node.until("shop/split").await;
    let have = ("weft.dev/Programmed", "False", "1 of 2 nodes have it, not node-2 (not connected)");
    conditions(&client, ROUTE, &[("Accepted", "True", ""), ("ResolvedRefs", "True", ""), have]).await;
    apply(&client, &ROUTE.replace("backendRefs: [{name: backend", "backendRefs: [{name: nowhere"))
        .await
        .unwrap();
    node.until("shop/split").await;
    conditions(&client, ROUTE, &[("ResolvedRefs", "False", "BackendNotFound")]).await;
    apply(
        &client,
        &ROUTE.replace(
            "parentRefs: [{group: '', kind: Service, name: backend",
            "parentRefs: [{group: '', kind: Service, name: no",
        ),
    )
    .await
    .unwrap();
    conditions(&client, ROUTE, &[("Accepted", "False", "NoMatchingParent")]).await;

    apply(&client, POLICY).await.unwrap();
    node.until("shop/deny").await;
    conditions(&client, POLICY, &[("Accepted", "True", ""), ("Programmed", "False", "1 of 2 nodes have it")])
        .await;

    // The API server away: nothing changes for the nodes; back: what changed meanwhile arrives.
    server.down();
    node.quiet(Duration::from_secs(4)).await;
    server.up().await;
    apply(&client, &POLICY.replace("8080", "9090")).await.unwrap();
    let came = node.until("shop/deny").await;
    assert!(!came.iter().any(|name| name.starts_with('-')), "{came:?}");
    apply(&client, &label("disabled")).await.unwrap();
    node.until("-shop/deny").await;
    let errors = async || control.world.report.borrow().errors.is_empty().then_some(());
    until("an end of the trouble", errors).await;
    control.stop().await;
}

fn traffic_policy(name: &str) -> String {
    format!(
        "{{apiVersion: weft.dev/v1alpha1, kind: TrafficPolicy, metadata: {{name: {name}, namespace: shop}}, spec: {{targetRefs: \
         [{{group: '', kind: Service, name: backend}}], ejection: {{consecutiveFailures: 3}}}}}}"
    )
}

/// Each mistake is told by a condition on the object, and what is right beside it is at the nodes.
#[tokio::test]
async fn what_is_wrong_with_an_object_stands_on_it_and_the_rest_goes_on() {
    let server = ApiServer::start(&[]).await;
    let client = shop(&server).await;
    install(&client, &gateway_api("httproutes")).await;
    apply(&client, &label("enabled")).await.unwrap();
    let control = control(&server).await;
    let mut node = Node::connect(control.grpc_address, &client, "node-1").await;
    node.until(&uid(&client, "backend").await).await;
    let named = |name: &str| ROUTE.replace("name: split", &format!("name: {name}"));

    // A Service that selects nothing: known to nodes, without endpoints; routes to it are right.
    let empty = "{apiVersion: v1, kind: Service, metadata: {name: empty, namespace: shop}, spec: {selector: {app: nobody}, \
                 ports: [{port: 80, appProtocol: http}]}}";
    apply(&client, empty).await.unwrap();
    node.until("shop/empty").await;
    let to_empty = named("to-empty").replace("backendRefs: [{name: backend", "backendRefs: [{name: empty");
    apply(&client, &to_empty).await.unwrap();
    node.until("shop/to-empty").await;
    conditions(&client, &to_empty, &[("Accepted", "True", ""), ("ResolvedRefs", "True", "")]).await;

    // Backends that are none: a Service that is not there, another kind, another port.
    for (name, from, to, reason) in [
        (
            "nowhere",
            "backendRefs: [{name: backend,",
            "backendRefs: [{name: nowhere,",
            "there is no Service shop/nowhere",
        ),
        (
            "a-secret",
            "backendRefs: [{name: backend,",
            "backendRefs: [{group: '', kind: Secret, name: backend,",
            "InvalidKind",
        ),
        (
            "a-port",
            "backendRefs: [{name: backend, port: 80}]",
            "backendRefs: [{name: backend, port: 81}]",
            "BackendNotFound",
        ),
    ] {
        let route = named(name).replace(from, to);
        apply(&client, &route).await.unwrap();
        conditions(&client, &route, &[("Accepted", "True", ""), ("ResolvedRefs", "False", reason)]).await;
    }
    // Parents that are none.
    for (name, from, to, reason) in [
        (
            "no-parent",
            "kind: Service, name: backend,",
            "kind: Service, name: nowhere,",
            "there is no Service shop/nowhere",
        ),
        (
            "no-port",
            "name: backend, port: 80}], rules",
            "name: backend, port: 81}], rules",
            "Service shop/backend has no port 81",
        ),
        (
            "no-port-name",
            "name: backend, port: 80}], rules",
            "name: backend, sectionName: web}], rules",
            "Service shop/backend has no port named",
        ),
    ] {
        let route = named(name).replace(from, to);
        apply(&client, &route).await.unwrap();
        conditions(&client, &route, &[("Accepted", "False", reason)]).await;
    }
    // Two of the same Service that say the same: the older counts, then the first by name; the other is told which.
    for name in ["a-limit", "b-limit"] {
        apply(&client, &traffic_policy(name)).await.unwrap();
    }
    conditions(&client, &traffic_policy("a-limit"), &[("Accepted", "True", "")]).await;
    conditions(&client, &traffic_policy("b-limit"), &[("Accepted", "False", "TrafficPolicy a-limit")]).await;
    // What a client sends without strict validation loses the field that nobody knows, and kubectl is told.
    let misspelt = POLICY.replace("action: DENY", "action: DENY, slector: {}");
    let refused = apply(&client, &misspelt).await.unwrap_err().to_string();
    assert!(refused.contains("slector"), "{refused}");
    // A wrong label is told by name, and takes nothing out of the configuration.
    let reports = control.world.report.clone();
    apply(&client, "{apiVersion: v1, kind: Pod, metadata: {name: odd, namespace: shop, labels: {weft.dev/mesh: maybe}}, spec: \
                    {nodeName: node-1, containers: [{name: c, image: i}]}}").await.unwrap();
    until("the odd pod's warning", async || {
        let report = reports.borrow().clone();
        let told = |warning: &Problem| warning.to_string().starts_with("Pod shop/odd: label weft.dev/mesh");
        report.warnings.iter().any(told).then_some(())
    })
    .await;
    assert!(reports.borrow().errors.iter().all(|error| !error.file.contains("odd")));
    // All the while, what is right arrives.
    apply(&client, POLICY).await.unwrap();
    node.until("shop/deny").await;
    conditions(&client, POLICY, &[("Accepted", "True", "")]).await;
    control.stop().await;
}

#[tokio::test]
async fn every_replica_serves_and_another_one_goes_on_writing_status() {
    let server = ApiServer::start(&[]).await;
    let client = shop(&server).await;
    apply(&client, &label("enabled")).await.unwrap();
    apply(&client, POLICY).await.unwrap();
    let first = control(&server).await;
    let second = control(&server).await;
    let mut nodes = Vec::new();
    for (name, replica) in [("node-1", &first), ("node-2", &second)] {
        let mut node = Node::connect(replica.grpc_address, &client, name).await;
        node.until("shop/deny").await;
        nodes.push(node);
    }
    // Whoever writes knows of the other's node.
    conditions(&client, POLICY, &[("Programmed", "True", "2 of 2 nodes have it")]).await;
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
        Api::namespaced(client.clone(), "weft-system");
    // One that is connected and did not answer yet is named, wherever it is connected.
    for (slow, quick, port) in [(0, 1, "8081"), (1, 0, "8082")] {
        apply(&client, &POLICY.replace("8080", port)).await.unwrap();
        nodes[quick].until("shop/deny").await;
        let missing = format!("1 of 2 nodes have it, not node-{}", slow + 1);
        conditions(&client, POLICY, &[("Programmed", "False", &missing)]).await;
        nodes[slow].until("shop/deny").await;
        conditions(&client, POLICY, &[("Programmed", "True", "2 of 2 nodes have it")]).await;
    }
    let holder = async || leases.get("weft-control").await.unwrap().spec.unwrap().holder_identity;
    let before = holder().await;
    first.stop().await;
    apply(&client, &POLICY.replace("8080", "9090")).await.unwrap();
    nodes[1].until("shop/deny").await;
    let missing = "1 of 2 nodes have it, not node-1 (not connected)";
    conditions(&client, POLICY, &[("Programmed", "False", missing)]).await;
    assert_ne!((holder().await, before.is_some()), (before, false));
    second.stop().await;
    assert_eq!(holder().await.as_deref(), Some(""));
}
