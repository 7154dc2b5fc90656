//! The benchmark: the same clients and servers in the mesh and outside it, in the same run, turn by turn.
//!
//! A ratio to no mesh, of rounds that took turns, is what can be compared between machines; a figure alone cannot.
//! `scene` says what runs where, `tools` what measures, `memory` watches the proxies' memory, `report` writes it down.
//! Start reading at [`run`]; `docs/benchmarks.md` explains the figures.

mod machine;
mod memory;
mod report;
mod scene;
mod tools;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

pub use report::Report;
use scene::Scene;

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// One short round, to see that it works; its figures are noise.
    pub quick: bool,
    /// Rounds; None: as many as the budget of five minutes has room for.
    pub rounds: Option<u32>,
    /// Only measurements whose name contains this.
    pub only: Option<String>,
}

const ROUNDS: u32 = 3;
const ROUND: Duration = Duration::from_millis(1500);
const ROUND_QUICK: Duration = Duration::from_millis(500);

/// From where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    CrossNode,
    SameNode,
}

/// What carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// The pods' network and nothing else.
    NoMesh,
    /// The port is declared `tcp`: bytes are carried and not looked at.
    L4,
    /// ... and `--redirect=off`: the legs between application and proxy go through the TCP/IP stack.
    L4RedirectOff,
    /// The port is declared `http`: route, balance, retry, policy and telemetry for each request.
    L7,
    L7RedirectOff,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// iperf3, client to server.
    Throughput { streams: u32 },
    /// wrk, as many as it can.
    Requests,
    /// `weft-echo pace`, 1,000 a second.
    Latency,
    /// wrk, one request per connection.
    Connections,
}

/// One measurement of one round.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sample {
    /// Gbit/s, or requests or connections a second; the rate that was kept, for latencies.
    pub value: f64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Gigabytes, requests or connections.
    pub units: f64,
    /// Processor seconds of the proxies of both nodes meanwhile.
    pub proxy_cpu_s: f64,
    /// Requests that failed.
    pub errors: u64,
}

/// All rounds of one measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    pub way: Way,
    pub what: What,
    pub variant: Variant,
    pub samples: Vec<Sample>,
}

impl What {
    const ALL: [Self; 5] = [
        Self::Throughput { streams: 1 },
        Self::Throughput { streams: 4 },
        Self::Requests,
        Self::Latency,
        Self::Connections,
    ];

    /// Whether HTTP matters to it.
    fn variants(self) -> &'static [Variant] {
        use Variant::{L4, L4RedirectOff, L7, L7RedirectOff, NoMesh};
        match self {
            Self::Throughput { .. } => &[NoMesh, L4, L4RedirectOff],
            _ => &[NoMesh, L4, L4RedirectOff, L7, L7RedirectOff],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Throughput { streams: 1 } => "tcp-1",
            Self::Throughput { .. } => "tcp-4",
            Self::Requests => "requests",
            Self::Latency => "latency",
            Self::Connections => "connections",
        }
    }
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::CrossNode => "cross-node",
            Self::SameNode => "same-node",
        }
    }
}

/// Measures everything. `progress` is told what goes on.
pub fn run(settings: &Settings, mut progress: impl FnMut(&str)) -> Result<Report> {
    let began = Instant::now();
    let wanted = |name: &str| settings.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let machine = machine::Machine::look();
    let mut series = series(&wanted);
    let rounds = settings.rounds.unwrap_or(if settings.quick { 1 } else { ROUNDS });
    let length = if settings.quick { ROUND_QUICK } else { ROUND };
    if !series.is_empty() {
        progress("two meshes, one with and one without redirect");
        let scene = Scene::up().context("the labs")?;
        for round in 0..rounds {
            measure(&scene, &mut series, round, length, &mut |what| {
                progress(&format!("round {} of {rounds}: {what}", round + 1));
            })?;
        }
        scene.down()?;
    }
    let memory = if wanted("memory") { memory::measure(settings.quick, &mut progress)? } else { Vec::new() };
    Ok(Report {
        machine,
        rounds,
        round_s: length.as_secs_f64(),
        seconds: began.elapsed().as_secs_f64(),
        series,
        memory,
    })
}

fn series(wanted: &impl Fn(&str) -> bool) -> Vec<Series> {
    let mut all = Vec::new();
    for way in [Way::CrossNode, Way::SameNode] {
        for what in What::ALL {
            if !wanted(&format!("{} {}", way.name(), what.name())) {
                continue;
            }
            let of = |&variant| Series { way, what, variant, samples: Vec::new() };
            all.extend(what.variants().iter().map(of));
        }
    }
    all
}

/// One round. The variants of a measurement follow each other at once, every other round in the opposite order, so
/// that a machine that grows slower or faster meanwhile favours none.
fn measure(
    scene: &Scene,
    series: &mut [Series],
    round: u32,
    length: Duration,
    progress: &mut impl FnMut(&str),
) -> Result<()> {
    for group in series.chunk_by_mut(|a, b| (a.way, a.what) == (b.way, b.what)) {
        progress(&format!("{} {}", group[0].way.name(), group[0].what.name()));
        let mut order: Vec<&mut Series> = group.iter_mut().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for one in order {
            let place = scene.place(one.way, one.variant);
            let sample = tools::measure(&place, one.what, length)
                .with_context(|| format!("{} {}, {:?}", one.way.name(), one.what.name(), one.variant))?;
            one.samples.push(sample);
        }
    }
    Ok(())
}
