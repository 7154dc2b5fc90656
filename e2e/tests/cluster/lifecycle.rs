//! Upgrade to another build, uninstall without a trace, install again.

use std::fs;

use anyhow::{Result, ensure};
use weft_e2e::cluster::Cluster;
use weft_e2e::cluster::weft::{NAMESPACE, TAG};
use weft_e2e::lab::wait;
use weft_e2e::tools::built_beside;

use crate::fixture::{CHANGE_WAIT_MAX, START_WAIT_MAX, Shop, alone};

/// What Weft has on a node: pins, sockets, the plugin and its entry. `/run/weft` itself, which a container cannot remove while it
/// is mounted there, stays as an empty directory.
fn traces_of_weft(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in ["/sys/fs/bpf/weft", "/run/weft/admin.sock", "/run/weft/cni.sock", "/opt/cni/bin/weft-cni"] {
        if cluster.node_file(node, path)?.exists() {
            found.push(path.to_owned());
        }
    }
    let conflist = fs::read_to_string(cluster.node_file(node, "/etc/cni/net.d/10-pods.conflist")?)?;
    if conflist.contains("weft") {
        found.push(format!("in the conflist: {conflist}"));
    }
    Ok(found)
}

#[test]
fn weft_is_upgraded_uninstalled_without_a_trace_and_installed_again() -> Result<()> {
    let cluster = alone()?;
    let binaries = built_beside();
    let shop = Shop::enrolled(&cluster, "lifecycle")?;
    let lives = "jsonpath={.items[*].status.containerStatuses[*].containerID}";
    let before = shop.kubectl(&["get", "pods", "-o", lives])?;

    let next = format!("{TAG}-next");
    cluster.load_weft_images(&binaries, &next)?;
    cluster.weft(&binaries, &["install", "--tag", &next])?;
    for workload in ["deploy/weft-control", "ds/weft-node"] {
        cluster.wait_rollout(NAMESPACE, workload, START_WAIT_MAX)?;
        let image = "jsonpath={.spec.template.spec.containers[0].image}";
        let runs = cluster.kubectl(&["-n", NAMESPACE, "get", workload, "-o", image])?;
        ensure!(runs.ends_with(&next), "{workload} runs {runs}");
    }
    wait::until(CHANGE_WAIT_MAX, || shop.reach("client1", "http://server/").map(drop))?;

    for node in cluster.nodes() {
        ensure!(traces_of_weft(&cluster, &node)?.len() == 5, "all five are looked for in the right place");
    }
    cluster.weft(&binaries, &["uninstall"])?;
    for node in cluster.nodes() {
        let left = traces_of_weft(&cluster, &node)?;
        ensure!(left.is_empty(), "{node} still has {left:?}");
    }
    ensure!(
        cluster.kubectl(&["get", "crds"])?.contains("gateway")
            && !cluster.kubectl(&["get", "crds"])?.contains("weft.dev")
    );
    ensure!(shop.captured("marker-out")?.contains("marker-out"), "without Weft all is in the clear");
    ensure!(shop.kubectl(&["get", "pods", "-o", lives])? == before, "no pod was restarted");

    cluster.install_weft(&binaries)?;
    shop.wait_enrolled(&["client1", "client2", "server-0", "server-1"])?;
    ensure!(!shop.captured("marker-in")?.contains("marker-in"), "and in the mesh again nothing is");
    ensure!(shop.kubectl(&["get", "pods", "-o", lives])? == before, "no pod was restarted");
    Ok(())
}
