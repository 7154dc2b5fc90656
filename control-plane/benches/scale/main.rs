//! The control plane at scale: a real API server full of objects, and a hundred nodes that take every delta and acknowledge it.
//!
//! `api_server` (of the tests) starts the API server, `load` fills it, `nodes` are the nodes' side of the real protocol, `process` watches
//! `weft-control` from outside, `changes` makes one change after another and waits for its ACKs, `report` writes it down.
//! Start reading at [`measure`]; `docs/benchmarks.md` explains the figures.
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark ends where something is not as it should be, like a test"
)]

#[path = "../../tests/kubernetes/api_server.rs"]
#[expect(dead_code, reason = "the tests of outages use the rest")]
mod api_server;
mod changes;
mod load;
mod nodes;
mod process;
mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use kube::Client;

use self::api_server::ApiServer;
use self::changes::Kind;
use self::load::Load;
use self::nodes::{NODES, Nodes};
use self::process::Process;
use self::report::{Figures, Report};

/// Of the first state, with a build that is not optimised and a machine that is shared.
const FIRST_SYNC_WAIT_MAX: Duration = Duration::from_secs(600);
/// How long `weft-control` is watched at rest.
const REST: Duration = Duration::from_secs(10);

/// Measures weft-control against a real Kubernetes API server and 100 simulated nodes
#[derive(Debug, Parser)]
#[command(after_help = "Example: cargo bench -p weft-control --bench scale -- --page docs/benchmarks.md")]
struct Arguments {
    /// Numbers of Services, in rising order; each has 10 endpoints
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000])]
    services: Vec<usize>,
    /// Changes of each kind; of a namespace's label a tenth
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// Measure this build of weft-control [default: the one built with this benchmark]
    #[arg(long, default_value = env!("CARGO_BIN_EXE_weft-control"), hide_default_value = true)]
    binary: PathBuf,
    /// Another build of weft-control to measure first, on the same API server
    #[arg(long, value_name = "BINARY")]
    before: Option<PathBuf>,
    /// Replace the figures in a page such as docs/benchmarks.md
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// Said by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let mut builds = vec![("this build", arguments.binary)];
    if let Some(before) = arguments.before {
        builds.insert(0, ("before", before));
    }
    let mut report = Report::new();
    // Everything comes from one user on one machine: fair shares between users and flows have no meaning here.
    let server = ApiServer::start(&["--enable-priority-and-fairness=false"]).await;
    let client = server.client().await;
    let mut load = Load::begin(client.clone()).await;
    for &services in &arguments.services {
        let began = Instant::now();
        let requests = load.grow_to(services).await;
        eprintln!(
            "scale: {services} Services: {requests} requests in {:.0} s",
            began.elapsed().as_secs_f64()
        );
        for (build, binary) in &builds {
            let figures = measure(&server, &client, &load, binary, arguments.changes).await;
            eprintln!(
                "scale: {build}: first sync {:.1} s, {:.0} MiB",
                figures.first_sync_s, figures.peak_mib
            );
            report.add(build, services, &load, figures);
        }
    }
    let text = report.markdown();
    println!("{text}");
    if let Some(page) = arguments.page {
        report::into_page(&page, &text);
    }
}

/// One build with one load: from its start to the last change.
async fn measure(server: &ApiServer, client: &Client, load: &Load, binary: &Path, changes: usize) -> Figures {
    let tokens = load.tokens().await;
    let began = Instant::now();
    let process = Arc::new(Process::start(server, binary));
    let nodes = Nodes::connect(client, process.address, tokens).await;
    let mut figures = Figures::default();
    let first = nodes.first(FIRST_SYNC_WAIT_MAX).await;
    figures.synced_s = process.synced_s();
    figures.first_sync_s = (first.last - began).as_secs_f64();
    figures.first_bytes = first.bytes;
    figures.first_resources = first.resources;
    figures.first_cpu_s = process.cpu().as_secs_f64();
    figures.peak_mib = process.peak_mib();
    process.settle().await;
    let before = process.cpu();
    tokio::time::sleep(REST).await;
    figures.rest_cores = (process.cpu() - before).as_secs_f64() / REST.as_secs_f64();
    (figures.rss_mib, figures.pss_mib) = process.memory_mib();
    for kind in Kind::ALL {
        let times = if kind == Kind::NamespaceLabel { changes.div_ceil(10) } else { changes };
        let series = changes::series(kind, times, client, load, &nodes, &process).await;
        figures.series.push((kind, series));
    }
    figures.peak_after_mib = process.peak_mib();
    figures.rss_after_mib = process.memory_mib().0;
    assert_eq!(nodes.connected(), NODES, "a node lost its stream");
    figures
}
