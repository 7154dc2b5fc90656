//! What goes on while parts are away: the node's proxy, the control plane, the API server, a node.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use weft_e2e::cluster::Cluster;
use weft_e2e::cluster::weft::NAMESPACE;
use weft_e2e::lab::wait;
use weft_e2e::tools::built_beside;

use crate::fixture::{CHANGE_WAIT_MAX, CONTROLLERS_WAIT_MAX, Running, START_WAIT_MAX, Shop, alone};

/// A length of time is what is tested here, so it is slept.
const API_SERVER_AWAY: Duration = Duration::from_secs(60);

/// Nobody there could take away what is left on the disk of a node that is down, and when it is back nobody would.
fn nothing_is_uninstalled(cluster: &Cluster, down: &str) -> Result<()> {
    let Err(error) = cluster.weft(&built_beside(), &["uninstall"]) else { bail!("Weft is uninstalled") };
    let told = format!("{error:#}");
    let named = format!("nothing was deleted: weft-node does not run on\n  {down}: the node is down: ");
    ensure!(told.contains(&named), "{told}");
    let deleted = cluster.kubectl(&[
        "-n",
        NAMESPACE,
        "get",
        "ds/weft-node",
        "-o",
        "jsonpath={.metadata.deletionTimestamp}",
    ])?;
    ensure!(deleted.is_empty(), "the DaemonSet goes: {deleted}");
    Ok(())
}

#[test]
fn traffic_goes_on_while_the_api_server_is_away_for_a_minute() -> Result<()> {
    let cluster = alone()?;
    let shop = Shop::enrolled(&cluster, "no-api")?;
    // A client of its own: an exec would end with the API server.
    shop.apply(
        "{apiVersion: batch/v1, kind: Job, metadata: {name: steady, namespace: @NS@}, spec: {backoffLimit: 0, template: {spec: {restartPolicy: Never, containers: [{name: load,
          image: 'weft.local/weft-echo:@TAG@', args: [load, --url, 'http://server/', --rate, '20', --duration, '65', --connections, '2', --reconnect]}]}}}}",
    )?;
    cluster.wait_field(&["-n", shop.namespace, "job", "steady"], "{.status.ready}", "1", START_WAIT_MAX)?;
    cluster.kill_part("kube-apiserver")?;
    std::thread::sleep(API_SERVER_AWAY);
    for node in cluster.nodes() {
        cluster.node_admin(&node)?.ready()?;
    }
    cluster.start_part("kube-apiserver")?;
    cluster.wait_api()?;
    cluster.wait_field(
        &["-n", shop.namespace, "job", "steady"],
        "{.status.succeeded}",
        "1",
        CONTROLLERS_WAIT_MAX,
    )?;
    let told: Value = serde_json::from_str(&shop.kubectl(&["logs", "job/steady"])?)?;
    // Most of them while it was away: with it, there were some hundred at most.
    ensure!(told["failed"] == 0 && told["ok"].as_u64() > Some(300), "{told}");
    shop.kubectl(&["label", "pod", "client2", "weft.dev/mesh=disabled"])?;
    shop.wait_state(&["client2"], "not_enrolled")
}

#[test]
fn traffic_goes_on_while_weft_control_is_restarted() -> Result<()> {
    let cluster = alone()?;
    let shop = Shop::enrolled(&cluster, "no-control")?;
    let load = Running::start(
        &shop,
        "client1",
        &[
            "--url",
            "http://server/",
            "--rate",
            "30",
            "--requests",
            "600",
            "--connections",
            "2",
            "--reconnect",
        ],
    )?;
    cluster.kubectl(&[
        "-n",
        NAMESPACE,
        "delete",
        "pods",
        "-l",
        "app.kubernetes.io/name=weft-control",
        "--wait=false",
        "--now",
    ])?;
    cluster.wait_rollout(NAMESPACE, "deploy/weft-control", START_WAIT_MAX)?;
    let told = load.finish()?;
    ensure!(told["failed"] == 0 && told["ok"] == 600, "{told}");
    shop.kubectl(&["label", "pod", "client2", "weft.dev/mesh=disabled"])?;
    shop.wait_state(&["client2"], "not_enrolled")
}

#[test]
fn pods_work_again_after_their_nodes_proxy_was_killed_and_are_not_restarted() -> Result<()> {
    let cluster = alone()?;
    let shop = Shop::enrolled(&cluster, "no-node")?;
    let lives = "jsonpath={.items[*].status.containerStatuses[*].containerID}";
    let before = shop.kubectl(&["get", "pods", "-o", lives])?;
    cluster.kubectl(&[
        "-n",
        NAMESPACE,
        "delete",
        "pods",
        "-l",
        "app.kubernetes.io/name=weft-node",
        "--wait=true",
        "--now",
    ])?;
    cluster.wait_rollout(NAMESPACE, "ds/weft-node", START_WAIT_MAX)?;
    shop.wait_enrolled(&["client1", "client2", "server-0", "server-1"])?;
    for client in ["client1", "client2"] {
        wait::until(CHANGE_WAIT_MAX, || shop.reach(client, "http://server/").map(drop))?;
    }
    let packets = shop.captured("marker-four")?;
    ensure!(!packets.contains("marker-four"), "still nothing in the clear");
    ensure!(shop.kubectl(&["get", "pods", "-o", lives])? == before, "no pod was restarted");
    Ok(())
}

#[test]
fn a_killed_node_is_routed_around_and_comes_back() -> Result<()> {
    let cluster = alone()?;
    let shop = Shop::enrolled(&cluster, "dead-node")?;
    shop.reach("client1", "http://server/")?;
    cluster.kill_node("node2")?;
    let ready = "{.status.conditions[?(@.type==\"Ready\")].status}";
    cluster.wait_field(&["node", "node2"], ready, "Unknown", Duration::from_secs(60))?;
    wait::until(Duration::from_secs(30), || shop.reach("client1", "http://server/").map(drop))?;
    nothing_is_uninstalled(&cluster, "node2")?;
    cluster.start_node("node2")?;
    cluster.wait_node("node2")?;
    cluster.wait_rollout(NAMESPACE, "ds/weft-node", START_WAIT_MAX)?;
    cluster.wait_rollout(shop.namespace, "sts/server", START_WAIT_MAX)?;
    wait::until(START_WAIT_MAX, || shop.reach("client2", "http://server/").map(drop))?;
    shop.wait_enrolled(&["client1", "client2", "server-0", "server-1"])
}
