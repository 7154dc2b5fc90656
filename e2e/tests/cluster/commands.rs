//! What the commands of `weft` tell of a cluster.

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use weft_e2e::lab::wait;
use weft_e2e::tools::built_beside;

use crate::answers::everything_is_told;
use crate::fixture::{CHANGE_WAIT_MAX, START_WAIT_MAX, Shop, alone, together};

#[test]
fn config_shows_what_a_pods_proxy_holds_for_it() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "config")?;
    let config = |arguments: &[&str]| cluster.weft(&built_beside(), &[&["config"], arguments].concat());
    let told: Value = serde_json::from_str(&config(&["config/client1", "-o", "json"])?)?;
    ensure!(told["identity"] == "spiffe://cluster.local/ns/config/sa/client", "{told}");
    ensure!(told["pod"]["state"] == "enrolled", "{told}");
    let services = told["services"].as_array().map_or(&[][..], Vec::as_slice);
    let server = services.iter().find(|s| s["name"] == "config/server");
    let endpoints = server.and_then(|s| s["endpoints"].as_array()).map_or(0, Vec::len);
    let families = cluster.families().each().len();
    ensure!(endpoints == 2 * families, "one endpoint for each server and family of addresses: {told}");

    let dns = config(&["config/client1", "--service", "kube-system/kube-dns", "-o", "json"])?;
    let dns: Value = serde_json::from_str(&dns)?;
    let names: Vec<_> = dns["services"].as_array().into_iter().flatten().map(|it| &it["name"]).collect();
    ensure!(names == ["kube-system/kube-dns"], "the one that was asked for: {dns}");
    let Err(error) = config(&["config/client1", "--service", "config/nothing"]) else {
        anyhow::bail!("there is no such Service");
    };
    ensure!(format!("{error:#}").contains("node1 knows no Service config/nothing"), "{error:#}");

    let table = config(&["config/client1"])?;
    ensure!(table.contains("config/client1 on node1") && table.contains("mutual TLS"), "{table}");
    shop.kubectl(&["label", "pod", "client2", "weft.dev/mesh=disabled"])?;
    wait::until(CHANGE_WAIT_MAX, || {
        let told = config(&["config/client2"])?;
        ensure!(told.contains("not_enrolled"), "{told}");
        Ok(())
    })?;
    let Err(error) = config(&["config/nobody"]) else { anyhow::bail!("there is no such pod") };
    ensure!(format!("{error:#}").contains("config/nobody"), "{error:#}");
    Ok(())
}

#[test]
fn status_shows_both_nodes_in_sync_and_check_finds_nothing() -> Result<()> {
    // Of a cluster at rest: a pod on its way into the mesh or out of it is no fault, and is one line of `weft check`.
    let cluster = alone()?;
    let shop = Shop::enrolled(&cluster, "seen")?;
    shop.reach("client1", "http://server/")?;
    let status = |arguments: &[&str]| cluster.weft(&built_beside(), &[&["status"], arguments].concat());
    wait::until(START_WAIT_MAX, || {
        let verbose = status(&["--verbose"])?;
        for part in ["node1", "node2", "client1", "seen", "kernel_release", "programs"] {
            ensure!(verbose.contains(part), "{part:?} is missing: {verbose}");
        }
        let told: Value = serde_json::from_str(&status(&["-o", "json"])?)?;
        everything_is_told(&told)?;
        cluster.weft(&built_beside(), &["check"]).map(drop)
    })
}

#[test]
fn check_repeats_why_a_weft_node_cannot_start() -> Result<()> {
    let cluster = alone()?;
    let check = || cluster.weft(&built_beside(), &["check"]);
    let wrong = cluster.tell_agents("WEFT_CGROUP_ROOT", "/no/such/tree")?;
    wait::until(START_WAIT_MAX, || {
        let Err(error) = check() else { bail!("nothing is found wrong") };
        let told = format!("{error:#}");
        let line = told.lines().find(|line| line.contains("ended")).unwrap_or_default();
        ensure!(line.contains(": weft-node: cannot ") && line.contains("/no/such/tree"), "{told}");
        Ok(())
    })?;
    drop(wrong);
    cluster.wait_weft()?;
    wait::until(CHANGE_WAIT_MAX, || check().map(drop))
}
