//! A Kubernetes cluster on this machine, for tests and for people; `weft-cluster --help` tells all.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, Subcommand};
use weft_e2e::cluster::{Cluster, Families, names, relay};
use weft_e2e::tools::built_beside;

#[derive(Parser)]
#[command(
    version,
    about = "A Kubernetes cluster of two nodes in namespaces of this machine (docs/cluster.md)"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Name of the cluster: several can run side by side
    #[arg(long, global = true, default_value = "weft")]
    name: String,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the cluster up; one that is up and well stays as it is
    Up {
        /// Of which its nodes, pods and Services have addresses; of both, IPv4 comes first
        #[arg(long, value_enum, default_value = "ipv4")]
        ip_family: Families,
    },
    /// Bring Weft into the cluster, or another build of it
    Install {
        /// Where weft, weft-control, weft-node, weft-cni and weft-echo are; by default beside this program
        #[arg(long)]
        binaries: Option<PathBuf>,
    },
    /// Take the cluster down, whatever state it is in, and leave nothing behind
    Down {
        /// All clusters
        #[arg(long)]
        all: bool,
    },
    /// Say what runs, and how what does not run ended
    Status,
    /// Import images, tars in the OCI layout, on every node
    LoadImage {
        #[arg(required = true)]
        images: Vec<PathBuf>,
    },
    /// Print where the kubeconfig is
    Kubeconfig,
    /// Kill a node as if its power went, or a part of the control plane (etcd, kube-apiserver, ...)
    Kill { what: String },
    /// Start a killed node or part again
    Start { what: String },
    /// From an inherited listening socket to an address; `up` starts it
    #[command(hide = true)]
    Relay {
        #[arg(long)]
        listener: i32,
        #[arg(long)]
        to: SocketAddr,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let name = arguments.name.as_str();
    match arguments.command {
        Command::Up { ip_family } => {
            let start = Instant::now();
            let cluster = Cluster::up(name, ip_family)?;
            println!(
                "cluster {name} is up after {:.0} s; export KUBECONFIG={}",
                start.elapsed().as_secs_f32(),
                cluster.kubeconfig().display()
            );
        }
        Command::Install { binaries } => {
            let start = Instant::now();
            let cluster = Cluster::attach(name)?;
            cluster.install_weft(&binaries.unwrap_or_else(built_beside))?;
            println!("Weft runs in cluster {name} after {:.0} s", start.elapsed().as_secs_f32());
        }
        Command::Down { all } => {
            let all_names = if all { names() } else { vec![name.to_owned()] };
            all_names.iter().try_for_each(|name| Cluster::down(name))?;
        }
        Command::Status => println!("{}", Cluster::attach(name)?.status()),
        Command::LoadImage { images } => {
            let cluster = Cluster::attach(name)?;
            images.iter().try_for_each(|image| cluster.load_image(image))?;
        }
        Command::Kubeconfig => println!("{}", Cluster::attach(name)?.kubeconfig().display()),
        Command::Kill { what } => {
            let cluster = Cluster::attach(name)?;
            if cluster.nodes().contains(&what) {
                cluster.kill_node(&what)?;
            } else {
                cluster.kill_part(&what)?;
            }
        }
        Command::Start { what } => {
            let cluster = Cluster::attach(name)?;
            if cluster.nodes().contains(&what) {
                cluster.start_node(&what)?;
            } else {
                cluster.start_part(&what)?;
            }
        }
        Command::Relay { listener, to } => {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(relay::run(listener, to))?;
        }
    }
    Ok(())
}
