//! Pods: addresses, namespaces, cgroups laid out as the kubelet does. What runs in them is `container`'s.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use super::manifest::{Manifests, Pod};
use super::network::{self, FIRST_SLOT, LAST_SLOT};
use super::process::{Place, start};
use super::state::{PodState, write_whole};
use super::{Lab, cgroup, netns, program, services, wait};

/// Until a new pod is in the mesh: its status must reach the node, its certificate must be signed.
const KNOWN_WAIT_MAX: Duration = Duration::from_secs(20);
/// The container that holds the pod's cgroup while its others come and go.
const PAUSE: &str = "pause";

impl Lab {
    /// Makes the running pods those of the manifests: starts new ones and containers that ended, ends pods no longer there,
    /// renews names and Service rules. Running pods whose text changed stay as they are.
    pub fn reconcile(&mut self) -> Result<()> {
        let manifests = self.manifests()?;
        program::check(&manifests, &self.bin_directory())?;
        let gone: Vec<String> =
            self.state.pods.iter().map(PodState::key).filter(|k| !manifests.pods.contains_key(k)).collect();
        for key in &gone {
            self.end_pod(key)?;
        }
        let mut fresh = Vec::new();
        for (key, pod) in &manifests.pods {
            if self.state.pods.iter().all(|p| p.key() != *key) {
                fresh.push(self.place_pod(pod)?);
            }
        }
        self.publish(&manifests)?;
        if self.state.options.mesh {
            self.wait_known(&fresh)?;
        }
        let ended = self.state.pods.iter().any(|pod| !self.is_ready(pod));
        let mut started = Vec::new();
        for pod in &self.state.pods {
            if self.start_ended(pod, &manifests.pods[&pod.key()])? {
                started.push(pod);
            }
        }
        for pod in started {
            self.wait_listening(pod, &manifests.pods[&pod.key()])?;
        }
        if ended { self.publish(&manifests) } else { Ok(()) }
    }

    pub(super) fn manifests(&self) -> Result<Manifests> {
        Manifests::read(&self.state.manifests, self.state.options.nodes)
    }

    /// What there is of a new pod when the container runtime calls its CNI plugins: addresses, a namespace, and no process.
    /// `text`: a manifest with this one Pod in it, written as `file`.
    pub fn sandbox(&mut self, file: &str, text: &str, key: &str) -> Result<PodState> {
        self.write_manifest(file, text)?;
        let manifests = self.manifests()?;
        let pod = manifests.pods.get(key).ok_or_else(|| anyhow!("no Pod {key} in {file}"))?;
        let state = self.place_sandbox(pod)?;
        self.publish(&manifests)?;
        Ok(state)
    }

    /// Gives the pod its addresses, its namespace, its cgroup and the process that holds it.
    fn place_pod(&mut self, pod: &Pod) -> Result<PodState> {
        let mut state = self.place_sandbox(pod)?;
        state.containers = pod.spec.containers.iter().map(|c| c.name.clone()).collect();
        if let Some(noted) = self.state.pods.last_mut() {
            *noted = state.clone();
        }
        self.state.save()?;
        let mut pause = Command::new("sleep");
        pause.arg("infinity");
        start(pause, &self.place(&state, PAUSE), &self.pod_directory(&state).join("pause.log"))?;
        Ok(state)
    }

    fn place_sandbox(&mut self, pod: &Pod) -> Result<PodState> {
        let node = pod.spec.node_name.clone().ok_or_else(|| anyhow!("{} has no node", pod.key()))?;
        let index = network::node_index(&node)?;
        let taken = |slot: u16| self.state.pods.iter().any(|p| p.node == node && p.slot == slot);
        let slot = (FIRST_SLOT..=LAST_SLOT).find(|s| !taken(*s)).ok_or_else(|| anyhow!("{node} is full"))?;
        let state = PodState {
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned(),
            netns: network::pod_netns(self.name(), index, slot),
            ips: network::pod_ips(index, slot),
            node,
            slot,
            containers: Vec::new(),
        };
        network::add_pod(self.name(), &state).with_context(|| format!("network of Pod {}", pod.key()))?;
        self.state.pods.push(state.clone());
        self.state.save()?;
        fs::create_dir_all(self.pod_directory(&state))?;
        for file in ["hosts", "resolv.conf"] {
            fs::write(self.pod_directory(&state).join(file), "")?;
        }
        Ok(state)
    }

    /// Waits until the nodes have heard of the new pods and taken in those that belong to the mesh.
    fn wait_known(&self, fresh: &[PodState]) -> Result<()> {
        fresh.iter().try_for_each(|pod| {
            wait::until(KNOWN_WAIT_MAX, || {
                let (state, reason) = self.mesh_state(pod)?;
                match state.as_str() {
                    "enrolled" | "not_enrolled" => Ok(()),
                    other => bail!("Pod {} is {other} on {}: {reason}", pod.key(), pod.node),
                }
            })
        })
    }

    /// What the pod's node says of it: `enrolled`, `not_enrolled`, `ending` or `failed`, and the reason.
    pub fn mesh_state(&self, pod: &PodState) -> Result<(String, String)> {
        let status = self.node_status(&pod.node)?;
        let mut pods = status["pods"].as_array().into_iter().flatten();
        let found = pods.find(|p| p["uid"] == pod.uid.as_str());
        let found = found.ok_or_else(|| anyhow!("{} does not know Pod {}", pod.node, pod.key()))?;
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        Ok((text("state"), text("reason")))
    }

    /// Waits until the pod's node says `state` of it (see [`Lab::mesh_state`]).
    pub fn wait_mesh_state(&self, key: &str, state: &str, wait_max: Duration) -> Result<()> {
        let pod = self.pod(key)?;
        wait::until(wait_max, || match self.mesh_state(pod)? {
            (now, _) if now == state => Ok(()),
            (now, reason) => bail!("Pod {key} is {now}, not {state}: {reason}"),
        })
    }

    /// What a cluster would tell everybody about the pods: their status, names, Service rules.
    pub(crate) fn publish(&self, manifests: &Manifests) -> Result<()> {
        for pod in &self.state.pods {
            let hosts = services::hosts_file(pod, manifests, &self.state.pods);
            // In place, not renamed: running processes see this very file as their /etc/hosts.
            fs::write(self.pod_directory(pod).join("hosts"), hosts)?;
        }
        let rules = services::nft_rules(manifests, &self.state.pods);
        for node in self.nodes() {
            network::apply_service_rules(self.name(), &node, &rules)?;
        }
        self.state.save()?;
        let file = self.generated_directory().join("pod-status.yaml");
        match self.state.pods.is_empty() {
            // Nothing in a file is a mistake.
            true => super::remove_file(&file),
            false => write_whole(&file, &self.pod_status()),
        }
    }

    /// What a kubelet would write into the status of each Pod.
    fn pod_status(&self) -> String {
        let documents = self.state.pods.iter().map(|pod| {
            let status = serde_json::json!({
                "apiVersion": "weft.dev/v1alpha1",
                "kind": "PodStatus",
                "metadata": {"namespace": pod.namespace, "name": pod.name},
                "spec": {"uid": pod.uid, "nodeName": pod.node, "podIPs": pod.ips, "ready": self.is_ready(pod)},
            });
            // JSON is YAML.
            format!("{status}\n")
        });
        documents.collect::<Vec<_>>().join("---\n")
    }

    pub(super) fn pod_environment(&self, command: &mut Command, pod: &PodState) {
        command
            .env("PATH", program::search_path(&self.bin_directory()))
            .env("HOSTNAME", &pod.name)
            .env("POD_NAME", &pod.name)
            .env("POD_NAMESPACE", &pod.namespace)
            .env("NODE_NAME", &pod.node)
            .env("POD_IP", pod.ips.first().map(ToString::to_string).unwrap_or_default())
            .current_dir(self.pod_directory(pod));
    }

    pub(super) fn place(&self, pod: &PodState, container: &str) -> Place {
        let directory = self.pod_directory(pod);
        let files = ["hosts", "resolv.conf"];
        Place {
            netns: pod.netns.clone(),
            cgroup: self.pod_cgroup(pod).join(container),
            files: files.iter().map(|f| (directory.join(f), PathBuf::from("/etc").join(f))).collect(),
        }
    }

    /// `<node>/kubepods/besteffort/pod<uid>`, as the kubelet's cgroupfs driver lays it out.
    pub fn pod_cgroup(&self, pod: &PodState) -> PathBuf {
        self.cgroup().join(&pod.node).join("kubepods/besteffort").join(format!("pod{}", pod.uid))
    }

    fn pod_directory(&self, pod: &PodState) -> PathBuf {
        self.directory().join("pods").join(format!("{}_{}", pod.namespace, pod.name))
    }

    pub fn pod_log(&self, pod: &PodState, container: &str) -> PathBuf {
        self.logs_directory().join(format!("{}_{}", pod.namespace, pod.name)).join(format!("{container}.log"))
    }

    /// Ends a pod and forgets it; the status of the others is not published here.
    fn end_pod(&mut self, key: &str) -> Result<()> {
        let pod = self.pod(key)?.clone();
        cgroup::remove(&self.pod_cgroup(&pod))?;
        // Its end of the veth pair goes with the namespace, and so do the node's routes to it.
        netns::remove(&pod.netns)?;
        fs::remove_dir_all(self.pod_directory(&pod))?;
        self.state.pods.retain(|p| p.key() != key);
        self.state.save()
    }

    /// Makes the pod drop every packet that comes to it, without a word to the sender, or stop doing so.
    pub fn blackhole(&self, key: &str, on: bool) -> Result<()> {
        network::blackhole(self.pod(key)?, on)
    }

    pub fn pod(&self, key: &str) -> Result<&PodState> {
        let pods = &self.state.pods;
        let known = || pods.iter().map(PodState::key).collect::<Vec<_>>().join(", ");
        pods.iter()
            .find(|p| p.key() == key)
            .ok_or_else(|| anyhow!("no pod {key:?} in this lab; it has {}", known()))
    }

    /// A command that will run inside the pod, as `kubectl exec` would have it.
    pub fn command(&self, key: &str, words: &[&str]) -> Result<Command> {
        let pod = self.pod(key)?;
        let (program, arguments) =
            words.split_first().ok_or_else(|| anyhow!("no command to run in {key}"))?;
        let mut command = Command::new(program);
        command.args(arguments);
        self.pod_environment(&mut command, pod);
        self.place(pod, "exec").apply(&mut command)?;
        Ok(command)
    }

    /// Runs a command inside the pod to its end, whatever its exit code.
    pub fn exec(&self, key: &str, words: &[&str]) -> Result<Output> {
        let mut command = self.command(key, words)?;
        command.stdin(Stdio::null());
        command.output().with_context(|| format!("cannot run {} in {key}", words.join(" ")))
    }

    /// Runs a command as a process of the node itself, such as its kubelet, to its end.
    pub fn exec_on_node(&self, node: &str, words: &[String]) -> Result<Output> {
        let (program, arguments) =
            words.split_first().ok_or_else(|| anyhow!("no command to run on {node}"))?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        let cgroup = self.cgroup().join(node).join("kubelet.service");
        Place { netns: self.node_netns(node), cgroup, files: Vec::new() }.apply(&mut command)?;
        command.output().with_context(|| format!("cannot run {program} on {node}"))
    }

    /// Runs a command inside the pod; its standard output, if it exits with 0.
    pub fn exec_ok(&self, key: &str, words: &[&str]) -> Result<String> {
        let output = self.exec(key, words)?;
        if !output.status.success() {
            bail!(
                "`{}` in {key}: {}: {}{}",
                words.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
