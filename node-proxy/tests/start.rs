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
}
