//! Step 5: a policy that forbids, and one that cannot be read.

use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Evidence, clients};
use crate::fixture::Running;
use crate::lab::{Lab, wait};

/// How soon a change of a manifest is in force.
const CHANGE_MAX: Duration = Duration::from_secs(1);
/// The same for what is looked at by programs that have to start first, and for records.
const SEEN_WAIT_MAX: Duration = Duration::from_secs(10);
const POLICY: &str = "shop/no-frontend";
const FORBIDS: &str = "apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-frontend, namespace: shop}
spec:
  selector: {matchLabels: {app: backend}}
  action: DENY
  rules:
  - from:
    - principals: [\"cluster.local/ns/shop/sa/frontend\"]
";
const UNKNOWN_FIELD: &str = "apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-frontend, namespace: shop}
spec:
  selector: {matchLabels: {app: backend}}
  action: DENY
  rulez:
  - from:
    - principals: [\"cluster.local/ns/shop/sa/nobody\"]
";
const NOT_YAML: &str = "apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-frontend, namespace: shop}
spec:
  selector: {matchLabels: {app: backend}}
   action: DENY
";

pub(super) fn denied(lab: &mut Lab) -> Result<Evidence> {
    // A raw TCP conversation with the backend that goes on until somebody ends it, and requests until one is refused.
    let held = Running::start(lab, "shop/frontend", &["tcp", "--to", "backend:9000", "--mode", "live"])?;
    let asking = ask_until(lab, "403")?;
    let live = held_connection(lab)?;
    lab.write_manifest("policy", FORBIDS)?;
    let written = lab.manifest_written("policy")?;
    let in_force = clients::seen_after(written, &asking.told()?["until_unix_ms"])?;
    ensure!(in_force <= CHANGE_MAX, "in force {} ms after the file was written", in_force.as_millis());
    let said = refusal(lab)?;
    ensure!(said.contains(POLICY), "the error does not name {POLICY}: {said:?}");
    let ended = held.told()?;
    let cut = clients::seen_after(written, &ended["ended_unix_ms"])?;
    ensure!(cut <= CHANGE_MAX, "the live connection ended {} ms after the file was written", cut.as_millis());
    let ended = ended["error"].as_str().unwrap_or_default().to_owned();
    let record = ended_record(lab)?;

    let mut problems = Vec::new();
    for (text, line) in [(UNKNOWN_FIELD, 7), (NOT_YAML, 6)] {
        lab.write_manifest("policy", text)?;
        problems.push(wait::until(SEEN_WAIT_MAX, || problem(lab, &format!("policy.yaml:{line}:")))?);
        let still = refusal(lab).context("with a broken file the last good policy must stay")?;
        ensure!(still.contains(POLICY), "another policy denies now: {still}");
    }

    let asking = ask_until(lab, "200")?;
    lab.remove_manifest("policy")?;
    let removed = SystemTime::now();
    let lifted = clients::seen_after(removed, &asking.told()?["until_unix_ms"])?;
    ensure!(
        lifted <= CHANGE_MAX,
        "the policy was still in force {} ms after it was removed",
        lifted.as_millis()
    );
    Ok(vec![
        format!("before: {live}"),
        format!("DENY written into the directory: in force after {} ms: 403 {said:?}", in_force.as_millis()),
        format!("the live connection ended {} ms after the file was written: {ended}", cut.as_millis()),
        format!("node2's record of it: {record}"),
        format!("an unknown field, in `weft status`: {}", problems[0]),
        format!("no YAML at all: {}", problems[1]),
        "the last good policy stays: still 403; the file removed: 200".to_owned(),
    ])
}

/// Requests, a few milliseconds apart, until the first answer of this status.
fn ask_until(lab: &Lab, status: &str) -> Result<Running> {
    let load =
        ["load", "--url", "http://backend/", "--rate", "200", "--duration", "60", "--until-status", status];
    let running = Running::start(lab, "shop/frontend", &load)?;
    clients::wait_finished(lab, 5.0)?;
    Ok(running)
}

/// The body of the 403.
fn refusal(lab: &Lab) -> Result<String> {
    match clients::get(lab, "shop/frontend", "http://backend/", &[])? {
        (403, said) => Ok(said.trim().to_owned()),
        (status, said) => bail!("answered {status}, not 403: {said}"),
    }
}

/// The held connection, among the backend's node's.
fn is_held(flow: &Value) -> bool {
    let to = flow["destination_address"].as_str().unwrap_or_default();
    flow["kind"] == "connection" && flow["source"] == "shop/frontend" && to.ends_with(":9000")
}

/// What the backend's node says of the held connection while it lives.
fn held_connection(lab: &Lab) -> Result<String> {
    wait::until(SEEN_WAIT_MAX, || {
        let told = lab.node_admin("node2").json("/connections")?;
        let flows = told["flows"].as_array().map(Vec::as_slice).unwrap_or_default();
        let flow = flows
            .iter()
            .find(|f| is_held(f))
            .with_context(|| format!("node2 lists no connection of ours: {told}"))?;
        let text = |key: &str| flow[key].as_str().unwrap_or("?").to_owned();
        Ok(format!(
            "node2 lists a live connection {} -> {}",
            text("source_principal"),
            text("destination_principal")
        ))
    })
}

/// The access log's line of the connection that was ended.
fn ended_record(lab: &Lab) -> Result<String> {
    wait::until(SEEN_WAIT_MAX, || {
        let text = std::fs::read_to_string(lab.access_log("node2"))?;
        let mut records = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let record = records.find(|r| is_held(r) && r["reason"] == "policy_denied");
        let record = record.context("node2 has no record of a connection ended by a policy")?;
        ensure!(record["policy"] == POLICY, "the record does not name {POLICY}: {record}");
        Ok(format!(
            "reason {}, policy {}, {} bytes",
            record["reason"], record["policy"], record["bytes_sent"]
        ))
    })
}

/// The line of `weft status` about the file that is wrong.
fn problem(lab: &Lab, place: &str) -> Result<String> {
    let output = Command::new(lab.binary("weft")?).args(["status", "--name", lab.name()]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|l| l.contains(place));
    Ok(line.with_context(|| format!("nothing about {place} in {text}"))?.trim().to_owned())
}
