//! `weft status`: what the control plane and the nodes answer on `/status`, side by side.

use std::time::SystemTime;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Map, Value};
use weft_e2e::lab::Admin;

use crate::Format;
use crate::kubernetes;
use crate::mesh::{Chosen, Mesh, WHO_IS_ASKED};
use crate::replicas::join;
use crate::summary::summaries;
use crate::verbose::whole;

#[derive(Debug, Args)]
#[command(after_help = WHO_IS_ASKED)]
pub(crate) struct Arguments {
    #[command(flatten)]
    mesh: Mesh,
    /// Admin endpoint to ask: unix:/path or address:port; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    admin: Vec<Admin>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Everything that was answered, not only the summary
    #[arg(short, long)]
    verbose: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut answers = asked(arguments)?;
    join(answers.iter_mut().filter_map(|(name, answer)| Some((name.as_str(), answer.as_mut().ok()?))));
    match arguments.output {
        Format::Json => {
            let of = |answer: &Result<Value>| match answer {
                Ok(value) => value.clone(),
                Err(e) => serde_json::json!({"error": format!("{e:#}")}),
            };
            let all: Map<String, Value> = answers.iter().map(|(n, a)| (n.clone(), of(a))).collect();
            say!("{}", serde_json::to_string_pretty(&all)?)?;
        }
        Format::Table if arguments.verbose => {
            answers.iter().try_for_each(|(name, answer)| crate::write(&whole(name, answer)))?;
        }
        Format::Table => {
            let now_unix_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
            let answers = answers
                .iter()
                .map(|(name, answer)| (name.as_str(), answer.as_ref().map_err(|error| format!("{error:#}"))));
            crate::write(&summaries(answers, now_unix_s))?;
        }
    }
    let silent: Vec<&str> = answers.iter().filter(|(_, a)| a.is_err()).map(|(n, _)| n.as_str()).collect();
    if !silent.is_empty() {
        bail!("no answer from {}", silent.join(", "));
    }
    Ok(())
}

/// What everybody who was asked answered, by name.
fn asked(arguments: &Arguments) -> Result<Vec<(String, Result<Value>)>> {
    if !arguments.admin.is_empty() {
        return Ok(arguments.admin.iter().map(|a| (a.argument(), a.json("/status"))).collect());
    }
    match arguments.mesh.choose()? {
        Chosen::Lab(lab) => {
            let mut all = vec![("control".to_owned(), lab.control_admin().json("/status"))];
            all.extend(
                lab.nodes().into_iter().map(|node| (node.clone(), lab.node_admin(&node).json("/status"))),
            );
            Ok(all)
        }
        Chosen::Cluster(target) => {
            let (server, answers) = kubernetes::cluster_statuses(target)?;
            eprintln!("cluster {server}");
            Ok(answers)
        }
    }
}
