//! A new pod with the CNI plugin: in the mesh before its first process, held up while the node's proxy is away, let go with its sandbox.
//! The real plugin as a container runtime calls it, a real `weft-node`, real namespaces and hooks.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};
use weft_e2e::fixture;
use weft_e2e::lab::{Lab, Options, PodState, wait};

const CHANGE_WAIT_MAX: Duration = Duration::from_secs(20);

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: mesh, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: mesh, labels: {app: near}}
spec:
  nodeName: node1
  containers:
    - name: main
      command: [weft-echo, serve, --http, "8080"]
      ports: [{containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: near, namespace: mesh}
spec:
  clusterIP: 10.96.0.10
  selector: {app: near}
  ports: [{port: 80, targetPort: 8080}]
"#;

const LATE: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: mesh}
spec:
  nodeName: node1
  containers: [{name: main, command: [sleep, infinity]}]
"#;

/// Calls the plugin as containerd does for a sandbox of `pod`.
fn call(lab: &Lab, socket: &str, command: &str, pod: &PodState) -> Result<Output> {
    let ips: Vec<Value> = pod.ips.iter().map(|ip| json!({"address": format!("{ip}/24")})).collect();
    let conf = json!({
        "cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "weft-cni",
        "socket": socket, "excludeNamespaces": ["kube-system"],
        // Of GC: this network has no pod.
        "cni.dev/valid-attachments": [],
        "prevResult": {"cniVersion": "1.0.0", "ips": ips, "interfaces": [{"name": "eth0"}]},
    });
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID={}",
        pod.namespace, pod.name, pod.uid
    );
    let mut plugin = Command::new(lab.binary("weft-cni")?)
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", format!("/var/run/netns/{}", pod.netns))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_ARGS", args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = plugin.stdin.take().context("it is a pipe")?;
    stdin.write_all(conf.to_string().as_bytes())?;
    drop(stdin);
    Ok(plugin.wait_with_output()?)
}

/// Removed also when the test fails.
struct Socket(String);

impl Drop for Socket {
    fn drop(&mut self) {
        for file in [self.0.clone(), format!("{}.waiting", self.0)] {
            let _ = std::fs::remove_file(file);
        }
    }
}

#[test]
fn a_new_pod_is_in_the_mesh_before_its_first_process() -> Result<()> {
    let path = Socket(format!("/run/weft-cni-test-{}.sock", std::process::id()));
    let node_args = vec!["--cni-socket".into(), path.0.clone()];
    let mut lab = fixture::up("cni", MANIFESTS, Options { nodes: 1, node_args, ..Options::default() })?;
    let call = |lab: &Lab, command: &str, pod: &PodState| call(lab, &path.0, command, pod);
    lab.wait_mesh_state("mesh/near", "enrolled", CHANGE_WAIT_MAX)?;

    // Scheduled, with a namespace and addresses, and without any process.
    let pod = lab.sandbox("late", LATE, "mesh/late")?;
    lab.wait_mesh_state("mesh/late", "failed", CHANGE_WAIT_MAX)?;
    let added = call(&lab, "ADD", &pod)?;
    let told = String::from_utf8_lossy(&added.stdout).into_owned();
    ensure!(added.status.success(), "{told} {}", String::from_utf8_lossy(&added.stderr));
    let result: Value = serde_json::from_str(&told)?;
    ensure!(result["interfaces"][0]["name"] == "eth0" && result["ips"].is_array(), "passed on: {result}");
    ensure!(lab.mesh_state(&pod)?.0 == "enrolled", "{:?}", lab.mesh_state(&pod)?);

    // Its first process, and its first connection: the server is STRICT, and lets nobody in who is not in the mesh.
    let answer = lab.exec_ok("mesh/late", &["curl", "-sS", "--max-time", "10", "http://10.96.0.10/first"])?;
    let answer: Value = serde_json::from_str(&answer)?;
    ensure!(
        answer["peer"].as_str().is_some_and(|peer| peer.starts_with(&pod.ips[0].to_string())),
        "{answer}"
    );
    // A record is written when its request has ended.
    wait::until(CHANGE_WAIT_MAX, || {
        let text = std::fs::read_to_string(lab.access_log("node1"))?;
        let mut logged = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let named = |line: &Value| {
            line["path"] == "/first"
                && line["source_principal"] == "spiffe://cluster.local/ns/mesh/sa/default"
        };
        ensure!(logged.any(|line| named(&line)), "{text}");
        Ok(())
    })?;

    // Asked again: nothing changes. And CHECK agrees.
    for command in ["ADD", "CHECK"] {
        let again = call(&lab, command, &pod)?;
        ensure!(again.status.success(), "{command}: {}", String::from_utf8_lossy(&again.stdout));
    }

    // The garbage collection of a network that has the plugin and not this pod, as one that was outranked.
    let live = |lab: &Lab| Ok::<_, anyhow::Error>(lab.mesh_state(&pod)?.0);
    ensure!(
        call(&lab, "GC", &pod)?.status.success() && live(&lab)? == "enrolled",
        "{:?}",
        lab.mesh_state(&pod)?
    );

    // The node's proxy is away: the pod waits, and the reason is told as the specification wants.
    lab.kill_node("node1")?;
    let refused = call(&lab, "ADD", &pod)?;
    ensure!(refused.status.code() == Some(1), "{:?}", refused.status);
    let error: Value = serde_json::from_slice(&refused.stdout)?;
    ensure!(error["code"] == 11 && error["cniVersion"] == "1.0.0", "{error}");
    ensure!(error["msg"].as_str().is_some_and(|msg| msg.contains("weft-node")), "{error}");
    ensure!(error["details"].as_str().is_some_and(|details| details.contains(&path.0)), "{error}");
    // The end of a pod is not held up, nor a pod of the cluster's own, nor one of a namespace that was not in the mesh.
    ensure!(call(&lab, "DEL", &pod)?.status.success());
    for namespace in ["kube-system", "elsewhere"] {
        let other = PodState { namespace: namespace.into(), ..pod.clone() };
        ensure!(call(&lab, "ADD", &other)?.status.success(), "a pod of {namespace}");
    }

    // Back, without word from weft-control: what its predecessor knew of namespaces counts, once that was waited for.
    lab.kill_control()?;
    lab.spawn_node("node1")?;
    // What the plugin does while nobody listens is above: it does not wait for a slow start.
    wait::until(CHANGE_WAIT_MAX, || Ok(UnixStream::connect(&path.0).map(drop)?))?;
    let other = PodState { namespace: "elsewhere".into(), ..pod.clone() };
    let (waits, starts) = std::thread::scope(|scope| {
        let starts = scope.spawn(|| call(&lab, "ADD", &other));
        (call(&lab, "ADD", &pod), starts.join())
    });
    let told = String::from_utf8_lossy(&waits?.stdout).into_owned();
    ensure!(told.contains("no configuration from weft-control yet"), "{told}");
    let starts = starts.map_err(|_| anyhow!("the thread panicked"))??;
    ensure!(starts.status.success(), "{}", String::from_utf8_lossy(&starts.stdout));

    // With all its parts again, the node is told of the sandbox anew, and of its end.
    lab.start_control()?;
    lab.wait_mesh_state("mesh/near", "enrolled", CHANGE_WAIT_MAX)?;
    let added = call(&lab, "ADD", &pod)?;
    ensure!(added.status.success(), "{}", String::from_utf8_lossy(&added.stdout));
    ensure!(lab.mesh_state(&pod)?.0 == "enrolled", "{:?}", lab.mesh_state(&pod)?);
    ensure!(call(&lab, "DEL", &pod)?.status.success());
    ensure!(lab.mesh_state(&pod)?.0 != "enrolled", "{:?}", lab.mesh_state(&pod)?);
    lab.down()
}
