//! What a user does with `kubectl`, done with `kubectl`.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Cluster, tools};
use crate::lab::command::run_with_input;
use crate::lab::wait;

/// One try; what depends on a level is tried again by the caller.
const REQUEST_TIMEOUT: &str = "--request-timeout=20s";

/// A pod's port at a loopback address of this machine, while the value lives.
#[derive(Debug)]
pub struct Forwarded {
    child: Child,
    /// Held: it tells of each connection there, and would end if nobody could read it.
    output: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Forwarded {
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Cluster {
    /// A `kubectl` that speaks to this cluster.
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(tools::kubernetes().join("kubectl"));
        command.env("KUBECONFIG", self.kubeconfig()).stdin(Stdio::null());
        command
    }

    /// Runs `kubectl` and gives what it printed, without the last newline.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl_command().args(arguments).arg(REQUEST_TIMEOUT).output()?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Applies manifests on the server's side, and takes over what another had set.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.with_manifests(&["apply", "--server-side", "--force-conflicts"], manifests).map(drop)
    }

    /// Runs a command of `kubectl` that reads manifests.
    pub fn with_manifests(&self, arguments: &[&str], manifests: &str) -> Result<String> {
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig().display());
        let mut all = vec![kubeconfig.as_str()];
        all.extend(arguments);
        all.extend(["-f", "-"]);
        let program = tools::kubernetes().join("kubectl");
        let output = run_with_input(&program.to_string_lossy(), &all, manifests)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// An object, or a list of them, as JSON.
    pub fn object(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).context("what kubectl printed")
    }

    /// Runs a command in a pod (`deploy/name` does too).
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<Output> {
        let mut kubectl = self.kubectl_command();
        kubectl.args(["-n", namespace, "exec", pod, "--"]).args(command);
        kubectl.output().with_context(|| format!("exec in {namespace}/{pod}"))
    }

    /// Like [`Cluster::exec`]; an exit code other than 0 is an error.
    pub fn exec_ok(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        let output = self.exec(namespace, pod, command)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} in {namespace}/{pod}: {}", command.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `kubectl port-forward`, and goes on when it listens.
    pub fn port_forward(&self, namespace: &str, pod: &str, port: u16) -> Result<Forwarded> {
        let mut kubectl = self.kubectl_command();
        kubectl.args(["-n", namespace, "port-forward", "--address=127.0.0.1", pod, &format!(":{port}")]);
        let mut child = kubectl.stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("kubectl without an output")?);
        let mut forwarded = Forwarded { child, output, address: (Ipv4Addr::LOCALHOST, 0).into() };
        let mut line = String::new();
        forwarded.output.read_line(&mut line)?;
        // "Forwarding from 127.0.0.1:40000 -> 8080"
        let address = line.split(' ').find_map(|word| word.parse().ok());
        forwarded.address = address.with_context(|| format!("kubectl port-forward said {line:?}"))?;
        Ok(forwarded)
    }

    /// Waits until all replicas of a workload (`deploy/name`, `ds/name`) are those last asked for, and ready.
    pub fn wait_rollout(&self, namespace: &str, workload: &str, wait_max: Duration) -> Result<()> {
        let seconds = format!("--timeout={}s", wait_max.as_secs());
        let mut kubectl = self.kubectl_command();
        kubectl.args(["-n", namespace, "rollout", "status", workload, &seconds]);
        let output = kubectl.output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("{namespace}/{workload} is not ready: {said}\n{}", self.troubles(namespace));
    }

    /// Waits until an object's field, as a JSON path, has a value.
    pub fn wait_field(&self, object: &[&str], path: &str, value: &str, wait_max: Duration) -> Result<()> {
        let output = format!("jsonpath={path}");
        wait::until(wait_max, || {
            let now = self.kubectl(&[&["get"], object, &["-o", &output]].concat())?;
            ensure!(now == value, "{path} of {} is {now:?}, not {value:?}", object.join(" "));
            Ok(())
        })
    }

    /// The pods of a namespace that are not ready and what its events warn of, for errors.
    fn troubles(&self, namespace: &str) -> String {
        let told = |arguments: &[&str]| self.kubectl(arguments).unwrap_or_else(|e| format!("{e:#}"));
        let pods = told(&["-n", namespace, "get", "pods", "-o", "wide"]);
        let warnings = ["-n", namespace, "get", "events", "--field-selector=type=Warning"];
        format!("{pods}\n{}", told(&warnings))
    }
}
