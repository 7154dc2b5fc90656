//! The lab itself, without a mesh: pods talk across nodes and through Services, and nothing is left behind.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use weft_e2e::lab::{Lab, Options, cgroup, wait};
use weft_e2e::tools::built_beside;

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: lab}
spec:
  nodeName: node1
  containers: [{name: main, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: lab, labels: {app: echo}}
spec:
  nodeName: node1
  containers:
    - name: main
      command: [weft-echo, serve, --http, "8080", --tcp, "9000", --greet, "9001", --close-first, "9002"]
      ports: [{name: http, containerPort: 8080}, {containerPort: 9000}, {containerPort: 9001}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: lab, labels: {app: echo, at: far}}
spec:
  nodeName: node2
  containers:
    - name: main
      command: [weft-echo, serve]
      args: [--http, "8080", --tcp, "9000", --greet, "9001", --close-first, "9002"]
      env:
        - {name: ECHO_VERSION, value: v2}
      ports: [{name: http, containerPort: 8080}, {containerPort: 9000}]
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: lab}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:10:96::10"]
  selector: {app: echo}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: lab}
spec:
  clusterIP: None
  selector: {at: far}
  ports: [{port: 8080}]
"#;

fn lab(name: &str) -> Lab {
    Lab::up_with(name, MANIFESTS, Options { mesh: false, ..Options::default() })
        .expect("a lab without a mesh")
}

#[test]
fn pods_talk_across_nodes_and_through_services_and_nothing_is_left() {
    let name = format!("t{}", std::process::id());
    let mut lab = lab(&name);
    // A Service's address reaches every pod behind it.
    let told = lab.exec_ok(
        "lab/client",
        &["weft-echo", "load", "--url", "http://echo/", "--requests", "40", "--reconnect"],
    );
    let told: serde_json::Value = serde_json::from_str(&told.unwrap()).unwrap();
    assert_eq!(told["ok"], 40, "{told}");
    assert!(told["pods"]["near"].as_u64() > Some(0) && told["pods"]["far"].as_u64() > Some(0), "{told}");
    // IPv6, and names with their namespace.
    let six = lab.exec_ok("lab/client", &["curl", "-sS", "-g", "http://[fd00:10:96::10]/"]).unwrap();
    assert!(six.contains("\"peer\":\"[fd00:10:244:1::2]:"), "{six}");
    // A headless name leads to the pod itself, on the other node.
    let far = lab.exec_ok("lab/client", &["curl", "-4sS", "http://far.lab.svc.cluster.local:8080/"]).unwrap();
    assert!(far.contains("\"version\":\"v2\"") && far.contains("\"peer\":\"10.244.1.2:"), "{far}");

    let capture = lab.capture("node2", "tcp").unwrap();
    lab.exec_ok("lab/client", &["curl", "-sS", "http://far:8080/captured-text"]).unwrap();
    let packets = capture.stop().unwrap();
    assert!(
        packets.contains("/captured-text"),
        "what crosses the link is seen: {} segments",
        packets.segments.len()
    );
    assert_eq!(packets.tls_records(15008), 0);

    // A pod that comes is found by its Service; one that goes is gone.
    let third = MANIFESTS.split("---\n").nth(1).unwrap().replace("name: near", "name: third");
    lab.apply("third", &third).unwrap();
    assert_eq!(lab.pod("lab/third").unwrap().node, "node1");
    let namespace = lab.pod("lab/third").unwrap().netns.clone();
    lab.remove_manifest("third").unwrap();
    lab.reconcile().unwrap();
    assert!(lab.pod("lab/third").is_err() && !Path::new("/run/netns").join(namespace).exists());

    // Another process goes on with it, and takes it down.
    let again = Lab::attach(&name).unwrap();
    assert_eq!(again.state().pods, lab.state().pods);
    again.down().unwrap();
    assert_nothing_left(&name);
}

#[test]
fn the_echo_application_keeps_its_promises_without_a_mesh() {
    let name = format!("e{}", std::process::id());
    let lab = lab(&name);
    let echo = |arguments: &[&str]| {
        let words = [&["weft-echo"], arguments].concat();
        let told = lab.exec_ok("lab/client", &words).unwrap();
        serde_json::from_str::<serde_json::Value>(&told).unwrap()
    };
    for (mode, port, more) in [
        ("transfer", "9000", ["--bytes", "20000000"]),
        ("half-close", "9000", ["--bytes", "20000"]),
        ("greet", "9001", ["--bytes", "100"]),
        ("close-first", "9002", ["--bytes", "100000"]),
        ("reset", "9000", ["--bytes", "1000"]),
        ("slow", "9000", ["--bytes", "2000000"]),
        ("ping-pong", "9000", ["--count", "100"]),
        ("short", "9000", ["--count", "160"]),
        ("hold", "9000", ["--count", "100"]),
    ] {
        let to = format!("far:{port}");
        let told = echo(&[&["tcp", "--to", &to, "--mode", mode], &more[..]].concat());
        assert!(told["seconds"].is_number(), "{mode}: {told}");
    }
    assert_eq!(echo(&["grpc", "--url", "http://far:8080"])["unary"]["codes"]["OK"], 1);
    let refused = echo(&["grpc", "--url", "http://far:8080", "--fail-code", "14"]);
    assert_eq!(refused["unary"]["codes"]["Unavailable"], 1, "{refused}");
    assert_eq!(echo(&["websocket", "--to", "far:8080"])["messages"], 10);
    for extra in [&[][..], &["--http2"]] {
        let post = [
            "load",
            "--url",
            "http://far:8080/",
            "--requests",
            "9",
            "--method",
            "POST",
            "--body-bytes",
            "100000",
        ];
        let told = echo(&[&post, extra].concat());
        assert_eq!(told["statuses"]["200"], 9, "{told}");
    }
    let failing =
        echo(&["load", "--url", "http://far:8080/", "--requests", "6", "--header", "x-echo-status: 503"]);
    assert_eq!(failing["statuses"]["503"], 6, "{failing}");
    drop(lab);
    assert_nothing_left(&name);
}

#[test]
fn a_second_up_replaces_what_a_crash_left() {
    let name = format!("c{}", std::process::id());
    let mut crashed = lab(&name);
    crashed.keep();
    crashed.kill_container("lab/far", "main").unwrap();
    std::fs::remove_file(crashed.directory().join("state.json")).unwrap();
    drop(crashed);
    let again = lab(&name);
    again.exec_ok("lab/client", &["curl", "-sS", "http://far:8080/"]).unwrap();
    drop(again);
    assert_nothing_left(&name);
}

#[test]
fn a_container_that_ended_is_told_with_how_and_started_again() {
    let name = format!("x{}", std::process::id());
    let ends = "apiVersion: v1\nkind: Pod\nmetadata: {name: ends, namespace: lab}\n\
                spec: {nodeName: node1, containers: [{name: main, command: [sh, -c, 'exit 3']}]}\n---\n";
    let manifests = ends.to_owned() + MANIFESTS;
    let mut lab = Lab::up_with(&name, &manifests, Options { mesh: false, ..Options::default() }).unwrap();
    let state = |lab: &Lab, pod: &str| lab.containers(lab.pod(pod).unwrap())[0].1.to_string();
    let wait = |lab: &Lab, pod: &str, expected: &str| {
        wait::until(Duration::from_secs(10), || match state(lab, pod) {
            now if now == expected => Ok(()),
            now => anyhow::bail!("{pod} is {now}"),
        })
        .unwrap();
    };
    wait(&lab, "lab/ends", "exited (exit status: 3)");
    wait(&lab, "lab/far", "running");
    lab.kill_container("lab/far", "main").unwrap();
    wait(&lab, "lab/far", "exited (signal: 9)");
    lab.reconcile().unwrap();
    wait(&lab, "lab/far", "running");
    lab.exec_ok("lab/client", &["curl", "-sS", "http://far:8080/"]).unwrap();

    // A mistake ends nothing.
    let error = lab.apply("main", "apiVersion: v1\nkind: [").unwrap_err();
    assert!(format!("{error:#}").contains("main.yaml:"), "{error:#}");
    lab.exec_ok("lab/client", &["curl", "-sS", "http://far:8080/"]).unwrap();
    drop(lab);
    assert_nothing_left(&name);
}

/// Most machines have only cgroup v2, at /sys/fs/cgroup; the one that tests this may have both versions side by side.
#[test]
fn a_mesh_runs_where_only_cgroup_v2_is_mounted() {
    let name = format!("v2{}", std::process::id());
    let weft = built_beside().join("weft");
    let script = r#"
        umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
        trap '"$WEFT" lab down' EXIT
        "$WEFT" lab up -f examples/shop
        "$WEFT" lab exec shop/frontend -- curl -sS --max-time 10 http://backend/
        "$WEFT" status
    "#;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "bash", "-euxc", script])
        .envs([("WEFT", weft.as_os_str()), ("WEFT_LAB", name.as_ref())])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap())
        .output()
        .unwrap();
    let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}\n{errors}");
    assert!(told.contains("shop/backend-v1  enrolled"), "{told}\n{errors}");
    assert_nothing_left(&name);
}

fn assert_nothing_left(name: &str) {
    let left = |directory: &str| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
        let of_lab = |n: &String| {
            n.starts_with(&format!("weft-{name}-"))
                || n.trim_start_matches('.').split('.').next() == Some(name)
        };
        names.filter(of_lab).collect::<Vec<_>>()
    };
    for directory in ["/run/netns", "/run/weft-lab", "/sys/fs/bpf/weft-lab"] {
        assert_eq!(left(directory), Vec::<String>::new(), "in {directory}");
    }
    assert!(!cgroup::v2_root().expect("cgroup v2").join("weft-lab").join(name).exists());
}
