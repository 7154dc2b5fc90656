//! `weft check`: what is wrong, or would be, in words. Facts are gathered here; judging them is pure (`before`, `after`).

mod after;
mod before;
mod facts;
mod finding;
mod node;
mod other_meshes;
mod permissions;
mod roles;

use anyhow::Result;
use clap::Args;

use finding::Finding;
pub(super) use finding::Level;

use super::{Cluster, Target, block_on, release};
use crate::Format;

#[derive(Debug, Args)]
#[command(after_help = "\
Where Weft is not installed it looks at what an installation needs: the API server, your permissions, the Gateway API, other \
meshes, the nodes' kernels. Where it is, also at Weft itself: versions, coverage of nodes, refused configuration, certificates, \
its roles, what the nodes' kernels offer, the order of CNI plugins.

Each line is `ok`, `warning` or `error`, what was looked at, and what to do. The exit code is 1 if there is an error.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Whether nothing is wrong.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    block_on(async {
        let cluster = arguments.target.connect().await?;
        let mut findings = before(&cluster).await?;
        match facts::installed(&cluster).await {
            Ok(Some(facts)) => findings.extend(after::judge(&facts)),
            Ok(None) => findings.push(Finding::ok("weft", "is not installed")),
            Err(error) => findings.push(Finding::error(
                "weft",
                format!("{error:#}"),
                "whether it is installed, and how it does, is not known",
            )),
        }
        match arguments.output {
            Format::Table => {
                let lines: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
                crate::write(&lines)?;
            }
            Format::Json => crate::write(&format!("{}\n", serde_json::to_string_pretty(&findings)?))?,
        }
        Ok(findings.iter().all(|finding| finding.level != Level::Error))
    })
}

/// What an installation needs, and what it must not write over.
pub(super) async fn before_install(cluster: &Cluster) -> Result<Vec<Finding>> {
    let mut findings = before(cluster).await?;
    findings.extend(release::find(cluster).await?.as_ref().map(before::of_helm));
    Ok(findings)
}

/// What an installation needs.
pub(super) async fn before(cluster: &Cluster) -> Result<Vec<Finding>> {
    Ok(before::judge(&facts::cluster(cluster).await?))
}
