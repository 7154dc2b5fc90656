//! Step 3: a client that sees no failure, whatever a third of the requests or one of two endpoints does.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{Evidence, clients};
use crate::lab::{Lab, wait};

const GETS: &str = "1000";
const POSTS: u64 = 30;
/// What the TrafficPolicy of `flaky` allows; see shop.yaml.
const BUDGET_PERCENT: f64 = 60.0;
const BUDGET_MIN_PER_S: f64 = 10.0;
const RECOVERY_WAIT_MAX: Duration = Duration::from_secs(5);

pub(super) fn failures_hidden(lab: &mut Lab) -> Result<Evidence> {
    let mut evidence = gets_of_a_flaky_backend(lab)?;
    evidence.push(posts_are_sent_once(lab)?);
    evidence.extend(one_endpoint_dead(lab)?);
    Ok(evidence)
}

fn load(lab: &Lab, service: &str, more: &[&str]) -> Result<Value> {
    let url = format!("http://{service}/");
    clients::echo(lab, "shop/frontend", &[&["load", "--url", &url, "--connections", "4"], more].concat())
}

fn gets_of_a_flaky_backend(lab: &Lab) -> Result<Evidence> {
    let node = lab.node_admin("node1");
    let retries = || node.metric("weft_retries_total", &[]);
    let exhausted = || node.metric("weft_retry_budget_exhausted_total", &[]);
    let (retries_before, exhausted_before, served_before) = (retries()?, exhausted()?, served(lab, "GET")?);
    let told = load(lab, "flaky", &["--requests", GETS])?;
    ensure!(told["failed"] == 0, "the client saw failures: {told}");
    let made = retries()? - retries_before;
    let arrived = served(lab, "GET")? - served_before;
    let (requests, seconds) =
        (told["requests"].as_f64().unwrap_or(0.0), told["seconds"].as_f64().unwrap_or(0.0));
    ensure!(made > 0.0, "no retry was counted although a third of the answers are 503");
    ensure!(arrived as f64 == requests + made, "{requests} requests, {made} retries, but {arrived} arrived");
    let allowed = requests * BUDGET_PERCENT / 100.0 + (seconds + 1.0) * BUDGET_MIN_PER_S;
    ensure!(made <= allowed, "{made} retries are above the budget of {allowed:.0}");
    ensure!(exhausted()? == exhausted_before, "the budget was exhausted");
    Ok(vec![
        format!(
            "{GETS} GETs to a backend that answers every third request with 503: {} failed",
            told["failed"]
        ),
        format!(
            "{made} retries by node1's metrics, {:.0} % of the requests; the budget is {BUDGET_PERCENT} %",
            100.0 * made / requests
        ),
        format!("latency with the retries: p50 {} ms, p99 {} ms", told["ms"]["p50"], told["ms"]["p99"]),
    ])
}

fn posts_are_sent_once(lab: &Lab) -> Result<String> {
    let before = served(lab, "POST")?;
    let posts = POSTS.to_string();
    let told = load(lab, "flaky", &["--requests", &posts, "--method", "POST", "--body-bytes", "10"])?;
    let arrived = served(lab, "POST")? - before;
    ensure!(arrived == POSTS, "{POSTS} POSTs were sent and {arrived} arrived: {told}");
    let refused = clients::count(&told, "/statuses/503");
    ensure!(refused > 0, "a third of the POSTs fails and nobody repeats them: {told}");
    Ok(format!("{POSTS} POSTs: {arrived} arrived, {refused} answered 503, none was repeated"))
}

/// Requests that the flaky backend has served, by its own count.
fn served(lab: &Lab, method: &str) -> Result<u64> {
    // From inside its own pod: not through the mesh, and not one of the failing share.
    let counts = lab.exec_ok("shop/flaky", &["curl", "-sS", "http://127.0.0.1:8080/counts"])?;
    Ok(clients::count(&serde_json::from_str(&counts)?, &format!("/{method}")))
}

/// Attempts of the client's node that had no good end.
fn failed_attempts(lab: &Lab) -> Result<f64> {
    let node = lab.node_admin("node1");
    Ok(node.metric("weft_attempts_total", &[])? - node.metric("weft_attempts_total", &["reason=\"ok\""])?)
}

/// Attempts of the client's node that nobody answered or refused: only those at a silent endpoint end so.
fn unanswered_attempts(lab: &Lab) -> Result<f64> {
    let node = lab.node_admin("node1");
    let ended = |reason: &str| node.metric("weft_attempts_total", &[&format!("reason=\"{reason}\"")]);
    Ok(ended("attempt_timeout")? + ended("connect_timeout")?)
}

fn one_endpoint_dead(lab: &Lab) -> Result<Evidence> {
    let whole = load(lab, "pair", &["--requests", "100"])?;
    ensure!(whole["failed"] == 0, "requests failed with both endpoints alive: {whole}");
    ensure!(whole["pods"].as_object().is_some_and(|p| p.len() == 2), "not both endpoints answer: {whole}");

    lab.kill_container("shop/pair-2", "main")?;
    let failures = failed_attempts(lab)?;
    let refusing = load(lab, "pair", &["--requests", "300"])?;
    let refused = failed_attempts(lab)? - failures;
    ensure!(refusing["failed"] == 0, "requests failed while an endpoint refused: {refusing}");
    ensure!(refused > 0.0, "the dead endpoint was never tried: {refusing}");
    lab.restart_container("shop/pair-2", "main")?;

    let unanswered = unanswered_attempts(lab)?;
    lab.blackhole("shop/pair-1", true)?;
    let silent = load(lab, "pair", &["--requests", "300"]);
    lab.blackhole("shop/pair-1", false)?;
    let (silent, met) = (silent?, unanswered_attempts(lab)? - unanswered);
    ensure!(silent["failed"] == 0, "requests failed while an endpoint was silent: {silent}");
    ensure!(met > 0.0, "the silent endpoint was never tried: {silent}");
    wait::until(RECOVERY_WAIT_MAX, || {
        let (status, said) = clients::get(lab, "shop/pair-1", "http://127.0.0.1:8080/", &[])?;
        ensure!(status == 200, "pair-1 answers {status}: {said}");
        Ok(())
    })?;
    let only =
        |told: &Value| told["pods"].as_object().map(|p| p.keys().cloned().collect::<Vec<_>>().join(", "));
    ensure!(only(&silent).as_deref() == Some("pair-2"), "a silent pod answered: {silent}");
    Ok(vec![
        format!(
            "one of two endpoints refuses: {refused} attempts met it; 300 requests, {} failed, p99 {} ms",
            refusing["failed"], refusing["ms"]["p99"]
        ),
        format!(
            "the other one drops every packet: {met} attempts met it; 300 requests, {} failed, slowest {} ms",
            silent["failed"], silent["ms"]["max"]
        ),
    ])
}
