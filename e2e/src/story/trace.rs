//! Step 7: the trace of one request.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Evidence, clients};
use crate::lab::traces::Span;
use crate::lab::{Lab, wait};

/// From the end of a request until its spans came through the collector.
const SPANS_WAIT_MAX: Duration = Duration::from_secs(10);
/// Of an application that was instrumented: the mesh must take it as the parent.
const APPLICATION_SPAN: &str = "00f067aa0ba902b7";
/// A third of the attempts fail, in turn: three requests meet at least one failure.
const REQUESTS_MAX: u32 = 4;

pub(super) fn one_request(lab: &mut Lab) -> Result<Evidence> {
    let trace = request_with_a_retry(lab)?;
    let spans = wait::until(SPANS_WAIT_MAX, || {
        let spans = lab.traces()?.of(&trace);
        ensure!(spans.len() >= 4, "{} spans of trace {trace} arrived, not 4: {spans:?}", spans.len());
        Ok(spans)
    })?;
    check(&spans)?;
    let way = match lab.traces()?.through_collector() {
        true => "OTLP through an OpenTelemetry collector",
        false => "OTLP, without a collector (`make setup-tests` builds one)",
    };
    let mut evidence = vec![format!("trace {trace}, {way}:")];
    evidence.push(format!("application span {APPLICATION_SPAN}, from the request's traceparent"));
    tree(&spans, APPLICATION_SPAN, 1, &mut evidence);
    Ok(evidence)
}

/// The trace of a request whose first attempt failed.
fn request_with_a_retry(lab: &Lab) -> Result<String> {
    for turn in 1..=REQUESTS_MAX {
        let trace = format!("4bf92f3577b34da6a3ce929d0e0e{turn:04x}");
        let header = format!("traceparent: 00-{trace}-{APPLICATION_SPAN}-01");
        let (status, body) = clients::get(lab, "shop/frontend", "http://flaky/traced", &[&header])?;
        ensure!(status == 200, "answered {status}: {body}");
        let told: Value = serde_json::from_str(&body)?;
        if told["headers"]["x-weft-attempt"].as_str().and_then(|a| a.parse::<u32>().ok()) == Some(2) {
            return Ok(trace);
        }
    }
    anyhow::bail!("none of {REQUESTS_MAX} requests needed a second attempt")
}

fn check(spans: &[Span]) -> Result<()> {
    let clients: Vec<&Span> = spans.iter().filter(|s| s.is_client()).collect();
    let servers: Vec<&Span> = spans.iter().filter(|s| s.is_server()).collect();
    ensure!(clients.len() == 2 && servers.len() == 2, "not two attempts and two answers: {spans:?}");
    ensure!(
        clients.iter().all(|c| c.parent == APPLICATION_SPAN),
        "an attempt has another parent: {clients:?}"
    );
    ensure!(
        clients.iter().all(|c| c.service == "frontend"),
        "the attempts are not the client's: {clients:?}"
    );
    let failed = |s: &Span| s.attribute("http.response.status_code") == "503" && s.is_error;
    let good = |s: &Span| s.attribute("http.response.status_code") == "200" && !s.is_error;
    ensure!(failed(clients[0]) && good(clients[1]), "not a failed attempt and a good one: {clients:?}");
    ensure!(
        clients[1].attribute("http.request.resend_count") == "1",
        "the second is no retry: {:?}",
        clients[1]
    );
    for attempt in clients {
        let server = servers.iter().find(|s| s.parent == attempt.id);
        let server = server.with_context(|| format!("no server span below {attempt:?}"))?;
        ensure!(server.service == "flaky", "the server span is not the server's: {server:?}");
    }
    Ok(())
}

fn tree(spans: &[Span], parent: &str, depth: usize, lines: &mut Evidence) {
    for span in spans.iter().filter(|s| s.parent == parent) {
        let kind = if span.is_client() { "client" } else { "server" };
        let retry = match span.attribute("http.request.resend_count") {
            "" | "0" => String::new(),
            count => format!(", retry {count}"),
        };
        lines.push(format!(
            "{}└─ {kind} span {} of {}: {:?} -> {}{retry}, {:.1} ms{}",
            "   ".repeat(depth - 1),
            span.id,
            span.service,
            span.name,
            span.attribute("http.response.status_code"),
            span.millis(),
            if span.is_error { ", failed" } else { "" },
        ));
        tree(spans, &span.id, depth + 1, lines);
    }
}
