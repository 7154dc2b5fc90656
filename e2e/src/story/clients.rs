//! What the steps' clients do inside pods, and how their answers are read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::{Lab, wait};

/// An exec and a connect, on a busy machine.
const LOAD_WAIT_MAX: Duration = Duration::from_secs(20);

/// Runs a `weft-echo` client inside a pod and reads what it tells.
pub fn echo(lab: &Lab, pod: &str, arguments: &[&str]) -> Result<Value> {
    let words = [&["weft-echo"], arguments].concat();
    let told = lab.exec_ok(pod, &words)?;
    serde_json::from_str(&told).with_context(|| format!("weft-echo in {pod} told {told:?}"))
}

/// One GET by curl; status code and body. Code 0: no answer.
pub fn get(lab: &Lab, pod: &str, url: &str, headers: &[&str]) -> Result<(u16, String)> {
    let mut words = vec!["curl", "-sS", "--max-time", "5", "-w", "\n%{http_code}"];
    headers.iter().for_each(|h| words.extend(["-H", h]));
    words.push(url);
    let output = lab.exec(pod, &words)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').unwrap_or(("", "0"));
    let said = String::from_utf8_lossy(&output.stderr);
    let body = if body.is_empty() { said.trim() } else { body };
    Ok((code.trim().parse().unwrap_or(0), body.to_owned()))
}

/// A number in an answer; 0 if it is not there.
pub fn count(told: &Value, path: &str) -> u64 {
    told.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

/// How long after that time a client saw something happen. Clients tell when they did: whoever runs them may be late.
pub fn seen_after(time: SystemTime, unix_ms: &Value) -> Result<Duration> {
    let seen = Duration::from_millis(unix_ms.as_u64().context("it was never seen")?);
    Ok(seen.saturating_sub(time.duration_since(UNIX_EPOCH)?))
}

/// Waits until so many requests more have ended on the client's node, of a load that has just begun or goes on.
pub fn wait_finished(lab: &Lab, more: f64) -> Result<()> {
    let finished = || lab.node_admin("node1").metric("weft_requests_finished_total", &[]);
    let before = finished()?;
    wait::until(LOAD_WAIT_MAX, || {
        let now = finished()?;
        ensure!(now >= before + more, "{} requests of the load have ended", now - before);
        Ok(())
    })
}

/// A share in percent, for people.
pub fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// A log line without the terminal's escape sequences.
pub fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    plain + rest
}
