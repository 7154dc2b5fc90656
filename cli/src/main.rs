//! The `weft` command: Weft on a Kubernetes cluster (`install`, `check`, `uninstall`), a mesh on this machine (`lab`), and what
//! either says of itself (`status`, `config`).
//!
//! It owns the command line and how answers look; what it does is in `kubernetes`, in `weft-e2e`'s lab and in the binaries'
//! admin endpoints. Start reading at [`Command`].

/// `println!` without its panic where nobody reads: an error, which ends the command as if it were done.
macro_rules! say {
    ($($shown:tt)*) => { $crate::write(&format!("{}\n", format_args!($($shown)*))) };
}

/// Tells how work goes on that goes on whether or not somebody reads.
macro_rules! tell {
    ($($shown:tt)*) => { let _ = say!($($shown)*); };
}

mod bench;
mod clocks;
mod config;
mod demo;
mod kubernetes;
mod lab;
mod mesh;
mod replicas;
mod status;
mod summary;
mod table;
mod verbose;

use std::io::Write as _;
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
    /// Install Weft into a Kubernetes cluster, or upgrade it
    Install(kubernetes::InstallArguments),
    /// Say in words what is wrong with a cluster for Weft, and with Weft in it
    Check(kubernetes::CheckArguments),
    /// Remove Weft from a Kubernetes cluster: hooks, maps and CNI entries of every node, then all else
    Uninstall(kubernetes::UninstallArguments),
    /// What the control plane and the nodes of a mesh say of themselves
    Status(status::Arguments),
    /// What the proxy of a pod's node holds for that pod: identity, policies, services, routes, endpoints
    Config(config::Arguments),
    /// A mesh on this machine: nodes and pods as network namespaces, real kernel hooks
    #[command(subcommand)]
    Lab(lab::Command),
    /// The story of a mesh of two nodes on this machine, told with evidence: nine steps, each of them checked
    Demo(demo::Arguments),
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

/// The Kubernetes client logs what it returns as an error besides.
const LOG: &str = "warn,kube_client=off";

/// Whoever reads has enough, as `head` does: no error.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// To standard output, unlike `print!` without a panic where nobody reads.
fn write(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())?;
    Ok(())
}

fn main() -> ExitCode {
    let level = tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG").unwrap_or_else(|_| LOG.into());
    tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr).without_time().init();
    let done = |()| ExitCode::SUCCESS;
    let result = match Arguments::parse().command {
        Command::Install(arguments) => kubernetes::install(&arguments).map(done),
        Command::Check(arguments) => kubernetes::check(&arguments),
        Command::Uninstall(arguments) => kubernetes::uninstall(&arguments).map(done),
        Command::Config(arguments) => config::run(&arguments).map(done),
        Command::Lab(command) => lab::run(command),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Status(arguments) => status::run(&arguments).map(done),
    };
    result.unwrap_or_else(|error| {
        if is_closed_pipe(&error) {
            return ExitCode::SUCCESS;
        }
        eprintln!("weft: {error:#}");
        ExitCode::FAILURE
    })
}
