//! Promises of a byte stream through the mesh: to a server on the same node and on another one, with the kernel's
//! redirect and without it.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use weft_e2e::fixture::{MESH, Shared};
use weft_e2e::lab::{Lab, Options, wait};
use weft_e2e::story::clients::{count, echo, get};

/// What a server notices of a connection's end is there within this time.
const NOTICE_WAIT_MAX: Duration = Duration::from_secs(5);
const GIB: &str = "1073741824";

fn redirect_auto() -> Result<&'static Lab> {
    static LAB: Shared = Shared::new();
    LAB.lab("tcpon", MESH, Options::default())
}

fn redirect_off() -> Result<&'static Lab> {
    static LAB: Shared = Shared::new();
    LAB.lab("tcpoff", MESH, Options { node_args: vec!["--redirect=off".into()], ..Options::default() })
}

/// A TCP client in mesh/client against a port of a server.
fn tcp(lab: &Lab, server: &str, port: u16, mode: &str, more: &[&str]) -> Result<Value> {
    let to = format!("{server}:{port}");
    echo(lab, "mesh/client", &[&["tcp", "--to", &to, "--mode", mode], more].concat())
}

/// What the server has counted, asked from inside its own pod.
fn counts(lab: &Lab, server: &str) -> Result<Value> {
    let told = lab.exec_ok(&format!("mesh/{server}"), &["curl", "-sS", "http://127.0.0.1:8080/counts"])?;
    Ok(serde_json::from_str(&told)?)
}

fn a_gibibyte_each_way_arrives_intact(lab: &Lab, server: &str) -> Result<()> {
    // So that a run that hangs ends, however busy the machine is.
    tcp(lab, server, 9000, "transfer", &["--bytes", GIB, "--timeout", "900"]).map(drop)
}

fn a_client_may_close_its_half_first(lab: &Lab, server: &str) -> Result<()> {
    for bytes in ["0", "1", "20000"] {
        tcp(lab, server, 9000, "half-close", &["--bytes", bytes])?;
    }
    Ok(())
}

fn a_server_may_close_its_half_first(lab: &Lab, server: &str) -> Result<()> {
    let before = count(&counts(lab, server)?, "/tcp_bytes_after_close");
    tcp(lab, server, 9002, "close-first", &["--bytes", "3000000"])?;
    wait::until(NOTICE_WAIT_MAX, || {
        let arrived = count(&counts(lab, server)?, "/tcp_bytes_after_close") - before;
        ensure!(arrived == 3_000_000, "{arrived} of 3000000 bytes arrived after the server's close");
        Ok(())
    })
}

fn a_clients_reset_reaches_the_server(lab: &Lab, server: &str) -> Result<()> {
    let before = count(&counts(lab, server)?, "/tcp_failed");
    tcp(lab, server, 9000, "reset", &["--bytes", "100000"])?;
    wait::until(NOTICE_WAIT_MAX, || {
        let failed = count(&counts(lab, server)?, "/tcp_failed") - before;
        ensure!(failed == 1, "the server noticed {failed} resets");
        Ok(())
    })
}

fn a_servers_reset_reaches_the_client(lab: &Lab, server: &str) -> Result<()> {
    tcp(lab, server, 9003, "aborted", &["--bytes", "1000"]).map(drop)
}

fn a_slow_reader_loses_nothing(lab: &Lab, server: &str) -> Result<()> {
    tcp(lab, server, 9000, "slow", &["--bytes", "16000000"]).map(drop)
}

fn a_server_may_speak_first(lab: &Lab, server: &str) -> Result<()> {
    for port in [9001, 9101] {
        tcp(lab, server, port, "greet", &["--bytes", "100"])?;
    }
    Ok(())
}

fn the_client_sees_whom_it_asked_for_and_the_server_sees_the_client(lab: &Lab, server: &str) -> Result<()> {
    let told = tcp(lab, server, 9000, "ping-pong", &["--count", "100"])?;
    let vip = if server == "near" { "30" } else { "31" };
    let asked_for = [format!("10.96.0.{vip}:9000"), format!("[fd00:10:96::{vip}]:9000")];
    let peer = told["peer"].as_str().unwrap_or_default();
    ensure!(asked_for.iter().any(|vip| vip == peer), "the client's peer is none of {asked_for:?}: {told}");
    let client = &lab.pod("mesh/client")?.ips;
    for port in [80, 81] {
        for (family, ip) in ["-4", "-6"].into_iter().zip(client) {
            let url = format!("http://{server}:{port}/");
            let body = lab.exec_ok("mesh/client", &["curl", "-sSf", family, &url])?;
            ensure!(body.contains(&format!("\"peer\":\"{}", plain(*ip))), "{url} {family}: {body}");
        }
    }
    Ok(())
}

/// An address as it begins an `address:port`.
fn plain(ip: IpAddr) -> String {
    if ip.is_ipv4() { format!("{ip}:") } else { format!("[{ip}]:") }
}

fn undeclared_bytes_are_carried_too(lab: &Lab, server: &str) -> Result<()> {
    tcp(lab, server, 9100, "transfer", &["--bytes", "3000000"])?;
    let (status, body) = get(lab, "mesh/client", &format!("http://{server}:9180/"), &[])?;
    ensure!(status == 200, "{status} {body}");
    Ok(())
}

fn a_port_without_a_listener_refuses(lab: &Lab, server: &str) -> Result<()> {
    let to = format!("{server}:9999");
    let told = lab.exec("mesh/client", &["weft-echo", "tcp", "--to", &to, "--mode", "greet"])?;
    let said = String::from_utf8_lossy(&told.stderr);
    // The proxy has accepted before it knows: a reset instead of a refusal, and no orderly end.
    ensure!(!told.status.success() && said.contains("reset"), "{said}");
    let (status, body) = get(lab, "mesh/client", &format!("http://{to}/"), &[])?;
    ensure!(status == 503 && body.contains("refused"), "{status} {body}");
    Ok(())
}

fn clients_of_every_address_family_are_served(lab: &Lab, server: &str) -> Result<()> {
    let pod = &lab.pod(&format!("mesh/{server}"))?.ips;
    let vip = if server == "near" { "30" } else { "31" };
    let [v4, v6] = [pod[0].to_string(), pod[1].to_string()];
    for (to, peer) in [
        (format!("10.96.0.{vip}:9000"), 0),
        (format!("[fd00:10:96::{vip}]:9000"), 1),
        (format!("[::ffff:10.96.0.{vip}]:9000"), 0),
        (format!("{v4}:9000"), 0),
        (format!("[{v6}]:9000"), 1),
        (format!("[::ffff:{v4}]:9000"), 0),
    ] {
        let arguments = ["tcp", "--to", &to, "--mode", "transfer", "--bytes", "200000"];
        echo(lab, "mesh/client", &arguments).map_err(|e| e.context(to.clone()))?;
        // ... and the server sees a client of the family that was used.
        let url = format!("http://{}:8080/", to.rsplit_once(':').map_or("", |(host, _)| host));
        if !url.contains("96") {
            let (status, body) = get(lab, "mesh/client", &url, &[])?;
            let client = lab.pod("mesh/client")?.ips[peer];
            ensure!(status == 200 && body.contains(&client.to_string()), "{url}: {status} {body}");
        }
    }
    Ok(())
}

/// Each pod's leg to the proxy is a connection to its own address, and on loopback even the addresses are the same: only
/// the network namespace tells the two apart.
fn two_pods_with_the_same_ports_are_kept_apart(lab: &Lab, server: &str) -> Result<()> {
    // A port of each test's own: a closed connection keeps it for a while. None that other connections of the pod are given.
    let ports = if server == "near" { ["21001", "21002"] } else { ["21003", "21004"] };
    for (url, port) in
        [format!("http://{server}:81/"), "http://127.0.0.1:8080/".into()].into_iter().zip(ports)
    {
        let ask = |pod: &str| -> Result<_> {
            // Slow, so that both live at the same time.
            let slow = "x-echo-delay-ms: 300";
            let words = ["curl", "-4sS", "--max-time", "10", "--local-port", port, "-H", slow, url.as_str()];
            Ok(lab.command(pod, &words)?.stdout(Stdio::piped()).spawn()?)
        };
        let asked = [("mesh/client", ask("mesh/client")?), ("mesh/client2", ask("mesh/client2")?)];
        for (pod, child) in asked {
            let told: Value = serde_json::from_slice(&child.wait_with_output()?.stdout)?;
            let ip = lab.pod(pod)?.ips[0].to_string();
            let local = url.contains("127.0.0.1");
            let (from, by) = if local { ("127.0.0.1", &pod[5..]) } else { (ip.as_str(), server) };
            ensure!(told["pod"] == by, "{pod} asked {url} and was answered by {told}");
            let peer = told["peer"].as_str().unwrap_or_default();
            ensure!(peer == format!("{from}:{port}"), "{pod} asked {url} and was seen as {peer}");
        }
    }
    Ok(())
}

macro_rules! promises {
    ($($module:ident: $lab:ident, $server:literal;)*) => { $(
        mod $module {
            use anyhow::Result;
            promises!(@each $lab, $server;
                a_gibibyte_each_way_arrives_intact
                a_client_may_close_its_half_first
                a_server_may_close_its_half_first
                a_clients_reset_reaches_the_server
                a_servers_reset_reaches_the_client
                a_slow_reader_loses_nothing
                a_server_may_speak_first
                the_client_sees_whom_it_asked_for_and_the_server_sees_the_client
                undeclared_bytes_are_carried_too
                a_port_without_a_listener_refuses
                clients_of_every_address_family_are_served
                two_pods_with_the_same_ports_are_kept_apart
            );
        }
    )* };
    (@each $lab:ident, $server:literal; $($promise:ident)*) => { $(
        #[test]
        fn $promise() -> Result<()> {
            super::$promise(super::$lab()?, $server)
        }
    )* };
}

promises! {
    same_node: redirect_auto, "near";
    other_node: redirect_auto, "far";
    same_node_without_redirect: redirect_off, "near";
    other_node_without_redirect: redirect_off, "far";
}
