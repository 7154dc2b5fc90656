//! A node without its `weft-node`: one that hangs, one that is killed, or one whose Pod is gone. What is taken away comes back with the value
//! that stands for it; after a kill that is the kubelet's to do.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, Signal, kill_process};

use super::Cluster;
use super::weft::NAMESPACE;
use crate::lab::{Admin, wait};

const PATCH: [&str; 6] = ["-n", NAMESPACE, "patch", "ds", "weft-node", "--type=merge"];
/// It drains, asks the API server whether it is being removed, and ends.
const END_WAIT_MAX: Duration = Duration::from_secs(60);

/// A `weft-node` that does nothing while the value lives.
#[derive(Debug)]
pub struct Hung(Pid);

impl Hung {
    pub fn pid(&self) -> Pid {
        self.0
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        // It may have been replaced by its liveness probe.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// A node that the DaemonSet leaves out while the value lives.
#[derive(Debug)]
pub struct Away<'a> {
    cluster: &'a Cluster,
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        let back = r#"{"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": null}}}}}"#;
        if let Err(error) = self.cluster.kubectl(&[&PATCH[..], &["-p", back]].concat()) {
            eprintln!("a node stays without weft-node: {error:#}");
        }
    }
}

/// Nodes whose `weft-node` has a variable of the environment besides, while the value lives.
#[derive(Debug)]
pub struct Told<'a> {
    cluster: &'a Cluster,
    variable: String,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.cluster.set_variable(&format!("{}-", self.variable)) {
            eprintln!("weft-node keeps {}: {error:#}", self.variable);
        }
    }
}

impl Cluster {
    /// Gives all of weft-node a variable; it is not waited until they have it.
    pub fn tell_agents(&self, variable: &str, value: &str) -> Result<Told<'_>> {
        let told = Told { cluster: self, variable: variable.to_owned() };
        self.set_variable(&format!("{variable}={value}"))?;
        Ok(told)
    }

    fn set_variable(&self, change: &str) -> Result<()> {
        self.kubectl(&["-n", NAMESPACE, "set", "env", "ds/weft-node", change]).map(drop)
    }

    /// Stops the process, which keeps its sockets: the kernel still takes connections for it.
    pub fn hang_agent(&self, node: &str) -> Result<Hung> {
        let pid = self.agent_pid(node)?;
        kill_process(pid, Signal::STOP)?;
        Ok(Hung(pid))
    }

    /// Kills the process, and gives what its number was.
    pub fn kill_agent(&self, node: &str) -> Result<Pid> {
        let pid = self.agent_pid(node)?;
        kill_process(pid, Signal::KILL)?;
        Ok(pid)
    }

    /// The process that has a node's admin endpoint, whether it answers or not.
    pub fn agent_pid(&self, node: &str) -> Result<Pid> {
        let Admin::Unix(socket) = self.node_admin(node)? else { bail!("{node} has no socket of weft-node") };
        let stream = UnixStream::connect(&socket).with_context(|| socket.display().to_string())?;
        Ok(socket_peercred(&stream)?.pid)
    }

    /// Takes the node's Pod of weft-node away, and waits until it is gone. The others stay as they are.
    pub fn without_agent(&self, node: &str) -> Result<Away<'_>> {
        let others: Vec<String> = self.nodes().into_iter().filter(|other| other != node).collect();
        let [other] = others.as_slice() else { bail!("of two nodes, one can be left out: {others:?}") };
        // Not replaced because their template has changed.
        let patch = format!(
            r#"{{"spec": {{"updateStrategy": {{"type": "OnDelete", "rollingUpdate": null}},
            "template": {{"spec": {{"nodeSelector": {{"kubernetes.io/hostname": "{other}"}}}}}}}}}}"#
        );
        let away = Away { cluster: self };
        self.kubectl(&[&PATCH[..], &["-p", &patch]].concat())?;
        let there = format!("--field-selector=spec.nodeName={node}");
        let labels = "-l=app.kubernetes.io/name=weft-node";
        wait::until(END_WAIT_MAX, || {
            let pods = self.kubectl(&["-n", NAMESPACE, "get", "pods", labels, &there, "-o", "name"])?;
            ensure!(pods.is_empty(), "{node} still has {pods}");
            Ok(())
        })?;
        Ok(away)
    }
}
