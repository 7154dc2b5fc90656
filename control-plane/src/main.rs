//! The `weft-control` binary: settings, log, signals. Everything else is in the library.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use weft_control::settings::Settings;
use weft_control::source::kinds::crds;

#[derive(Parser)]
#[command(name = "weft-control", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Command {
    /// Print the CustomResourceDefinitions of AuthorizationPolicy and TrafficPolicy, and end
    Crds {
        /// Write a file for each into this directory instead
        #[arg(long)]
        directory: Option<PathBuf>,
    },
}

fn print_crds(directory: Option<PathBuf>) -> anyhow::Result<()> {
    let Some(directory) = directory else {
        print!("{}", crds::text()?);
        return Ok(());
    };
    for (file, text) in crds::files()? {
        let path = directory.join(file);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { command, settings } = Arguments::parse();
    if let Some(Command::Crds { directory }) = command {
        return print_crds(directory);
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let running = weft_control::start(settings).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    running.stop().await;
    Ok(())
}
