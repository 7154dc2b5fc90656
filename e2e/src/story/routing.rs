//! Step 4: weights.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Evidence, clients};
use crate::lab::{Lab, wait};

const REQUESTS: &str = "1000";
/// How soon a change of a manifest is in force.
const CHANGE_WAIT_MAX: Duration = Duration::from_secs(1);
/// An exec and a connect, on a busy machine.
const LOAD_WAIT_MAX: Duration = Duration::from_secs(5);

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
    wait_for_share(lab, "100", 0.02, 0.25)?;
    let first = shares(lab, REQUESTS)?;
    ensure!((5.0..=16.0).contains(&first.1), "10 % of weight got {:.1} % of {REQUESTS} requests", first.1);

    // Load goes on before the file changes, and behind that.
    let finished = || lab.node_admin("node1").metric("weft_requests_finished_total", &[]);
    let before = finished()?;
    let running = lab
        .command(
            "shop/frontend",
            &["weft-echo", "load", "--url", "http://backend/", "--duration", "2", "--rate", "200"],
        )?
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    wait::until(LOAD_WAIT_MAX, || {
        ensure!(finished()? > before, "no request of the load has ended");
        Ok(())
    })?;
    lab.write_manifest("route", &route(0, 100))?;
    let took = wait_for_share(lab, "20", 0.99, 1.0)?;
    let told: serde_json::Value = serde_json::from_slice(&running.wait_with_output()?.stdout)?;
    ensure!(told["failed"] == 0, "requests failed while the weights changed: {told}");
    let (v1, v2) = (clients::count(&told, "/versions/v1"), clients::count(&told, "/versions/v2"));
    ensure!(v1 > 0 && v2 > v1 / 4, "the load did not see the weights change: {told}");
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

/// Waits until version 2's share of so many requests lies between the two; tells how long.
fn wait_for_share(lab: &Lab, requests: &str, low: f64, high: f64) -> Result<Duration> {
    wait::within(CHANGE_WAIT_MAX, || {
        let (_, percent) = shares(lab, requests)?;
        ensure!((low..=high).contains(&(percent / 100.0)), "version 2 gets {percent:.0} %");
        Ok(())
    })
    .map(|((), took)| took)
}
