//! Native sidecars (init containers that go on running) and the init containers around them, in a pod of the mesh.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weft_e2e::lab::wait;

use crate::fixture::{CHANGE_WAIT_MAX, START_WAIT_MAX, Shop, together};

/// `early` asks before the sidecar is there, `late` when it is and before the application is. The servers are STRICT.
const PAIRED: &str = "apiVersion: v1
kind: Pod
metadata: {name: paired, namespace: @NS@, labels: {app: paired}}
spec:
  nodeName: node1
  serviceAccountName: client
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: early, image: 'weft.local/weft-echo:@TAG@', args: [load, --url, 'http://server/', --requests, '1']}
  - name: sidecar
    image: weft.local/weft-echo:@TAG@
    restartPolicy: Always
    args: [serve, --http, '8081', --version, sidecar]
    ports: [{name: beside, containerPort: 8081}]
    startupProbe: {httpGet: {port: beside, path: /}, periodSeconds: 1, timeoutSeconds: 5}
    readinessProbe: {httpGet: {port: beside, path: /}, periodSeconds: 1, timeoutSeconds: 5}
    livenessProbe: {tcpSocket: {port: beside}, periodSeconds: 1, timeoutSeconds: 5}
  - {name: late, image: 'weft.local/weft-echo:@TAG@', args: [load, --url, 'http://server/', --requests, '1']}
  containers:
  - name: application
    image: weft.local/weft-echo:@TAG@
    args: [serve, --http, '8080', --version, application]
    ports: [{name: main, containerPort: 8080}]
    readinessProbe: {httpGet: {port: main, path: /}, periodSeconds: 1, timeoutSeconds: 5}
---
{apiVersion: v1, kind: Service, metadata: {name: paired, namespace: @NS@}, spec: {selector: {app: paired}, ports: [
  {name: application, port: 80, targetPort: main, appProtocol: http}, {name: sidecar, port: 81, targetPort: beside, appProtocol: http}]}}";

#[test]
fn sidecars_and_the_init_containers_around_them_are_in_the_mesh() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "paired")?;
    shop.apply(PAIRED)?;
    let paired = ["-n", shop.namespace, "pod", "paired"];
    let ready = "{.status.conditions[?(@.type==\"Ready\")].status}";
    cluster.wait_field(&paired, ready, "True", START_WAIT_MAX)?;
    for container in ["early", "late"] {
        let told = shop.kubectl(&["logs", "paired", "-c", container])?;
        ensure!(told.contains("\"ok\":1"), "{container}: {told}");
    }
    let clients = ["client1", "client2"];
    let ports = [("application", "http://paired/"), ("sidecar", "http://paired:81/")];
    for client in clients {
        for (container, url) in ports {
            let told = wait::until(CHANGE_WAIT_MAX, || shop.reach(client, url))?;
            ensure!(told["versions"][container] == 4, "{url} is the {container}: {told}");
        }
    }
    let ask = ["weft-echo", "load", "--url", "http://server/", "--requests", "4", "--reconnect"];
    for (container, _) in ports {
        let mut kubectl = cluster.kubectl_command();
        kubectl.args(["-n", shop.namespace, "exec", "paired", "-c", container, "--"]).args(ask);
        let told = kubectl.output()?;
        let told: Value = serde_json::from_slice(&told.stdout).with_context(|| format!("{told:?}"))?;
        ensure!(told["ok"] == 4, "from the {container}: {told}");
    }
    // Its ports are probed, and still open to nobody outside of the mesh, on the pod's own node neither.
    for client in clients {
        shop.kubectl(&["label", "pod", client, "weft.dev/mesh=disabled"])?;
        shop.wait_state(&[client], "not_enrolled")?;
        for (_, url) in ports {
            shop.reach_in_vain(client, url)?;
        }
    }
    let restarts = "jsonpath={.status.initContainerStatuses[*].restartCount} {.status.containerStatuses[*].restartCount}";
    let restarts = shop.kubectl(&["get", "pod", "paired", "-o", restarts])?;
    ensure!(restarts == "0 0 0 0", "no probe failed: {restarts}");
    Ok(())
}
