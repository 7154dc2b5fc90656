//! Kubernetes on one machine: a control plane and nodes of real kubelets and containerd, without Docker and without touching the
//! machine outside of namespaces, cgroups and directories that carry the cluster's name.
//!
//! [`Cluster::up`] builds it, [`Cluster::attach`] goes on with one that is up, [`Cluster::down`] leaves nothing behind, whatever
//! state it is in. Only [`weft`], [`agent`] and [`next`] know of Weft. Start reading at [`Cluster::up`]; the picture is in `docs/cluster.md`.

pub mod agent;
mod certificates;
mod control_plane;
mod families;
mod kubectl;
mod network;
pub mod next;
mod node;
pub mod relay;
mod tools;
pub mod weft;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::ValueEnum as _;

pub use families::{Families, Family};

use crate::lab::{cgroup, remove_directory, state};

/// All clusters' cgroups are below this one, in every hierarchy.
pub(crate) const CGROUP: &str = "weft-cluster";
const RUN_DIRECTORY: &str = "/run/weft-cluster";
/// Images and volumes of pods, which need a real file system.
pub(crate) const DATA_DIRECTORY: &str = "/var/lib/weft-cluster";
pub const NODES: u16 = 2;
/// A group whose last process was just reaped can be busy for a moment.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(10);

/// In the cluster's directory: which [`Families`] it has.
const FAMILIES_FILE: &str = "ip-family";
/// Its pods are the first of a node, and the images are there: on a machine with other work.
const DNS_WAIT_MAX: Duration = Duration::from_secs(120);

/// A cluster that is up, or should be.
#[derive(Debug, Clone)]
pub struct Cluster {
    name: String,
    families: Families,
}

impl Cluster {
    /// Builds the cluster and waits until its nodes are ready. One that is up and well stays as it is; what is left of one that
    /// is not is removed first.
    pub fn up(name: &str, families: Families) -> Result<Self> {
        state::check_name(name)?;
        check_machine()?;
        if let Ok(there) = Self::attach(name)
            && there.is_well()
        {
            let (has, wanted) = (there.families, families);
            ensure!(
                has == wanted,
                "cluster {name} is up, and of {has:?}, not of {wanted:?}: take it down first"
            );
            return Ok(there);
        }
        Self::down(name)?;
        let cluster = Self { name: name.into(), families };
        let directory = cluster.directory();
        fs::create_dir_all(cluster.logs_directory()).with_context(|| directory.display().to_string())?;
        // Keys are below it.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        let named = families.to_possible_value().context("one of clap's values")?;
        fs::write(directory.join(FAMILIES_FILE), named.get_name())?;
        cluster.make_certificates(NODES)?;
        network::add_control(name, families)?;
        for index in 1..=NODES {
            network::add_node(name, families, index, NODES)?;
        }
        // Nodes try until the API server is there; meanwhile they unpack their images.
        for node in cluster.nodes() {
            cluster.start_node(&node)?;
        }
        cluster.start_control()?;
        cluster.apply(&cluster.manifests()?)?;
        let crds = tools::gateway_api().display().to_string();
        cluster.kubectl(&["apply", "--server-side", "-k", &crds])?;
        for node in cluster.nodes() {
            cluster.wait_node(&node)?;
        }
        cluster.wait_rollout("kube-system", "deploy/coredns", DNS_WAIT_MAX)?;
        Ok(cluster)
    }

    /// Goes on with a cluster that is up.
    pub fn attach(name: &str) -> Result<Self> {
        state::check_name(name)?;
        let file = Path::new(RUN_DIRECTORY).join(name).join(FAMILIES_FILE);
        let families = fs::read_to_string(&file).ok().and_then(|it| Families::from_str(&it, false).ok());
        let cluster = families.map(|families| Self { name: name.into(), families });
        let Some(cluster) = cluster.filter(|it| it.kubeconfig().exists()) else {
            let up = names();
            let others = if up.is_empty() { "none is up".into() } else { format!("up: {}", up.join(", ")) };
            bail!("no cluster {name:?} ({others}); `weft-cluster up --name {name}` makes one");
        };
        Ok(cluster)
    }

    /// Removes everything that carries the cluster's name, whoever left it and whatever state it is in.
    pub fn down(name: &str) -> Result<()> {
        state::check_name(name)?;
        // In this order: no process, and with the last of a node go its mounts, pins and pods' namespaces.
        for root in cgroup_roots()? {
            let group = root.join(CGROUP).join(name);
            if root == cgroup::v2_root()? {
                cgroup::kill(&group)?;
            }
        }
        for root in cgroup_roots()? {
            remove_groups(&root.join(CGROUP).join(name))?;
        }
        network::remove(name)?;
        remove_directory(&Path::new(DATA_DIRECTORY).join(name))?;
        remove_directory(&Path::new(RUN_DIRECTORY).join(name))
    }

    /// Imports an image, a tar in the OCI layout, on every node.
    pub fn load_image(&self, image: &Path) -> Result<()> {
        self.nodes().iter().try_for_each(|node| self.import(node, image))
    }

    /// Whether all parts live, and the API server and the nodes say that they are ready.
    fn is_well(&self) -> bool {
        let lives = |part: &&str| !cgroup::pids(&self.part_cgroup(part)).is_empty();
        control_plane::PARTS.iter().all(lives)
            && self.nodes().iter().all(|node| self.node_init(node).is_ok())
            && self.kubectl(&["get", "--raw=/readyz"]).is_ok()
            && self.nodes().iter().all(|node| self.wait_node(node).is_ok())
    }

    /// Starts what was killed, and waits for it.
    pub fn start_missing(&self) -> Result<()> {
        for part in control_plane::PARTS {
            if cgroup::pids(&self.part_cgroup(part)).is_empty() {
                self.start_part(part)?;
            }
        }
        self.wait_api()?;
        for node in self.nodes() {
            if self.node_init(&node).is_err() {
                self.start_node(&node)?;
            }
            self.wait_node(&node)?;
        }
        Ok(())
    }

    /// What runs, a line for each part.
    pub fn status(&self) -> String {
        let mut lines = vec![format!("cluster {}: kubeconfig {}", self.name, self.kubeconfig().display())];
        for part in control_plane::PARTS {
            let pids = cgroup::pids(&self.part_cgroup(part));
            lines.push(format!(
                "{part}: {}",
                if pids.is_empty() { "dead".into() } else { format!("pid {pids:?}") }
            ));
            if let Err(error) = self.check_part(part) {
                lines.push(format!("{error}"));
            }
        }
        for node in self.nodes() {
            let init = self
                .node_init(&node)
                .map_or_else(|e| format!("{e}"), |pid| format!("process 1 is {pid} here"));
            lines.push(format!("{node}: {init}"));
            if let Err(error) = self.check_node(&node) {
                lines.push(format!("{error}"));
            }
        }
        lines.push(
            self.kubectl(&["get", "nodes,pods", "-A", "-o", "wide"]).unwrap_or_else(|e| format!("{e:#}")),
        );
        lines.join("\n")
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Of which its addresses are.
    pub fn families(&self) -> Families {
        self.families
    }

    pub fn nodes(&self) -> Vec<String> {
        (1..=NODES).map(|i| format!("node{i}")).collect()
    }

    /// `/run/weft-cluster/<cluster>`.
    pub fn directory(&self) -> PathBuf {
        Path::new(RUN_DIRECTORY).join(&self.name)
    }

    pub fn logs_directory(&self) -> PathBuf {
        self.directory().join("logs")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory().join("kubeconfig")
    }

    /// What runs in every cluster: the roles of the parts, and DNS.
    fn manifests(&self) -> Result<String> {
        let dns: Vec<_> = self.families.each().iter().map(|family| family.dns()).collect();
        Ok(include_str!("../../cluster/manifests/coredns.yaml")
            .replace("@VERSION@", tools::version("COREDNS_VERSION"))
            .replace("@DNS@", &self.families.first().dns().to_string())
            .replace("@DNS_ALL@", &serde_json::to_string(&dns)?))
    }

    /// `<v2 root>/weft-cluster/<cluster>`.
    pub fn cgroup(&self) -> PathBuf {
        // The cluster was built on it, so it is mounted; the usual place stands in if it was unmounted since.
        let root = cgroup::v2_root().unwrap_or_else(|_| "/sys/fs/cgroup".into());
        root.join(CGROUP).join(&self.name)
    }
}

/// Names of all clusters that left a directory.
pub fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(RUN_DIRECTORY) else { return Vec::new() };
    let mut names: Vec<String> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Where cgroup hierarchies are mounted, old ones too.
fn cgroup_roots() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let fields = mounts.lines().filter_map(|l| {
        let mut fields = l.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    Ok(fields.filter(|(_, kind)| matches!(*kind, "cgroup" | "cgroup2")).map(|(at, _)| at.into()).collect())
}

/// Removes empty groups, the deepest first.
fn remove_groups(group: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(group) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok).filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_groups(&entry.path())?;
    }
    let deadline = Instant::now() + BUSY_WAIT_MAX;
    loop {
        match fs::remove_dir(group) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other.with_context(|| format!("removing cgroup {}", group.display())),
        }
    }
}

/// What a cluster needs of the machine, checked before anything is made.
fn check_machine() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("a cluster makes namespaces, mounts and cgroups: run it as root");
    }
    cgroup::v2_root()?;
    for tool in ["ip", "nft", "unshare", "bash"] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).chain(["/usr/sbin".into()]).any(|d| d.join(tool).exists());
        found.then_some(()).ok_or_else(|| anyhow!("`{tool}` is not installed: `make setup` installs it"))?;
    }
    tools::check()
}
