//! A Deployment is rolled over while it is under load: no request fails.

use anyhow::{Result, ensure};
use serde_json::json;
use weft_e2e::lab::wait;

use crate::fixture::{CHANGE_WAIT_MAX, Running, START_WAIT_MAX, Shop, together};

/// Served by three pods whose container has this besides; `weft-echo` does not see SIGTERM unless `--graceful` is among the words.
fn deployment(words: &str, container: &str) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: rolled, namespace: @NS@}}, spec: {{replicas: 3, selector: {{matchLabels: {{app: rolled}}}}, template: {{
          metadata: {{labels: {{app: rolled}}}}, spec: {{terminationGracePeriodSeconds: 5, containers: [{{name: echo, image: 'weft.local/weft-echo:@TAG@', args: [serve, --http, '8080'{words}],
          env: [{{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}],
          readinessProbe: {{httpGet: {{port: 8080, path: /}}, periodSeconds: 1, timeoutSeconds: 5}}{container}}}]}}}}}}}}
---
{{apiVersion: v1, kind: Service, metadata: {{name: rolled, namespace: @NS@}}, spec: {{selector: {{app: rolled}}, ports: [
  {{name: http, port: 80, targetPort: 8080, appProtocol: http}}, {{name: grpc, port: 90, targetPort: 8080, appProtocol: grpc}}]}}}}"
    )
}

/// Rolls it over while both clients ask, over connections that stay and by gRPC.
fn rolled_over(name: &'static str, deployment: &str) -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, name)?;
    shop.apply(deployment)?;
    cluster.wait_rollout(shop.namespace, "deploy/rolled", START_WAIT_MAX)?;
    wait::until(CHANGE_WAIT_MAX, || shop.reach("client1", "http://rolled/").map(drop))?;
    let gets = ["--url", "http://rolled/", "--rate", "40", "--duration", "30", "--connections", "4"];
    let calls = ["--url", "http://rolled:90", "--requests", "600", "--pause-ms", "50"];
    let loads = ["client1", "client2"].map(|client| Running::start(&shop, client, &gets));
    let calls = ["client1", "client2"].map(|client| Running::calls(&shop, client, &calls));
    shop.kubectl(&["rollout", "restart", "deploy/rolled"])?;
    cluster.wait_rollout(shop.namespace, "deploy/rolled", START_WAIT_MAX)?;
    for load in loads {
        let told = load?.finish()?;
        let pods = told["pods"].as_object().map_or(0, serde_json::Map::len);
        ensure!(told["failed"] == 0, "{told}");
        ensure!(pods > 3, "requests went to old pods and new ones: {told}");
    }
    for call in calls {
        let told = call?.finish()?;
        ensure!(told["unary"]["codes"] == json!({"OK": 600}), "{told}");
    }
    Ok(())
}

#[test]
fn a_rollout_of_servers_that_go_on_for_a_while_fails_no_request() -> Result<()> {
    rolled_over("rollout", &deployment("", ", lifecycle: {preStop: {sleep: {seconds: 2}}}"))
}

/// As servers of most languages do at SIGTERM: closed to new connections at once, before anybody has heard of it.
#[test]
fn a_rollout_of_servers_that_end_gracefully_at_once_fails_no_request() -> Result<()> {
    rolled_over("rollout-at-once", &deployment(", --graceful", ""))
}
