//! A Deployment is rolled over while it is under load: no request fails.

use anyhow::{Context as _, Result, ensure};
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
fn rolled_over(name: &'static str, deployment: &str, methods: [&str; 2]) -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, name)?;
    shop.apply(deployment)?;
    cluster.wait_rollout(shop.namespace, "deploy/rolled", START_WAIT_MAX)?;
    wait::until(CHANGE_WAIT_MAX, || shop.reach("client1", "http://rolled/").map(drop))?;
    let before = pods(&shop)?;
    let rate =
        ["load", "--url", "http://rolled/", "--rate", "40", "--connections", "4", "--timeout-ms", "10000"];
    let calls = ["grpc", "--url", "http://rolled:90", "--pause-ms", "50"];
    let loads = [("client1", methods[0]), ("client2", methods[1])]
        .map(|(client, method)| Running::on(&shop, client, &[&rate[..], &["--method", method]].concat()));
    let calls = ["client1", "client2"].map(|client| Running::on(&shop, client, &calls));
    shop.kubectl(&["rollout", "restart", "deploy/rolled"])?;
    cluster.wait_rollout(shop.namespace, "deploy/rolled", START_WAIT_MAX)?;
    // The last of the old ones may still be on its way out.
    wait::until(START_WAIT_MAX, || {
        let left: Vec<String> = pods(&shop)?.into_iter().filter(|pod| before.contains(pod)).collect();
        ensure!(left.is_empty(), "still there: {left:?}");
        Ok(())
    })?;
    for load in loads {
        let told = load?.finish()?;
        let answered = told["pods"].as_object().into_iter().flatten();
        let (old, new): (Vec<_>, Vec<_>) = answered.map(|(pod, _)| pod).partition(|pod| before.contains(pod));
        ensure!(told["failed"] == 0, "{told}");
        ensure!(!old.is_empty() && new.len() == 3, "requests went to old pods and to all new ones: {told}");
    }
    for call in calls {
        let told = call?.finish()?;
        let codes = told["unary"]["codes"].as_object().context("codes of calls")?;
        ensure!(codes.keys().eq(["OK"]), "{told}");
    }
    Ok(())
}

fn pods(shop: &Shop<'_>) -> Result<Vec<String>> {
    let names =
        shop.kubectl(&["get", "pods", "-l", "app=rolled", "-o", "jsonpath={.items[*].metadata.name}"])?;
    Ok(names.split_whitespace().map(Into::into).collect())
}

#[test]
fn a_rollout_of_servers_that_go_on_for_a_while_fails_no_request() -> Result<()> {
    rolled_over("rollout", &deployment("", ", lifecycle: {preStop: {sleep: {seconds: 2}}}"), ["GET", "POST"])
}

/// As servers of most languages do at SIGTERM: closed to new connections at once, before anybody has heard of it.
#[test]
fn a_rollout_of_servers_that_end_gracefully_at_once_fails_no_request() -> Result<()> {
    rolled_over("rollout-at-once", &deployment(", --graceful", ""), ["GET", "PUT"])
}
