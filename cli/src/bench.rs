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
    /// Replace the figures in a page such as docs/benchmarks.md
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

/// What encloses the figures in a page.
const BEGIN: &str = "<!-- figures of `weft bench`: begin -->\n";
const END: &str = "<!-- figures of `weft bench`: end -->\n";

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments { quick, rounds, only, json, page } = arguments;
    let old = page.as_ref().map(fs::read_to_string).transpose().context("--page")?;
    let report = bench::run(&Settings { quick, rounds, only }, |what| eprintln!("bench: {what}"))?;
    if let Some(file) = json {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(&file, text).with_context(|| file.display().to_string())?;
    }
    if let (Some(file), Some(old)) = (page, old) {
        fs::write(&file, with_figures(&old, &report.markdown())?)
            .with_context(|| file.display().to_string())?;
    }
    crate::write(&report.markdown())?;
    // Figures of a mesh that drops requests are worth nothing.
    Ok(if report.errors() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The page with new figures between its marks.
fn with_figures(page: &str, figures: &str) -> Result<String> {
    let (before, rest) = page.split_once(BEGIN).context("the page has no mark where figures begin")?;
    let (_, after) = rest.split_once(END).context("the page has no mark where figures end")?;
    Ok(format!("{before}{BEGIN}\n{figures}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_replace_figures_and_nothing_else() {
        let page = |figures: &str| format!("text\n{BEGIN}\n{figures}\n{END}more\n");
        assert_eq!(with_figures(&page("old"), "new").unwrap(), page("new"));
        assert!(with_figures("text", "new").is_err());
    }
}
