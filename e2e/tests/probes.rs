//! The kubelet's probes of a STRICT pod: a process of the node reaches the probed ports in plaintext, and nothing else; nobody else does.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_e2e::fixture;
use weft_e2e::lab::{Lab, Options, wait};

const CLOSE_WAIT_MAX: Duration = Duration::from_secs(10);

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: mesh, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: probed, namespace: mesh}
spec:
  nodeName: node1
  containers:
    - name: main
      command: [weft-echo, serve, --http, "8080", --http, "8081", --tcp, "9000"]
      ports: [{name: http, containerPort: 8080}, {containerPort: 8081}, {containerPort: 9000}]
      readinessProbe: {httpGet: {path: /, port: http}}
      livenessProbe: {tcpSocket: {port: 9000}}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: outside}
spec:
  nodeName: node1
  containers: [{name: main, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: outside}
spec:
  nodeName: node2
  containers: [{name: main, command: [sleep, infinity]}]
"#;

/// What curl's exit code says of an HTTP GET.
fn get(output: &std::process::Output) -> bool {
    output.status.success()
}

#[test]
fn the_nodes_probes_pass_to_probed_ports_and_nothing_else_does() -> Result<()> {
    let lab: Lab = fixture::up("probes", MANIFESTS, Options::default())?;
    let ips = lab.pod("mesh/probed")?.ips.clone();
    let url = |ip: &std::net::IpAddr, port: u16| format!("http://{}/", std::net::SocketAddr::new(*ip, port));
    for ip in &ips {
        let curl = |port: u16| {
            ["curl", "-sS", "-g", "--max-time", "5"].map(str::to_owned).into_iter().chain([url(ip, port)])
        };
        let words = |port: u16| curl(port).collect::<Vec<_>>();
        let on_node = |node: &str, port: u16| lab.exec_on_node(node, &words(port));
        let in_pod = |pod: &str, port: u16| -> Result<_> {
            let words = words(port);
            lab.exec(pod, &words.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let probe = on_node("node1", 8080)?;
        ensure!(get(&probe), "{ip}: {}", String::from_utf8_lossy(&probe.stderr));
        ensure!(String::from_utf8_lossy(&probe.stdout).contains("\"pod\":\"probed\""), "{probe:?}");
        // The port is open to the node only if it is probed ...
        ensure!(!get(&on_node("node1", 8081)?), "{ip}: a port that is not probed was open to the node");
        // ... and only to its own node, whatever the pods of that node are.
        ensure!(!get(&on_node("node2", 8080)?), "{ip}: open to another node");
        for pod in ["outside/stranger", "outside/far"] {
            for port in [8080, 8081] {
                ensure!(!get(&in_pod(pod, port)?), "{ip}: {pod} reached port {port}");
            }
        }
        // TCP, as tcpSocket does it: connect, then bytes that come back.
        let to = std::net::SocketAddr::new(*ip, 9000).to_string();
        let binary = lab.binary("weft-echo")?.display().to_string();
        let tcp = [&binary, "tcp", "--to", &to, "--mode", "transfer", "--bytes", "1000"].map(str::to_owned);
        let tcp = lab.exec_on_node("node1", &tcp)?;
        ensure!(tcp.status.success(), "{to}: {}", String::from_utf8_lossy(&tcp.stderr));
    }
    // What is filed goes when its socket has closed.
    wait::until(CLOSE_WAIT_MAX, || {
        let status = lab.node_status("node1")?;
        let filed =
            status["kernel"]["maps"].as_array().into_iter().flatten().find(|map| map["map"] == "probes");
        ensure!(filed.is_some_and(|map| map["entries"] == 0), "filed probes stay: {filed:?}");
        Ok(())
    })?;
    lab.down()
}
