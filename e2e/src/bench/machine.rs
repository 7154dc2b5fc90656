//! On what it was measured.

use std::fs;
use std::process::Command;

use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub date: String,
    pub revision: String,
    pub kernel: String,
    pub processor: String,
    pub cores: usize,
    pub memory_gib: f64,
    /// Of the minute before: above a few tenths, others were using the machine.
    pub load_before: f64,
}

impl Machine {
    pub(super) fn look() -> Self {
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
        };
        let kib = field(&file("/proc/meminfo"), "MemTotal");
        let kib: f64 = kib.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default();
        Self {
            date: said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            revision: said("git", &["describe", "--always", "--dirty"]),
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: field(&file("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            memory_gib: (kib / 1024.0 / 1024.0 * 10.0).round() / 10.0,
            load_before: file("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or_default(),
        }
    }
}

/// What a tool answers; empty where it is not there.
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map(|told| String::from_utf8_lossy(&told.stdout).trim().to_owned()).unwrap_or_default()
}
