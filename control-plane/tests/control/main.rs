//! The control plane over real gRPC on loopback, with a scripted node.
#![expect(clippy::unwrap_used, reason = "all of this file is test code")]

mod directory;
mod nodes;
mod stream;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};
use weft_control::Running;
use weft_control::settings::Settings;
use weft_proto::v1::certificates_client::CertificatesClient;
use weft_proto::v1::discovery_client::DiscoveryClient;
use weft_proto::v1::{self, node_message::Message};

const TOKEN_1: &str = "token-of-node-one-0123456789";
const TOKEN_2: &str = "token-of-node-two-0123456789";
/// Far beyond what a busy machine takes: who waits for so long waits in vain.
const WAIT_MAX: Duration = Duration::from_secs(60);

const MESH: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: frontend, namespace: shop, uid: uid-frontend, labels: {app: frontend}}
spec: {nodeName: node-1, serviceAccountName: frontend, containers: [{name: c}]}
status: {podIPs: [{ip: 10.0.1.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: backend, namespace: shop, uid: uid-backend, labels: {app: backend}}
spec: {nodeName: node-2, serviceAccountName: backend, containers: [{name: c}]}
status: {podIPs: [{ip: 10.0.2.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: backend, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: backend}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: v1
kind: Secret
type: weft.dev/join-token
metadata: {name: node-1, namespace: weft-system}
stringData: {node: node-1, token: token-of-node-one-0123456789}
---
apiVersion: v1
kind: Secret
type: weft.dev/join-token
metadata: {name: node-2, namespace: weft-system}
stringData: {node: node-2, token: token-of-node-two-0123456789}
";

fn route(weight: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: split, namespace: shop}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: backend, port: 80}}]\n  rules:\n  - backendRefs: [{{name: backend, \
         port: 80, weight: {weight}}}]\n"
    )
}

struct World {
    directory: tempfile::TempDir,
    running: Running,
}

impl World {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let manifests = directory.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        std::fs::write(manifests.join("mesh.yaml"), MESH).unwrap();
        let running = weft_control::start(settings(directory.path())).await.unwrap();
        Self { directory, running }
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.directory.path().join("manifests").join(file), text).unwrap();
    }

    /// A connection that shows a certificate, or none.
    async fn channel(&self, shown: Option<&Identity>) -> Channel {
        let root = std::fs::read(self.directory.path().join("state/root.pem")).unwrap();
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root)).domain_name("weft-control");
        if let Some(shown) = shown {
            tls = tls.identity(shown.clone());
        }
        let address = format!("https://{}", self.running.grpc_address);
        Endpoint::from_shared(address).unwrap().tls_config(tls).unwrap().connect().await.unwrap()
    }

    /// A node's certificate for a token.
    async fn node(&self, token: &str) -> Result<Identity, Status> {
        sign_node(self.channel(None).await, token).await.map(|(identity, _)| identity)
    }

    async fn sign(&self, token: &str, pod: &str, csr_der: Vec<u8>) -> Result<v1::SignResponse, Status> {
        let shown = self.node(token).await?;
        sign(self.channel(Some(&shown)).await, pod, csr_der).await
    }

    async fn admin(&self, path: &str) -> String {
        let socket = self.directory.path().join("admin.sock");
        got(tokio::net::UnixStream::connect(socket).await.unwrap(), path).await
    }
}

async fn got(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn settings(directory: &Path) -> Settings {
    let at = |name: &str| directory.join(name).display().to_string();
    Settings::parse_from([
        "weft-control".to_owned(),
        format!("--manifests={}", at("manifests")),
        "--listen=127.0.0.1:0".to_owned(),
        format!("--state-dir={}", at("state")),
        format!("--admin=unix:{}", at("admin.sock")),
        "--metrics-address=127.0.0.1:0".to_owned(),
    ])
}

/// With its end, in Unix seconds.
async fn sign_node(channel: Channel, token: &str) -> Result<(Identity, i64), Status> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr_der = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    let request = with_token(v1::SignNodeRequest { csr_der }, token);
    let answer = CertificatesClient::new(channel).sign_node(request).await?.into_inner();
    Ok((identity(&answer, &key), answer.not_after_unix_s))
}

fn identity(answer: &v1::SignResponse, key: &KeyPair) -> Identity {
    let blocks: Vec<_> =
        answer.chain_der.iter().map(|der| pem::Pem::new("CERTIFICATE", der.clone())).collect();
    Identity::from_pem(pem::encode_many(&blocks), key.serialize_pem())
}

async fn sign(channel: Channel, pod: &str, csr_der: Vec<u8>) -> Result<v1::SignResponse, Status> {
    let request = v1::SignRequest { pod_uid: pod.into(), csr_der, ..Default::default() };
    CertificatesClient::new(channel).sign(request).await.map(tonic::Response::into_inner)
}

fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// A node that answers as the test says.
struct Node {
    out: mpsc::Sender<v1::NodeMessage>,
    inbound: Streaming<v1::Delta>,
    known: Vec<v1::KnownResource>,
}

impl Node {
    async fn connect(
        world: &World,
        name: &str,
        token: &str,
        known: Vec<v1::KnownResource>,
    ) -> Result<Self, Status> {
        let shown = world.node(token).await?;
        Self::subscribe(world.channel(Some(&shown)).await, name, known).await
    }

    async fn subscribe(channel: Channel, name: &str, known: Vec<v1::KnownResource>) -> Result<Self, Status> {
        let (out, stream) = mpsc::channel(8);
        let hello = v1::Hello { node: name.into(), agent_version: "test".into(), known: known.clone() };
        out.send(v1::NodeMessage { message: Some(Message::Hello(hello)) }).await.unwrap();
        let inbound =
            DiscoveryClient::new(channel).subscribe(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Self { out, inbound, known })
    }

    /// A whole delta, its messages joined.
    async fn delta(&mut self) -> Result<v1::Delta, Status> {
        let mut whole = v1::Delta::default();
        loop {
            let next = tokio::time::timeout(WAIT_MAX, self.inbound.message()).await.expect("a delta in time");
            let part = next?.ok_or_else(|| Status::aborted("stream ended"))?;
            whole.upserts.extend(part.upserts);
            whole.removals.extend(part.removals);
            (whole.nonce, whole.revision) = (part.nonce, part.revision);
            if !part.more {
                return Ok(whole);
            }
        }
    }

    async fn ack(&mut self, delta: &v1::Delta) {
        self.known.retain(|known| {
            let key = known.key.as_ref();
            !delta.removals.iter().any(|removed| Some(removed) == key)
                && !delta.upserts.iter().any(|upsert| upsert.key.as_ref() == key)
        });
        let held = delta.upserts.iter().map(|r| v1::KnownResource { key: r.key.clone(), version: r.version });
        self.known.extend(held);
        let ack = v1::Ack { nonce: delta.nonce, revision: delta.revision };
        self.out.send(v1::NodeMessage { message: Some(Message::Ack(ack)) }).await.unwrap();
    }

    async fn nack(&mut self, delta: &v1::Delta, key: &str, reason: &str) {
        let key = delta.upserts.iter().filter_map(|r| r.key.clone()).find(|k| k.name == key);
        let refusals = vec![v1::Refusal { key, reason: reason.into() }];
        let nack = v1::Nack { nonce: delta.nonce, refusals };
        self.out.send(v1::NodeMessage { message: Some(Message::Nack(nack)) }).await.unwrap();
    }
}

fn names(delta: &v1::Delta) -> Vec<&str> {
    let mut names: Vec<&str> =
        delta.upserts.iter().map(|upsert| upsert.key.as_ref().unwrap().name.as_str()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn a_scraper_is_shown_metrics_and_health_and_nothing_else() {
    let world = World::start().await;
    until(&world, "/readyz", |answer| answer.contains("200 OK")).await;
    let address = world.running.metrics_address.unwrap();
    let get = async |path: &str| got(tokio::net::TcpStream::connect(address).await.unwrap(), path).await;
    for path in ["/healthz", "/readyz"] {
        assert!(get(path).await.contains("200 OK"), "{path}");
    }
    let metrics = get("/metrics").await;
    assert!(metrics.contains("weft_control_revision") && metrics.contains("version=0.0.4"), "{metrics}");
    for path in ["/status", "/config_dump?node=node-1", "/", "/metrics/../status"] {
        let answer = get(path).await;
        assert!(answer.contains("404 Not Found") && !answer.contains("shop"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn the_page_of_the_control_plane_names_every_metric_and_no_other() {
    let page = include_str!("../../../docs/control-plane.md");
    let documented: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("| `weft_control_")?.split('`').next()).collect();
    let world = World::start().await;
    let text = until(&world, "/metrics", |text| text.contains("# TYPE")).await;
    let shown: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE weft_control_")?.split(' ').next())
        .collect();
    assert_eq!(shown, documented);
}

fn request() -> Vec<u8> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

/// Asks until the answer has what is waited for.
async fn until(world: &World, path: &str, wanted: impl Fn(&str) -> bool) -> String {
    let end = tokio::time::Instant::now() + WAIT_MAX;
    loop {
        let answer = world.admin(path).await;
        if wanted(&answer) {
            return answer;
        }
        assert!(tokio::time::Instant::now() < end, "{path} never had it: {answer}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_node_is_brought_in_sync_and_kept_there() {
    let world = World::start().await;
    let mut node = Node::connect(&world, "node-1", TOKEN_1, Vec::new()).await.unwrap();
    let first = node.delta().await.unwrap();
    assert_eq!(
        names(&first),
        ["mesh", "shop/backend", "shop/backend/10.0.2.1", "uid-backend", "uid-frontend"]
    );
    for upsert in &first.upserts {
        weft_proto::convert::resource(upsert.clone()).unwrap();
    }
    node.ack(&first).await;
    world.write("route.yaml", &route(1));
    let change = node.delta().await.unwrap();
    assert_eq!(names(&change), ["shop/split"]);
    node.ack(&change).await;
    // A reconnect that names what it holds costs only what changed meanwhile.
    let known = node.known.clone();
    drop(node);
    world.write("route.yaml", &route(7));
    until(&world, "/config_dump?node=node-1", |dump| dump.contains("\"weight\": 7")).await;
    let mut node = Node::connect(&world, "node-1", TOKEN_1, known).await.unwrap();
    let again = node.delta().await.unwrap();
    assert_eq!(names(&again), ["shop/split"]);
    node.ack(&again).await;
    std::fs::remove_file(world.directory.path().join("manifests/route.yaml")).unwrap();
    let gone = node.delta().await.unwrap();
    assert_eq!((gone.upserts.len(), gone.removals[0].name.as_str()), (0, "shop/split"));
    node.ack(&gone).await;
    until(&world, "/status", |status| status.contains("\"in_sync\": true")).await;
    world.running.stop().await;
}

#[tokio::test]
async fn a_dump_is_json_with_names_and_no_node_is_made_up() {
    let world = World::start().await;
    world.write("route.yaml", &route(3));
    let dump = until(&world, "/config_dump?node=node-1", |dump| dump.contains("shop/split")).await;
    let dump: serde_json::Value = serde_json::from_str(dump.split_once("\r\n\r\n").unwrap().1).unwrap();
    let resources = dump["resources"].as_array().unwrap();
    let content = |kind: &str, key: &str| {
        &resources.iter().find(|r| r["kind"] == kind && r["key"] == key).unwrap()["content"]
    };
    assert_eq!(content("Workload", "uid-frontend")["ips"], serde_json::json!(["10.0.1.1"]));
    assert_eq!(content("Endpoint", "shop/backend/10.0.2.1")["ports"]["80"], 8080);
    assert_eq!(content("HTTPRoute", "shop/split")["rules"][0]["backends"][0]["weight"], 3);
    assert_eq!(content("Mesh", "mesh")["enrolled_namespaces"], serde_json::json!(["shop"]));
    assert!(world.admin("/config_dump?node=node-9").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_refused_resource_is_left_out_and_the_rest_goes_on() {
    let world = World::start().await;
    world.write("route.yaml", &route(1));
    until(&world, "/status", |status| status.contains("shop/split")).await;
    let mut node = Node::connect(&world, "node-1", TOKEN_1, Vec::new()).await.unwrap();
    let first = node.delta().await.unwrap();
    assert!(names(&first).contains(&"shop/split"));
    node.nack(&first, "shop/split", "the test does not like it").await;
    let rest = node.delta().await.unwrap();
    assert!(!names(&rest).contains(&"shop/split") && names(&rest).contains(&"mesh"));
    node.ack(&rest).await;
    let status = until(&world, "/status", |status| status.contains("the test does not like it")).await;
    assert!(status.contains("\"nacks\": 1"), "{status}");
    // Changed, it is tried again.
    world.write("route.yaml", &route(2));
    let change = node.delta().await.unwrap();
    assert_eq!(names(&change), ["shop/split"]);
    node.ack(&change).await;
    until(&world, "/status", |status| status.contains("\"in_sync\": true")).await;
}

#[tokio::test]
async fn who_may_not_subscribe_is_told_so() {
    let world = World::start().await;
    let refused = Node::connect(&world, "node-1", "wrong-token-0123456789", Vec::new()).await;
    assert_eq!(refused.err().unwrap().code(), Code::Unauthenticated);
    let mut other = Node::connect(&world, "node-1", TOKEN_2, Vec::new()).await.unwrap();
    assert_eq!(other.delta().await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_certificate_is_for_a_live_enrolled_pod_of_the_callers_node() {
    let world = World::start().await;
    until(&world, "/readyz", |answer| answer.contains("200 OK")).await;
    let signed = world.sign(TOKEN_1, "uid-frontend", request()).await.unwrap();
    assert_eq!(signed.chain_der.len(), 1);
    let code = |result: Result<v1::SignResponse, Status>| result.unwrap_err().code();
    assert_eq!(code(world.sign(TOKEN_1, "uid-backend", request()).await), Code::PermissionDenied);
    assert_eq!(code(world.sign(TOKEN_1, "uid-nobody", request()).await), Code::PermissionDenied);
    assert_eq!(
        code(world.sign("wrong-token-0123456789", "uid-frontend", request()).await),
        Code::Unauthenticated
    );
    let foreign = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let foreign = CertificateParams::default().serialize_request(&foreign).unwrap().der().to_vec();
    assert_eq!(code(world.sign(TOKEN_1, "uid-frontend", foreign).await), Code::InvalidArgument);
    world.write("mesh.yaml", &MESH.replace("weft.dev/mesh: enabled", "weft.dev/mesh: disabled"));
    until(&world, "/config_dump?node=node-1", |dump| dump.contains("\"enrolled\": false")).await;
    assert_eq!(code(world.sign(TOKEN_1, "uid-frontend", request()).await), Code::PermissionDenied);
    let metrics = world.admin("/metrics").await;
    assert!(metrics.contains("weft_control_certificates_signed_total 1"), "{metrics}");
    assert!(metrics.contains("weft_control_certificates_refused_total 4"), "{metrics}");
}

#[tokio::test]
async fn broken_yaml_is_reported_by_place_and_the_last_good_state_stays() {
    let world = World::start().await;
    world.write("route.yaml", &route(1));
    let mut node = Node::connect(&world, "node-1", TOKEN_1, Vec::new()).await.unwrap();
    let first = node.delta().await.unwrap();
    node.ack(&first).await;
    until(&world, "/config_dump?node=node-1", |dump| dump.contains("shop/split")).await;
    world.write("route.yaml", "apiVersion: v1\nkind: [\n");
    let status = until(&world, "/status", |status| status.contains("route.yaml\",\n        \"line\"")).await;
    assert!(!status.contains("\"errors\": []"), "{status}");
    assert!(world.admin("/config_dump?node=node-1").await.contains("shop/split"));
    assert!(world.admin("/metrics").await.contains("weft_control_source_errors 1"));
}

#[test]
fn what_is_wrong_at_the_start_is_told_in_words_and_without_a_backtrace() {
    let ended = std::process::Command::new(env!("CARGO_BIN_EXE_weft-control"))
        .args(["--manifests=/does/not/exist", "--trust-domain=UPPER"])
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.starts_with("weft-control: settings: --trust-domain: "), "{said}");
    assert!(said.contains("--state-dir") && said.lines().count() == 1, "{said}");
    assert_eq!(ended.status.code(), Some(1));
}

#[tokio::test]
async fn a_log_that_nobody_watches_has_no_colours() {
    use tokio::io::AsyncBufReadExt as _;
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("manifests")).unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_weft-control"))
        .args([format!("--manifests={}", at("manifests")), format!("--state-dir={}", at("state"))])
        .args(["--listen=127.0.0.1:0".to_owned(), format!("--admin=unix:{}", at("admin.sock"))])
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::BufReader::new(child.stderr.take().unwrap()).lines();
    let line = tokio::time::timeout(WAIT_MAX, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert!(line.contains("INFO") && !line.contains('\u{1b}'), "{line:?}");
}
