//! A wall clock that jumps under a running `weft-control`, days forward and back, with a node's stream open and another replica beside it.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::api::{Api, DeleteParams};
use tonic::transport::Identity;

use super::api_server::ApiServer;
use super::cluster::{POLICY, apply, conditions, label, shop, uid};
use super::control::{Control, until};
use super::identity::{NAMESPACE, account, pod, published, token};
use super::node::Node;

/// The library that sets a process's wall clock apart from the machine's; the lab's.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../e2e/src/lab/clock.c");
const DAY: i64 = 24 * 3_600;
const HOUR: i64 = 3_600;
/// docs/identity.md: a certificate begins so long before it was signed.
const BACKDATE: i64 = 60;
/// Between two readings of the clock, here and there, on a busy machine.
const APART_MAX: i64 = 50;
const ADMIN: &str = "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: weft-control}, roleRef: \
    {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}, subjects: \
    [{kind: ServiceAccount, name: weft-control, namespace: weft-system}]}";

/// A `weft-control` whose wall clock the test sets.
struct Bed {
    client: Client,
    control: Control,
    clock: PathBuf,
    ahead: i64,
    jumps: usize,
    node: Node,
    port: u16,
}

fn compiled(directory: &Path) -> PathBuf {
    let library = directory.join("clock.so");
    let mut cc = Command::new("cc");
    let made = cc.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(SOURCE).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    library
}

impl Bed {
    async fn new(server: &ApiServer, client: &Client, kubeconfig: &Path) -> Self {
        let clock = server.directory.path().join("clock");
        fs::write(&clock, 0_i64.to_ne_bytes()).unwrap();
        let library = compiled(server.directory.path());
        let environment = [("LD_PRELOAD", library.as_path()), ("WEFT_TEST_CLOCK", clock.as_path())];
        let control = Control::start_in(server, kubeconfig, "control", &["--watch-time=4s"], &environment);
        control.says("weft-control is up").await;
        control.says("leading=true").await;
        let mut node = Node::connect_when_served(control.address, client, "node-1").await;
        node.until(&uid(client, "backend").await).await;
        Self { client: client.clone(), control, clock, ahead: 0, jumps: 0, node, port: 8080 }
    }

    /// Sets the clock; it is told by how much it jumped, once.
    async fn jump(&mut self, ahead: i64) {
        let (by, log) = (ahead - self.ahead, self.control.log());
        let file = fs::OpenOptions::new().write(true).open(&self.clock).unwrap();
        file.write_all_at(&ahead.to_ne_bytes(), 0).unwrap();
        (self.ahead, self.jumps) = (ahead, self.jumps + 1);
        let told = format!(
            "the wall clock jumped; certificates are judged by it, and signed by it from now on seconds={by}"
        );
        until(&told, || async { self.control.log()[log.len()..].contains(&told).then_some(()) }).await;
        let clock = self.control.status().await["clock_unix_s"].as_i64().unwrap();
        assert!((clock - self.now()).abs() < APART_MAX, "{clock} and not {}", self.now());
    }

    /// By the clock of `weft-control`.
    fn now(&self) -> i64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        i64::try_from(since.as_secs()).unwrap() + self.ahead
    }

    /// A change comes to the node over the stream that stood all the while, and its status to the API server.
    async fn goes_on(&mut self) {
        self.port += 1;
        let policy = POLICY.replace("8080", &self.port.to_string());
        apply(&self.client, &policy).await.unwrap();
        self.node.until("shop/deny").await;
        conditions(&self.client, &policy, &[("Programmed", "False", "1 of 2 nodes have it")]).await;
    }

    /// What it signs now is as long as ever, by its own clock.
    async fn signs(&self, root: &str, shown: &str) -> Identity {
        let (identity, times) = self.control.sign_node_for(root, shown).await.unwrap();
        let late = self.now() - BACKDATE - times.start;
        assert!((-1..APART_MAX).contains(&late), "{times:?} at {}", self.now());
        assert_eq!(times.end - times.start, HOUR + BACKDATE);
        identity
    }
}

async fn lease(client: &Client) -> (Option<String>, Option<i32>) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let spec = leases.get("weft-control").await.unwrap().spec.unwrap();
    (spec.holder_identity, spec.lease_transitions)
}

#[tokio::test]
async fn a_wall_clock_that_jumps_days_loses_no_stream_no_lease_and_no_root() {
    let server = ApiServer::start(&[]).await;
    let client = shop(&server).await;
    apply(&client, &label("enabled")).await.unwrap();
    // As in a cluster, it shows a token that is renewed in its file, and whose pod will be gone.
    apply(&client, ADMIN).await.unwrap();
    account(&client, NAMESPACE, "weft-control").await;
    account(&client, NAMESPACE, "weft-node").await;
    let mut tokens = Vec::new();
    for name in ["first", "second"] {
        let own = pod(&client, NAMESPACE, name, "node-1", "weft-control").await;
        let audience = "https://kubernetes.default.svc";
        tokens.push(token(&client, NAMESPACE, "weft-control", audience, Some((name, &own))).await);
    }
    let file = server.directory.path().join("token");
    fs::write(&file, &tokens[0]).unwrap();
    let mut bed = Bed::new(&server, &client, &server.kubeconfig_of_file(&file)).await;
    let beside = Control::start(&server, "beside");
    beside.says("weft-control is up").await;
    let agent = pod(&client, NAMESPACE, "agent", "node-2", "weft-node").await;
    let shown = token(&client, NAMESPACE, "weft-node", "weft-control", Some(("agent", &agent))).await;
    let root = published(&client).await;
    let (started, before, spent) = (Instant::now(), lease(&client).await, bed.control.processor_seconds());
    let of_today = bed.signs(&root, &shown).await;

    // Forward: what was signed before is over there, which is told; what is asked for anew is good.
    bed.jump(2 * DAY).await;
    bed.goes_on().await;
    until("a refusal", || async {
        // The node's side of the handshake may be done before it is refused.
        let channel = bed.control.channel(&root, Some(of_today.clone())).await;
        drop(channel);
        let log = bed.control.log();
        let told =
            |line: &str| line.contains("client certificate refused") && line.contains("certificate expired");
        log.lines().any(told).then_some(())
    })
    .await;
    let anew = bed.signs(&root, &shown).await;
    let mut second = Node::show(bed.control.address, &root, "node-2", anew).await;
    second.until("shop/deny").await;
    drop(second);

    bed.jump(0).await;
    bed.goes_on().await;
    bed.signs(&root, &shown).await;

    // Backward: the authority, made today, is one of the future, which is told; it signs as before. And the token in the file is followed.
    bed.jump(-2 * DAY).await;
    fs::write(&file, &tokens[1]).unwrap();
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client.clone(), NAMESPACE);
    pods.delete("first", &DeleteParams::default().grace_period(0)).await.unwrap();
    bed.control.says("is not valid now (it is from").await;
    bed.signs(&root, &shown).await;
    bed.goes_on().await;
    bed.jump(0).await;
    bed.goes_on().await;
    until("an authority without a problem", || async {
        bed.control.status().await["authority"]["problem"].is_null().then_some(())
    })
    .await;

    // So far forward that the listener's certificate is renewed there: when the clock is right again, so is that.
    bed.jump(4 * DAY).await;
    bed.goes_on().await;
    bed.jump(0).await;
    bed.signs(&root, &shown).await;
    bed.goes_on().await;

    assert_eq!(lease(&client).await, before, "the Lease went to another replica");
    assert_eq!(published(&client).await, root);
    let (spent, took) = (bed.control.processor_seconds() - spent, started.elapsed().as_secs());
    assert!(spent < took / 2, "{spent} s of a processor in {took} s");
    let log = bed.control.log();
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(log.matches("the wall clock jumped").count(), bed.jumps);
}
