//! weft-node's process ends or hangs, and nobody does anything about it: its pods are shut, the kubelet sees to it, its pods work again.

use std::time::Instant;

use anyhow::{Result, ensure};
use rustix::process::Pid;
use weft_e2e::cluster::weft::NAMESPACE;
use weft_e2e::lab::wait;

use crate::closed::Closed;
use crate::fixture::{CHANGE_WAIT_MAX, START_WAIT_MAX, Shop, alone};

const SECRET: &str = "secret-of-the-insiders";

/// They ask all the time, over new connections, on both nodes.
const INSIDER: &str = "{apiVersion: v1, kind: Pod, metadata: {name: insider-on-@NODE@, namespace: @NS@}, spec: {nodeName: @NODE@, restartPolicy: Never, terminationGracePeriodSeconds: 1,
  containers: [{name: load, image: 'weft.local/weft-echo:@TAG@', args: [load, --url, 'http://server/secret-of-the-insiders', --reconnect, --rate, '20', --timeout-ms, '1000', --duration, '900']}]}}";

/// The Pod of a node's weft-node, and how often its container was started again.
fn pod_and_restarts(shop: &Shop<'_>, node: &str) -> Result<(String, u32)> {
    let there = format!("--field-selector=spec.nodeName={node}");
    let pods = ["-n", NAMESPACE, "get", "pods", "-l=app.kubernetes.io/name=weft-node", &there];
    let output =
        "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].restartCount}{end}";
    let told = shop.cluster.kubectl(&[&pods[..], &["-o", output]].concat())?;
    let mut words = told.split(' ');
    match (words.next(), words.next().map(str::parse), words.next()) {
        (Some(name), Some(Ok(restarts)), None) => Ok((name.to_owned(), restarts)),
        _ => anyhow::bail!("{node} has {told:?}"),
    }
}

/// Another process than `gone` serves the node, in the same Pod, and the node's pods work.
fn works_again(shop: &Shop<'_>, node: &str, gone: Pid, before: &(String, u32)) -> Result<()> {
    let cluster = shop.cluster;
    wait::until(START_WAIT_MAX, || {
        let now = cluster.agent_pid(node)?;
        ensure!(now != gone, "{node} still has process {now:?}");
        cluster.node_admin(node)?.ready()
    })?;
    let here = if shop.node_of("server-0")? == node { "server-0" } else { "server-1" };
    let client = if node == "node1" { "client1" } else { "client2" };
    // The server is STRICT.
    let url = format!("http://{here}.servers:8080/");
    wait::until(START_WAIT_MAX, || shop.reach(client, &url).map(drop))?;
    wait::until(START_WAIT_MAX, || {
        let now = pod_and_restarts(shop, node)?;
        ensure!(now == (before.0.clone(), before.1 + 1), "before: {before:?}, now: {now:?}");
        Ok(())
    })
}

#[test]
fn a_killed_weft_node_and_one_that_hangs_are_replaced_and_leave_their_pods_shut_meanwhile() -> Result<()> {
    let cluster = alone()?;
    let shop = Shop::enrolled(&cluster, "restarts")?;
    let pods = ["client1", "client2", "server-0", "server-1"];
    let lives = "jsonpath={.items[*].status.containerStatuses[*].containerID}";
    let lives = || shop.kubectl(&[&["get", "pods"], &pods[..], &["-o", lives]].concat());
    let before = lives()?;
    for node in cluster.nodes() {
        shop.apply(&INSIDER.replace("@NODE@", &node))?;
        shop.wait_running(&format!("insider-on-{node}"))?;
    }
    let closed = Closed::watch(&shop, SECRET)?;
    let (on_first, on_second) = (pod_and_restarts(&shop, "node1")?, pod_and_restarts(&shop, "node2")?);

    // The liveness probe takes its time for the one that hangs. Meanwhile the other one.
    let (hung, start) = (cluster.hang_agent("node1")?, Instant::now());
    let killed = cluster.kill_agent("node2")?;
    works_again(&shop, "node2", killed, &on_second)?;
    println!("a killed weft-node was replaced and its pods worked after {:?}", start.elapsed());
    works_again(&shop, "node1", hung.pid(), &on_first)?;
    println!("one that hangs was replaced and its pods worked after {:?}", start.elapsed());

    shop.wait_enrolled(&pods)?;
    for client in ["client1", "client2"] {
        wait::until(CHANGE_WAIT_MAX, || shop.reach(client, "http://server/").map(drop))?;
    }
    closed.end()?;
    ensure!(lives()? == before, "no pod was restarted");
    Ok(())
}
