//! Into the mesh and out again: by the namespace's label, by the pod's, and from a pod's first process on.

use anyhow::{Result, ensure};
use weft_e2e::lab::wait;

use crate::fixture::{CHANGE_WAIT_MAX, START_WAIT_MAX, Shop, TUNNEL_PORT, together};

#[test]
fn running_pods_join_and_leave_with_the_namespaces_label_and_are_not_restarted() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::outside(&cluster, "label")?;
    let lives = "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[*].containerID} {.status.containerStatuses[*].restartCount}{end}";
    let before = shop.kubectl(&["get", "pods", "-o", lives])?;
    wait::until(CHANGE_WAIT_MAX, || shop.reach("client1", "http://server-0.servers:8080/").map(drop))?;
    wait::until(CHANGE_WAIT_MAX, || shop.reach("client1", "http://server-1.servers:8080/").map(drop))?;
    ensure!(shop.captured("marker-one")?.contains("marker-one"), "outside of the mesh it is in the clear");

    shop.label("weft.dev/mesh=enabled")?;
    shop.wait_enrolled(&["client1", "client2", "server-0", "server-1"])?;
    let packets = shop.captured("marker-two")?;
    ensure!(!packets.contains("marker-two"), "in the mesh nothing is in the clear");
    ensure!(packets.tls_records(TUNNEL_PORT) > 0, "and TLS crosses to the tunnel's port");

    shop.label("weft.dev/mesh-")?;
    wait::until(CHANGE_WAIT_MAX, || {
        ensure!(shop.captured("marker-three")?.contains("marker-three"), "still not in the clear");
        Ok(())
    })?;
    ensure!(shop.kubectl(&["get", "pods", "-o", lives])? == before, "no pod was restarted");
    Ok(())
}

#[test]
fn a_pod_opts_out_by_its_own_label_and_strict_pods_refuse_it_from_then_on() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "opt-out")?;
    shop.reach("client1", "http://server/")?;
    shop.kubectl(&["label", "pod", "client1", "weft.dev/mesh=disabled"])?;
    wait::until(CHANGE_WAIT_MAX, || shop.reach_in_vain("client1", "http://server/"))?;
    shop.reach("client2", "http://server/")?;
    shop.kubectl(&["label", "pod", "client1", "weft.dev/mesh-"])?;
    wait::until(CHANGE_WAIT_MAX, || shop.reach("client1", "http://server/").map(drop))
}

/// The server is STRICT: an answer proves that the very first connection went through the mesh.
#[test]
fn a_new_pod_is_in_the_mesh_before_its_first_process_starts() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "first")?;
    shop.apply(
        "{apiVersion: batch/v1, kind: Job, metadata: {name: eager, namespace: @NS@}, spec: {completions: 4, parallelism: 2, backoffLimit: 0, template: {spec: {
          restartPolicy: Never, automountServiceAccountToken: false,
          initContainers: [{name: init, image: 'weft.local/weft-echo:@TAG@', args: [load, --url, 'http://server/', --requests, '1']}],
          containers: [{name: main, image: 'weft.local/weft-echo:@TAG@', args: [load, --url, 'http://server/', --requests, '1']}]}}}}",
    )?;
    cluster.wait_field(
        &["-n", shop.namespace, "job", "eager"],
        "{.status.succeeded}",
        "4",
        START_WAIT_MAX,
    )?;
    for container in ["init", "main"] {
        let told = shop.kubectl(&["logs", "-l", "job-name=eager", "-c", container, "--tail=-1"])?;
        let answered = told.lines().filter(|l| l.contains("\"ok\":1")).count();
        ensure!(answered == 4, "{container} containers were answered {answered} times of 4: {told}");
    }
    Ok(())
}
