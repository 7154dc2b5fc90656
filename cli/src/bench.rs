//! `weft bench`: measures the mesh against no mesh on this machine.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use weft_e2e::bench::{self, Settings};

#[derive(Debug, Args)]
#[command(after_help = "Example: weft bench --only 'cross-node requests'\n\n\
    The figures are Markdown on standard output; docs/benchmarks.md explains them.")]
pub(crate) struct Arguments {
    /// One short round, in less than a minute; its figures are noise
    #[arg(long)]
    quick: bool,
    /// Rounds; each measures everything once
    #[arg(long)]
    rounds: Option<u32>,
    /// Only what contains this, such as same-node, tcp-1, tcp-4, requests, latency, connections or memory
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Write every single measurement to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments { quick, rounds, only, json } = arguments;
    let report = bench::run(&Settings { quick, rounds, only }, |what| eprintln!("bench: {what}"))?;
    print!("{}", report.markdown());
    if let Some(file) = json {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(&file, text).with_context(|| file.display().to_string())?;
    }
    // Figures of a mesh that drops requests are worth nothing.
    Ok(if report.errors() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
