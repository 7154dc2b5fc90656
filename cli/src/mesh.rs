//! Which mesh a question is about: a lab on this machine, or a Kubernetes cluster.

use anyhow::Result;
use clap::Args;
use weft_e2e::lab::Lab;

use crate::kubernetes::Target;

/// The rule, for `--help`.
pub(crate) const WHO_IS_ASKED: &str = "\
Who is asked: with --context or --kubeconfig that cluster; with --name that lab; else, if a lab is up on this machine, the lab; \
else the cluster of the kubeconfig. In a cluster the pods of weft-control and weft-node are asked by exec, so you need to be \
allowed to get and create pods/exec in weft-system.";

/// Name of the lab of which there is usually one only.
const LAB: &str = "lab";

#[derive(Debug, Args)]
pub(crate) struct Mesh {
    #[command(flatten)]
    target: Target,
    /// Ask the lab of this name
    #[arg(long, env = "WEFT_LAB", value_name = "NAME", conflicts_with_all = ["context", "kubeconfig"])]
    name: Option<String>,
}

pub(crate) enum Chosen<'a> {
    Lab(Box<Lab>),
    Cluster(&'a Target),
}

impl Mesh {
    pub(crate) fn choose(&self) -> Result<Chosen<'_>> {
        if self.target.is_named() {
            return Ok(Chosen::Cluster(&self.target));
        }
        match &self.name {
            Some(name) => Lab::attach(name).map(|lab| Chosen::Lab(Box::new(lab))),
            None => Ok(match Lab::attach(LAB) {
                Ok(lab) => Chosen::Lab(Box::new(lab)),
                Err(_) => Chosen::Cluster(&self.target),
            }),
        }
    }
}
