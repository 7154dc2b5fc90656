//! The clients that measure, and what they say; and the processor time of the proxies meanwhile.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::scene::Place;
use super::{Sample, What};
use crate::lab::{Lab, wait};

/// wrk's connections, and those of `weft-echo pace`.
const CONNECTIONS: &str = "16";
const RATE: &str = "1000";
/// iperf3's server takes one client at a time, and a moment to be ready for the next.
const IPERF_WAIT_MAX: Duration = Duration::from_secs(10);

pub(super) fn measure(place: &Place<'_>, what: What, length: Duration) -> Result<Sample> {
    let run = || match what {
        What::Throughput { streams } => iperf(place, streams, length),
        What::Requests => wrk(place, length, &[]),
        What::Connections => wrk(place, length, &["-H", "Connection: close"]),
        What::Latency => pace(place, length),
    };
    // A try that failed is not measured; only iperf3's busy server is a reason for another.
    let wait_max = if matches!(what, What::Throughput { .. }) { IPERF_WAIT_MAX } else { Duration::ZERO };
    wait::until(wait_max, || {
        let before = proxy_cpu_s(place.lab)?;
        let sample = run()?;
        Ok(Sample { proxy_cpu_s: proxy_cpu_s(place.lab)? - before, ..sample })
    })
}

fn iperf(place: &Place<'_>, streams: u32, length: Duration) -> Result<Sample> {
    let (ip, port) = (place.iperf.ip().to_string(), place.iperf.port().to_string());
    let (streams, seconds) = (streams.to_string(), whole_seconds(length));
    let words = ["iperf3", "-J", "-c", &ip, "-p", &port, "-P", &streams, "-t", &seconds];
    let told: Value = serde_json::from_str(&place.lab.exec_ok(place.client, &words)?)?;
    if let Some(error) = told["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let received = &told["end"]["sum_received"];
    let number = |name: &str| received[name].as_f64().ok_or_else(|| anyhow!("iperf3 told no {name}: {told}"));
    Ok(Sample { value: number("bits_per_second")? / 1e9, units: number("bytes")? / 1e9, ..Sample::default() })
}

/// wrk and iperf3 know whole seconds only.
fn whole_seconds(length: Duration) -> String {
    (length.as_secs() + u64::from(length.subsec_nanos() > 0)).max(1).to_string()
}

fn wrk(place: &Place<'_>, length: Duration, more: &[&str]) -> Result<Sample> {
    let (url, seconds) = (format!("http://{}/", place.web), whole_seconds(length));
    let words = ["wrk", "-t", "1", "-c", CONNECTIONS, "-d", &seconds];
    let words: Vec<&str> = words.iter().chain(more).copied().chain([url.as_str()]).collect();
    parse_wrk(&place.lab.exec_ok(place.client, &words)?)
}

fn parse_wrk(told: &str) -> Result<Sample> {
    let find = |label: &str| Some(told.lines().find_map(|line| line.trim().strip_prefix(label))?.trim());
    let value = find("Requests/sec:").and_then(|v| v.parse().ok());
    let requests = told.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
    let socket: u64 = find("Socket errors:").map_or(0, |errors| {
        errors.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok()).sum()
    });
    let status = find("Non-2xx or 3xx responses:").and_then(|v| v.parse().ok()).unwrap_or(0);
    Ok(Sample {
        value: value.with_context(|| format!("wrk told no rate: {told}"))?,
        units: requests.with_context(|| format!("wrk told no number of requests: {told}"))?,
        errors: socket + status,
        ..Sample::default()
    })
}

fn pace(place: &Place<'_>, length: Duration) -> Result<Sample> {
    let (to, seconds) = (place.web.to_string(), length.as_secs_f64().to_string());
    let words = [
        "weft-echo",
        "pace",
        "--to",
        &to,
        "--rate",
        RATE,
        "--connections",
        CONNECTIONS,
        "--duration",
        &seconds,
    ];
    let told: Value = serde_json::from_str(&place.lab.exec_ok(place.client, &words)?)?;
    let number = |value: &Value| value.as_f64().ok_or_else(|| anyhow!("weft-echo pace told {told}"));
    Ok(Sample {
        value: number(&told["per_second"])?,
        units: number(&told["requests"])?,
        p50_ms: Some(number(&told["ms"]["p50"])?),
        p99_ms: Some(number(&told["ms"]["p99"])?),
        errors: told["failed"].as_array().map_or(0, Vec::len) as u64,
        ..Sample::default()
    })
}

/// What the proxies of all nodes have used so far, in user and kernel mode.
fn proxy_cpu_s(lab: &Lab) -> Result<f64> {
    let of = |node: String| {
        let file = lab.agent_cgroup(&node).join("cpu.stat");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let usec = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse::<f64>().ok());
        Ok(usec.with_context(|| format!("{} has no usage_usec", file.display()))? / 1e6)
    };
    let each = lab.nodes().into_iter().map(of).collect::<Result<Vec<f64>>>()?;
    ensure!(!each.is_empty(), "a lab without nodes");
    Ok(each.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_understood_with_its_errors() {
        let told = "Running 2s test @ http://10.0.0.1/\n  1 threads and 16 connections\n  \
                    83421 requests in 2.00s, 13.05MB read\n  Socket errors: connect 1, read 2, write 0, timeout 3\n  \
                    Non-2xx or 3xx responses: 4\nRequests/sec:  41700.12\nTransfer/sec:      6.52MB\n";
        let sample = parse_wrk(told).unwrap();
        assert_eq!((sample.value, sample.units, sample.errors), (41700.12, 83421.0, 10));
        assert!(parse_wrk("unable to connect").is_err());
    }
}
