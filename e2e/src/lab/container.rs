//! The containers of a pod: starting them, waiting until they listen, and telling how those that ended did so.
//!
//! A lab has no kubelet: nobody starts a container again by himself. [`Lab::reconcile`] does.

use std::fmt;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

use super::manifest::{Container, Pod};
use super::process::start;
use super::state::PodState;
use super::{Lab, cgroup, netns, wait};

/// How long a container may take to listen on the ports that it declares: a database makes itself first, on a loaded machine.
const LISTEN_WAIT_MAX: Duration = Duration::from_secs(60);

/// How a container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    NotStarted,
    Running,
    /// `exit status: 1`, `signal: 9`; empty where nobody saw it.
    Exited(String),
}

impl fmt::Display for ContainerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted => f.write_str("not started"),
            Self::Running => f.write_str("running"),
            Self::Exited(how) if how.is_empty() => f.write_str("exited"),
            Self::Exited(how) => write!(f, "exited ({how})"),
        }
    }
}

impl Lab {
    /// The pod's containers by name, and how each stands.
    pub fn containers(&self, pod: &PodState) -> Vec<(String, ContainerState)> {
        pod.containers.iter().map(|name| (name.clone(), self.container(pod, name))).collect()
    }

    fn container(&self, pod: &PodState, name: &str) -> ContainerState {
        let group = self.pod_cgroup(pod).join(name);
        if !group.exists() {
            return ContainerState::NotStarted;
        }
        if !cgroup::pids_below(&group).is_empty() {
            return ContainerState::Running;
        }
        let how = fs::read_to_string(self.pod_log(pod, name).with_extension("exit")).unwrap_or_default();
        ContainerState::Exited(how.trim().to_owned())
    }

    /// Whether none of the pod's containers has ended.
    pub(super) fn is_ready(&self, pod: &PodState) -> bool {
        self.containers(pod).iter().all(|(_, state)| !matches!(state, ContainerState::Exited(_)))
    }

    /// Starts those of the pod's containers that do not run; whether there were any.
    pub(super) fn start_ended(&self, pod: &PodState, manifest: &Pod) -> Result<bool> {
        let mut started = false;
        for (name, _) in self.containers(pod).iter().filter(|(_, state)| *state != ContainerState::Running) {
            if let Some(container) = manifest.spec.containers.iter().find(|c| c.name == *name) {
                self.start_container(pod, manifest, container)?;
                started = true;
            }
        }
        Ok(started)
    }

    fn start_container(&self, pod: &PodState, manifest: &Pod, container: &Container) -> Result<()> {
        let mut words = container.command.iter().chain(&container.args);
        let program = words.next().ok_or_else(|| anyhow!("container {} has no command", container.name))?;
        let mut command = Command::new(program);
        command.args(words);
        self.pod_environment(&mut command, pod);
        for variable in &container.env {
            let from = variable.value_from.as_ref().map(|source| downward(source, pod, manifest));
            let value = variable.value.clone().or(from.transpose()?).unwrap_or_default();
            command.env(&variable.name, value);
        }
        let log = self.pod_log(pod, &container.name);
        start(command, &self.place(pod, &container.name), &log)
            .with_context(|| format!("Pod {}, container {}", pod.key(), container.name))?;
        Ok(())
    }

    /// Waits until every TCP port that the pod's containers declare is listened on.
    pub(super) fn wait_listening(&self, pod: &PodState, manifest: &Pod) -> Result<()> {
        let declared = manifest.spec.containers.iter().flat_map(|c| &c.ports);
        let tcp = declared.filter(|p| p.protocol.as_deref().unwrap_or("TCP") == "TCP");
        for port in tcp.map(|p| p.container_port) {
            wait::until_true(LISTEN_WAIT_MAX, &format!("{} listens on port {port}", pod.key()), || {
                netns::inside(&pod.netns, || listens(port)).unwrap_or(false)
            })
            .with_context(|| self.container_logs(pod, manifest))?;
        }
        Ok(())
    }

    fn container_logs(&self, pod: &PodState, manifest: &Pod) -> String {
        let logs = manifest.spec.containers.iter().map(|c| super::mesh::tail(&self.pod_log(pod, &c.name)));
        format!("what {} said:\n{}", pod.key(), logs.collect::<Vec<_>>().join("\n"))
    }

    /// Ends and starts one container of a pod; the pod keeps its addresses and its namespace.
    pub fn restart_container(&self, key: &str, container: &str) -> Result<()> {
        let pod = self.pod(key)?;
        let manifests = self.manifests()?;
        let manifest = manifests.pods.get(key).ok_or_else(|| anyhow!("no Pod {key} in the manifests"))?;
        let found = manifest.spec.containers.iter().find(|c| c.name == container);
        let found = found.ok_or_else(|| anyhow!("Pod {key} has no container {container}"))?;
        self.kill_container(key, container)?;
        self.start_container(pod, manifest, found)?;
        self.wait_listening(pod, manifest)
    }

    /// Kills one container of a pod; the pod stays.
    pub fn kill_container(&self, key: &str, container: &str) -> Result<()> {
        cgroup::kill(&self.pod_cgroup(self.pod(key)?).join(container))
    }
}

/// A field of the pod for its own environment (`valueFrom.fieldRef`).
fn downward(source: &Value, pod: &PodState, manifest: &Pod) -> Result<String> {
    let path = source["fieldRef"]["fieldPath"].as_str();
    let path = path.ok_or_else(|| anyhow!("a lab knows no valueFrom but fieldRef: {source}"))?;
    let ips = || pod.ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    Ok(match path {
        "metadata.name" => pod.name.clone(),
        "metadata.namespace" => pod.namespace.clone(),
        "metadata.uid" => pod.uid.clone(),
        "spec.nodeName" => pod.node.clone(),
        "status.podIP" => ips().into_iter().next().unwrap_or_default(),
        "status.podIPs" => ips().join(","),
        other => match other.strip_prefix("metadata.labels['").and_then(|l| l.strip_suffix("']")) {
            Some(label) => manifest.metadata.labels.get(label).cloned().unwrap_or_default(),
            None => bail!("a lab knows no field {other:?}"),
        },
    })
}

/// Whether something listens on the TCP port, in the namespace of the calling thread.
pub(super) fn listens(port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    let listening = |table: &str| {
        let text = fs::read_to_string(table).unwrap_or_default();
        // Local address is the second field, the state the fourth; 0A is LISTEN.
        text.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|local| local.ends_with(&suffix)) && fields.nth(1) == Some("0A")
        })
    };
    // `thread-self`: the tables of the calling thread's namespace, not of the process's.
    listening("/proc/thread-self/net/tcp") || listening("/proc/thread-self/net/tcp6")
}
