//! Policies and routes by `kubectl apply`: in force soon, told in the status, refused where they are wrong.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use weft_e2e::lab::wait;

use crate::fixture::{CHANGE_WAIT_MAX, START_WAIT_MAX, Shop, together};

const DENY: &str = "{apiVersion: weft.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: deny, namespace: @NS@}, spec: {selector: {matchLabels: {app: server}}, action: DENY,
  rules: [{from: [{principals: ['cluster.local/ns/@NS@/sa/client']}], to: [{paths: ['/private*']}]}]}}";

#[test]
fn an_authorization_policy_is_in_force_soon_and_gone_soon() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "authz")?;
    shop.reach("client1", "http://server/private")?;
    shop.apply(DENY)?;
    let start = Instant::now();
    for client in ["client1", "client2"] {
        wait::until(CHANGE_WAIT_MAX, || shop.reach_in_vain(client, "http://server/private"))?;
        shop.reach(client, "http://server/public")?;
    }
    println!("denied on both nodes after {:?}, with the time of two execs each", start.elapsed());
    shop.kubectl(&["delete", "authorizationpolicy", "deny"])?;
    wait::until(CHANGE_WAIT_MAX, || shop.reach("client1", "http://server/private").map(drop))
}

#[test]
fn a_route_applied_under_load_takes_effect_without_a_failed_request() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "route")?;
    shop.apply("{apiVersion: v1, kind: Service, metadata: {name: first, namespace: @NS@}, spec: {selector: {app: server, apps.kubernetes.io/pod-index: '0'}, ports: [{name: http, port: 80, targetPort: http, appProtocol: http}]}}")?;
    shop.reach("client1", "http://first/")?;
    let load = crate::fixture::Running::start(
        &shop,
        "client1",
        &["--url", "http://server/", "--rate", "50", "--duration", "12", "--connections", "2"],
    )?;
    shop.apply(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: to-first, namespace: @NS@}, spec: {parentRefs: [{group: '', kind: Service, name: server}],
          rules: [{backendRefs: [{name: first, port: 80}]}]}}",
    )?;
    wait::until(CHANGE_WAIT_MAX, || {
        let told = shop.reach("client2", "http://server/")?;
        ensure!(told["pods"]["server-0"] == 4, "not all to server-0 yet: {told}");
        Ok(())
    })?;
    let told = load.finish()?;
    ensure!(told["failed"] == 0 && told["ok"].as_u64() > Some(300), "{told}");
    Ok(())
}

/// Fails every third GET with a status that is not repeated unless a policy says so.
const FLAKY: &str = "{apiVersion: v1, kind: Pod, metadata: {name: flaky, namespace: @NS@, labels: {app: flaky}}, spec: {terminationGracePeriodSeconds: 1,
  containers: [{name: echo, image: 'weft.local/weft-echo:@TAG@', args: [serve, --http, '8080', --fail-ratio, 1/3, --fail-status, '500']}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: flaky, namespace: @NS@}, spec: {selector: {app: flaky}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}}";

const RETRY: &str = "{apiVersion: weft.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: retry, namespace: @NS@}, spec: {targetRefs: [{kind: Service, name: flaky}],
  retry: {codes: [500], attempts: 3, backoff: 5ms, budget: {percent: 100, minPerSecond: 1000}}, ejection: {consecutiveFailures: 1000}}}";

#[test]
fn a_traffic_policy_takes_effect_under_load_and_goes_again() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "retries")?;
    shop.apply(FLAKY)?;
    cluster.wait_field(
        &["-n", shop.namespace, "pod", "flaky"],
        "{.status.phase}",
        "Running",
        START_WAIT_MAX,
    )?;
    let thirty = |ok: bool| {
        let told = shop.load("client1", &["--url", "http://flaky/", "--requests", "30"])?;
        ensure!((told["failed"] == 0) == ok, "{told}");
        Ok(())
    };
    wait::until(CHANGE_WAIT_MAX, || thirty(false))?;
    let load = crate::fixture::Running::start(
        &shop,
        "client2",
        &["--url", "http://flaky/", "--rate", "50", "--duration", "15", "--connections", "2"],
    )?;
    shop.apply(RETRY)?;
    wait::until(CHANGE_WAIT_MAX, || thirty(true))?;
    shop.kubectl(&["delete", "trafficpolicy", "retry"])?;
    wait::until(CHANGE_WAIT_MAX, || thirty(false))?;
    let told = load.finish()?;
    ensure!(told["errors"].as_object().is_some_and(serde_json::Map::is_empty), "no connection broke: {told}");
    ensure!(told["ok"].as_u64() > Some(400), "{told}");
    Ok(())
}

#[test]
fn a_wrong_policy_is_refused_by_the_api_server() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::outside(&cluster, "wrong")?;
    for (wrong, why) in [
        (DENY.replace("DENY", "FORBID"), "Unsupported value"),
        (DENY.replace("principals", "principles"), "not declared in schema"),
    ] {
        let Err(error) = shop.apply(&wrong) else { bail!("was accepted: {wrong}") };
        ensure!(format!("{error:#}").contains(why), "{why:?} is not in {error:#}");
    }
    Ok(())
}

#[test]
fn status_tells_whether_a_route_is_accepted_and_why_not() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "status")?;
    let route = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: @NAME@, namespace: @NS@}, spec: {parentRefs: [{group: '', kind: Service, name: server}],
          rules: [{backendRefs: [{name: @BACKEND@, port: 80}]}]}}";
    let condition = |kind: &str| format!("{{.status.parents[0].conditions[?(@.type==\"{kind}\")].status}}");
    let soon = Duration::from_secs(20);
    for (name, backend, resolved) in [("good", "server", "True"), ("bad", "nobody", "False")] {
        shop.apply(&route.replace("@NAME@", name).replace("@BACKEND@", backend))?;
        let object = ["-n", shop.namespace, "httproute", name];
        cluster.wait_field(&object, &condition("Accepted"), "True", soon)?;
        cluster.wait_field(&object, &condition("ResolvedRefs"), resolved, soon)?;
    }
    Ok(())
}
