//! The `weft` command: a mesh on this machine (`weft lab`), and what a mesh says of itself (`weft status`).
//!
//! It owns the command line and how answers look; what it does is in `weft-e2e`'s lab and in the binaries' admin
//! endpoints. Start reading at [`Command`].

mod bench;
mod demo;
mod lab;
mod status;
mod summary;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

#[derive(Debug, Parser)]
#[command(name = "weft", version, about = "Weft: a service mesh without sidecars")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A mesh on this machine: nodes and pods as network namespaces, real kernel hooks
    #[command(subcommand)]
    Lab(lab::Command),
    /// The story of a mesh of two nodes on this machine, told with evidence: nine steps, each of them checked
    Demo(demo::Arguments),
    /// What the control plane and the nodes of a mesh say of themselves
    Status(status::Arguments),
    /// Measure a mesh on this machine against no mesh
    Bench(bench::Arguments),
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
}

fn main() -> ExitCode {
    let level = tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr).without_time().init();
    let result = match Arguments::parse().command {
        Command::Lab(command) => lab::run(command),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Status(arguments) => status::run(&arguments).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("weft: {error:#}");
        ExitCode::FAILURE
    })
}
