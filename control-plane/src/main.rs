//! The `weft-control` binary: settings, log, signals. Everything else is in the library.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use weft_admin::Address;
use weft_control::admin;
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
    /// Print a page of the admin endpoint of the running weft-control
    #[command(
        after_help = "Exit code 1 and the text on stderr where the page says that something is wrong, as /readyz may."
    )]
    Admin {
        /// The page, such as /status, /metrics or /readyz
        page: String,
        /// Where the endpoint listens [default: unix:/run/weft/admin.sock if it is there, else 127.0.0.1:15014]
        #[arg(long, env = "WEFT_ADMIN")]
        admin: Option<Address>,
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
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a backtrace, also where RUST_BACKTRACE asks for those of panics: it is the user's mistake, in words.
            eprintln!("weft-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let Arguments { command, settings } = Arguments::parse();
    match command {
        Some(Command::Crds { directory }) => return print_crds(directory),
        Some(Command::Admin { page, admin }) => {
            let address = admin.unwrap_or_else(admin::default_address);
            let body = weft_admin::ask(&address, &page).await.with_context(|| page)?;
            return std::io::stdout().write_all(&body).context("cannot print the page");
        }
        None => {}
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Colours are for people: a file, a pipe or the journal gets plain text.
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
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
