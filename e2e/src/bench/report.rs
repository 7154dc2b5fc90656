//! The figures as Markdown and JSON: medians over the rounds, the ratio to no mesh, and how far the rounds lie apart.

use std::fmt::Write as _;

use serde::Serialize;

use super::machine::Machine;
use super::memory::Memory;
use super::{Sample, Series, Variant, Way, What};

/// Everything that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub rounds: u32,
    pub round_s: f64,
    pub seconds: f64,
    pub series: Vec<Series>,
    pub memory: Vec<Memory>,
}

const COLUMNS: [(Variant, &str); 5] = [
    (Variant::NoMesh, "no mesh"),
    (Variant::L4, "L4"),
    (Variant::L4RedirectOff, "L4, redirect off"),
    (Variant::L7, "L7"),
    (Variant::L7RedirectOff, "L7, redirect off"),
];

impl Report {
    /// Requests that failed, in all.
    pub fn errors(&self) -> u64 {
        self.series.iter().flat_map(|series| &series.samples).map(|sample| sample.errors).sum()
    }

    pub fn markdown(&self) -> String {
        let mut text = self.head();
        for (way, title) in [(Way::CrossNode, "Cross node"), (Way::SameNode, "Same node")] {
            if self.series.iter().any(|series| series.way == way) {
                let _ = write!(text, "\n### {title}\n\n{}", self.speed(way));
                let _ = write!(text, "\n### {title}: processor seconds of both proxies\n\n{}", self.cpu(way));
            }
        }
        if !self.memory.is_empty() {
            let _ = write!(text, "\n### Memory of a proxy (PSS, MiB)\n\n{}", self.memory());
        }
        text
    }

    fn head(&self) -> String {
        let Machine { date, revision, kernel, processor, cores, memory_gib, load_before } = &self.machine;
        format!(
            "Measured {date} at revision {revision}: {cores} cores ({processor}), {memory_gib} GiB, Linux {kernel}; \
             load {load_before} before the start; {} rounds of {} s; {:.0} s in all; {} requests failed.\n",
            self.rounds,
            self.round_s,
            self.seconds,
            self.errors()
        )
    }

    fn find(&self, way: Way, what: What, variant: Variant) -> Option<&[Sample]> {
        let found = self.series.iter().find(|s| (s.way, s.what, s.variant) == (way, what, variant))?;
        (!found.samples.is_empty()).then_some(&found.samples)
    }

    fn speed(&self, way: Way) -> String {
        type Of = fn(&Sample) -> f64;
        let value: Of = |sample| sample.value;
        let rows: [(&str, What, usize, Of); 6] = [
            ("TCP, 1 stream (Gbit/s)", What::Throughput { streams: 1 }, 1, value),
            ("TCP, 4 streams (Gbit/s)", What::Throughput { streams: 4 }, 1, value),
            ("requests/s, keep-alive", What::Requests, 0, value),
            ("p50 at 1,000/s (ms)", What::Latency, 2, |sample| sample.p50_ms.unwrap_or_default()),
            ("p99 at 1,000/s (ms)", What::Latency, 2, |sample| sample.p99_ms.unwrap_or_default()),
            ("new connections/s", What::Connections, 0, value),
        ];
        let rows = rows.into_iter().filter_map(|(title, what, digits, of)| {
            let base = median(self.find(way, what, Variant::NoMesh)?.iter().map(of));
            Some((
                title,
                self.cells(way, what, |variant, samples| {
                    let ratio = median(samples.iter().map(of)) / base;
                    let ratio =
                        if variant == Variant::NoMesh { String::new() } else { format!(" **×{ratio:.2}**") };
                    format!("{}{ratio}", with_spread(samples.iter().map(of), digits))
                }),
            ))
        });
        table(rows)
    }

    fn cpu(&self, way: Way) -> String {
        let rows = [
            ("per GB, 1 stream", What::Throughput { streams: 1 }, 1.0),
            ("per GB, 4 streams", What::Throughput { streams: 4 }, 1.0),
            ("per 100,000 requests", What::Requests, 1e5),
            ("per 100,000 requests at 1,000/s", What::Latency, 1e5),
            ("per 100,000 connections", What::Connections, 1e5),
        ];
        let rows = rows.into_iter().filter_map(|(title, what, scale)| {
            self.find(way, what, Variant::NoMesh)?;
            Some((
                title,
                self.cells(way, what, |variant, samples| {
                    if variant == Variant::NoMesh {
                        return "–".into();
                    }
                    with_spread(samples.iter().map(|s| s.proxy_cpu_s / s.units * scale), 2)
                }),
            ))
        });
        table(rows)
    }

    fn cells(&self, way: Way, what: What, cell: impl Fn(Variant, &[Sample]) -> String) -> Vec<String> {
        let of =
            |(variant, _)| self.find(way, what, variant).map_or_else(|| "–".into(), |s| cell(variant, s));
        COLUMNS.into_iter().map(of).collect()
    }

    fn memory(&self) -> String {
        let mut text =
            "| pods on the node | node | idle | after load | 10 s later |\n| --- | --- | --- | --- | --- |\n"
                .to_owned();
        for Memory { pods, node, idle_mib, loaded_mib, after_mib } in &self.memory {
            let role = if node == "node1" { "clients" } else { "servers" };
            let _ = writeln!(text, "| {pods} | {role} | {idle_mib:.1} | {loaded_mib:.1} | {after_mib:.1} |");
        }
        text
    }
}

fn table<'a>(rows: impl Iterator<Item = (&'a str, Vec<String>)>) -> String {
    let titles = COLUMNS.map(|(_, title)| title).join(" | ");
    let mut text = format!("| | {titles} |\n|{}\n", " --- |".repeat(COLUMNS.len() + 1));
    for (title, cells) in rows {
        let _ = writeln!(text, "| {title} | {} |", cells.join(" | "));
    }
    text
}

/// `median (least–most)`.
fn with_spread(values: impl Iterator<Item = f64>, digits: usize) -> String {
    let values: Vec<f64> = values.collect();
    let middle = median(values.iter().copied());
    if values.len() == 1 {
        return format!("{middle:.digits$}");
    }
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{middle:.digits$} ({least:.digits$}–{most:.digits$})")
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median(std::iter::empty()).is_nan());
    }

    #[test]
    fn a_figure_stands_beside_its_ratio_and_spread() {
        let sample = |value| Sample { value, units: 1.0, ..Sample::default() };
        let series = |variant, values: [f64; 3]| Series {
            way: Way::CrossNode,
            what: What::Requests,
            variant,
            samples: values.map(sample).to_vec(),
        };
        let report = Report {
            machine: Machine::look(),
            rounds: 3,
            round_s: 1.0,
            seconds: 1.0,
            series: vec![
                series(Variant::NoMesh, [90.0, 100.0, 110.0]),
                series(Variant::L4, [50.0, 40.0, 60.0]),
            ],
            memory: Vec::new(),
        };
        let text = report.markdown();
        assert!(
            text.contains("| requests/s, keep-alive | 100 (90–110) | 50 (40–60) **×0.50** | – |"),
            "{text}"
        );
    }
}
