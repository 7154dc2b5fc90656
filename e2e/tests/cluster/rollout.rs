//! A Deployment is rolled over while it is under load.

use anyhow::{Result, ensure};
use weft_e2e::lab::wait;

use crate::fixture::{CHANGE_WAIT_MAX, Running, START_WAIT_MAX, Shop, together};

#[test]
fn a_rollout_under_load_fails_no_request() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "rollout")?;
    shop.apply(
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: rolled, namespace: @NS@}, spec: {replicas: 3, selector: {matchLabels: {app: rolled}}, template: {
          metadata: {labels: {app: rolled}}, spec: {terminationGracePeriodSeconds: 5, containers: [{name: echo, image: 'weft.local/weft-echo:@TAG@', args: [serve, --http, '8080'],
          env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}],
          readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1, timeoutSeconds: 5}, lifecycle: {preStop: {sleep: {seconds: 2}}}}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: rolled, namespace: @NS@}, spec: {selector: {app: rolled}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}}",
    )?;
    cluster.wait_rollout(shop.namespace, "deploy/rolled", START_WAIT_MAX)?;
    wait::until(CHANGE_WAIT_MAX, || shop.reach("client1", "http://rolled/").map(drop))?;
    let load = |client| {
        Running::start(
            &shop,
            client,
            &["--url", "http://rolled/", "--rate", "40", "--duration", "30", "--connections", "4"],
        )
    };
    let loads = [load("client1")?, load("client2")?];
    shop.kubectl(&["rollout", "restart", "deploy/rolled"])?;
    cluster.wait_rollout(shop.namespace, "deploy/rolled", START_WAIT_MAX)?;
    for load in loads {
        let told = load.finish()?;
        let pods = told["pods"].as_object().map_or(0, serde_json::Map::len);
        ensure!(told["failed"] == 0, "{told}");
        ensure!(pods > 3, "requests went to old pods and new ones: {told}");
    }
    Ok(())
}
