//! What the lab reads from the manifests: Pods to run and Services to name.
//!
//! Which files are read, and what is a mistake in them, is `weft-control`'s to say: its library reads them here too, so that a
//! lab refuses what its control plane would refuse, with file and line. Start reading at [`Manifests::read`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::Deserialize;
use serde_json::Value;
use weft_control::source::Problem;
use weft_control::source::directory::read_once;
use weft_control::source::manifest::{self, Document, Refused};

use super::network::node_index;

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    #[serde(default = "default_namespace")]
    pub(crate) namespace: String,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

fn default_namespace() -> String {
    "default".into()
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Pod {
    pub(crate) metadata: Metadata,
    pub(crate) spec: PodSpec,
}

impl Pod {
    pub(crate) fn key(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpec {
    pub(crate) node_name: Option<String>,
    #[serde(default)]
    pub(crate) containers: Vec<Container>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Container {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) args: Vec<String>,
    #[serde(default)]
    pub(crate) env: Vec<EnvVar>,
    #[serde(default)]
    pub(crate) ports: Vec<ContainerPort>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnvVar {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
    /// The downward API's `fieldRef`; other sources are not the lab's.
    pub(crate) value_from: Option<Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerPort {
    pub(crate) name: Option<String>,
    pub(crate) container_port: u16,
    pub(crate) protocol: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Service {
    pub(crate) metadata: Metadata,
    pub(crate) spec: ServiceSpec,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceSpec {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    #[serde(rename = "clusterIP")]
    pub(crate) cluster_ip: Option<String>,
    #[serde(default, rename = "clusterIPs")]
    pub(crate) cluster_ips: Vec<String>,
    #[serde(default)]
    pub(crate) selector: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) ports: Vec<ServicePort>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServicePort {
    pub(crate) port: u16,
    pub(crate) target_port: Option<Value>,
}

impl Service {
    /// Its virtual addresses; none for a headless one.
    pub(crate) fn vips(&self) -> Vec<std::net::IpAddr> {
        let named = self.spec.cluster_ips.iter().chain(&self.spec.cluster_ip);
        let mut vips: Vec<_> = named.filter_map(|ip| ip.parse().ok()).collect();
        vips.dedup();
        vips.sort();
        vips.dedup();
        vips
    }

    pub(crate) fn selects(&self, pod: &Pod) -> bool {
        let labels = &pod.metadata.labels;
        !self.spec.selector.is_empty()
            && self.metadata.namespace == pod.metadata.namespace
            && self.spec.selector.iter().all(|(k, v)| labels.get(k) == Some(v))
    }
}

impl ServicePort {
    /// The container's port that this port leads to in `pod`.
    pub(crate) fn target(&self, pod: &Pod) -> Option<u16> {
        match &self.target_port {
            None => Some(self.port),
            Some(Value::Number(n)) => n.as_u64().and_then(|n| n.try_into().ok()),
            Some(Value::String(name)) => {
                let mut ports = pod.spec.containers.iter().flat_map(|c| &c.ports);
                ports.find(|p| p.name.as_ref() == Some(name)).map(|p| p.container_port)
            }
            Some(_) => None,
        }
    }
}

/// The Pods and Services of all manifests, by `namespace/name`.
#[derive(Debug, Default)]
pub(crate) struct Manifests {
    pub(crate) pods: BTreeMap<String, Pod>,
    pub(crate) services: BTreeMap<String, Service>,
}

impl Manifests {
    /// Everything in the directories, for a lab of so many nodes; or every mistake in them.
    pub(crate) fn read(directories: &[PathBuf], nodes: u16) -> Result<Self> {
        let (mut all, mut problems) = (Self::default(), Vec::new());
        match read_once(directories.to_vec()) {
            Ok(files) => {
                for (path, text) in &files {
                    all.add(&path.display().to_string(), text, nodes, &mut problems);
                }
            }
            Err(errors) => problems = errors,
        }
        all.unless(&problems)
    }

    /// The same for the text of one file.
    pub(crate) fn parse(file: &str, text: &str, nodes: u16) -> Result<Self> {
        let mut all = Self::default();
        let mut problems = manifest::parse(file, text).err().unwrap_or_default();
        if problems.is_empty() {
            all.add(file, text, nodes, &mut problems);
        }
        all.unless(&problems)
    }

    fn unless(self, problems: &[Problem]) -> Result<Self> {
        if problems.is_empty() {
            return Ok(self);
        }
        let shown: String = problems.iter().map(|problem| format!("\n  {problem}")).collect();
        bail!("nothing was changed, as there are mistakes in the manifests:{shown}");
    }

    fn add(&mut self, file: &str, text: &str, nodes: u16, problems: &mut Vec<Problem>) {
        let mut note = |refused: Refused| {
            problems.push(Problem { file: file.to_owned(), line: refused.line, message: refused.message });
        };
        match manifest::documents(file, text) {
            Ok(documents) => {
                for (kind, document) in documents {
                    self.add_document(&kind, &document, nodes).unwrap_or_else(&mut note);
                }
            }
            Err(refused) => note(refused),
        }
    }

    fn add_document(&mut self, kind: &str, document: &Document<'_>, nodes: u16) -> Result<(), Refused> {
        match kind {
            "Pod" => {
                let pod: Pod = document.read(|_, _| {})?;
                check(&pod, nodes).map_err(|(field, reason)| document.refuse(field, reason))?;
                self.pods.insert(pod.key(), pod);
            }
            "Service" => {
                let service: Service = document.read(|_, _| {})?;
                let key = format!("{}/{}", service.metadata.namespace, service.metadata.name);
                self.check_service(&key, &service)
                    .map_err(|(field, reason)| document.refuse(field, format!("Service {key}: {reason}")))?;
                self.services.insert(key, service);
            }
            _ => {}
        }
        Ok(())
    }
}

impl Manifests {
    /// What a cluster would do for a Service, or refuse, and a lab cannot: the field, and the reason.
    fn check_service(&self, key: &str, service: &Service) -> Result<(), (&'static str, String)> {
        let spec = &service.spec;
        let named = spec.cluster_ip.iter().chain(&spec.cluster_ips).any(|ip| !ip.is_empty());
        if !named && spec.kind.as_deref() != Some("ExternalName") {
            let reason =
                "a lab gives no addresses, so spec.clusterIP must say one, such as 10.96.0.100, or None";
            return Err(("spec", reason.to_owned()));
        }
        let vips = service.vips();
        let other = self
            .services
            .iter()
            .find(|(other, of)| *other != key && of.vips().iter().any(|ip| vips.contains(ip)));
        other
            .map_or(Ok(()), |(other, _)| Err(("spec.clusterIP", format!("Service {other} has this address"))))
    }
}

/// What a cluster would do for a Pod and a lab cannot: the field, and the reason.
fn check(pod: &Pod, nodes: u16) -> Result<(), (&'static str, String)> {
    let key = pod.key();
    let Some(node) = &pod.spec.node_name else {
        let reason = "a lab has no scheduler, so spec.nodeName must say where it runs (node1, node2)";
        return Err(("spec", format!("Pod {key}: {reason}")));
    };
    let index = node_index(node).map_err(|e| ("spec.nodeName", format!("Pod {key}: {e}")))?;
    if index > nodes {
        return Err(("spec.nodeName", format!("Pod {key}: no {node} in this lab, which has {nodes} nodes")));
    }
    if let Some(c) = pod.spec.containers.iter().find(|c| c.command.is_empty()) {
        let reason = format!(
            "a lab runs no images, so container {:?} needs a `command` that exists on this machine",
            c.name
        );
        return Err(("spec.containers", format!("Pod {key}: {reason}")));
    }
    Ok(())
}

#[cfg(test)]
#[path = "manifest/tests.rs"]
mod tests;
