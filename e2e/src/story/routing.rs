//! Step 4: weights.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Evidence, clients};
use crate::fixture::Running;
use crate::lab::{Lab, wait};

const REQUESTS: &str = "1000";
/// How soon a change of a manifest is in force.
const CHANGE_MAX: Duration = Duration::from_secs(1);
/// Until it shows in loads of their own, on a busy machine.
const SEEN_WAIT_MAX: Duration = Duration::from_secs(20);

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
    let load = ["load", "--url", "http://backend/", "--until-eof", "--rate", "200"];
    let running = Running::start(lab, "shop/frontend", &load)?;
    clients::wait_finished(lab, 20.0)?;
    lab.write_manifest("route", &route(0, 100))?;
    wait_for_share(lab, "20", 0.99, 1.0)?;
    clients::wait_finished(lab, 400.0)?;
    let told = running.told()?;
    ensure!(told["failed"] == 0, "requests failed while the weights changed: {told}");
    // The last answer of a version that is to get nothing any more.
    let took = clients::seen_after(lab.manifest_written("route")?, &told["versions_last_unix_ms"]["v1"])?;
    ensure!(
        took <= CHANGE_MAX,
        "version 1 still answered {} ms after the file was written",
        took.as_millis()
    );
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

/// Waits until version 2's share of so many requests lies between the two.
fn wait_for_share(lab: &Lab, requests: &str, low: f64, high: f64) -> Result<()> {
    wait::until(SEEN_WAIT_MAX, || {
        let (_, percent) = shares(lab, requests)?;
        ensure!((low..=high).contains(&(percent / 100.0)), "version 2 gets {percent:.0} %");
        Ok(())
    })
}
