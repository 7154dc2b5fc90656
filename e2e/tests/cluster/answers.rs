//! What `weft status -o json` must tell of a cluster with the pods of [`crate::fixture::Shop`] in the namespace `seen`, of which client1
//! has asked the server: each item that an operator was promised. And what `weft check` says of a cluster that is not in order.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use weft_e2e::cluster::Cluster;
use weft_e2e::lab::wait;
use weft_e2e::tools::built_beside;

use crate::fixture::{START_WAIT_MAX, alone};

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// By the names of the nodes and of the replicas of weft-control.
pub(crate) fn everything_is_told(told: &Value) -> Result<()> {
    let all = told.as_object().context("an answer for each part")?;
    let replicas = || all.values().filter(|answer| answer["nodes"].is_object());
    ensure!(replicas().count() > 0, "the control plane is not told: {told}");
    for (node, client) in [("node1", "client1"), ("node2", "client2")] {
        of_node(&told[node], client).with_context(|| format!("{node}: {}", told[node]))?;
        for replica in replicas() {
            let state = &replica["nodes"][node];
            let in_sync = state["in_sync"] == true || state["elsewhere"]["in_sync"] == true;
            ensure!(in_sync, "{node} is not in sync by weft-control: {state}");
        }
    }
    let events = &told["node1"]["kernel"]["events"];
    let count = |event: &str| events[event].as_u64().unwrap_or(0);
    ensure!(count("connect_redirected") > 0, "client1 connected: {events}");
    if told["node1"]["kernel"]["redirect"] == true {
        // Which of them is the kernel's affair.
        ensure!(count("bytes_redirected") + count("bytes_stack") > 0, "and sent: {events}");
    }
    Ok(())
}

fn of_node(status: &Value, client: &str) -> Result<()> {
    ensure!(status["kernel_release"].as_str().is_some_and(|release| release.contains('.')), "the kernel");
    let kernel = &status["kernel"];
    let programs: Vec<&str> = list(&kernel["programs"]).filter_map(Value::as_str).collect();
    for hook in ["connect4", "connect6", "peer_name4", "peer_name6", "release", "sock_ops"] {
        ensure!(programs.iter().any(|program| program.contains(hook)), "{hook} of the programs {programs:?}");
    }
    ensure!(
        kernel["lookups"].as_u64() >= Some(2),
        "sk_lookup is attached in the client's namespace and the server's"
    );
    let fill = |name: &str| {
        let map = list(&kernel["maps"]).find(|map| map["map"] == name);
        let figures = map.and_then(|map| Some((map["entries"].as_u64()?, map["entries_max"].as_u64()?)));
        figures.with_context(|| format!("the fill of {name} among the maps"))
    };
    for map in ["pods", "original_destinations", "sockets", "probes", "inbound_listeners"] {
        let (entries, entries_max) = fill(map)?;
        ensure!(entries <= entries_max && entries_max > 0, "{map} has {entries} of {entries_max}");
    }
    ensure!(fill("pods")?.0 >= 2, "the client and a server are on each node");
    for probe in ["redirect", "redirect_to_applications", "redirect_accepted"] {
        let result =
            list(&kernel["probes"]).find(|it| it["probe"] == probe).with_context(|| probe.to_owned())?;
        ensure!(result["passed"] == true || result["reason"].is_string(), "the result of a probe: {result}");
    }
    ensure!(kernel["redirect"] == true || kernel["redirect_reason"].is_string(), "why there is no redirect");
    let control = &status["control"];
    for field in ["revision", "applied_unix_ms", "applied_after_ms", "revisions_behind"] {
        ensure!(control[field].is_u64(), "{field} of the configuration");
    }
    ensure!(control["connected"] == true && control["in_sync"] == true, "in sync");
    ensure!(control["certificate"]["not_after_unix_s"].is_u64(), "the node's own certificate");
    let identity = "spiffe://cluster.local/ns/seen/sa/client";
    let certificate = list(&status["certificates"]).find(|it| it["identity"] == identity);
    let certificate = certificate.context("the client's certificate")?;
    ensure!(certificate["serial"].is_string() && certificate["not_after_unix_s"].is_u64(), "{certificate}");
    let pod = list(&status["pods"]).find(|it| it["namespace"] == "seen" && it["name"] == client);
    let pod = pod.context("the client among the pods")?;
    ensure!(pod["state"] == "enrolled" && pod["identity"] == identity, "{pod}");
    ensure!(list(&pod["events"]).next().is_some(), "what happened to it: {pod}");
    Ok(())
}

/// What `weft check` prints where it ends with 1.
fn faults(cluster: &Cluster) -> Result<String> {
    match cluster.weft(&built_beside(), &["check"]) {
        Ok(told) => bail!("weft check finds no error: {told}"),
        Err(error) => {
            let told = format!("{error:#}");
            ensure!(told.contains("exit status: 1\n"), "{told}");
            Ok(told)
        }
    }
}

/// A file with another text while the value lives.
struct Changed {
    path: PathBuf,
    was: String,
}

impl Changed {
    fn new(path: PathBuf, change: impl FnOnce(&mut Value) -> Result<()>) -> Result<Self> {
        let was = fs::read_to_string(&path)?;
        let mut value = serde_json::from_str(&was)?;
        change(&mut value)?;
        replace(&path, &value.to_string())?;
        Ok(Self { path, was })
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        if let Err(error) = replace(&self.path, &self.was) {
            eprintln!("{} stays changed: {error:#}", self.path.display());
        }
    }
}

/// Whole or not at all, as installers write.
fn replace(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("tmp");
    fs::write(&beside, text)?;
    Ok(fs::rename(beside, path)?)
}

#[test]
fn check_fails_and_names_a_right_that_is_gone_and_a_plugin_behind_ours_until_they_are_mended() -> Result<()> {
    let cluster = alone()?;
    let role = || cluster.object(&["clusterrole", "weft-control"]);
    let before = role()?;
    let events = list(&before["rules"]).position(|rule| rule["resources"] == json!(["events"]));
    let events = events.with_context(|| format!("the right to create events: {before}"))?;
    let behind = Changed::new(cluster.node_file("node1", "/etc/cni/net.d/10-pods.conflist")?, |conflist| {
        let plugins = conflist["plugins"].as_array_mut().context("plugins")?;
        ensure!(
            plugins.last().is_some_and(|plugin| plugin["type"] == "weft-cni"),
            "ours is the last: {plugins:?}"
        );
        plugins.push(json!({"type": "loopback"}));
        Ok(())
    })?;
    let taken = format!(r#"[{{"op": "remove", "path": "/rules/{events}"}}]"#);
    cluster.kubectl(&["patch", "clusterrole", "weft-control", "--type=json", "-p", &taken])?;
    let seen = wait::until(START_WAIT_MAX, || {
        let told = faults(&cluster)?;
        let right =
            "error    roles: ClusterRole weft-control lacks: create events; weft install sets it back";
        let order = "warning  node node1: behind weft-cni in /etc/cni/net.d/10-pods.conflist: loopback";
        for line in [right, order] {
            ensure!(told.contains(line), "{line:?} is not in {told}");
        }
        Ok(())
    });
    drop(behind);
    // What it names as the remedy is one.
    cluster.weft(&built_beside(), &["install"])?;
    seen?;
    ensure!(role()?["rules"] == before["rules"], "the rules are those of before");
    wait::until(START_WAIT_MAX, || {
        let told = cluster.weft(&built_beside(), &["check"])?;
        ensure!(!told.contains("behind weft-cni"), "{told}");
        Ok(())
    })
}
