//! Telemetry under bad conditions, and its names: a sink that fails costs what it was given and nothing else.

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weft_e2e::fixture::{self, MESH, Running, anonymous_mib};
use weft_e2e::lab::{Lab, Options, UNDERLAY_IP, netns, wait};
use weft_e2e::story::clients::{count, echo};

const WAIT_MAX: Duration = Duration::from_secs(30);
/// Where the collector is; OTLP's usual port is taken where a real one runs.
const COLLECTOR_PORT: u16 = 4399;
/// Both queues full: 2,048 spans and 4,096 log lines of some hundred bytes, and a batch on its way; besides them the
/// load itself.
const GROWN_MIB_MAX: f64 = 24.0;

fn lab(name: &str) -> Result<Lab> {
    let env = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let options = Options {
        // A disk that is full takes the file and no line.
        node_args: vec!["--access-log=all".into(), "--access-log-file=/dev/full".into()],
        node_env: vec![
            env("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{UNDERLAY_IP}:{COLLECTOR_PORT}")),
            env("OTEL_TRACES_SAMPLER", "always_on"),
            env("OTEL_BSP_SCHEDULE_DELAY", "100"),
            env("OTEL_BSP_EXPORT_TIMEOUT", "2000"),
            env("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
        ],
        ..Options::default()
    };
    fixture::up(name, MESH, options)
}

/// A collector that takes connections and reads nothing, until it is killed: dropping it resets them.
struct Blocked {
    _stop: mpsc::Sender<()>,
    accepted: mpsc::Receiver<()>,
}

fn blocked(lab: &Lab) -> Result<Blocked> {
    let listener = netns::inside(&lab.underlay_netns(), || TcpListener::bind(("0.0.0.0", COLLECTOR_PORT)))??;
    listener.set_nonblocking(true)?;
    let (stop, stopped) = mpsc::channel::<()>();
    let (tell, accepted) = mpsc::channel();
    std::thread::spawn(move || {
        let mut held: Vec<TcpStream> = Vec::new();
        while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(Duration::from_millis(10)) {
            while let Ok((stream, _)) = listener.accept() {
                held.push(stream);
                // Whoever waits has heard of the first one.
                let _ = tell.send(());
            }
        }
    });
    Ok(Blocked { _stop: stop, accepted })
}

#[test]
fn a_blocked_then_killed_collector_and_a_full_disk_cost_spans_and_lines_only() -> Result<()> {
    let lab = lab("sinks")?;
    let collector = blocked(&lab)?;
    for url in ["http://near/", "http://far/"] {
        echo(&lab, "mesh/client", &["load", "--url", url, "--requests", "50"])?;
    }
    let nodes = lab.nodes();
    let before = nodes.iter().map(|node| anonymous_mib(&lab, node)).collect::<Result<Vec<_>>>()?;
    let load = |url: &str| {
        Running::start(&lab, "mesh/client", &["load", "--url", url, "--duration", "20", "--connections", "4"])
    };
    let loads = [load("http://far/")?, load("http://near/")?];
    collector.accepted.recv_timeout(WAIT_MAX).context("nobody came to the collector")?;
    let dropped = |node: &str, cause: &str| {
        let metric = |name| lab.node_admin(node).metric(name, &[cause]);
        Ok::<_, anyhow::Error>((
            metric("weft_spans_dropped_total")?,
            metric("weft_access_log_dropped_total")?,
        ))
    };
    let more_dropped = |cause: &str| {
        for node in &nodes {
            let before = dropped(node, cause)?.0;
            wait::until(WAIT_MAX, || {
                let now = dropped(node, cause)?.0;
                ensure!(now > before, "{node} has dropped no span more: {now}");
                Ok(())
            })?;
        }
        Ok::<_, anyhow::Error>(())
    };
    more_dropped("cause")?;
    drop(collector);
    more_dropped("cause")?;
    for (node, before) in nodes.iter().zip(before) {
        let now = anonymous_mib(&lab, node)?;
        ensure!(now <= before + GROWN_MIB_MAX, "{node} grew from {before:.1} to {now:.1} MiB");
        let (_, lines) = dropped(node, "cause")?;
        ensure!(lines > 0.0, "{node} counted no access log line as dropped");
        let exported = lab.node_admin(node).metric("weft_spans_exported_total", &[])?;
        ensure!(exported == 0.0, "{exported} spans went to nobody");
    }
    for load in loads {
        let told = load.told()?;
        ensure!(told["failed"] == 0 && count(&told, "/ok") > 100, "{told}");
    }
    Ok(())
}

/// The families in the table of `docs/telemetry.md`.
fn documented() -> BTreeSet<&'static str> {
    let page = include_str!("../../docs/telemetry.md");
    let name = |line: &'static str| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name);
    let is_family =
        |name: &&str| ["weft_", "istio_", "process_"].iter().any(|prefix| name.starts_with(prefix));
    page.lines().filter_map(name).filter(is_family).collect()
}

#[test]
fn a_running_node_shows_every_documented_metric_and_no_other() -> Result<()> {
    let lab = lab("metrics")?;
    for url in ["http://near/", "http://far/"] {
        echo(&lab, "mesh/client", &["load", "--url", url, "--requests", "10"])?;
    }
    for to in ["near:9000", "far:9000"] {
        echo(&lab, "mesh/client", &["tcp", "--to", to, "--mode", "short", "--count", "4"])?;
    }
    for node in lab.nodes() {
        let text = lab.node_admin(&node).text("/metrics")?;
        let shown: BTreeSet<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let documented = documented();
        let missing: Vec<_> = documented.difference(&shown).collect();
        let unknown: Vec<_> = shown.difference(&documented).collect();
        ensure!(missing.is_empty(), "{node} does not show {missing:?}");
        ensure!(unknown.is_empty(), "{node} shows what docs/telemetry.md does not name: {unknown:?}");
    }
    Ok(())
}

const AUDIT: &str = "apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: watch, namespace: mesh}
spec:
  selector: {matchLabels: {app: server}}
  action: AUDIT
  rules:
  - to:
    - ports: [9000]
";

/// Lines of the servers' side of connections to this port that name an AUDIT policy, and all of them.
fn audited(lab: &Lab, node: &str, port: u16) -> Result<(usize, usize)> {
    let log = std::fs::read_to_string(lab.access_log(node))?;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let to_port = |line: &serde_json::Value| {
        let address = line["destination_address"].as_str().unwrap_or_default();
        address.ends_with(&format!(":{port}")) && line["reporter"] == "destination"
    };
    let lines: Vec<_> = lines.filter(to_port).filter(|line| line["kind"] == "connection").collect();
    let named = |line: &&serde_json::Value| {
        let audited = line["audited"].as_array();
        audited.is_some_and(|by| by.iter().any(|by| by == "mesh/watch")) && line["reason"] == "ok"
    };
    Ok((lines.iter().filter(named).count(), lines.len()))
}

#[test]
fn an_audit_of_connections_is_told_and_changes_nothing() -> Result<()> {
    let lab = fixture::up("audit", MESH, Options::default())?;
    let short = |to: &str| {
        let short = ["tcp", "--to", to, "--mode", "short", "--count", "4", "--parallel", "2"];
        echo(&lab, "mesh/client", &short)
    };
    for (server, node) in [("near", "node1"), ("far", "node2")] {
        short(&format!("{server}:9000"))?;
        wait::until(WAIT_MAX, || {
            let (named, all) = audited(&lab, node, 9000)?;
            ensure!(named == 0 && all >= 4, "{node}, before the policy: {named} of {all} audited");
            Ok(())
        })?;
    }
    lab.write_manifest("policy", AUDIT)?;
    for (server, node) in [("near", "node1"), ("far", "node2")] {
        // Nobody is refused, before or after; some day soon they are named.
        wait::until(WAIT_MAX, || {
            short(&format!("{server}:9000"))?;
            let (named, all) = audited(&lab, node, 9000)?;
            ensure!(named > 0, "{node}: none of {all} connections audited");
            Ok(())
        })?;
        // A port that the policy does not name.
        echo(&lab, "mesh/client", &["tcp", "--to", &format!("{server}:9001"), "--mode", "greet"])?;
        wait::until(WAIT_MAX, || {
            let (named, all) = audited(&lab, node, 9001)?;
            ensure!(named == 0 && all >= 1, "{node}, another port: {named} of {all} audited");
            Ok(())
        })?;
    }
    Ok(())
}
