//! Upgrade to another build, uninstall without a trace, install again by each other way.

use std::fs;

use anyhow::{Result, ensure};
use weft_e2e::cluster::Cluster;
use weft_e2e::cluster::weft::NAMESPACE;
use weft_e2e::lab::{metric_sum, wait};
use weft_e2e::tools::{built_beside, repository};

use crate::fixture::{START_WAIT_MAX, Shop, TUNNEL_PORT, alone};
use crate::upgrade::upgraded_under_load;

const FILES: [&str; 5] = [
    "/sys/fs/bpf/weft",
    "/run/weft/admin.sock",
    "/run/weft/cni.sock",
    "/run/weft/cni.sock.waiting",
    "/opt/cni/bin/weft-cni",
];

/// What Weft has on a node: pins, sockets, the plugin and its entry. `/run/weft` itself, which a container cannot remove while it
/// is mounted there, stays as an empty directory.
fn traces_of_weft(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in FILES {
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

fn nothing_left(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let left = traces_of_weft(cluster, &node)?;
        ensure!(left.is_empty(), "{node} still has {left:?}");
    }
    Ok(())
}

/// What an installation is for: the pods are in the mesh, and what they send crosses the link encrypted.
fn the_mesh_is_up(shop: &Shop<'_>, secret: &str) -> Result<()> {
    shop.cluster.wait_weft()?;
    shop.wait_enrolled(&["client1", "client2", "server-0", "server-1"])?;
    let packets = shop.captured(secret)?;
    ensure!(!packets.contains(secret), "nothing is in the clear");
    ensure!(packets.tls_records(TUNNEL_PORT) > 0, "and TLS crosses to the tunnel's port");
    Ok(())
}

/// The listeners for Prometheus, from a pod outside of the mesh: a node's names the workloads that talked, a control plane's its nodes.
fn metrics_are_scraped(shop: &Shop<'_>) -> Result<()> {
    shop.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: scraper, namespace: @NS@, labels: {weft.dev/mesh: disabled}}, spec: {nodeName: node1, terminationGracePeriodSeconds: 1,
          containers: [{name: shell, image: 'weft.local/busybox:1', command: [sleep, '3600']}]}}",
    )?;
    shop.wait_running("scraper")?;
    let places = |name: &str, port: &str| {
        let pods = ["-n", NAMESPACE, "get", "pods", "-l", name, "-o", "jsonpath={.items[*].status.podIP}"];
        let ips = shop.cluster.kubectl(&pods)?;
        Ok::<_, anyhow::Error>(ips.split(' ').map(|ip| format!("http://{ip}:{port}")).collect::<Vec<_>>())
    };
    for (name, metric, labels) in [
        ("app.kubernetes.io/name=weft-node", "istio_requests_total", &["source_workload=\"client1\""][..]),
        ("app.kubernetes.io/name=weft-control", "weft_control_nodes_connected", &[]),
    ] {
        let mut seen = 0.0;
        for place in places(name, "15020")? {
            let get = |page: &str| {
                shop.cluster.exec_ok(shop.namespace, "scraper", &["wget", "-qO-", &format!("{place}/{page}")])
            };
            get("readyz")?;
            seen += metric_sum(&get("metrics")?, metric, labels);
        }
        ensure!(seen > 0.0, "{metric} of {name} is {seen}");
    }
    shop.kubectl(&["delete", "pod", "scraper", "--wait=false"]).map(drop)
}

#[test]
fn weft_is_upgraded_uninstalled_without_a_trace_and_installed_by_helm_and_by_kubectl() -> Result<()> {
    let cluster = alone()?;
    let binaries = built_beside();
    let shop = Shop::enrolled(&cluster, "lifecycle")?;
    let lives = "jsonpath={.items[*].status.containerStatuses[*].containerID}";
    let before = shop.kubectl(&["get", "pods", "-o", lives])?;

    let next = cluster.next_build(&binaries)?;
    upgraded_under_load(&shop, &next)?;
    ensure!(shop.kubectl(&["get", "pods", "-o", lives])? == before, "no pod was restarted");

    for node in cluster.nodes() {
        let found = traces_of_weft(&cluster, &node)?;
        ensure!(found.len() == FILES.len() + 1, "all are looked for in the right place: {found:?}");
    }
    cluster.weft(&next.binaries, &["uninstall"])?;
    nothing_left(&cluster)?;
    ensure!(
        cluster.kubectl(&["get", "crds"])?.contains("gateway")
            && !cluster.kubectl(&["get", "crds"])?.contains("weft.dev")
    );
    ensure!(shop.captured("marker-out")?.contains("marker-out"), "without Weft all is in the clear");
    ensure!(shop.kubectl(&["get", "pods", "-o", lives])? == before, "no pod was restarted");

    cluster.helm(&["install", "weft", "deploy/helm/weft", "--set", "metrics.enabled=true"])?;
    the_mesh_is_up(&shop, "marker-helm")?;
    metrics_are_scraped(&shop)?;
    cluster.helm(&["uninstall", "weft", "--wait"])?;
    cluster.kubectl(&["delete", "--ignore-not-found", "--wait=false", "namespace", NAMESPACE])?;
    wait::until(START_WAIT_MAX, || {
        let named = format!("--field-selector=metadata.name={NAMESPACE}");
        let left = cluster.kubectl(&["get", "namespaces", &named, "-o", "name"])?;
        ensure!(left.is_empty(), "{left} is still there");
        nothing_left(&cluster)
    })?;

    let kustomization = repository().join("deploy").display().to_string();
    cluster.kubectl(&["apply", "--server-side", "-k", &kustomization])?;
    the_mesh_is_up(&shop, "marker-kustomize")?;
    ensure!(shop.kubectl(&["get", "pods", "-o", lives])? == before, "no pod was restarted");
    Ok(())
}
