//! What goes on while parts are away: the node's proxy, the control plane, the API server, a node.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use weft_e2e::cluster::Cluster;
use weft_e2e::cluster::weft::NAMESPACE;
use weft_e2e::lab::wait;
use weft_e2e::tools::built_beside;

use crate::closed::Closed;
use crate::fixture::{CHANGE_WAIT_MAX, CONTROLLERS_WAIT_MAX, Running, START_WAIT_MAX, Shop, alone};

/// A length of time is what is tested here, so it is slept.
const API_SERVER_AWAY: Duration = Duration::from_secs(60);
const URL: &str = "http://server/secret-of-the-outages";
const SECRET: &str = "secret-of-the-outages";
/// Ends the loads: they go on until they are answered like this.
const ENOUGH: &str = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: enough, namespace: @NS@}, spec: {parentRefs: [{group: '', kind: Service, name: server}],
  rules: [{filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /there}, statusCode: 302}}]}]}}";

/// A tunnel to a node that says nothing any more is given up after this (docs/wire.md: `ping_interval` and `ping_timeout`).
const NOTICED_MAX: Duration = Duration::from_secs(10 + 20);

fn unix_ms() -> Result<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())
}

/// Asks the server that both nodes have until the end: over connections that are kept, and over new ones.
fn loads(shop: &Shop<'_>, client: &'static str) -> Result<[Running; 2]> {
    let load =
        ["--url", URL, "--rate", "20", "--connections", "4", "--duration", "300", "--until-status", "302"];
    let start = |more: &[&str]| Running::start(shop, client, &[&load[..], more].concat());
    Ok([start(&[])?, start(&["--reconnect"])?])
}

/// What all of them told. The first request that failed did so after `from`, the last one began before `until`: then it was over.
fn failed_only_between(loads: Vec<(&str, Running)>, from: u128, until: u128) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for (client, load) in loads {
        let told = load.finish()?;
        ensure!(told["statuses"]["302"].as_u64() > Some(0), "{client} did not go on to the end: {told}");
        if let Some(failed) = told["failed_unix_ms"].as_array() {
            let at = |nth: usize| failed.get(nth).and_then(Value::as_u64).map(u128::from).context("a time");
            let (first, last) = (at(0)?, at(1)?);
            let (since, took) = (first.saturating_sub(from), last.saturating_sub(first));
            println!(
                "{client}: {} of {} failed, from {since} ms on, for {took} ms: {}",
                told["failed"], told["requests"], told
            );
            ensure!(from <= first && last <= until, "{client} failed before {from} or after {until}: {told}");
        }
        all.push(told);
    }
    Ok(all)
}

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
    let load = ["load", "--url", "http://server/", "--rate", "30", "--connections", "2", "--reconnect"];
    let load = Running::on(&shop, "client1", &load)?;
    cluster.kubectl(&[
        "-n",
        NAMESPACE,
        "delete",
        "pods",
        "-l",
        "app.kubernetes.io/name=weft-control",
        "--wait=true",
        "--now",
    ])?;
    cluster.wait_rollout(NAMESPACE, "deploy/weft-control", START_WAIT_MAX)?;
    let told = load.finish()?;
    ensure!(told["failed"] == 0 && told["ok"].as_u64() > Some(0), "{told}");
    shop.kubectl(&["label", "pod", "client2", "weft.dev/mesh=disabled"])?;
    shop.wait_state(&["client2"], "not_enrolled")
}

#[test]
fn pods_work_again_after_their_nodes_proxy_was_killed_and_are_not_restarted() -> Result<()> {
    let cluster = alone()?;
    let shop = Shop::enrolled(&cluster, "no-node")?;
    let lives = "jsonpath={.items[*].status.containerStatuses[*].containerID}";
    let before = shop.kubectl(&["get", "pods", "-o", lives])?;
    let closed = Closed::watch(&shop, SECRET)?;
    let mut running = Vec::new();
    for client in ["client1", "client2"] {
        running.extend(loads(&shop, client)?.map(|load| (client, load)));
    }
    let gone = unix_ms()?;
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
    let mended = unix_ms()?;
    shop.apply(ENOUGH)?;
    let told = failed_only_between(running, gone, mended)?;
    // Refused or reset, at once: nobody is left to wait.
    let waited = told.iter().filter(|told| told["errors"].to_string().contains("no answer"));
    ensure!(waited.count() == 0, "{told:?}");
    closed.end()?;
    shop.kubectl(&["delete", "httproute", "enough"])?;
    ensure!(shop.kubectl(&["get", "pods", "-o", lives])? == before, "no pod was restarted");
    Ok(())
}

#[test]
fn a_killed_node_is_routed_around_and_comes_back() -> Result<()> {
    let cluster = alone()?;
    let shop = Shop::enrolled(&cluster, "dead-node")?;
    shop.reach("client1", "http://server/")?;
    let running = loads(&shop, "client1")?.map(|load| ("client1", load)).into();
    let killed = unix_ms()?;
    cluster.kill_node("node2")?;
    let ready = "{.status.conditions[?(@.type==\"Ready\")].status}";
    cluster.wait_field(&["node", "node2"], ready, "Unknown", Duration::from_secs(60))?;
    // A DNS server of the dead node is asked until then.
    let known = unix_ms()? + CHANGE_WAIT_MAX.as_millis();
    wait::until(Duration::from_secs(30), || shop.reach("client1", "http://server/").map(drop))?;
    nothing_is_uninstalled(&cluster, "node2")?;
    cluster.start_node("node2")?;
    cluster.wait_node("node2")?;
    cluster.wait_rollout(NAMESPACE, "ds/weft-node", START_WAIT_MAX)?;
    cluster.wait_rollout(shop.namespace, "sts/server", START_WAIT_MAX)?;
    wait::until(START_WAIT_MAX, || shop.reach("client2", "http://server/").map(drop))?;
    shop.wait_enrolled(&["client1", "client2", "server-0", "server-1"])?;
    shop.apply(ENOUGH)?;
    failed_only_between(running, killed, known.max(killed + NOTICED_MAX.as_millis())).map(drop)
}
