//! What the steps' clients do inside pods, and how their answers are read.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::lab::Lab;

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
