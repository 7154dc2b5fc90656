//! The cluster that all tests share, whose turn it is on it, and the pods that they talk to. Asserts nothing about the product.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Deref;
use std::process::Stdio;
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use weft_e2e::cluster::weft::{NAMESPACE, TAG, WORKLOADS};
use weft_e2e::cluster::{Cluster, Families, Family};
use weft_e2e::lab::{Packets, wait};
use weft_e2e::tools::built_beside;

/// Set to the name of a cluster that Weft runs in, the tests use it as it is and leave it up; without it they make one.
const KEPT: &str = "WEFT_TEST_CLUSTER";
/// Pods start within seconds; on a machine with other work, within more.
pub(crate) const START_WAIT_MAX: Duration = Duration::from_secs(90);
/// For a label, a policy or a pod to reach a node: "within a second" is what is promised, of a machine that is not loaded.
pub(crate) const CHANGE_WAIT_MAX: Duration = Duration::from_secs(15);

/// For the controllers of Kubernetes: after an API server that was away they look again within a minute, half of which is chance.
pub(crate) const CONTROLLERS_WAIT_MAX: Duration = Duration::from_secs(150);

pub(crate) const TUNNEL_PORT: u16 = 15008;

static TURN: RwLock<()> = RwLock::new(());
static UP: OnceLock<Result<Cluster, String>> = OnceLock::new();

enum Lock {
    Together(#[expect(dead_code, reason = "held for its drop")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held for its drop")] RwLockWriteGuard<'static, ()>),
}

/// The cluster, for as long as the value lives.
pub(crate) struct Turn {
    cluster: &'static Cluster,
    lock: Lock,
}

impl Deref for Turn {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        self.cluster
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // What a failed test took away and did not bring back should fail no other.
        if matches!(self.lock, Lock::Alone(_))
            && let Err(error) = self.cluster.start_missing().and_then(|()| whole(self.cluster))
        {
            eprintln!("the cluster is not whole again: {error:#}");
        }
    }
}

/// With Weft in it.
fn whole(cluster: &Cluster) -> Result<()> {
    let there = cluster.kubectl(&["-n", NAMESPACE, "get", WORKLOADS[0], WORKLOADS[1], "-o", "name"]);
    if there.is_ok() { cluster.wait_weft() } else { cluster.install_weft(&built_beside()) }
}

/// For a test that keeps to a namespace of its own.
pub(crate) fn together() -> Result<Turn> {
    let lock = Lock::Together(TURN.read().unwrap_or_else(PoisonError::into_inner));
    Ok(Turn { cluster: cluster()?, lock })
}

/// For a test that stops or removes what others need.
pub(crate) fn alone() -> Result<Turn> {
    let lock = Lock::Alone(TURN.write().unwrap_or_else(PoisonError::into_inner));
    Ok(Turn { cluster: cluster()?, lock })
}

/// Brought up, with Weft in it, by whoever comes first. A failure is not tried again.
fn cluster() -> Result<&'static Cluster> {
    let up = UP.get_or_init(|| {
        // SAFETY: registers a function without arguments that does not unwind; the static it uses lives for ever.
        unsafe { libc::atexit(take_down) };
        let build = || {
            if let Some(name) = kept() {
                return Cluster::attach(&name);
            }
            let cluster = Cluster::up(&format!("test{}", std::process::id()), Families::Dual)?;
            cluster.install_weft(&built_beside())?;
            Ok::<_, anyhow::Error>(cluster)
        };
        build().map_err(|e| format!("{e:#}"))
    });
    up.as_ref().map_err(|e| anyhow!("the cluster of these tests did not come up: {e}"))
}

fn kept() -> Option<String> {
    std::env::var(KEPT).ok()
}

extern "C" fn take_down() {
    if kept().is_some() {
        return;
    }
    if let Err(error) = Cluster::down(&format!("test{}", std::process::id())) {
        eprintln!("the cluster is not all gone: {error:#}");
    }
}

/// A namespace with a client on each node (`client1`, `client2`) and a server of two replicas, one per node
/// (`tests/cluster/shop.yaml`). Goes away with the value.
pub(crate) struct Shop<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) namespace: &'static str,
}

impl<'a> Shop<'a> {
    /// Outside of the mesh.
    pub(crate) fn outside(cluster: &'a Cluster, namespace: &'static str) -> Result<Self> {
        Self::open(cluster, namespace, false)
    }

    /// Labelled before its pods are made.
    pub(crate) fn enrolled(cluster: &'a Cluster, namespace: &'static str) -> Result<Self> {
        let shop = Self::open(cluster, namespace, true)?;
        shop.wait_enrolled(&["client1", "client2", "server-0", "server-1"])?;
        shop.wait_served("client1", "node1")?;
        shop.wait_served("client2", "node2")?;
        Ok(shop)
    }

    /// Waits until a client's node knows that both servers are ready and in the mesh: it hears so after the API server does.
    fn wait_served(&self, client: &str, node: &str) -> Result<()> {
        let namespace = self.namespace;
        wait::until(CHANGE_WAIT_MAX, || {
            let told = self.cluster.node_admin(node)?.json(&format!("/pod/{namespace}/{client}"))?;
            for service in ["server", "servers"] {
                let is_it = |entry: &&Value| entry["name"] == format!("{namespace}/{service}");
                let entry = told["services"].as_array().into_iter().flatten().find(is_it);
                let endpoints = entry.and_then(|entry| entry["endpoints"].as_array()).into_iter().flatten();
                let served = endpoints.filter(|it| it["state"] == "ready" && it["in_mesh"] == true);
                // One has an endpoint for each family of addresses.
                let served: BTreeSet<_> = served.map(|it| it["workload"].as_str()).collect();
                ensure!(
                    served.len() == 2,
                    "{node} knows {served:?} of the two servers of {service}: {entry:?}"
                );
            }
            Ok(())
        })
    }

    /// Without anything in it, but the ServiceAccount `client`.
    pub(crate) fn empty(cluster: &'a Cluster, namespace: &'static str, enrolled: bool) -> Result<Self> {
        let shop = Self { cluster, namespace };
        let label = if enrolled { ", labels: {weft.dev/mesh: enabled}" } else { "" };
        shop.apply(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}{label}}}}}
---
{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: client, namespace: {namespace}}}}}"
        ))?;
        Ok(shop)
    }

    fn open(cluster: &'a Cluster, namespace: &'static str, enrolled: bool) -> Result<Self> {
        let shop = Self::empty(cluster, namespace, enrolled)?;
        shop.apply(include_str!("shop.yaml"))?;
        cluster.wait_rollout(namespace, "sts/server", START_WAIT_MAX)?;
        for client in ["client1", "client2"] {
            shop.wait_running(client)?;
        }
        Ok(shop)
    }

    /// Applies manifests in which `@NS@` stands for the namespace and `@TAG@` for the tag of the images.
    pub(crate) fn apply(&self, manifests: &str) -> Result<()> {
        self.cluster.apply(&self.filled(manifests))
    }

    pub(crate) fn filled(&self, manifests: &str) -> String {
        manifests.replace("@NS@", self.namespace).replace("@TAG@", TAG)
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", self.namespace], arguments].concat())
    }

    /// Sets (`name=value`) or removes (`name-`) the label of the namespace.
    pub(crate) fn label(&self, label: &str) -> Result<()> {
        self.cluster.kubectl(&["label", "--overwrite", "namespace", self.namespace, label]).map(drop)
    }

    pub(crate) fn wait_running(&self, pod: &str) -> Result<()> {
        let pod = ["-n", self.namespace, "pod", pod];
        self.cluster.wait_field(&pod, "{.status.phase}", "Running", START_WAIT_MAX)
    }

    /// Waits until the pods' nodes say that they are in the mesh.
    pub(crate) fn wait_enrolled(&self, pods: &[&str]) -> Result<()> {
        self.wait_state(pods, "enrolled")
    }

    pub(crate) fn wait_state(&self, pods: &[&str], state: &str) -> Result<()> {
        wait::until(CHANGE_WAIT_MAX, || {
            let known = states(self.cluster)?;
            for pod in pods {
                let now = known.iter().find(|k| k.0 == format!("{}/{pod}", self.namespace));
                ensure!(now.is_some_and(|k| k.1 == state), "{pod} should be {state}: {now:?}");
            }
            Ok(())
        })
    }

    /// Runs `weft-echo load` in a pod, with a short patience for each answer, and reads what it tells.
    pub(crate) fn load(&self, pod: &str, arguments: &[&str]) -> Result<Value> {
        let words = [&["weft-echo", "load", "--timeout-ms", "5000"], arguments].concat();
        let told = self.cluster.exec_ok(self.namespace, pod, &words)?;
        serde_json::from_str(&told).with_context(|| format!("weft-echo in {pod} told {told:?}"))
    }

    /// Some requests, each on a connection of its own, all of which must be answered.
    pub(crate) fn reach(&self, pod: &str, url: &str) -> Result<Value> {
        self.reach_by(pod, url, &[])
    }

    /// The same, over one family of addresses.
    pub(crate) fn reach_over(&self, family: Family, pod: &str, url: &str) -> Result<Value> {
        self.reach_by(pod, url, &[if family == Family::V4 { "--ipv4" } else { "--ipv6" }])
    }

    fn reach_by(&self, pod: &str, url: &str, more: &[&str]) -> Result<Value> {
        let told = self.load(pod, &[&["--url", url, "--requests", "4", "--reconnect"], more].concat())?;
        ensure!(told["ok"] == 4, "{pod} to {url} {}: {told}", more.join(" "));
        Ok(told)
    }

    /// The same, none of which may be.
    pub(crate) fn reach_in_vain(&self, pod: &str, url: &str) -> Result<()> {
        let told = self.load(pod, &["--url", url, "--requests", "2", "--reconnect"])?;
        ensure!(told["ok"] == 0, "{pod} to {url} must fail: {told}");
        Ok(())
    }

    /// What crosses node2's link while client1 talks to the server on node2, by each of its addresses, with the text `secret` in
    /// its requests.
    pub(crate) fn captured(&self, secret: &str) -> Result<Packets> {
        self.captured_from("client1", secret)
    }

    /// The same, with another client on node1.
    pub(crate) fn captured_from(&self, client: &str, secret: &str) -> Result<Packets> {
        let server = if self.node_of("server-0")? == "node2" { "server-0" } else { "server-1" };
        let hosts = self.hosts_of(server)?;
        let capture = self.cluster.capture("node2", "tcp")?;
        for host in hosts {
            self.reach(client, &format!("http://{host}:8080/{secret}"))?;
        }
        capture.stop()
    }

    /// A pod on node1 whose first process asks the server, which is STRICT, with the very first connection: [`Shop::joined`].
    pub(crate) fn newcomer(&self, name: &str) -> Result<()> {
        self.apply(&include_str!("newcomer.yaml").replace("@NAME@", name))
    }

    /// The newcomer runs, was in the mesh before its first process, and is still.
    pub(crate) fn joined(&self, name: &str) -> Result<()> {
        self.wait_running(name)?;
        let first = self.kubectl(&["logs", name, "-c", "first"])?;
        ensure!(first.contains("\"ok\":1"), "the first connection of {name}: {first}");
        self.wait_enrolled(&[name])?;
        let secret = format!("secret-of-{name}");
        let packets = self.captured_from(name, &secret)?;
        ensure!(!packets.contains(&secret), "nothing of {name} is in the clear");
        ensure!(packets.tls_records(TUNNEL_PORT) > 0, "and TLS crosses to the tunnel's port");
        Ok(())
    }

    /// The hosts of a URL to a pod: one for each family of addresses, the cluster's own first.
    pub(crate) fn hosts_of(&self, pod: &str) -> Result<Vec<String>> {
        let ips = self.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIPs[*].ip}"])?;
        let hosts =
            ips.split(' ').map(|ip| Ok(host(ip.parse().with_context(|| format!("{pod} has {ips:?}"))?)));
        hosts.collect()
    }

    pub(crate) fn node_of(&self, pod: &str) -> Result<String> {
        self.kubectl(&["get", "pod", pod, "-o", "jsonpath={.spec.nodeName}"])
    }
}

impl Drop for Shop<'_> {
    fn drop(&mut self) {
        // The cluster goes anyway; until then the next test should have the machine to itself.
        let _ = self.cluster.kubectl(&["delete", "namespace", self.namespace, "--wait=false"]);
    }
}

/// Waits for the end of the namespaces of earlier tests, which their tests did not wait for.
pub(crate) fn wait_others_gone(cluster: &Cluster) -> Result<()> {
    let leaving = "jsonpath={.items[?(@.status.phase==\"Terminating\")].metadata.name}";
    wait::until(CONTROLLERS_WAIT_MAX, || {
        let leaving = cluster.kubectl(&["get", "namespaces", "-o", leaving])?;
        ensure!(leaving.is_empty(), "namespaces on their way out: {leaving}");
        Ok(())
    })
}

/// An address as a URL's host.
pub(crate) fn host(ip: IpAddr) -> String {
    if ip.is_ipv4() { ip.to_string() } else { format!("[{ip}]") }
}

/// Name and state of every pod that a node knows.
pub(crate) fn states(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for node in cluster.nodes() {
        let status = cluster.node_admin(&node)?.json("/status")?;
        for pod in status["pods"].as_array().into_iter().flatten() {
            let text = |name: &str| pod[name].as_str().unwrap_or_default().to_owned();
            all.push((format!("{}/{}", text("namespace"), text("name")), text("state")));
        }
    }
    Ok(all)
}

/// A load that runs in a pod while the test does other things.
pub(crate) struct Running {
    child: std::process::Child,
}

impl Running {
    pub(crate) fn start(shop: &Shop<'_>, pod: &str, arguments: &[&str]) -> Result<Self> {
        let exec = ["exec", pod, "--", "weft-echo", "load", "--timeout-ms", "10000"];
        Self::spawn(shop, &[&exec, arguments].concat(), Stdio::null())
    }

    /// `weft-echo` with these words and `--until-eof`: goes on until [`Running::finish`].
    pub(crate) fn on(shop: &Shop<'_>, pod: &str, words: &[&str]) -> Result<Self> {
        let exec = ["exec", "-i", pod, "--", "weft-echo"];
        Self::spawn(shop, &[&exec, words, &["--until-eof"]].concat(), Stdio::piped())
    }

    fn spawn(shop: &Shop<'_>, words: &[&str], input: Stdio) -> Result<Self> {
        let mut kubectl = shop.cluster.kubectl_command();
        kubectl.args(["-n", shop.namespace]).args(words).stdin(input).stdout(Stdio::piped());
        Ok(Self { child: kubectl.spawn()? })
    }

    /// Waits until it ends, by itself or because its input does, and reads what it tells.
    pub(crate) fn finish(self) -> Result<Value> {
        let output = self.child.wait_with_output()?;
        let told = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&told).with_context(|| format!("the load told {told:?}"))
    }
}
