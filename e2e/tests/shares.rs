//! One pod that takes all it can get of a node leaves the others theirs.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weft_e2e::fixture::{self, MESH};
use weft_e2e::lab::{Lab, Options, wait};
use weft_e2e::story::clients::get;

/// For what was held to be free again, and for a count to be seen.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// What each of the tests leaves one pod: a quarter of `--flows-max 64`, or `--connections-per-pod 16`.
const SHARE: u64 = 16;
/// Opens up to $0 connections to the servers named after it, in turn, until one is refused; tells how many; holds them
/// until it is killed.
const HOLD: &str = r#"
n=0
while [ $n -lt $0 ] && exec {fd}<>/dev/tcp/$1/9000; do n=$((n + 1)); set -- "${@:2}" "$1"; done
echo $n
read -r"#;

/// Connections of a pod's application that are open until this is dropped.
struct Held {
    child: Child,
    count: u64,
}

impl Held {
    fn open(lab: &Lab, pod: &str, most: u64, servers: &[&str]) -> Result<Self> {
        let most = most.to_string();
        let mut command = lab.command(pod, &[&["bash", "-c", HOLD, &most], servers].concat())?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut held = Self { child: command.spawn()?, count: 0 };
        let out = held.child.stdout.take().context("its output is piped")?;
        let mut told = String::new();
        BufReader::new(out).read_line(&mut told)?;
        held.count = told.trim().parse().with_context(|| format!("it told {told:?}"))?;
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lab(name: &str, arguments: [&str; 2]) -> Result<Lab> {
    fixture::up(name, MESH, Options { node_args: arguments.map(String::from).to_vec(), ..Options::default() })
}

fn answers(lab: &Lab, pod: &str, url: &str) -> Result<()> {
    let (status, body) = get(lab, pod, url, &[])?;
    ensure!(status == 200, "{pod}, {url}: {status} {body}");
    Ok(())
}

/// Another pod of the same node, to a server there and to one elsewhere.
fn others_go_on(lab: &Lab) -> Result<()> {
    ["http://near/", "http://far/"].iter().try_for_each(|url| answers(lab, "mesh/client2", url))
}

fn status_of_pod(lab: &Lab, node: &str, name: &str) -> Result<Value> {
    let status = lab.node_status(node)?;
    let pods = status["pods"].as_array().context("a list of pods")?;
    pods.iter().find(|pod| pod["name"] == name).cloned().with_context(|| format!("{name} in {status}"))
}

#[test]
fn a_pod_that_holds_its_share_of_the_kernels_flows_is_refused_and_the_others_go_on() -> Result<()> {
    let lab = lab("flows", ["--flows-max", "64"])?;
    let held = Held::open(&lab, "mesh/client", 2 * SHARE, &["far", "near"])?;
    ensure!(held.count == SHARE, "{} connections before the first refusal", held.count);
    let (status, body) = get(&lab, "mesh/client", "http://far/", &[])?;
    ensure!(status == 0, "beyond its share: {status} {body}");
    others_go_on(&lab)?;
    let events = &lab.node_status("node1")?["kernel"]["events"];
    ensure!(events["connect_refused_share"].as_u64() >= Some(2), "{events}");
    ensure!(events["connect_refused_full"].is_null(), "{events}");
    drop(held);
    wait::until(WAIT_MAX, || answers(&lab, "mesh/client", "http://far/"))
}

#[test]
fn a_pod_that_holds_its_share_of_the_proxy_waits_and_the_others_go_on() -> Result<()> {
    let lab = lab("places", ["--connections-per-pod", "16"])?;
    // The kernel takes them all; the proxy serves so many, and is told of no others.
    let held = Held::open(&lab, "mesh/client", 2 * SHARE, &["far", "near"])?;
    wait::until(WAIT_MAX, || {
        let client = status_of_pod(&lab, "node1", "client")?;
        ensure!(client["connections_outbound"] == SHARE && client["connections_max"] == SHARE, "{client}");
        Ok(())
    })?;
    let (status, body) = get(&lab, "mesh/client", "http://far/", &[])?;
    ensure!(status == 0, "beyond its share: {status} {body}");
    others_go_on(&lab)?;
    let limited = lab.node_admin("node1").metric("weft_accept_limited_total", &["outbound"])?;
    ensure!(limited >= 1.0, "met {limited} times");
    let log = std::fs::read_to_string(lab.node_log("node1"))?;
    let named = |line: &str| line.contains("as many connections as it may") && line.contains("\"client\"");
    ensure!(log.lines().any(named), "the log does not name the pod");
    drop(held);
    wait::until(WAIT_MAX, || answers(&lab, "mesh/client", "http://far/"))
}

/// What comes to a pod has its own share: tunnels, their streams, and pods of the same node.
#[test]
fn a_server_with_all_its_connections_refuses_more_and_another_server_does_not() -> Result<()> {
    let lab = lab("server", ["--connections-per-pod", "16"])?;
    for (server, other, node) in [("far", "near", "node2"), ("near", "far", "node1")] {
        // Its tunnel is there before the other client takes the rest: a further one would wait for its place.
        let _before = Held::open(&lab, "mesh/client2", 1, &[server])?;
        wait::until(WAIT_MAX, || {
            let pod = status_of_pod(&lab, node, server)?;
            ensure!(pod["connections_inbound"].as_u64() >= Some(1), "{pod}");
            Ok(())
        })?;
        let held = Held::open(&lab, "mesh/client", SHARE, &[server])?;
        wait::until(WAIT_MAX, || {
            let pod = status_of_pod(&lab, node, server)?;
            ensure!(pod["connections_inbound"] == SHARE, "{pod}");
            Ok(())
        })?;
        // Copied, so that no connection of an earlier request is there to be used again; over IPv6 as the held ones are: over
        // IPv4, which curl tries next, it is another tunnel.
        let url = format!("http://{server}:81/");
        let output = lab.exec("mesh/client2", &["curl", "-sS", "-6", "--max-time", "5", &url])?;
        let said = String::from_utf8_lossy(&output.stderr);
        // Accepted and reset, which curl may see in its connect already.
        let reset = said.contains("reset") || said.contains("Failed to connect");
        ensure!(reset, "beyond the share of {server}: {} {said}", output.status);
        answers(&lab, "mesh/client2", &format!("http://{other}/"))?;
        drop(held);
        wait::until(WAIT_MAX, || answers(&lab, "mesh/client2", &format!("http://{server}/")))?;
    }
    Ok(())
}
