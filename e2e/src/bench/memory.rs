//! The proxies' memory: proportional set size, before load, right after, and when it has had time to go back.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::scene::{HTTP_PORT, client, options, server, service_of, write_nginx_conf};
use crate::lab::{Lab, cgroup, memory_mib, wait};

/// Pods of each node.
const PODS: [u16; 2] = [1, 20];
const CONNECTIONS_PER_CLIENT: &str = "8";
const FIRST_ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);
/// Nothing that a proxy does at its start takes longer.
const IDLE_SETTLE: Duration = Duration::from_secs(2);
/// What load leaves behind should be gone by then.
const AFTER_SETTLE: Duration = Duration::from_secs(10);

/// One proxy, with so many pods on its node.
#[derive(Debug, Clone, Serialize)]
pub struct Memory {
    pub pods: u16,
    pub node: String,
    pub idle_mib: f64,
    /// A moment after the load ended.
    pub loaded_mib: f64,
    /// Ten seconds later.
    pub after_mib: f64,
}

pub(super) fn measure(quick: bool, progress: &mut impl FnMut(&str)) -> Result<Vec<Memory>> {
    let files = tempfile::tempdir()?;
    let conf = write_nginx_conf(files.path())?;
    let mut all = Vec::new();
    for pods in PODS {
        progress(&format!("memory with {pods} pods on each node"));
        let name = format!("bench-memory-{pods}");
        let lab = Lab::up_with(&name, &manifests(pods, &conf), options("auto"))?;
        all.extend(with_lab(&lab, pods, quick).with_context(|| format!("memory with {pods} pods"))?);
        lab.down()?;
    }
    Ok(all)
}

fn with_lab(lab: &Lab, pods: u16, quick: bool) -> Result<Vec<Memory>> {
    let url = format!("http://10.96.1.1:{HTTP_PORT}/");
    for pod in 0..pods {
        wait::until(FIRST_ANSWER_WAIT_MAX, || {
            let words = ["curl", "-sSf", "--max-time", "2", "-o", "/dev/null", &url];
            lab.exec_ok(&format!("inside/client-{pod}"), &words)
        })?;
    }
    thread::sleep(IDLE_SETTLE);
    let idle = pss_mib(lab)?;
    load(lab, pods, &url, if quick { "1" } else { "4" })?;
    thread::sleep(Duration::from_millis(500));
    let loaded = pss_mib(lab)?;
    thread::sleep(if quick { IDLE_SETTLE } else { AFTER_SETTLE });
    let after = pss_mib(lab)?;
    let all = lab.nodes().into_iter().zip(idle).zip(loaded).zip(after);
    Ok(all
        .map(|(((node, idle_mib), loaded_mib), after_mib)| Memory {
            pods,
            node,
            idle_mib,
            loaded_mib,
            after_mib,
        })
        .collect())
}

/// Every client pod asks as fast as it can; then one sends bytes in bulk.
fn load(lab: &Lab, pods: u16, url: &str, seconds: &str) -> Result<()> {
    let mut clients = Vec::new();
    for pod in 0..pods {
        let words = ["wrk", "-t", "1", "-c", CONNECTIONS_PER_CLIENT, "-d", seconds, url];
        let mut command = lab.command(&format!("inside/client-{pod}"), &words)?;
        clients.push(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    }
    for mut one in clients {
        ensure!(one.wait()?.success(), "wrk failed");
    }
    // By the pod's own address: the connections of one test must meet one server.
    let server = lab.pod("inside/server-0")?.ips[0].to_string();
    lab.exec_ok("inside/client-0", &["iperf3", "-c", &server, "-P", "4", "-t", seconds]).map(drop)
}

fn pss_mib(lab: &Lab) -> Result<Vec<f64>> {
    let of = |node: String| {
        let pids = cgroup::pids(&lab.agent_cgroup(&node));
        let pid = pids.first().with_context(|| format!("weft-node of {node} does not run"))?;
        memory_mib(*pid, "Pss")
    };
    lab.nodes().into_iter().map(of).collect()
}

fn manifests(pods: u16, nginx_conf: &str) -> String {
    let mut documents = vec![
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: inside, labels: {weft.dev/mesh: enabled}}\n"
            .to_owned(),
    ];
    for pod in 0..pods {
        documents.push(client("inside", &format!("client-{pod}")));
        documents.push(server("inside", &format!("server-{pod}"), "node2", nginx_conf));
    }
    documents.push(service_of("servers", "10.96.1.1", "tier: server"));
    documents.join("---\n")
}
