//! The process `weft-node` at its start, as an operator sees it.

use std::process::Command;

#[test]
fn a_setting_that_cannot_be_used_stops_the_start_before_anything_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let output = Command::new(env!("CARGO_BIN_EXE_weft-node"))
        .args(["--node-name", "n1", "--control-address", "https://127.0.0.1:1"])
        .args(["--control-ca", "/ca", "--join-token-file", "/token", "--drain-seconds", "soon"])
        .args(["--access-log", "all", "--access-log-file"])
        .arg(path("log"))
        .arg("--pin-dir")
        .arg(path("pins"))
        // No cgroup: whatever this process does, no hook comes of it.
        .arg("--cgroup-root")
        .arg(directory.path())
        .env("OTEL_TRACES_SAMPLER", "jaeger_remote")
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    for mistake in ["--drain-seconds: ", "OTEL_TRACES_SAMPLER: ", "OTEL_EXPORTER_OTLP_PROTOCOL: "] {
        assert!(told.contains(mistake), "{mistake} in {told}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "something was made");
    let last = told.lines().last().unwrap_or_default();
    assert!(last.starts_with("  OTEL_"), "the end of the log is a reason: {told}");
}

/// Kubernetes keeps the end of the log of a container that failed, and `weft check` repeats what `weft-node:` said last there.
#[test]
fn the_last_line_of_the_log_is_the_reason_why_it_cannot_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let output = Command::new(env!("CARGO_BIN_EXE_weft-node"))
        .args(["--node-name", "n1", "--control-address", "https://127.0.0.1:1"])
        .args(["--control-ca", "/ca", "--join-token-file", "/token"])
        .arg(format!("--admin=unix:{}", path("admin.sock").display()))
        // Neither a file system for pins nor a cgroup: whatever this process does, no hook comes of it.
        .args([format!("--pin-dir={}", path("pins").display())])
        .args([format!("--cgroup-root={}", path("nowhere").display())])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let last = told.lines().last().unwrap_or_default();
    assert!(last.starts_with("weft-node: cannot "), "{told}");
    assert!(last.contains(&path("").display().to_string()), "it names what it could not use: {told}");
}

#[test]
fn the_charts_arguments_are_those_of_this_program() {
    let manifest = include_str!("../../deploy/manifests/weft.yaml");
    let daemon_set = manifest.split("\n---").find(|object| object.contains("\nkind: DaemonSet")).unwrap();
    let listed = daemon_set.lines().filter_map(|line| line.trim().strip_prefix("- "));
    let arguments: Vec<&str> = listed.filter(|argument| argument.starts_with("--")).collect();
    let run = |more: &[&str]| Command::new(env!("CARGO_BIN_EXE_weft-node")).args(more).output().unwrap();
    // With one mistake besides, so that it does not start.
    let output = run(&[&arguments[..], &["--node-name=n1", "--daemonset=wrong"]].concat());
    let told = String::from_utf8_lossy(&output.stderr);
    let mistakes: Vec<&str> = told.lines().skip(1).collect();
    assert!(mistakes.len() == 1 && mistakes[0].starts_with("  --daemonset: "), "{told}");
    // What the chart's values repeat of the program's defaults.
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    let help: Vec<&str> = help.split_whitespace().collect();
    for flag in ["--flows-max=", "--connections-per-pod=", "--cni-exclude-namespaces="] {
        let value = arguments.iter().find_map(|argument| argument.strip_prefix(flag)).unwrap();
        let default = format!("{value}]");
        assert!(help.windows(2).any(|words| words == ["[default:", &default]), "{flag}{value} in {help:?}");
    }
}
