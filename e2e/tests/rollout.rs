//! A rollover under load: new pods come, the old ones are told to go and end later. No request fails.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use weft_e2e::fixture::{self, Running};
use weft_e2e::lab::{Lab, Options, wait};
use weft_e2e::story::clients::{count, echo, get};

const WAIT_MAX: Duration = Duration::from_secs(20);
/// gRPC calls beside each step.
const CALLS: u32 = 300;
const OLD: [&str; 2] = ["old-near", "old-far"];
const NEW: [&str; 2] = ["new-near", "new-far"];

/// Asked by its address: the lab rewrites the pods' hosts files while their clients start.
const SERVICE: &str = "apiVersion: v1
kind: Namespace
metadata: {name: mesh, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: mesh}
spec:
  nodeName: node1
  containers: [{name: main, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Service
metadata: {name: app, namespace: mesh}
spec:
  clusterIP: 10.96.0.40
  selector: {app: app}
  ports:
    - {name: http, port: 80, targetPort: 8080, appProtocol: http}
    - {name: grpc, port: 90, targetPort: 8080, appProtocol: grpc}
";

/// The Service with these pods; those that are `going` have been deleted and not ended.
fn manifests(pods: &[&str], going: &[&str]) -> String {
    let pod = |name: &&str| {
        let node = if name.ends_with("near") { "node1" } else { "node2" };
        let deleted = if going.contains(name) { ", deletionTimestamp: \"2026-01-01T00:00:00Z\"" } else { "" };
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: mesh, labels: {{app: app}}{deleted}}}\n\
             spec:\n  nodeName: {node}\n  containers:\n\
             \x20   - {{name: main, command: [weft-echo, serve, --http, \"8080\"], ports: [{{containerPort: 8080}}]}}\n"
        )
    };
    SERVICE.to_owned() + &pods.iter().map(pod).collect::<String>()
}

/// Requests that the pods have got, of all kinds.
fn served(lab: &Lab, pods: &[&str]) -> Result<Vec<u64>> {
    let of = |pod: &&str| -> Result<u64> {
        let told = lab.exec_ok(&format!("mesh/{pod}"), &["curl", "-sS", "http://127.0.0.1:8080/counts"])?;
        let told: Value = serde_json::from_str(&told)?;
        Ok(["/GET", "/POST", "/grpc_unary"].iter().map(|kind| count(&told, kind)).sum())
    };
    pods.iter().map(of).collect()
}

/// Waits until every node knows that the pods are going, and of no request to one of them any more.
fn wait_unused(lab: &Lab, pods: &[&str]) -> Result<()> {
    let ips = pods.iter().map(|pod| Ok(lab.pod(&format!("mesh/{pod}"))?.ips.clone()));
    let ips: Vec<String> =
        ips.collect::<Result<Vec<_>>>()?.concat().iter().map(ToString::to_string).collect();
    wait::until(WAIT_MAX, || {
        for node in lab.nodes() {
            let dump = lab.node_admin(&node).json("/config_dump")?;
            let held = dump["resources"].as_array().into_iter().flatten();
            let stays = held.map(|resource| &resource["content"]).find(|held| {
                held["terminating"] == false
                    && held["ip"].as_str().is_some_and(|ip| ips.iter().any(|own| own == ip))
            });
            ensure!(stays.is_none(), "{node} has not heard that this one is going: {stays:?}");
            let live = lab.node_admin(&node).json("/connections")?;
            let to = |flow: &&Value| pods.iter().any(|pod| flow["destination"] == format!("mesh/{pod}"));
            let flow = live["flows"].as_array().and_then(|flows| flows.iter().find(to));
            ensure!(flow.is_none(), "{node} still serves {flow:?}");
        }
        Ok(())
    })
}

/// gRPC calls on one connection while `step` happens.
fn with_calls(lab: &mut Lab, step: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    let calls = CALLS.to_string();
    let running =
        Running::start(lab, "mesh/client", &["grpc", "--url", "http://10.96.0.40:90", "--requests", &calls])?;
    step(lab)?;
    let told = running.told()?;
    ensure!(told["unary"]["codes"] == serde_json::json!({ "OK": CALLS }), "gRPC: {told}");
    Ok(())
}

#[test]
fn no_request_fails_while_all_pods_are_replaced() -> Result<()> {
    let mut lab = fixture::up("rollout", &manifests(&OLD, &[]), Options::default())?;
    wait::until(WAIT_MAX, || match get(&lab, "mesh/client", "http://10.96.0.40/", &[])? {
        (200, _) => Ok(()),
        (status, body) => anyhow::bail!("{status} {body}"),
    })?;
    let load = |more: &[&str]| {
        let load =
            ["load", "--url", "http://10.96.0.40/", "--until-eof", "--rate", "200", "--connections", "4"];
        Running::start(&lab, "mesh/client", &[&load[..], more].concat())
    };
    let mut loads = [
        load(&["--method", "GET"])?,
        load(&["--method", "POST", "--body-bytes", "2000"])?,
        // Always some in flight when a pod is told to go.
        load(&["--method", "POST", "--body-bytes", "100", "--header", "x-echo-delay-ms: 500"])?,
    ];
    let both = [OLD, NEW].concat();
    with_calls(&mut lab, |lab| {
        lab.apply("main", &manifests(&both, &[]))?;
        wait::until(WAIT_MAX, || {
            let served = served(lab, &both)?;
            ensure!(served.iter().all(|requests| *requests > 20), "{both:?} served {served:?}");
            Ok(())
        })
    })?;
    with_calls(&mut lab, |lab| {
        lab.apply("main", &manifests(&both, &OLD))?;
        wait_unused(lab, &OLD)
    })?;
    let before = served(&lab, &both)?;
    wait::until(WAIT_MAX, || {
        let now = served(&lab, &NEW)?;
        ensure!(
            now.iter().zip(&before[2..]).all(|(now, before)| now > &(before + 100)),
            "{NEW:?} served {now:?}"
        );
        Ok(())
    })?;
    ensure!(served(&lab, &OLD)? == before[..2], "pods on their way out got requests");
    with_calls(&mut lab, |lab| lab.apply("main", &manifests(&NEW, &[])))?;
    for load in &mut loads {
        ensure!(load.runs()?, "a load ended before the rollover did");
    }
    for load in loads {
        let told = load.told()?;
        ensure!(told["failed"] == 0, "requests failed: {told}");
    }
    // Where all are on their way out and still serve, they are used.
    lab.apply("main", &manifests(&NEW, &NEW))?;
    let told = echo(
        &lab,
        "mesh/client",
        &["load", "--url", "http://10.96.0.40/", "--requests", "200", "--reconnect"],
    )?;
    ensure!(told["failed"] == 0, "with nothing but pods on their way out: {told}");
    Ok(())
}
