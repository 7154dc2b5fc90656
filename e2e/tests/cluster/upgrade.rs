//! An upgrade to another build under load: whose requests may fail, and when.

use std::fmt;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weft_e2e::cluster::Cluster;
use weft_e2e::cluster::next::Build;
use weft_e2e::cluster::weft::{NAMESPACE, TAG, WORKLOADS};
use weft_e2e::lab::wait;
use weft_e2e::tools::built_beside;

use crate::closed::Closed;
use crate::fixture::{CHANGE_WAIT_MAX, Running, Shop};

const URL: &str = "http://server/secret-of-the-upgrade";
const SECRET: &str = "secret-of-the-upgrade";
/// Ends the loads: they go on until they are answered like this.
const ENOUGH: &str = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: enough, namespace: @NS@}, spec: {parentRefs: [{group: '', kind: Service, name: server}],
  rules: [{filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /there}, statusCode: 302}}]}]}}";
/// A Pod of the new build, with times by the second, as the API server tells them: the rest is cut off.
#[derive(Debug)]
struct Replaced {
    node: String,
    made_ms: i128,
    ready_ms: i128,
}

/// The Pods of weft-control or weft-node, the first to be made first.
fn replaced(cluster: &Cluster, name: &str) -> Result<Vec<Replaced>> {
    let pods = ["-n", NAMESPACE, "pods", "-l", &format!("app.kubernetes.io/name={name}")];
    let pods = cluster.object(&pods)?;
    let mut all = Vec::new();
    for pod in pods["items"].as_array().into_iter().flatten() {
        // Of the build before, and on its way out.
        if pod["metadata"]["deletionTimestamp"].is_string() {
            continue;
        }
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.clone().find(|c| c["type"] == "Ready" && c["status"] == "True");
        all.push(Replaced {
            node: pod["spec"]["nodeName"].as_str().context("a Pod's node")?.to_owned(),
            made_ms: unix_ms(&pod["metadata"]["creationTimestamp"])?,
            ready_ms: unix_ms(&ready.with_context(|| format!("not ready: {pod}"))?["lastTransitionTime"])?,
        });
    }
    all.sort_by_key(|pod| pod.made_ms);
    Ok(all)
}

fn unix_ms(time: &Value) -> Result<i128> {
    let time = OffsetDateTime::parse(time.as_str().context("a time")?, &Rfc3339)?;
    Ok(time.unix_timestamp_nanos() / 1_000_000)
}

/// What a client's load told.
struct Load {
    node: &'static str,
    told: Value,
}

impl Load {
    /// When the first of its requests had failed, and when the last one began that did.
    fn failed_ms(&self) -> Option<(i128, i128)> {
        let failed = self.told["failed_unix_ms"].as_array()?;
        Some((failed.first()?.as_u64()?.into(), failed.last()?.as_u64()?.into()))
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client on {}: {}", self.node, self.told)
    }
}

/// Upgrades, while clients on both nodes ask a server that both nodes have, over connections that they keep and over new ones.
pub(crate) fn upgraded_under_load(shop: &Shop<'_>, next: &Build) -> Result<()> {
    let cluster = shop.cluster;
    let (this, then) = (TAG, next.version.as_str());
    lag(cluster, next, &format!("runs {this}, this command is {then}"))?;
    let closed = Closed::watch(shop, SECRET)?;
    let mut loads = Vec::new();
    for (client, node) in [("client1", "node1"), ("client2", "node2")] {
        let load = [
            "--url",
            URL,
            "--rate",
            "20",
            "--connections",
            "4",
            "--duration",
            "300",
            "--until-status",
            "302",
        ];
        for more in [&[][..], &["--reconnect"]] {
            loads.push((node, Running::start(shop, client, &[&load, more].concat())?));
        }
    }
    cluster.weft(&next.binaries, &["install"])?;
    cluster.wait_weft()?;
    for workload in WORKLOADS {
        let image = "jsonpath={.spec.template.spec.containers[0].image} {.spec.template.metadata.labels.app\\.kubernetes\\.io/version}";
        let runs = cluster.kubectl(&["-n", NAMESPACE, "get", workload, "-o", image])?;
        ensure!(runs.ends_with(&format!(":{then} {then}")), "{workload} runs {runs}");
    }
    shop.apply(ENOUGH)?;
    let told = |(node, load): (_, Running)| Ok(Load { node, told: load.finish()? });
    let loads = loads.into_iter().map(told).collect::<Result<Vec<_>>>()?;
    closed.end()?;
    shop.kubectl(&["delete", "httproute", "enough"])?;
    only_while_their_own_node_was_replaced(cluster, &loads)?;
    let old = Build { binaries: built_beside(), version: this.to_owned() };
    lag(cluster, &old, &format!("runs {then}, this command is {this}"))?;
    let told = cluster.weft(&next.binaries, &["check"])?;
    ensure!(!told.contains("this command is"), "nothing lags: {told}");
    Ok(())
}

/// `weft check` of this build names both replicas of weft-control and both nodes' weft-node.
fn lag(cluster: &Cluster, of: &Build, expected: &str) -> Result<()> {
    wait::until(CHANGE_WAIT_MAX, || {
        let told = cluster.weft(&of.binaries, &["check"])?;
        for part in ["weft-control", "weft-node"] {
            let lagging = told.lines().filter(|line| line.contains(part) && line.contains(expected)).count();
            ensure!(lagging == 2, "{lagging} of two {part} are told to lag: {told}");
        }
        Ok(())
    })
}

/// A node's pods are cut off from when its weft-node ends until the next one is in sync: their connections are refused. Nobody else notices, nor
/// anybody the replacement of weft-control before.
fn only_while_their_own_node_was_replaced(cluster: &Cluster, loads: &[Load]) -> Result<()> {
    let control = replaced(cluster, "weft-control")?;
    let control_ms = control.iter().map(|pod| pod.ready_ms).max().context("weft-control's Pods")?;
    let nodes = replaced(cluster, "weft-node")?;
    let [first, second] = nodes.as_slice() else { anyhow::bail!("two nodes: {nodes:?}") };
    for load in loads {
        let statuses = load.told["statuses"].as_object().context("statuses")?;
        ensure!(statuses.keys().all(|status| ["200", "302"].contains(&status.as_str())), "{load}");
        let mut errors = load.told["errors"].as_object().context("errors")?.keys();
        ensure!(!errors.any(|error| error.starts_with("no answer")), "{load}");
        ensure!(statuses.contains_key("200") && statuses.contains_key("302"), "{load}");
        let Some((from, to)) = load.failed_ms() else { continue };
        println!("on {}, refused for some {} ms", load.node, to - from);
        ensure!(from >= control_ms, "noticed the replacement of weft-control: {control:?}, {load}");
        let (since, until) =
            if load.node == first.node { (control_ms, second.ready_ms) } else { (first.ready_ms, i128::MAX) };
        ensure!(since <= from && to <= until, "noticed the other node's replacement: {nodes:?}, {load}");
    }
    Ok(())
}
