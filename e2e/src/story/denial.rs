//! Step 5: a policy that forbids, and one that cannot be read.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Evidence, clients};
use crate::lab::{Lab, wait};

/// How soon a change of a manifest is in force.
const CHANGE_WAIT_MAX: Duration = Duration::from_secs(1);
const RECORD_WAIT_MAX: Duration = Duration::from_secs(3);
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
    let mut held = hold(lab)?;
    let live = held_connection(lab)?;
    let dropped = Instant::now();
    lab.write_manifest("policy", FORBIDS)?;
    let (said, in_force) = wait::within(CHANGE_WAIT_MAX, || refusal(lab))?;
    ensure!(said.contains(POLICY), "the error does not name {POLICY}: {said:?}");
    let ended = wait_ended(&mut held, CHANGE_WAIT_MAX.saturating_sub(dropped.elapsed()))?;
    let cut = dropped.elapsed();
    ensure!(
        cut <= CHANGE_WAIT_MAX,
        "the live connection ended {} ms after the file was written",
        cut.as_millis()
    );
    let record = ended_record(lab)?;

    let mut problems = Vec::new();
    for (text, line) in [(UNKNOWN_FIELD, 7), (NOT_YAML, 6)] {
        lab.write_manifest("policy", text)?;
        problems.push(wait::until(CHANGE_WAIT_MAX, || problem(lab, &format!("policy.yaml:{line}:")))?);
        let still = refusal(lab).context("with a broken file the last good policy must stay")?;
        ensure!(still.contains(POLICY), "another policy denies now: {still}");
    }

    lab.remove_manifest("policy")?;
    wait::until(CHANGE_WAIT_MAX, || match clients::get(lab, "shop/frontend", "http://backend/", &[])? {
        (200, _) => Ok(()),
        (status, said) => bail!("the policy is gone, and the answer still {status}: {said}"),
    })?;
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

/// The body of the 403.
fn refusal(lab: &Lab) -> Result<String> {
    match clients::get(lab, "shop/frontend", "http://backend/", &[])? {
        (403, said) => Ok(said.trim().to_owned()),
        (status, said) => bail!("answered {status}, not 403: {said}"),
    }
}

/// A child that is ended when it is no longer wanted.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        // It may have ended by itself: that is what the step waits for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A raw TCP conversation with the backend that goes on until somebody ends it.
fn hold(lab: &Lab) -> Result<Held> {
    let words = ["weft-echo", "tcp", "--to", "backend:9000", "--mode", "ping-pong", "--count", "1000000000"];
    let mut command = lab.command("shop/frontend", &words)?;
    Ok(Held(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?))
}

/// The held connection, among the backend's node's.
fn is_held(flow: &Value) -> bool {
    let to = flow["destination_address"].as_str().unwrap_or_default();
    flow["kind"] == "connection" && flow["source"] == "shop/frontend" && to.ends_with(":9000")
}

/// What the backend's node says of the held connection while it lives.
fn held_connection(lab: &Lab) -> Result<String> {
    wait::until(RECORD_WAIT_MAX, || {
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

fn wait_ended(held: &mut Held, wait_max: Duration) -> Result<String> {
    let status = wait::until(wait_max, || held.0.try_wait()?.context("the live connection goes on"))?;
    ensure!(!status.success(), "the conversation came to its own end");
    let mut said = String::new();
    if let Some(mut stderr) = held.0.stderr.take() {
        std::io::Read::read_to_string(&mut stderr, &mut said)?;
    }
    // Where RUST_BACKTRACE is set, the rest is for the client's developers.
    let said = said.split("Stack backtrace").next().unwrap_or_default();
    Ok(said.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The access log's line of the connection that was ended.
fn ended_record(lab: &Lab) -> Result<String> {
    wait::until(RECORD_WAIT_MAX, || {
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
