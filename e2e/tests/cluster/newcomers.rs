//! Pods that start while something is not as it should be: their node's proxy is away or hangs, or others have rewritten what the CNI
//! plugin hangs on. And those that no API server has scheduled.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use weft_e2e::lab::wait;

use crate::fixture::{START_WAIT_MAX, Shop, TUNNEL_PORT, alone};

/// For weft-node to put back what another installer has overwritten.
const REPAIR_WAIT_MAX: Duration = Duration::from_secs(5);
const CNI_DIRECTORY: &str = "/etc/cni/net.d";

/// A pod of the mesh and one of a namespace outside of it start on node1, which cannot take pods into the mesh now: only the first waits,
/// and its event says for what.
fn only_the_meshs_waits(shop: &Shop<'_>, outside: &Shop<'_>, told: &[&str]) -> Result<()> {
    shop.newcomer("newcomer")?;
    outside.newcomer("bystander")?;
    outside.wait_running("bystander")?;
    wait::until(START_WAIT_MAX, || {
        let of_pod = "--field-selector=involvedObject.name=newcomer,reason=FailedCreatePodSandBox";
        let events = shop.kubectl(&["get", "events", of_pod, "-o", "jsonpath={.items[*].message}"])?;
        let missing: Vec<_> = told.iter().filter(|text| !events.contains(**text)).collect();
        ensure!(missing.is_empty(), "the pod's events do not tell {missing:?}: {events:?}");
        Ok(())
    })?;
    let state = "jsonpath={.status.phase} {.status.initContainerStatuses[0].state}";
    let state = shop.kubectl(&["get", "pod", "newcomer", "-o", state])?;
    ensure!(state.starts_with("Pending") && state.contains("waiting"), "no process of it ran: {state}");
    Ok(())
}

#[test]
fn while_weft_node_hangs_new_pods_of_the_mesh_wait_and_say_so_and_others_start() -> Result<()> {
    let cluster = alone()?;
    let shop = Shop::enrolled(&cluster, "hung")?;
    let outside = Shop::empty(&cluster, "hung-out", false)?;
    let hung = cluster.hang_agent("node1")?;
    only_the_meshs_waits(&shop, &outside, &["weft-node, which does not answer", "/run/weft/cni.sock"])?;
    drop(hung);
    shop.joined("newcomer")
}

#[test]
fn while_weft_nodes_pod_is_gone_new_pods_of_the_mesh_wait_and_say_so_and_others_start() -> Result<()> {
    let cluster = alone()?;
    let shop = Shop::enrolled(&cluster, "gone")?;
    let outside = Shop::empty(&cluster, "gone-out", false)?;
    let away = cluster.without_agent("node1")?;
    only_the_meshs_waits(
        &shop,
        &outside,
        &["weft-node, which does not run on this node", "/run/weft/cni.sock"],
    )?;
    drop(away);
    cluster.wait_weft()?;
    shop.joined("newcomer")
}

/// Whole or not at all, as installers write.
fn put(directory: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let (path, beside) = (directory.join(name), directory.join(format!(".{name}.tmp")));
    fs::write(&beside, text)?;
    fs::rename(beside, &path)?;
    Ok(path)
}

/// A file that goes with the value.
struct Passing(PathBuf);

impl Drop for Passing {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn a_rewritten_network_configuration_gets_its_entry_back_before_the_next_pod() -> Result<()> {
    let cluster = alone()?;
    let shop = Shop::enrolled(&cluster, "rewritten")?;
    let directory = cluster.node_file("node1", CNI_DIRECTORY)?;
    let without = fs::read_to_string(cluster.node_file("node1", "/etc/kubernetes/10-pods.conflist")?)?;
    let repaired = |path: &Path| {
        let (_, took) = wait::within(REPAIR_WAIT_MAX, || {
            ensure!(fs::read_to_string(path)?.contains("weft-cni"), "{} has no entry", path.display());
            Ok(())
        })?;
        println!("the entry was back in {} after {took:?}", path.display());
        Ok::<_, anyhow::Error>(())
    };

    // The network plugin's own installer starts again.
    ensure!(fs::read_to_string(directory.join("10-pods.conflist"))?.contains("weft-cni"), "it has the entry");
    repaired(&put(&directory, "10-pods.conflist", &without)?)?;
    shop.newcomer("rewritten")?;
    shop.joined("rewritten")?;

    // Another one's, which the runtime takes first from now on.
    let first = Passing(put(&directory, "05-pods.conflist", &without)?);
    repaired(&first.0)?;
    shop.newcomer("outranked")?;
    shop.joined("outranked")
}

#[test]
fn a_static_pod_of_an_enrolled_namespace_is_in_the_mesh() -> Result<()> {
    let cluster = alone()?;
    let shop = Shop::enrolled(&cluster, "static")?;
    // The kubelet takes a file that begins with a brace for JSON.
    let manifest = "apiVersion: v1
kind: Pod
metadata: {name: fixed, namespace: @NS@}
spec:
  terminationGracePeriodSeconds: 1
  initContainers: [{name: first, image: 'weft.local/weft-echo:@TAG@', args: [load, --url, 'http://server/', --requests, '1']}]
  containers: [{name: echo, image: 'weft.local/weft-echo:@TAG@', args: [serve, --http, '8080']}]
";
    let _file = Passing(put(&cluster.static_pods("node1")?, "fixed.yaml", &shop.filled(manifest))?);
    shop.joined("fixed-node1")?;
    // Nor does it talk to anybody outside of the mesh.
    let hosts = shop.hosts_of("fixed-node1")?;
    let url = |page: &str| format!("http://{}:8080/{page}", hosts[0]);
    let capture = cluster.capture("node2", "tcp")?;
    shop.reach("client2", &url("secret-to-it"))?;
    let packets = capture.stop()?;
    ensure!(!packets.contains("secret-to-it") && packets.tls_records(TUNNEL_PORT) > 0);
    shop.kubectl(&["label", "pod", "client2", "weft.dev/mesh=disabled"])?;
    shop.wait_state(&["client2"], "not_enrolled")?;
    shop.reach_in_vain("client2", &url(""))
}
