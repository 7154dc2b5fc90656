//! Weft in the cluster: its images from what was built, and `weft install`, as a user would do it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Cluster, tools};
use crate::lab::Admin;
use crate::tools::repository;

/// The first start: two replicas of the control plane, then the nodes.
const ROLLOUT_WAIT_MAX: Duration = Duration::from_secs(120);
pub const NAMESPACE: &str = "weft-system";
/// In the order of an installation.
pub const WORKLOADS: [&str; 2] = ["deploy/weft-control", "ds/weft-node"];
/// What images of this build are tagged with by default, as the chart is.
pub const TAG: &str = env!("CARGO_PKG_VERSION");

/// What `helm template` makes of the chart; an error is its refusal. Needs no cluster.
pub fn rendered(arguments: &[&str]) -> Result<String> {
    let mut helm = Command::new(tools::others().join("bin/helm"));
    helm.args(["template", "weft", "deploy/helm/weft"]).args(arguments);
    let output = helm.current_dir(repository()).stdin(Stdio::null()).output().context("helm")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Cluster {
    /// Packs Weft and the echo application from a directory of binaries, and imports the images on every node.
    pub fn load_weft_images(&self, binaries: &Path, tag: &str) -> Result<()> {
        let images = self.directory().join("images");
        let packed = Command::new(repository().join("deploy/images.sh"))
            .args([binaries, &images])
            .arg(tag)
            .stdin(Stdio::null())
            .output()
            .context("deploy/images.sh")?;
        if !packed.status.success() {
            bail!("deploy/images.sh: {}", String::from_utf8_lossy(&packed.stderr).trim());
        }
        for image in ["weft-control", "weft-node", "weft-echo"] {
            self.load_image(&images.join(format!("{image}.tar")))?;
        }
        Ok(())
    }

    /// The admin endpoint of a node's `weft-node`.
    pub fn node_admin(&self, node: &str) -> Result<Admin> {
        Ok(Admin::Unix(self.node_file(node, "/run/weft/admin.sock")?))
    }

    /// Runs a command of `weft` against this cluster and gives what it printed.
    pub fn weft(&self, binaries: &Path, arguments: &[&str]) -> Result<String> {
        let output = Command::new(binaries.join("weft"))
            .args(arguments)
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("{}: `cargo build --bins` makes it", binaries.join("weft").display()))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("weft {}: {}\n{said}{}", arguments.join(" "), output.status, error.trim());
        }
        Ok(said)
    }

    /// Runs `helm` in the repository against this cluster and gives what it printed.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut helm = Command::new(tools::others().join("bin/helm"));
        helm.args(arguments)
            .current_dir(repository())
            .env("KUBECONFIG", self.kubeconfig())
            .stdin(Stdio::null());
        for home in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(home, self.directory().join("helm"));
        }
        let output = helm.output().context("helm")?;
        if !output.status.success() {
            bail!("helm {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until weft-control and weft-node are those last asked for, and ready.
    pub fn wait_weft(&self) -> Result<()> {
        WORKLOADS.iter().try_for_each(|workload| self.wait_rollout(NAMESPACE, workload, ROLLOUT_WAIT_MAX))
    }

    /// Brings Weft into the cluster, or this build of it in the place of another, and waits until it is ready.
    pub fn install_weft(&self, binaries: &Path) -> Result<()> {
        self.load_weft_images(binaries, TAG)?;
        let was_there = self.kubectl(&["-n", NAMESPACE, "get", WORKLOADS[0]]).is_ok();
        self.weft(binaries, &["install"])?;
        for workload in WORKLOADS {
            // The same tag again: nothing that Kubernetes would see changed.
            if was_there {
                self.kubectl(&["-n", NAMESPACE, "rollout", "restart", workload])?;
            }
            self.wait_rollout(NAMESPACE, workload, ROLLOUT_WAIT_MAX)?;
        }
        Ok(())
    }
}
