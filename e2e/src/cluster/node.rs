//! A node: a network namespace and, by `e2e/cluster/node.sh`, a machine of its own in it, with containerd, kubelet and kube-proxy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::json;

use super::certificates::{kubeconfig, write};
use super::network::{self, netns_of};
use super::{Cluster, DATA_DIRECTORY, tools};
use crate::lab::command::run;
use crate::lab::process::{Place, start};
use crate::lab::wait::{self, Hopeless};
use crate::lab::{cgroup, mesh};
use crate::tools::repository;

/// containerd, two imported images, a kubelet that registers: on a machine with other work.
const READY_WAIT_MAX: Duration = Duration::from_secs(90);

impl Cluster {
    /// `node1` is 1.
    pub(crate) fn node_index(node: &str) -> Result<u16> {
        node.strip_prefix("node").and_then(|n| n.parse().ok()).with_context(|| format!("no node {node:?}"))
    }

    fn node_directory(&self, node: &str) -> PathBuf {
        self.directory().join(node)
    }

    pub fn node_cgroup(&self, node: &str) -> PathBuf {
        self.cgroup().join(node)
    }

    /// The network namespace of a node, for tools that want to look at its links.
    pub fn node_netns(&self, node: &str) -> String {
        netns_of(self.name(), node)
    }

    pub(crate) fn node_logs(&self, node: &str) -> PathBuf {
        self.logs_directory().join(node)
    }

    /// Starts a node; it is not waited for.
    pub fn start_node(&self, node: &str) -> Result<()> {
        if !cgroup::pids_below(&self.node_cgroup(node)).is_empty() {
            bail!("{node} runs already");
        }
        let index = Self::node_index(node)?;
        // A machine that boots has no groups of its last run: the kubelet would take them for pods.
        for root in super::cgroup_roots()? {
            super::remove_groups(&root.join(super::CGROUP).join(self.name()).join(node))?;
        }
        network::forget_pods(self.name(), node)?;
        self.write_node_files(node, index)?;
        let logs = self.node_logs(node);
        fs::create_dir_all(&logs)?;
        let mut images =
            ["pause", "busybox"].map(|i| tools::others().join(format!("images/{i}.tar"))).to_vec();
        images.push(tools::coredns_image());
        let images: Vec<String> = images.iter().map(|i| i.display().to_string()).collect();
        let mut command = Command::new("bash");
        command
            .arg(repository().join("e2e/cluster/node.sh"))
            .arg("outside")
            .env("NODE_NAME", node)
            .env("NODE_IP", self.families().listed(|family| family.node(index).to_string()))
            .env("NODE_DIRECTORY", self.node_directory(node))
            .env("NODE_LOGS", &logs)
            .env("NODE_DATA", Path::new(DATA_DIRECTORY).join(self.name()).join(node))
            .env("NODE_GROUP", format!("{}/{}/{node}", super::CGROUP, self.name()))
            .env("NODE_KUBERNETES", tools::kubernetes())
            .env("NODE_TOOLS", tools::others())
            .env("NODE_IMAGES", images.join(" "));
        // A node's group must hold no process of its own where cgroup v2 is alone; the node moves itself below.
        let starter = self.node_cgroup(node).join("starter");
        let place = Place { netns: self.node_netns(node), cgroup: starter, files: Vec::new() };
        start(command, &place, &logs.join("node.log")).map(drop)
    }

    /// Kills everything on a node, as if its power went.
    pub fn kill_node(&self, node: &str) -> Result<()> {
        cgroup::kill(&self.node_cgroup(node))
    }

    /// Waits until the API server calls the node ready, since it was last started.
    pub fn wait_node(&self, node: &str) -> Result<()> {
        wait::until(READY_WAIT_MAX, || {
            self.check_node(node)?;
            let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
            let status = self.kubectl(&["get", "node", node, "-o", ready])?;
            ensure!(status == "True", "Ready is {status:?}");
            Ok(())
        })
        .with_context(|| format!("{node} does not become ready"))
    }

    /// An error with the last lines of its logs if the node is dead.
    pub(crate) fn check_node(&self, node: &str) -> Result<()> {
        let logs = self.node_logs(node);
        if !logs.join("node.exit").exists() {
            return Ok(());
        }
        let mut text = format!("{node} ended: {}", mesh::tail(&logs.join("node.log")));
        for part in ["containerd", "kubelet", "kube-proxy"] {
            let log = logs.join(format!("{part}.log"));
            if text.contains(&format!("{part} of")) {
                text += &format!("\nthe end of {}:\n{}", log.display(), mesh::tail(&log));
            }
        }
        Err(Hopeless(text).into())
    }

    /// The node's process 1, by this machine's count.
    pub fn node_init(&self, node: &str) -> Result<i32> {
        let starter = cgroup::pids(&self.node_cgroup(node).join("starter"));
        let parent = *starter.first().ok_or_else(|| anyhow!("{node} does not run"))?;
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
        let first = children.split_whitespace().next().and_then(|p| p.parse().ok());
        first.ok_or_else(|| anyhow!("{node} has no process yet"))
    }

    /// Where the kubelet of a node looks for manifests of its own, seen from this machine.
    pub fn static_pods(&self, node: &str) -> Result<PathBuf> {
        self.node_file(node, "/etc/kubernetes/manifests")
    }

    /// A file of a node, seen from this machine.
    pub fn node_file(&self, node: &str, path: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root{path}", self.node_init(node)?)))
    }

    /// Imports an image (a tar in the OCI layout) on a node.
    pub(crate) fn import(&self, node: &str, image: &Path) -> Result<()> {
        let socket = self.node_file(node, "/run/containerd/containerd.sock")?.display().to_string();
        let ctr = tools::others().join("bin/ctr");
        let image = image.to_string_lossy();
        let arguments = ["--address", &socket, "-n", "k8s.io", "images", "import", "--local", &image];
        run(&ctr.to_string_lossy(), &arguments).map(drop)
    }

    fn write_node_files(&self, node: &str, index: u16) -> Result<()> {
        let directory = self.node_directory(node).join("etc");
        fs::create_dir_all(&directory)?;
        for file in ["ca.pem".to_owned(), format!("{node}.pem"), format!("{node}.key")]
            .into_iter()
            .chain(["kube-proxy.pem".into(), "kube-proxy.key".into()])
        {
            fs::copy(self.pki().join(&file), directory.join(&file)).context(file)?;
        }
        let api = self.api_address();
        kubeconfig(&directory.join("kubelet.kubeconfig"), &api, ".", node)?;
        kubeconfig(&directory.join("kube-proxy.kubeconfig"), &api, ".", "kube-proxy")?;
        write(&directory.join("resolv.conf"), "")?;
        let families = self.families().each();
        // What host-local and its bridge are told of each family.
        let ranges: Vec<_> = families.iter().map(|it| json!([{"subnet": it.pods_of(index)}])).collect();
        let routes: Vec<_> = families.iter().map(|it| json!({"dst": it.everywhere()})).collect();
        for (file, template) in [
            ("kubelet.yaml", include_str!("../../cluster/node/kubelet.yaml")),
            ("kube-proxy.yaml", include_str!("../../cluster/node/kube-proxy.yaml")),
            ("containerd.toml", include_str!("../../cluster/node/containerd.toml")),
            ("10-pods.conflist", include_str!("../../cluster/node/10-pods.conflist")),
        ] {
            let text = template
                .replace("@NODE@", node)
                .replace("@DNS@", &self.families().first().dns().to_string())
                .replace("@PODS@", &self.families().listed(|family| family.pods().to_owned()))
                .replace("@RANGES@", &json!(ranges).to_string())
                .replace("@ROUTES@", &json!(routes).to_string());
            write(&directory.join(file), &text)?;
        }
        Ok(())
    }
}
