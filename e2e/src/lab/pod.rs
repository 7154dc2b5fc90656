//! Pods: addresses, namespaces, cgroups laid out as the kubelet does, and the processes of their containers.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

use super::manifest::{Container, Manifests, Pod};
use super::network::{self, FIRST_SLOT, LAST_SLOT};
use super::process::{Place, start};
use super::state::{PodState, write_whole};
use super::{Lab, cgroup, netns, services, wait};

/// How long a container may take to listen on the ports that it declares.
const LISTEN_WAIT_MAX: Duration = Duration::from_secs(20);
/// Until a new pod is in the mesh: its status must reach the node, its certificate must be signed.
const KNOWN_WAIT_MAX: Duration = Duration::from_secs(20);
/// The container that holds the pod's cgroup while its others come and go.
const PAUSE: &str = "pause";

impl Lab {
    /// Makes the running pods those of the manifests: starts new ones, ends those no longer there, renews names and
    /// Service rules. Running pods whose text changed stay as they are.
    pub fn reconcile(&mut self) -> Result<()> {
        let manifests = self.manifests()?;
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
        for pod in &fresh {
            self.start_containers(pod, &manifests.pods[&pod.key()])?;
        }
        for pod in &fresh {
            self.wait_listening(pod, &manifests.pods[&pod.key()])?;
        }
        Ok(())
    }

    fn manifests(&self) -> Result<Manifests> {
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
        let state = self.place_sandbox(pod)?;
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
        write_whole(&self.generated_directory().join("pod-status.yaml"), &pod_status(&self.state.pods))
    }

    fn start_containers(&self, pod: &PodState, manifest: &Pod) -> Result<()> {
        manifest.spec.containers.iter().try_for_each(|c| self.start_container(pod, manifest, c))
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

    fn pod_environment(&self, command: &mut Command, pod: &PodState) {
        let mut path = self.bin_directory().into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        command
            .env("PATH", path)
            .env("HOSTNAME", &pod.name)
            .env("POD_NAME", &pod.name)
            .env("POD_NAMESPACE", &pod.namespace)
            .env("NODE_NAME", &pod.node)
            .env("POD_IP", pod.ips.first().map(ToString::to_string).unwrap_or_default())
            .current_dir(self.pod_directory(pod));
    }

    fn place(&self, pod: &PodState, container: &str) -> Place {
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

    /// Waits until every TCP port that the pod's containers declare is listened on.
    fn wait_listening(&self, pod: &PodState, manifest: &Pod) -> Result<()> {
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

/// What a kubelet would write into the status of each Pod.
fn pod_status(pods: &[PodState]) -> String {
    let documents = pods.iter().map(|pod| {
        let status = serde_json::json!({
            "apiVersion": "weft.dev/v1alpha1",
            "kind": "PodStatus",
            "metadata": {"namespace": pod.namespace, "name": pod.name},
            "spec": {"uid": pod.uid, "nodeName": pod.node, "podIPs": pod.ips, "ready": true},
        });
        // JSON is YAML.
        format!("{status}\n")
    });
    documents.collect::<Vec<_>>().join("---\n")
}
