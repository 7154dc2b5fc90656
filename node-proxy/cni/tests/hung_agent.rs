//! The plugin, called as a runtime calls it, beside a weft-node that listens and does not answer, or is away.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use weft_cni::notice::Notice;

/// What the plugin is promised to need at most, and time to start a process and to see its end on a busy machine.
const END_MAX: Duration = Duration::from_secs(2 + 10);
const BEGIN_MAX: Duration = Duration::from_secs(8 + 10);

fn call(command: &str, socket: &Path) -> Output {
    let conf = format!(
        r#"{{"cniVersion":"1.1.0","name":"k8s","type":"weft-cni","socket":{socket:?},"excludeNamespaces":[],
            "prevResult":{{"ips":[{{"address":"10.1.0.5/16"}}]}},"cni.dev/valid-attachments":[]}}"#
    );
    called(command, &conf)
}

fn called(command: &str, conf: &str) -> Output {
    let mut plugin = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", "/run/netns/none")
        .env("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u-1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the plugin was built for this test");
    let mut stdin = plugin.stdin.take().expect("it is piped");
    stdin.write_all(conf.as_bytes()).expect("the plugin reads its configuration");
    drop(stdin);
    plugin.wait_with_output().expect("the plugin ends")
}

#[test]
fn a_pod_ends_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cni.sock");
    let _never_accepts = UnixListener::bind(&path).unwrap();
    for command in ["DEL", "GC"] {
        let begun = Instant::now();
        let done = call(command, &path);
        let told = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.success() && told.contains("does not answer (waited 2 s)"), "{command}: {told}");
        assert!(begun.elapsed() < END_MAX, "{command} took {:?}", begun.elapsed());
    }
}

#[test]
fn a_pod_ends_even_where_the_call_cannot_be_read() {
    for conf in
        ["", "{}", r#"{"cniVersion":"9.9.9"}"#, r#"{"cniVersion":"1.1.0","name":"k8s","type":"weft-cni"}"#]
    {
        for command in ["DEL", "GC"] {
            let done = called(command, conf);
            assert!(done.status.success() && !done.stderr.is_empty(), "{command} with {conf:?}: {done:?}");
        }
    }
}

#[test]
fn a_pod_that_begins_is_told_soon_that_the_agent_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cni.sock");
    let _never_accepts = UnixListener::bind(&path).unwrap();
    let begun = Instant::now();
    let done = call("ADD", &path);
    let answer = String::from_utf8(done.stdout).unwrap();
    assert!(!done.status.success() && answer.contains(r#""code":11"#), "{answer}");
    assert!(answer.contains("accepts connections but does not answer (waited 5 s)"), "{answer}");
    assert!(answer.contains("kubectl -n weft-system logs"), "{answer}");
    assert!(begun.elapsed() < BEGIN_MAX, "{:?}", begun.elapsed());
}

/// What the plugin does with a pod of the namespace `shop` where nobody listens, and this is the agent's notice.
fn beside_notice(notice: Option<&str>) -> Output {
    let directory = tempfile::tempdir().expect("there is room for a file");
    let path = directory.path().join("cni.sock");
    if let Some(notice) = notice {
        std::fs::write(Notice::path(&path), notice).expect("there is room for a file");
    }
    call("ADD", &path)
}

#[test]
fn only_pods_of_namespaces_that_the_agents_notice_names_wait_while_it_is_away() {
    let outside = Notice::new(["bank".to_owned()]).to_json();
    let enrolled = Notice::new(["bank".to_owned(), "shop".to_owned()]).to_json();
    let cases = [
        (None, false, "Pods outside the mesh wait too, because"),
        (Some("{"), false, "Pods outside the mesh wait too, because"),
        (Some(&*enrolled), false, "which does not run on this node"),
        (Some(&*outside), true, "10.1.0.5"),
    ];
    // Each waits for the agent first, as long as for one that is being replaced.
    std::thread::scope(|scope| {
        for (notice, starts, told) in cases {
            scope.spawn(move || {
                let done = beside_notice(notice);
                let answer = String::from_utf8(done.stdout).unwrap();
                assert_eq!(done.status.success(), starts, "{notice:?}: {answer}");
                assert!(answer.contains(told), "{notice:?}: {answer}");
            });
        }
    });
}
