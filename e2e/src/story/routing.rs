//! Steps 3 and 4: retries and weights.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Evidence, clients};
use crate::lab::{Lab, wait};

const REQUESTS: &str = "1000";
/// How soon a change of a manifest is in force.
const CHANGE_WAIT_MAX: Duration = Duration::from_secs(1);

pub(super) fn failures_hidden(lab: &mut Lab) -> Result<Evidence> {
    let load = ["load", "--url", "http://flaky/", "--connections", "4"];
    let gets = clients::echo(lab, "shop/frontend", &[&load[..], &["--requests", REQUESTS]].concat())?;
    ensure!(gets["failed"] == 0, "the client saw failures: {gets}");
    let before = posts_seen(lab)?;
    let posts = clients::echo(
        lab,
        "shop/frontend",
        &[&load[..], &["--requests", "30", "--method", "POST", "--body-bytes", "10"]].concat(),
    )?;
    let arrived = posts_seen(lab)? - before;
    ensure!(arrived == 30, "30 POSTs were sent and {arrived} arrived: {posts}");
    let refused = clients::count(&posts, "/statuses/503");
    ensure!(refused > 0, "a third of the POSTs fails and nobody repeats them: {posts}");
    Ok(vec![
        format!("{REQUESTS} GETs to a backend that answers 503 to a third: {} failed", gets["failed"]),
        format!("latency with the retries: p50 {} ms, p99 {} ms", gets["ms"]["p50"], gets["ms"]["p99"]),
        format!("30 POSTs: {arrived} arrived, {refused} answered 503, none was repeated"),
    ])
}

/// POSTs that the flaky backend has served, by its own count.
fn posts_seen(lab: &Lab) -> Result<u64> {
    // From inside its own pod: not through the mesh, and not one of the failing share.
    let counts = lab.exec_ok("shop/flaky-bad", &["curl", "-sS", "http://127.0.0.1:8080/counts"])?;
    Ok(clients::count(&serde_json::from_str(&counts)?, "/POST"))
}

fn route(v1: u32, v2: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: backend, namespace: shop}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: backend, port: 80}}]
  rules:
    - backendRefs:
        - {{name: backend-v1, port: 80, weight: {v1}}}
        - {{name: backend-v2, port: 80, weight: {v2}}}
"
    )
}

pub(super) fn weights(lab: &mut Lab) -> Result<Evidence> {
    lab.write_manifest("route", &route(90, 10))?;
    wait_for_share(lab, 0.02, 0.25)?;
    let first = shares(lab, REQUESTS)?;
    ensure!((5.0..=16.0).contains(&first.1), "10 % of weight got {:.1} % of {REQUESTS} requests", first.1);

    // Load goes on while the file changes.
    let running = lab
        .command("shop/frontend", &["weft-echo", "load", "--url", "http://backend/", "--duration", "2"])?
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let changed = Instant::now();
    lab.write_manifest("route", &route(0, 100))?;
    wait_for_share(lab, 0.99, 1.0)?;
    let took = changed.elapsed();
    let told: serde_json::Value = serde_json::from_slice(&running.wait_with_output()?.stdout)?;
    ensure!(told["failed"] == 0, "requests failed while the weights changed: {told}");
    let second = shares(lab, "200")?;
    ensure!(second.0 == 0, "a weight of 0 still got {} requests", second.0);
    lab.remove_manifest("route")?;
    Ok(vec![
        format!("90/10: version 2 got {:.1} % of {REQUESTS} requests", first.1),
        format!("0/100 written into the directory: in force after {} ms", took.as_millis()),
        format!("meanwhile {} requests, {} failed; no restart", told["requests"], told["failed"]),
    ])
}

/// Requests to version 1, and the percentage that version 2 got.
fn shares(lab: &Lab, requests: &str) -> Result<(u64, f64)> {
    let arguments = ["load", "--url", "http://backend/", "--requests", requests, "--connections", "2"];
    let told = clients::echo(lab, "shop/frontend", &arguments)?;
    ensure!(told["failed"] == 0, "requests failed: {told}");
    let (v1, v2) = (clients::count(&told, "/versions/v1"), clients::count(&told, "/versions/v2"));
    Ok((v1, clients::percent(v2, v1 + v2)))
}

/// Waits until version 2's share of a hundred requests lies between the two.
fn wait_for_share(lab: &Lab, low: f64, high: f64) -> Result<()> {
    wait::until(CHANGE_WAIT_MAX, || {
        let (_, percent) = shares(lab, "100")?;
        ensure!((low..=high).contains(&(percent / 100.0)), "version 2 gets {percent:.0} %");
        Ok(())
    })
}
