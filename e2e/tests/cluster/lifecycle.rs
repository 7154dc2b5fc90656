//! Upgrade to another build, uninstall without a trace, install again by each other way.

use anyhow::{Result, bail, ensure};
use weft_e2e::cluster::Cluster;
use weft_e2e::cluster::weft::NAMESPACE;
use weft_e2e::lab::{metric_sum, wait};
use weft_e2e::tools::{built_beside, repository};

use crate::fixture::{START_WAIT_MAX, Shop, TUNNEL_PORT, alone, host};
use crate::leftovers::{
    Loaded, everything_there, kinds_of_weft, nothing_left, nothing_left_in_routes, route_of_two_controllers,
};
use crate::upgrade::upgraded_under_load;

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
        ips.split(' ')
            .map(|ip| Ok(format!("http://{}:{port}", host(ip.parse()?))))
            .collect::<Result<Vec<_>>>()
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

/// `weft install` knows none of a release's values: it leaves what Helm installed to Helm unless it is told otherwise.
fn helms_is_written_over_only_by_force(cluster: &Cluster) -> Result<()> {
    let listens = || {
        let node = cluster.object(&["-n", NAMESPACE, "ds/weft-node"])?;
        Ok::<_, anyhow::Error>(node["spec"].to_string().contains("--metrics-address"))
    };
    let Err(refused) = cluster.weft(&built_beside(), &["install"]) else { bail!("it is written over") };
    let told = format!("{refused:#}");
    for part in [
        "Helm's release weft (namespace default)",
        "helm upgrade weft deploy/helm/weft --namespace default --reset-then-reuse-values",
        "nothing was installed",
    ] {
        ensure!(told.contains(part), "{part:?} is not in {told}");
    }
    ensure!(listens()?, "what Helm was told to set is gone");
    cluster.weft(&built_beside(), &["install", "--force"])?;
    ensure!(!listens()?, "with --force it has the default values");
    Ok(())
}

#[test]
fn weft_is_upgraded_uninstalled_without_a_trace_and_installed_by_helm_and_by_kubectl() -> Result<()> {
    let cluster = alone()?;
    let binaries = built_beside();
    let shop = Shop::enrolled(&cluster, "lifecycle")?;
    let lives = "jsonpath={.items[*].status.containerStatuses[*].containerID}";
    let before = shop.kubectl(&["get", "pods", "-o", lives])?;
    let mut loaded = Loaded::default();
    loaded.note(&cluster)?;

    let next = cluster.next_build(&binaries)?;
    upgraded_under_load(&shop, &next)?;
    ensure!(shop.kubectl(&["get", "pods", "-o", lives])? == before, "no pod was restarted");

    everything_there(&cluster)?;
    route_of_two_controllers(&shop)?;
    loaded.note(&cluster)?;
    cluster.weft(&next.binaries, &["uninstall"])?;
    nothing_left(&cluster, &loaded)?;
    nothing_left_in_routes(&shop)?;
    ensure!(kinds_of_weft(&cluster)?.is_empty(), "its kinds go too");
    ensure!(shop.captured("marker-out")?.contains("marker-out"), "without Weft all is in the clear");
    ensure!(shop.kubectl(&["get", "pods", "-o", lives])? == before, "no pod was restarted");

    cluster.helm(&["install", "weft", "deploy/helm/weft", "--set", "metrics.enabled=true"])?;
    the_mesh_is_up(&shop, "marker-helm")?;
    metrics_are_scraped(&shop)?;
    helms_is_written_over_only_by_force(&cluster)?;
    the_mesh_is_up(&shop, "marker-forced")?;
    loaded.note(&cluster)?;
    cluster.helm(&["uninstall", "weft", "--wait"])?;
    cluster.kubectl(&["delete", "--ignore-not-found", "--wait=false", "namespace", NAMESPACE])?;
    wait::until(START_WAIT_MAX, || nothing_left(&cluster, &loaded))?;
    ensure!(kinds_of_weft(&cluster)?.len() == 2, "Helm does not delete kinds");

    let kustomization = repository().join("deploy").display().to_string();
    cluster.kubectl(&["apply", "-k", &kustomization])?;
    the_mesh_is_up(&shop, "marker-kustomize")?;
    loaded.note(&cluster)?;
    // The namespace goes first, and its pods in no order: a node's proxy asks for it.
    cluster.kubectl(&["get", "namespace", NAMESPACE, "--as=system:serviceaccount:weft-system:weft-node"])?;
    cluster.kubectl(&["delete", "--wait=false", "-k", &kustomization])?;
    wait::until(START_WAIT_MAX, || nothing_left(&cluster, &loaded))?;
    wait::until(START_WAIT_MAX, || {
        let kinds = kinds_of_weft(&cluster)?;
        ensure!(kinds.is_empty(), "{kinds:?} are still there");
        Ok(())
    })?;
    ensure!(shop.kubectl(&["get", "pods", "-o", lives])? == before, "no pod was restarted");
    // For the tests that follow, which wait for it.
    cluster.kubectl(&["apply", "--server-side", "-k", &kustomization]).map(drop)
}
