//! A Weft mesh on one machine: nodes and pods as network namespaces, real kernel hooks, real binaries.
//!
//! [`Lab::up`] builds it from a directory of Kubernetes manifests, [`Lab::attach`] goes on with one that is up,
//! [`Lab::down`] leaves nothing behind, whatever state the lab is in. A lab touches nothing outside the namespaces,
//! cgroups and directories that carry its name, so several can run side by side.
//! Start reading at [`Lab::up`]; the picture is in `docs/lab.md`.

mod admin;
mod capture;
pub mod cgroup;
mod claim;
mod clock;
pub(crate) mod command;
mod container;
mod manifest;
pub(crate) mod mesh;
pub mod netns;
mod network;
mod pod;
pub(crate) mod process;
mod program;
mod services;
pub(crate) mod state;
pub mod traces;
pub mod wait;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

pub use admin::{Admin, metric_sum};
pub use capture::{Capture, Packets, Segment};
pub use claim::Claim;
pub use container::ContainerState;
pub use network::{NODES_MAX, UNDERLAY_IP, node_ip};
pub use process::{memory_mib, open_descriptors};
pub use state::{PodState, State, labs, no_lab};

use crate::tools::built_beside;
use manifest::Manifests;
use traces::Traces;

/// All labs' cgroups are below this one, in the v2 root.
const CGROUP: &str = "weft-lab";
/// All labs' pinned hooks and maps are below this directory.
const PIN_ROOT: &str = "/sys/fs/bpf/weft-lab";
/// Length of a join token, in bytes of randomness.
const JOIN_TOKEN_BYTES: usize = 24;

/// How a lab is built.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// Without a mesh the pods run and talk all the same: for comparison, and to test the lab itself.
    pub mesh: bool,
    pub nodes: u16,
    pub node_args: Vec<String>,
    pub node_env: Vec<(String, String)>,
    pub control_args: Vec<String>,
    pub control_env: Vec<(String, String)>,
    /// Keep the traces that the nodes export, for [`Lab::traces`].
    pub traces: bool,
    /// Each process of the mesh has a wall clock of its own, for [`Lab::set_clock`].
    #[serde(default)]
    pub clocks: bool,
    /// Where the binaries are; None: beside the running program.
    pub binaries: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mesh: true,
            nodes: 2,
            node_args: Vec::new(),
            node_env: Vec::new(),
            control_args: Vec::new(),
            control_env: Vec::new(),
            traces: false,
            clocks: false,
            binaries: None,
        }
    }
}

/// A lab that is up. Dropping it takes it down, unless it was [kept](Lab::keep).
#[derive(Debug)]
pub struct Lab {
    state: State,
    keep: bool,
    traces: Option<Traces>,
}

impl Lab {
    /// Builds the lab `name` from a directory of manifests. What an earlier one of that name left is removed first.
    pub fn up(name: &str, manifests: &Path, options: Options) -> Result<Self> {
        let user =
            manifests.canonicalize().with_context(|| format!("manifests in {}", manifests.display()))?;
        // Mistakes in the manifests are found before anything is built.
        let read = Manifests::read(std::slice::from_ref(&user), options.nodes)?;
        program::check(&read, &binaries(&options))?;
        let _claim = Self::claim(name)?;
        Self::build(name, vec![user], options)
    }

    /// Builds the lab `name` from manifests given as text.
    pub fn up_with(name: &str, manifests: &str, options: Options) -> Result<Self> {
        let parsed = Manifests::parse("main.yaml", manifests, options.nodes)?;
        program::check(&parsed, &binaries(&options))?;
        let _claim = Self::claim(name)?;
        let mut lab = Self::build(name, Vec::new(), options)?;
        lab.apply("main", manifests)?;
        Ok(lab)
    }

    fn build(name: &str, mut manifests: Vec<PathBuf>, options: Options) -> Result<Self> {
        if !(1..=NODES_MAX).contains(&options.nodes) {
            bail!("a lab has 1 to {NODES_MAX} nodes, not {}", options.nodes);
        }
        Self::clean(name)?;
        let directory = state::run_directory(name);
        let own = directory.join("manifests");
        manifests.push(own.clone());
        fs::create_dir_all(&own).with_context(|| own.display().to_string())?;
        // Keys and tokens are below it.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        let state = State { name: name.into(), options, manifests, pods: Vec::new() };
        let mut lab = Self { state, keep: false, traces: None };
        lab.state.save()?;
        lab.construct()?;
        Ok(lab)
    }

    fn construct(&mut self) -> Result<()> {
        network::add_nodes(self.name(), self.state.options.nodes)?;
        for node in self.nodes() {
            cgroup::create(&self.cgroup().join(&node))?;
        }
        if self.state.options.traces {
            self.traces = Some(Traces::start(self)?);
        }
        if self.state.options.mesh {
            self.write_join_tokens()?;
            self.start_control()?;
            for node in self.nodes() {
                self.spawn_node(&node)?;
            }
            for node in self.nodes() {
                self.wait_node(&node)?;
            }
        }
        self.reconcile()
    }

    /// While this is held, no other process makes or changes the lab.
    fn claim(name: &str) -> Result<Claim> {
        state::check_name(name)?;
        check_machine()?;
        Claim::take(Path::new(state::RUN_DIRECTORY), name)
    }

    /// Goes on with a lab that is up, in order to change it: as long as the claim is held, nobody else does.
    pub fn attach_alone(name: &str) -> Result<(Self, Claim)> {
        // First of all it should be there.
        State::load(name)?;
        let claim = Self::claim(name)?;
        Ok((Self::attach(name)?, claim))
    }

    /// Whether there is anything that [`Lab::clean`] would remove.
    pub fn is_there(name: &str) -> Result<bool> {
        state::check_name(name)?;
        require_root()?;
        let group = cgroup::v2_root()?.join(CGROUP).join(name);
        let claim = claim::file(Path::new(state::RUN_DIRECTORY), name);
        let places = [group, Path::new(PIN_ROOT).join(name), state::run_directory(name), claim];
        let is_of_lab = |netns: &String| network::is_of_lab(netns, name);
        Ok(places.iter().any(|place| place.exists()) || netns::with_prefix("weft-").iter().any(is_of_lab))
    }

    /// Goes on with a lab that is up. It stays up when the value is dropped.
    pub fn attach(name: &str) -> Result<Self> {
        Ok(Self { state: State::load(name)?, keep: true, traces: None })
    }

    /// Leaves the lab up when this value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Takes the lab down: processes, hooks, namespaces, files.
    pub fn down(mut self) -> Result<()> {
        self.keep = true;
        Self::clean(self.name())
    }

    /// Ends every process of the lab and removes nothing: whoever works with the lab meets errors, and can take it down.
    pub fn kill(name: &str) -> Result<()> {
        state::check_name(name)?;
        cgroup::kill(&cgroup::v2_root()?.join(CGROUP).join(name))
    }

    /// Removes everything that carries the lab's name, whoever left it and whatever state it is in.
    pub fn clean(name: &str) -> Result<()> {
        state::check_name(name)?;
        // In this order: no process, then no hook that a process could meet, then no namespace.
        let group = cgroup::v2_root()?.join(CGROUP).join(name);
        cgroup::kill(&group)?;
        // Removing the last name of a pinned link detaches its program.
        remove_directory(&Path::new(PIN_ROOT).join(name))?;
        let of_lab = netns::with_prefix("weft-").into_iter().filter(|n| network::is_of_lab(n, name));
        for netns in of_lab.collect::<Vec<_>>() {
            netns::remove(&netns)?;
        }
        cgroup::remove(&group)?;
        remove_directory(&state::run_directory(name))?;
        claim::sweep(Path::new(state::RUN_DIRECTORY), name);
        Ok(())
    }

    /// Writes (or replaces) a file of the lab's own manifests, and makes the running pods follow.
    pub fn apply(&mut self, file: &str, text: &str) -> Result<()> {
        self.write_manifest(file, text)?;
        self.reconcile()
    }

    /// Writes (or replaces) a file of the lab's own manifests for the control plane alone; pods are left as they are.
    pub fn write_manifest(&self, file: &str, text: &str) -> Result<()> {
        state::write_whole(&self.generated_directory().join(format!("{file}.yaml")), text)
    }

    /// When such a file was written.
    pub fn manifest_written(&self, file: &str) -> Result<SystemTime> {
        Ok(fs::metadata(self.generated_directory().join(format!("{file}.yaml")))?.modified()?)
    }

    /// Removes a file written by [`Lab::apply`] or [`Lab::write_manifest`].
    pub fn remove_manifest(&self, file: &str) -> Result<()> {
        let path = self.generated_directory().join(format!("{file}.yaml"));
        fs::remove_file(&path).with_context(|| path.display().to_string())
    }

    /// A secret per node, for the node and for the control plane.
    fn write_join_tokens(&self) -> Result<()> {
        let mut secrets = Vec::new();
        for node in self.nodes() {
            let token = random_token()?;
            let directory = self.directory().join(&node);
            fs::create_dir_all(&directory)?;
            let file = directory.join("join-token");
            fs::write(&file, &token)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
            secrets.push(format!(
                "apiVersion: v1\nkind: Secret\ntype: weft.dev/join-token\n\
                 metadata: {{name: join-{node}, namespace: weft-system}}\n\
                 stringData: {{node: {node}, token: {token}}}\n"
            ));
        }
        self.write_manifest("join-tokens", &secrets.join("---\n"))
    }

    pub fn name(&self) -> &str {
        &self.state.name
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// What the nodes exported, in a lab that was built with [`Options::traces`] by this process.
    pub fn traces(&self) -> Result<&Traces> {
        self.traces.as_ref().ok_or_else(|| anyhow!("this lab keeps no traces"))
    }

    /// Arguments of every `weft-node` that is started from now on, behind the lab's own.
    pub fn set_node_args(&mut self, args: &[&str]) -> Result<()> {
        self.state.options.node_args = args.iter().map(ToString::to_string).collect();
        self.state.save()
    }

    pub fn nodes(&self) -> Vec<String> {
        (1..=self.state.options.nodes).map(|i| format!("node{i}")).collect()
    }

    /// `/run/weft-lab/<lab>`.
    pub fn directory(&self) -> PathBuf {
        state::run_directory(self.name())
    }

    pub fn logs_directory(&self) -> PathBuf {
        self.directory().join("logs")
    }

    /// Copies the logs to where they stay when the lab is gone, and says where.
    pub fn keep_logs(&self) -> Result<PathBuf> {
        let kept = tempfile::Builder::new().prefix(&format!("weft-logs-{}-", self.name())).tempdir()?.keep();
        copy_directory(&self.logs_directory(), &kept)?;
        Ok(kept)
    }

    fn generated_directory(&self) -> PathBuf {
        self.directory().join("manifests")
    }

    /// `<v2 root>/weft-lab/<lab>`.
    pub fn cgroup(&self) -> PathBuf {
        // The lab was built on it, so it is mounted; the usual place stands in if it was unmounted since.
        let root = cgroup::v2_root().unwrap_or_else(|_| "/sys/fs/cgroup".into());
        root.join(CGROUP).join(self.name())
    }

    /// The namespace of a node, for tools that want to look at its links.
    pub fn node_netns(&self, node: &str) -> String {
        network::node_netns(self.name(), node)
    }

    /// The namespace that joins the nodes, where `weft-control` and a test's collector live.
    pub fn underlay_netns(&self) -> String {
        network::underlay_netns(self.name())
    }

    /// Where the binaries of this build are.
    pub(crate) fn bin_directory(&self) -> PathBuf {
        binaries(&self.state.options)
    }

    /// A binary of this build.
    pub fn binary(&self, name: &str) -> Result<PathBuf> {
        let path = self.bin_directory().join(name);
        if !path.exists() {
            bail!("{} is not there: `make build` (or `cargo build --bins`) makes it", path.display());
        }
        Ok(path)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep
            && let Err(e) = Self::clean(self.name())
        {
            tracing::error!("lab {} is not all gone: {e:#}", self.name());
        }
    }
}

fn binaries(options: &Options) -> PathBuf {
    options.binaries.clone().unwrap_or_else(built_beside)
}

pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

pub(crate) fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let (entry, target) = entry.map(|e| (e.path(), to.join(e.file_name())))?;
        if entry.is_dir() {
            copy_directory(&entry, &target)?;
        } else {
            fs::copy(&entry, &target).with_context(|| entry.display().to_string())?;
        }
    }
    Ok(())
}

fn random_token() -> Result<String> {
    let mut bytes = [0; JOIN_TOKEN_BYTES];
    let mut source = fs::File::open("/dev/urandom")?;
    std::io::Read::read_exact(&mut source, &mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("a lab makes network namespaces and loads programs into the kernel: run this as root");
    }
    Ok(())
}

/// What a lab needs of the machine, checked before anything is made.
fn check_machine() -> Result<()> {
    require_root()?;
    cgroup::v2_root()?;
    for tool in ["ip", "nft"] {
        let found = std::env::var_os("PATH").is_some_and(|p| {
            std::env::split_paths(&p).chain(["/usr/sbin".into()]).any(|d| d.join(tool).exists())
        });
        found.then_some(()).ok_or_else(|| anyhow!("`{tool}` is not installed: `make setup` installs it"))?;
    }
    Ok(())
}
