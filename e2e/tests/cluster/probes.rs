//! Kubelet's probes of STRICT pods pass, and nobody else does with them.

use anyhow::{Result, ensure};
use weft_e2e::lab::wait;

use crate::fixture::{CHANGE_WAIT_MAX, START_WAIT_MAX, Shop, together};

#[test]
fn probes_of_all_kinds_pass_in_strict_pods() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "probes")?;
    let outside = Shop::outside(&cluster, "probes-out")?;
    shop.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: grpc, namespace: @NS@, labels: {app: probed}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo,
          image: 'weft.local/weft-echo:@TAG@', args: [serve, --http, '8080'], readinessProbe: {grpc: {port: 8080}, periodSeconds: 1, timeoutSeconds: 5}, livenessProbe: {grpc: {port: 8080}, periodSeconds: 1, timeoutSeconds: 5}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: https, namespace: @NS@, labels: {app: probed}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo,
          image: 'weft.local/weft-echo:@TAG@', args: [serve, --https, '8443'], ports: [{name: secure, containerPort: 8443}],
          readinessProbe: {httpGet: {scheme: HTTPS, port: secure, path: /}, periodSeconds: 1, timeoutSeconds: 5}, livenessProbe: {httpGet: {scheme: HTTPS, port: 8443, path: /}, periodSeconds: 1, timeoutSeconds: 5}}]}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: probed, namespace: @NS@}, spec: {replicas: 2, selector: {matchLabels: {app: probed}}, template: {
          metadata: {labels: {app: probed}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: 'weft.local/weft-echo:@TAG@', args: [serve, --http, '8080', --tcp, '9000'],
          ports: [{name: http, containerPort: 8080}],
          startupProbe: {exec: {command: [weft-echo, --version]}, periodSeconds: 1, timeoutSeconds: 10},
          readinessProbe: {httpGet: {port: http, path: /}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 1},
          livenessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 5}}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: probed, namespace: @NS@}, spec: {selector: {app: probed}, ports: [{port: 80, targetPort: http}]}}",
    )?;
    cluster.wait_rollout(shop.namespace, "deploy/probed", START_WAIT_MAX)?;
    let ready = "{.status.conditions[?(@.type==\"Ready\")].status}";
    for pod in ["grpc", "https"] {
        cluster.wait_field(&["-n", shop.namespace, "pod", pod], ready, "True", START_WAIT_MAX)?;
    }
    wait::until(CHANGE_WAIT_MAX, || shop.reach("client1", "http://probed/").map(drop))?;
    // The ports that are probed are not open to others, though they are on the same nodes.
    for client in ["client1", "client2"] {
        outside.reach_in_vain(client, "http://probed.probes/")?;
    }
    let restarts = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let counted = shop.kubectl(&["get", "pods", "-l", "app=probed", "-o", restarts])?;
    ensure!(counted == "0 0 0 0", "no liveness probe failed: {counted}");
    Ok(())
}

#[test]
fn a_failing_probe_is_still_a_failing_one() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "unready")?;
    shop.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: never, namespace: @NS@}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo,
          image: 'weft.local/weft-echo:@TAG@', args: [serve, --http, '8080'], readinessProbe: {httpGet: {port: 8081, path: /}, periodSeconds: 1}}]}}",
    )?;
    let unready = "{.status.conditions[?(@.type==\"Ready\")].reason}";
    cluster.wait_field(
        &["-n", shop.namespace, "pod", "never"],
        unready,
        "ContainersNotReady",
        START_WAIT_MAX,
    )?;
    cluster.wait_field(
        &["-n", shop.namespace, "pod", "never"],
        "{.status.containerStatuses[0].started}",
        "true",
        START_WAIT_MAX,
    )?;
    shop.reach("client1", "http://server/").map(drop)
}
