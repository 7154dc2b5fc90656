//! The figures as Markdown.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use super::changes::{Kind, Series};
use super::load::Load;
use super::nodes::NODES;

/// What encloses the figures in a page.
const BEGIN: &str = "<!-- figures of `make bench-scale`: begin -->\n";
const END: &str = "<!-- figures of `make bench-scale`: end -->\n";

/// One build with one load.
#[derive(Default, Clone)]
pub(crate) struct Figures {
    pub(crate) synced_s: f64,
    pub(crate) first_sync_s: f64,
    pub(crate) first_cpu_s: f64,
    /// Of one node.
    pub(crate) first_bytes: usize,
    pub(crate) first_resources: usize,
    pub(crate) peak_mib: f64,
    pub(crate) rest_cores: f64,
    pub(crate) rss_mib: f64,
    pub(crate) pss_mib: f64,
    pub(crate) series: Vec<(Kind, Series)>,
    pub(crate) peak_after_mib: f64,
    pub(crate) rss_after_mib: f64,
}

struct Column {
    build: String,
    services: usize,
    objects: usize,
    pods: usize,
    figures: Figures,
}

pub(crate) struct Report {
    head: String,
    columns: Vec<Column>,
}

/// What a tool answers; empty where it is not there.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|told| String::from_utf8_lossy(&told.stdout).trim().to_owned()).unwrap_or_default()
}

/// The value below which this part of them lies.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

impl Report {
    pub(crate) fn new() -> Self {
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = file("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let load = file("/proc/loadavg");
        let head = format!(
            "Measured {} at revision {}{}: {} cores ({}), Linux {}; load {} before the start. API server, etcd, weft-control and the {NODES} \
             nodes share these cores.\n",
            said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            said("git", &["describe", "--always", "--dirty"]),
            if cfg!(debug_assertions) { ", NOT OPTIMISED" } else { "" },
            std::thread::available_parallelism().map_or(0, Into::into),
            cpu.trim_start_matches([':', ' ', '\t']),
            file("/proc/sys/kernel/osrelease").trim(),
            load.split(' ').next().unwrap_or_default(),
        );
        Self { head, columns: Vec::new() }
    }

    pub(crate) fn add(&mut self, build: &str, services: usize, load: &Load, figures: Figures) {
        let (objects, pods) = (load.objects(), load.pods.len());
        self.columns.push(Column { build: build.to_owned(), services, objects, pods, figures });
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = self.head.clone();
        let mut builds: Vec<&str> = self.columns.iter().map(|column| column.build.as_str()).collect();
        builds.dedup();
        builds.sort_unstable();
        builds.dedup();
        for build in builds {
            let columns: Vec<&Column> = self.columns.iter().filter(|column| column.build == build).collect();
            let _ = write!(text, "\n### At scale: {build}\n\n{}", first(&columns));
            text += "\n| a change of | Services | ACK of each node p50 / p99 (ms) | of the last node p50 / p99 (ms) | nodes | resources per node | \
                     bytes per delta | control plane CPU (ms) |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n";
            for kind in Kind::ALL {
                for column in &columns {
                    let found = column.figures.series.iter().find(|(of, _)| *of == kind);
                    if let Some((_, series)) = found {
                        text += &row(kind, column.services, series);
                    }
                }
            }
        }
        text
    }
}

fn first(columns: &[&Column]) -> String {
    type Cell = fn(&Column) -> String;
    let rows: [(&str, Cell); 11] = [
        ("pods; objects in all", |c| format!("{}; {}", c.pods, c.objects)),
        ("start of weft-control → every kind listed (s)", |c| format!("{:.1}", c.figures.synced_s)),
        ("start → the last node acknowledged its first state (s)", |c| {
            format!("{:.1}", c.figures.first_sync_s)
        }),
        ("CPU until then (s)", |c| format!("{:.1}", c.figures.first_cpu_s)),
        ("first state of a node: resources", |c| c.figures.first_resources.to_string()),
        ("first state of a node: MB", |c| format!("{:.1}", c.figures.first_bytes as f64 / 1e6)),
        ("peak memory until then (RSS, MiB)", |c| format!("{:.0}", c.figures.peak_mib)),
        ("memory at rest (RSS / PSS, MiB)", |c| {
            format!("{:.0} / {:.0}", c.figures.rss_mib, c.figures.pss_mib)
        }),
        ("CPU at rest (cores)", |c| format!("{:.3}", c.figures.rest_cores)),
        ("memory after all changes (RSS, MiB)", |c| format!("{:.0}", c.figures.rss_after_mib)),
        ("peak in all (RSS, MiB)", |c| format!("{:.0}", c.figures.peak_after_mib)),
    ];
    let titles: Vec<String> = columns.iter().map(|column| format!("{} Services", column.services)).collect();
    let mut text = format!("| | {} |\n|{}\n", titles.join(" | "), " --- |".repeat(columns.len() + 1));
    for (title, cell) in rows {
        let cells: Vec<String> = columns.iter().map(|column| cell(column)).collect();
        let _ = writeln!(text, "| {title} | {} |", cells.join(" | "));
    }
    text
}

fn row(kind: Kind, services: usize, series: &Series) -> String {
    let Series { each_ms, last_ms, changes, deltas, bytes, resources, touched, cpu_ms, .. } = series;
    let per = |whole: usize, of: usize| whole as f64 / of.max(1) as f64;
    format!(
        "| {} | {services} | {:.1} / {:.1} | {:.1} / {:.1} | {:.0} | {:.1} | {:.0} | {:.2} |\n",
        kind.name(),
        quantile(each_ms, 0.5),
        quantile(each_ms, 0.99),
        quantile(last_ms, 0.5),
        quantile(last_ms, 0.99),
        per(*touched, *changes),
        per(*resources, *touched),
        per(*bytes, *deltas),
        cpu_ms / *changes as f64,
    )
}

/// Replaces the figures between the page's marks.
pub(crate) fn into_page(page: &Path, figures: &str) {
    // Cargo runs a benchmark in its package's directory.
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page);
    let text = std::fs::read_to_string(&workspace).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the page has no mark where figures begin");
    let (_, after) = rest.split_once(END).expect("the page has no mark where figures end");
    std::fs::write(&workspace, format!("{before}{BEGIN}\n{figures}\n{END}{after}")).unwrap();
}
