//! Policies and routes by `kubectl apply`: in force soon, told in the status, refused where they are wrong.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail, ensure};
use weft_e2e::lab::wait;

use crate::fixture::{CHANGE_WAIT_MAX, Running, START_WAIT_MAX, Shop, alone, together, wait_others_gone};

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
    wait::until(CHANGE_WAIT_MAX, || shop.reach("client1", "http://first/").map(drop))?;
    let load = Running::on(
        &shop,
        "client1",
        &["load", "--url", "http://server/", "--rate", "50", "--connections", "2"],
    )?;
    // Asks twice meanwhile, by which time the load has begun.
    for _ in 0..2 {
        shop.reach("client2", "http://server/")?;
    }
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
    ensure!(told["failed"] == 0 && told["ok"].as_u64() > Some(0), "{told}");
    Ok(())
}

/// Fails every third GET with a status that is not repeated unless a policy says so.
const FLAKY: &str = "{apiVersion: v1, kind: Pod, metadata: {name: flaky, namespace: @NS@, labels: {app: flaky}}, spec: {terminationGracePeriodSeconds: 1,
  containers: [{name: echo, image: 'weft.local/weft-echo:@TAG@', args: [serve, --http, '8080', --fail-ratio, 1/3, --fail-status, '500']}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: flaky, namespace: @NS@}, spec: {selector: {app: flaky}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}}";

const RETRY: &str = "{apiVersion: weft.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: retry, namespace: @NS@}, spec: {targetRefs: [{kind: Service, name: flaky}],
  retry: {codes: [500], attempts: 10, backoff: 5ms, budget: {percent: 100, minPerSecond: 1000}}, ejection: {consecutiveFailures: 1000}}}";

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
    // With another load beside it, it is chance which attempts fail: of eleven for a request, one succeeds.
    let thirty = |ok: bool| {
        let told = shop.load("client1", &["--url", "http://flaky/", "--requests", "30"])?;
        let (failed, by_status) = (&told["failed"], &told["statuses"]["500"]);
        ensure!(if ok { *failed == 0 } else { failed == by_status }, "{told}");
        Ok(())
    };
    wait::until(CHANGE_WAIT_MAX, || thirty(false))?;
    let load = Running::start(
        &shop,
        "client2",
        &["--url", "http://flaky/", "--rate", "50", "--requests", "750", "--connections", "2"],
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

/// From the API server's answer (seen as the end of `kubectl`, some milliseconds later) to the first request that it decides, on each node.
const IN_FORCE_MAX: Duration = Duration::from_secs(1);

/// Applies manifests while a client on each node asks (as `load` says), each until it is answered with `status`.
fn in_force(shop: &Shop<'_>, load: &[&str], manifests: &str, status: &str) -> Result<()> {
    let watch = |client| {
        let until = ["--rate", "100", "--duration", "30", "--until-status", status];
        Running::start(shop, client, &[load, &until].concat())
    };
    let asked = |pod: &str, node: &str| {
        let (pod, namespace) = (format!("source_workload=\"{pod}\""), shop.namespace);
        let namespace = format!("source_workload_namespace=\"{namespace}\"");
        let of_pod = ["reporter=\"source\"", "response_code=\"200\"", pod.as_str(), namespace.as_str()];
        shop.cluster.node_admin(node)?.metric("istio_requests_total", &of_pod)
    };
    let clients = [("client1", "node1"), ("client2", "node2")];
    let before = clients.map(|(pod, node)| asked(pod, node).unwrap_or_default());
    let watching = [watch("client1")?, watch("client2")?];
    for ((pod, node), before) in clients.into_iter().zip(before) {
        wait::until(START_WAIT_MAX, || {
            ensure!(asked(pod, node)? > before, "{pod} asks nothing");
            Ok(())
        })?;
    }
    shop.apply(manifests)?;
    let answered = SystemTime::now().duration_since(UNIX_EPOCH)?;
    for (watching, (pod, _)) in watching.into_iter().zip(clients) {
        let told = watching.finish()?;
        let Some(at) = told["until_unix_ms"].as_u64() else { bail!("{pod} never got {status}: {told}") };
        let took = Duration::from_millis(at).saturating_sub(answered);
        println!("{pod} got {status} {took:?} after kubectl's end");
        ensure!(took <= IN_FORCE_MAX, "{pod} got {status} {took:?} after kubectl's end");
        ensure!(told["errors"].as_object().is_some_and(serde_json::Map::is_empty), "{told}");
    }
    Ok(())
}

#[test]
fn policies_and_a_route_are_in_force_on_all_nodes_within_a_second() -> Result<()> {
    // The second is promised of a machine that is not loaded: no other test may start or end its pods meanwhile.
    let cluster = alone()?;
    wait_others_gone(&cluster)?;
    let shop = Shop::enrolled(&cluster, "second")?;
    in_force(&shop, &["--url", "http://server/private"], DENY, "403")?;
    // Some ten requests at a time, five per endpoint: more than the policy lets through, and nothing else refuses one.
    let many = ["--url", "http://server/slow", "--connections", "32", "--header", "x-echo-delay-ms: 100"];
    let few = "{apiVersion: weft.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: few, namespace: @NS@}, spec: {targetRefs: [{kind: Service, name: server}],
          maxConnections: 1, maxPendingRequests: 1}}";
    in_force(&shop, &many, few, "503")?;
    let away = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: away, namespace: @NS@}, spec: {parentRefs: [{group: '', kind: Service, name: server}],
          rules: [{filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /there}, statusCode: 302}}]}]}}";
    in_force(&shop, &["--url", "http://server/public"], away, "302")
}

fn route(kind: &str, name: &str, backend: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: {kind}, metadata: {{name: {name}, namespace: @NS@}}, spec: {{parentRefs: [{{group: '', kind: Service, name: server, port: 80}}],
          rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]}}}}"
    )
}

#[test]
fn of_two_routes_for_the_same_requests_one_gets_them_and_the_others_status_says_so() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "rivals")?;
    shop.apply("{apiVersion: v1, kind: Service, metadata: {name: first, namespace: @NS@}, spec: {selector: {app: server, apps.kubernetes.io/pod-index: '0'}, ports: [{name: http, port: 80, targetPort: http, appProtocol: http}]}}")?;
    let told = |name: &str, expected: &[&str]| {
        let accepted = "jsonpath={.status.parents[0].conditions[?(@.type==\"Accepted\")]}";
        wait::until(CHANGE_WAIT_MAX, || {
            let condition = shop.kubectl(&["get", "httproute", name, "-o", accepted])?;
            let missing: Vec<_> = expected.iter().filter(|text| !condition.contains(**text)).collect();
            ensure!(missing.is_empty(), "{name} does not tell {missing:?}: {condition}");
            Ok(())
        })
    };
    // Older, or of the same second and first by name.
    shop.apply(&route("HTTPRoute", "a-first", "first"))?;
    shop.apply(&route("HTTPRoute", "b-second", "server"))?;
    told("b-second", &["\"True\"", "not rules[0].matches[0] at port 80 (HTTPRoute a-first)"])?;
    told("a-first", &["\"True\"", "\"message\":\"\""])?;
    wait::until(CHANGE_WAIT_MAX, || {
        let answered = shop.reach("client2", "http://server/")?;
        ensure!(answered["pods"]["server-0"] == 4, "all to the first route's backend: {answered}");
        Ok(())
    })?;
    // Nothing is merged with a GRPCRoute: both stand back.
    shop.apply(&route("GRPCRoute", "calls", "server"))?;
    for name in ["a-first", "b-second"] {
        told(name, &["\"False\"", "Conflicted", "GRPCRoute rivals/calls comes first"])?;
    }
    shop.kubectl(&["delete", "grpcroute", "calls"])?;
    told("a-first", &["\"True\"", "\"message\":\"\""])
}
