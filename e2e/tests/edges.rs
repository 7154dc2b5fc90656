//! Where the mesh ends: pods outside it, plaintext into STRICT and PERMISSIVE pods, excluded ports, calls of a pod to
//! itself, labels that change.

use std::net::SocketAddr;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use weft_e2e::fixture::{self, MESH, Running, Shared};
use weft_e2e::lab::{Lab, Options, netns, wait};
use weft_e2e::story::clients::{echo, get};

const CHANGE_WAIT_MAX: Duration = Duration::from_secs(5);
const TUNNEL_PORT: u16 = 15008;

fn manifests() -> &'static str {
    static MANIFESTS: LazyLock<String> = LazyLock::new(|| [MESH, include_str!("edges.yaml")].join("---\n"));
    &MANIFESTS
}

fn lab() -> Result<&'static Lab> {
    static LAB: Shared = Shared::new();
    LAB.lab("edges", manifests(), Options::default())
}

/// Status and body of a GET from a pod; status 0: refused or reset.
fn ask(pod: &str, url: &str) -> Result<(u16, String)> {
    get(lab()?, pod, url, &[])
}

fn served(pod: &str, url: &str) -> Result<serde_json::Value> {
    let (status, body) = ask(pod, url)?;
    ensure!(status == 200, "{url} from {pod}: {status} {body}");
    Ok(serde_json::from_str(&body)?)
}

fn turned_away(pod: &str, url: &str) -> Result<()> {
    let (status, body) = ask(pod, url)?;
    ensure!(status == 0 && !body.contains("timed out"), "{url} from {pod}: {status} {body}");
    Ok(())
}

fn ip(pod: &str, family: usize) -> Result<String> {
    Ok(lab()?.pod(pod)?.ips[family].to_string())
}

/// TLS records and whether `text` was seen on the link of node2 while `work` ran. One capture at a time.
fn on_the_link(text: &str, work: impl FnOnce() -> Result<()>) -> Result<(usize, bool)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let capture = lab()?.capture("node2", "tcp")?;
    work()?;
    let packets = capture.stop()?;
    Ok((packets.tls_records(TUNNEL_PORT), packets.contains(text)))
}

#[test]
fn a_strict_pod_refuses_plaintext_and_a_permissive_one_takes_it() -> Result<()> {
    for to in ["near.mesh", "far.mesh"] {
        turned_away("outside/stranger", &format!("http://{to}/"))?;
    }
    for family in [0, 1] {
        let host = if family == 0 { ip("mesh/near", 0)? } else { format!("[{}]", ip("mesh/near", 1)?) };
        turned_away("outside/stranger", &format!("http://{host}:8080/"))?;
    }
    let told = served("outside/stranger", "http://open.mesh/")?;
    let stranger = ip("outside/stranger", 0)?;
    ensure!(told["peer"].as_str().is_some_and(|peer| peer.starts_with(&stranger)), "{told}");
    let transfer = ["tcp", "--to", "open.mesh:9000", "--mode", "transfer", "--bytes", "3000000"];
    echo(lab()?, "outside/stranger", &transfer)?;
    Ok(())
}

#[test]
fn a_permissive_pod_is_still_reached_by_mutual_tls_from_the_mesh() -> Result<()> {
    let (_, plain) = on_the_link("/permissive-from-mesh", || {
        served("mesh/client", "http://open/permissive-from-mesh").map(drop)
    })?;
    ensure!(!plain, "the request crossed the link in the clear");
    Ok(())
}

#[test]
fn a_pod_outside_the_mesh_is_reached_through_its_service_and_directly() -> Result<()> {
    let client = &lab()?.pod("mesh/client")?.ips;
    for (pod, service) in [("outside/stranger", "stranger"), ("outside/listener", "listener")] {
        for url in [
            format!("http://{service}.outside/"),
            format!("http://{}:8080/", ip(pod, 0)?),
            format!("http://[{}]:8080/", ip(pod, 1)?),
        ] {
            let told = served("mesh/client", &url)?;
            let peer: SocketAddr = told["peer"].as_str().unwrap_or_default().parse()?;
            ensure!(client.contains(&peer.ip()), "{url}: {told}");
        }
        let to = format!("{service}.outside:9000");
        echo(lab()?, "mesh/client", &["tcp", "--to", &to, "--mode", "half-close", "--bytes", "20000"])?;
    }
    Ok(())
}

#[test]
fn excluded_ports_and_prefixes_bypass_the_mesh() -> Result<()> {
    let except = ip("mesh/except", 0)?;
    // In: the excluded port takes plaintext, the other does not.
    served("outside/stranger", &format!("http://{except}:8081/"))?;
    turned_away("outside/stranger", &format!("http://{except}:8080/"))?;
    served("mesh/client", &format!("http://{except}:8081/"))?;
    // Out: by port and by prefix the proxy is not asked; the rest goes through it.
    let counted = |what: &str| -> Result<f64> {
        lab()?.node_admin("node2").metric("weft_kernel_events_total", &[&format!("\"{what}\"")])
    };
    let listener = ip("outside/listener", 0)?;
    let stranger = ip("outside/stranger", 0)?;
    for (event, url) in [
        ("connect_excluded_port", format!("http://{listener}:8082/")),
        ("connect_excluded_cidr", format!("http://{stranger}:8080/")),
        ("connect_redirected", format!("http://{listener}:8080/")),
    ] {
        let before = counted(event)?;
        served("mesh/except", &url)?;
        ensure!(counted(event)? > before, "{url} was not counted as {event}");
    }
    Ok(())
}

#[test]
fn a_pod_reaches_itself_through_its_own_service_and_directly() -> Result<()> {
    for service in ["far", "near"] {
        let pod = format!("mesh/{service}");
        for url in [
            format!("http://{service}/"),
            format!("http://{service}:81/"),
            format!("http://{service}:9180/"),
            format!("http://{}:8080/", ip(&pod, 0)?),
            format!("http://[{}]:8080/", ip(&pod, 1)?),
            "http://127.0.0.1:8080/".into(),
            "http://[::1]:8080/".into(),
        ] {
            let told = served(&pod, &url)?;
            ensure!(told["pod"] == *service, "{url} was answered by {told}");
        }
        let to = format!("{service}:9000");
        echo(lab()?, &pod, &["tcp", "--to", &to, "--mode", "transfer", "--bytes", "3000000"])?;
    }
    Ok(())
}

#[test]
fn a_service_with_the_internal_traffic_policy_local_is_answered_on_the_clients_node_or_not_at_all()
-> Result<()> {
    for (client, server) in [("mesh/client", "near"), ("mesh/open", "far")] {
        for url in ["http://own-node/", "http://own-node:81/"] {
            for _ in 0..10 {
                let told = served(client, url)?;
                ensure!(told["pod"] == server, "{url} from {client} was answered by {told}");
            }
        }
    }
    let (status, body) = ask("mesh/client", "http://own-node-far/")?;
    ensure!(status == 503 && body.contains("no endpoint of mesh/own-node-far"), "{status} {body}");
    turned_away("mesh/client", "http://own-node-far:81/")?;
    // And whoever runs the node is told, on each port once.
    wait::until(CHANGE_WAIT_MAX, || {
        let log = std::fs::read_to_string(lab()?.node_log("node1"))?;
        let told = |line: &&str| line.contains("mesh/own-node-far") && line.contains("has no endpoint");
        let lines: Vec<&str> = log.lines().filter(told).collect();
        ensure!(lines.len() == 2 && lines.iter().all(|line| line.contains("client")), "{lines:?}");
        Ok(())
    })
}

#[test]
fn the_proxys_own_ports_are_no_targets() -> Result<()> {
    for pod in ["mesh/far", "mesh/near"] {
        for port in [15001, 15006, 15008] {
            for from in ["mesh/client", pod] {
                turned_away(from, &format!("http://{}:{port}/", ip(pod, 0)?))?;
            }
        }
    }
    // From outside, the tunnel's port speaks TLS and wants a certificate; the others are not there.
    for port in [15001, 15006, 15008] {
        turned_away("outside/stranger", &format!("http://{}:{port}/", ip("mesh/near", 0)?))?;
    }
    Ok(())
}

#[test]
fn a_relabelled_namespace_leaves_and_comes_back_under_load() -> Result<()> {
    let lab = fixture::up("relabel", manifests(), Options::default())?;
    let pods = ["mesh/client", "mesh/near", "mesh/far"];
    let out = manifests().replace("weft.dev/mesh: enabled", "weft.dev/mesh: disabled");
    // A stream of before lives through all of it.
    let live = ["tcp", "--to", "far:9000", "--mode", "live", "--bytes", "100", "--timeout", "900"];
    let mut held = Running::start(&lab, "mesh/client", &live)?;
    fixture::wait_in_flight(&lab, "node2", 1.0, 0.0)?;
    for round in 0..2 {
        lab.write_manifest("main", &out)?;
        pods.iter().try_for_each(|pod| lab.wait_mesh_state(pod, "not_enrolled", CHANGE_WAIT_MAX))?;
        for url in ["http://near.mesh/", "http://far.mesh/"] {
            for pod in ["outside/stranger", "mesh/client"] {
                let (status, body) = get(&lab, pod, url, &[])?;
                ensure!(status == 200, "round {round}, released: {url} from {pod}: {status} {body}");
            }
        }
        ensure!(held.runs()?, "a live stream ended when its pod left the mesh");
        lab.write_manifest("main", manifests())?;
        pods.iter().try_for_each(|pod| lab.wait_mesh_state(pod, "enrolled", CHANGE_WAIT_MAX))?;
        for url in ["http://near.mesh/", "http://far.mesh/"] {
            let (status, body) = get(&lab, "mesh/client", url, &[])?;
            ensure!(status == 200, "round {round}, enrolled: {url}: {status} {body}");
            let (status, body) = get(&lab, "outside/stranger", url, &[])?;
            ensure!(status == 0, "round {round}, enrolled: {url} from outside: {status} {body}");
        }
        ensure!(held.runs()?, "a live stream ended when its pod came back");
    }
    // Sockets of the proxy are gone from a pod that has left.
    lab.write_manifest("main", &out)?;
    pods.iter().try_for_each(|pod| lab.wait_mesh_state(pod, "not_enrolled", CHANGE_WAIT_MAX))?;
    let netns = &lab.pod("mesh/client")?.netns;
    wait::until(CHANGE_WAIT_MAX, || {
        let tables = netns::inside(netns, || std::fs::read_to_string("/proc/thread-self/net/tcp"))??;
        ensure!(!tables.contains(":3A99 00000000:0000 0A"), "the proxy still listens on 15001:\n{tables}");
        Ok(())
    })
}
