//! What the lab reads from the manifests: Pods to run and Services to name.
//!
//! Everything else in the directory is for `weft-control`. A broken document is left out here too: `weft-control`
//! reports it with file and line.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;

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
    pub(crate) fn read(directories: &[PathBuf]) -> Result<Self> {
        let mut all = Self::default();
        for directory in directories {
            for file in yaml_files(directory)? {
                let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
                all.add(&text).with_context(|| file.display().to_string())?;
            }
        }
        Ok(all)
    }

    pub(crate) fn add(&mut self, text: &str) -> Result<()> {
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            let Ok(value) = Value::deserialize(document) else { return Ok(()) };
            match value["kind"].as_str() {
                Some("Pod") => {
                    let pod: Pod = serde_json::from_value(value).context("Pod")?;
                    check(&pod)?;
                    self.pods.insert(pod.key(), pod);
                }
                Some("Service") => {
                    let service: Service = serde_json::from_value(value).context("Service")?;
                    let key = format!("{}/{}", service.metadata.namespace, service.metadata.name);
                    self.services.insert(key, service);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What a cluster would do for a Pod and a lab cannot.
fn check(pod: &Pod) -> Result<()> {
    let key = pod.key();
    if pod.spec.node_name.is_none() {
        bail!("Pod {key}: a lab has no scheduler, so spec.nodeName must say where it runs (node1, node2)");
    }
    if let Some(c) = pod.spec.containers.iter().find(|c| c.command.is_empty()) {
        bail!(
            "Pod {key}: a lab runs no images, so container {:?} needs a `command` that exists on this machine",
            c.name
        );
    }
    Ok(())
}

fn yaml_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("directory {}", directory.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml" || e == "yml"));
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  nodeName: node1
  containers:
    - name: main
      command: [weft-echo]
      ports: [{name: http, containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports: [{port: 80, targetPort: http}, {port: 81, targetPort: 9000}, {port: 82}]
---
kind: HTTPRoute
"#;

    #[test]
    fn pods_and_services_are_read_and_the_rest_is_left_to_the_control_plane() {
        let mut all = Manifests::default();
        all.add(SHOP).unwrap();
        let (pod, service) = (&all.pods["shop/web"], &all.services["shop/web"]);
        assert!(service.selects(pod));
        assert_eq!(service.vips(), vec!["10.96.0.10".parse::<std::net::IpAddr>().unwrap()]);
        let targets: Vec<_> = service.spec.ports.iter().map(|p| p.target(pod)).collect();
        assert_eq!(targets, [Some(8080), Some(9000), Some(82)]);
    }

    #[test]
    fn a_pod_that_a_lab_cannot_run_is_refused_with_the_way_out() {
        let no_node = SHOP.replace("nodeName: node1", "restartPolicy: Always");
        let error = Manifests::default().add(&no_node).unwrap_err();
        assert!(format!("{error:#}").contains("spec.nodeName"), "{error:#}");
        let no_command = SHOP.replace("command: [weft-echo]", "image: nginx");
        let error = Manifests::default().add(&no_command).unwrap_err();
        assert!(format!("{error:#}").contains("command"), "{error:#}");
    }

    #[test]
    fn a_broken_document_does_not_hide_those_before_it() {
        let mut all = Manifests::default();
        all.add(&format!("{SHOP}\n---\n: [\n")).unwrap();
        assert_eq!(all.pods.len(), 1);
    }
}
