//! The mesh's own processes: one `weft-control`, a `weft-node` per node. Each is started, stopped and killed alone.
//!
//! They are known by their cgroups, not by pids in memory: any process of the user can stop what another started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::admin::{self, Admin};
use super::network::{UNDERLAY_IP, node_netns, underlay_netns};
use super::process::{Place, start, start_with_output};
use super::traces::Traces;
use super::{Lab, cgroup, process};

/// Enough for a first start on a loaded two-core machine: keys, probes and programs included.
const READY_WAIT_MAX: Duration = Duration::from_secs(60);
/// The node drains for as long as its settings say; the lab's is short.
const STOP_WAIT_MAX: Duration = Duration::from_secs(15);
const DRAIN_SECONDS: &str = "5";
const CONTROL_PORT: u16 = 15012;

/// Where `weft-control` leaves the root that nodes trust.
const CA_FILE: &str = "root.pem";

impl Lab {
    pub fn control_directory(&self) -> PathBuf {
        self.directory().join("control")
    }

    pub fn control_admin(&self) -> Admin {
        Admin::Unix(self.control_directory().join("admin.sock"))
    }

    pub fn node_admin(&self, node: &str) -> Admin {
        Admin::Unix(self.directory().join(node).join("admin.sock"))
    }

    pub fn control_cgroup(&self) -> PathBuf {
        self.cgroup().join("control")
    }

    pub fn agent_cgroup(&self, node: &str) -> PathBuf {
        self.cgroup().join(node).join("agent")
    }

    /// Starts `weft-control` and waits until it is ready.
    pub fn start_control(&self) -> Result<()> {
        if !cgroup::pids(&self.control_cgroup()).is_empty() {
            bail!("weft-control runs already");
        }
        let directory = self.control_directory();
        fs::create_dir_all(&directory)?;
        let admin = self.control_admin();
        admin.forget();
        let mut command = Command::new(self.binary("weft-control")?);
        for manifests in &self.state.manifests {
            command.arg("--manifests").arg(manifests);
        }
        command
            .args(["--listen", &format!("0.0.0.0:{CONTROL_PORT}"), "--trust-domain", "cluster.local"])
            .arg("--state-dir")
            .arg(directory.join("state"))
            .arg("--admin")
            .arg(admin.argument())
            .args(&self.state.options.control_args)
            .envs(self.clock_environment("control")?)
            .envs(self.state.options.control_env.iter().cloned())
            .env("RUST_BACKTRACE", "1");
        let place =
            Place { netns: underlay_netns(self.name()), cgroup: self.control_cgroup(), files: Vec::new() };
        start(command, &place, &self.control_log())?;
        self.wait_ready("weft-control", &admin, &self.control_cgroup(), &self.control_log())
    }

    /// Starts the `weft-node` of a node and waits until it is ready.
    pub fn start_node(&self, node: &str) -> Result<()> {
        self.spawn_node(node)?;
        self.wait_node(node)
    }

    /// Starts the `weft-node` of a node and does not wait.
    pub fn spawn_node(&self, node: &str) -> Result<()> {
        if !cgroup::pids(&self.agent_cgroup(node)).is_empty() {
            bail!("weft-node of {node} runs already");
        }
        let directory = self.directory().join(node);
        fs::create_dir_all(&directory)?;
        let admin = self.node_admin(node);
        admin.forget();
        let mut command = Command::new(self.binary("weft-node")?);
        command
            .args(["--node-name", node, "--control-address"])
            .arg(self.control_address())
            .arg("--control-ca")
            .arg(self.control_authority())
            .arg("--join-token-file")
            .arg(self.join_token_file(node))
            .arg("--cgroup-root")
            .arg(self.cgroup().join(node))
            .arg("--pin-dir")
            .arg(self.pin_directory(node))
            .arg("--admin")
            .arg(admin.argument())
            .args(["--drain-seconds", DRAIN_SECONDS])
            .args(&self.state.options.node_args)
            .envs(self.traces.iter().flat_map(Traces::environment))
            .envs(self.clock_environment(node)?)
            .envs(self.state.options.node_env.iter().cloned())
            .env("RUST_BACKTRACE", "1");
        // A lab is for looking at, unless the caller says otherwise.
        if !self.state.options.node_args.iter().any(|argument| argument.starts_with("--access-log")) {
            command.args(["--access-log", "all"]);
        }
        let place = Place {
            netns: node_netns(self.name(), node),
            cgroup: self.agent_cgroup(node),
            files: Vec::new(),
        };
        start_with_output(command, &place, &self.node_log(node), &self.access_log(node))?;
        Ok(())
    }

    pub fn wait_node(&self, node: &str) -> Result<()> {
        let (admin, group) = (self.node_admin(node), self.agent_cgroup(node));
        self.wait_ready(&format!("weft-node of {node}"), &admin, &group, &self.node_log(node))
    }

    fn wait_ready(&self, what: &str, admin: &Admin, group: &Path, log: &Path) -> Result<()> {
        let ready = super::wait::until(READY_WAIT_MAX, || {
            if cgroup::pids(group).is_empty() {
                bail!(super::wait::Hopeless(format!("{what} ended at once")));
            }
            admin.ready()
        });
        ready.with_context(|| format!("{what} is not ready; the end of its log:\n{}", tail(log)))
    }

    /// Asks `weft-control` to end (SIGTERM) and waits.
    pub fn stop_control(&self) -> Result<()> {
        stop(&self.control_cgroup())
    }

    /// Ends `weft-control` without a warning (SIGKILL).
    pub fn kill_control(&self) -> Result<()> {
        cgroup::kill(&self.control_cgroup())
    }

    /// Asks the node's `weft-node` to drain and end (SIGTERM) and waits.
    pub fn stop_node(&self, node: &str) -> Result<()> {
        stop(&self.agent_cgroup(node))
    }

    /// Ends the node's `weft-node` without a warning (SIGKILL).
    pub fn kill_node(&self, node: &str) -> Result<()> {
        cgroup::kill(&self.agent_cgroup(node))
    }

    pub fn control_log(&self) -> PathBuf {
        self.logs_directory().join("control.log")
    }

    pub fn node_log(&self, node: &str) -> PathBuf {
        self.logs_directory().join(format!("{node}.log"))
    }

    /// What the node logs of connections and requests, a JSON object per line.
    pub fn access_log(&self, node: &str) -> PathBuf {
        self.logs_directory().join(format!("{node}.access.log"))
    }

    /// The file with the secret that proves to the control plane which node this is.
    pub fn join_token_file(&self, node: &str) -> PathBuf {
        self.directory().join(node).join("join-token")
    }

    /// Where nodes reach the control plane.
    pub fn control_address(&self) -> String {
        format!("https://{UNDERLAY_IP}:{CONTROL_PORT}")
    }

    /// The authority of the control plane's own certificate, PEM.
    pub fn control_authority(&self) -> PathBuf {
        self.control_directory().join("state").join(CA_FILE)
    }

    /// Where the node's hooks and maps are pinned.
    pub fn pin_directory(&self, node: &str) -> PathBuf {
        Path::new(super::PIN_ROOT).join(self.name()).join(node)
    }

    /// What the node says of itself.
    pub fn node_status(&self, node: &str) -> Result<serde_json::Value> {
        admin::status(&self.node_admin(node))
    }

    pub fn control_status(&self) -> Result<serde_json::Value> {
        admin::status(&self.control_admin())
    }
}

fn stop(group: &Path) -> Result<()> {
    process::signal(group, rustix::process::Signal::TERM);
    cgroup::wait_empty(group, STOP_WAIT_MAX)
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path) -> String {
    const LINES: usize = 20;
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
