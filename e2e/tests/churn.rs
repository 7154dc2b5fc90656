//! Many connections, at once and one after the other: nothing of them stays behind.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use weft_e2e::fixture::{self, MESH, Readings, Shared, anonymous_mib};
use weft_e2e::lab::{Lab, Options, wait};
use weft_e2e::story::clients::{count, echo};

/// Tunnels that stay in the pool and connections of the admin endpoint, with their descriptors and tasks: far fewer
/// than any of the crowds here.
const KEPT_MAX: usize = 40;

/// Runs `crowd` with nobody else on the lab, and checks that both nodes hold no more than before.
fn leaving_nothing(crowd: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    static LAB: Shared = Shared::new();
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = LAB.lab("churn", MESH, Options::default())?;
    for server in ["near:9000", "far:9000"] {
        // What is kept (tunnels) is made before the count.
        let few = ["tcp", "--to", server, "--mode", "short", "--count", "64", "--parallel", "16"];
        echo(lab, "mesh/client", &few)?;
    }
    let nodes = lab.nodes();
    let before = nodes.iter().map(|node| Readings::of(lab, node)).collect::<Result<Vec<_>>>()?;
    crowd(lab)?;
    nodes.iter().zip(before).try_for_each(|(node, before)| before.wait_back(lab, node, KEPT_MAX))
}

fn short(lab: &Lab, to: &str, connections: u64) -> Result<()> {
    let number = connections.to_string();
    let arguments = ["tcp", "--to", to, "--mode", "short", "--count", &number, "--parallel", "16"];
    let told = echo(lab, "mesh/client", &[&arguments[..], &["--timeout", "300"]].concat())?;
    ensure!(count(&told, "/connections") == connections, "{told}");
    Ok(())
}

#[test]
fn twenty_thousand_short_connections_to_the_same_node() -> Result<()> {
    leaving_nothing(|lab| short(lab, "near:9000", 20_000))
}

#[test]
fn twenty_thousand_short_connections_to_another_node() -> Result<()> {
    leaving_nothing(|lab| short(lab, "far:9000", 20_000))
}

#[test]
fn five_hundred_connections_at_once() -> Result<()> {
    leaving_nothing(|lab| {
        for to in ["near:9000", "far:9000"] {
            echo(lab, "mesh/client", &["tcp", "--to", to, "--mode", "hold", "--count", "500"])?;
        }
        Ok(())
    })
}

#[test]
fn requests_on_connections_of_their_own() -> Result<()> {
    leaving_nothing(|lab| {
        for url in ["http://near/", "http://far/"] {
            let load = ["load", "--url", url, "--requests", "1000", "--connections", "8", "--reconnect"];
            let told = echo(lab, "mesh/client", &load)?;
            ensure!(told["failed"] == 0, "{url}: {told}");
        }
        Ok(())
    })
}

/// Free memory goes back about a second after it was freed; a busy machine may be later.
const MEMORY_WAIT_MAX: Duration = Duration::from_secs(20);
/// A proxy of this mesh that has little to do: measured 4 to 6 on one like it. What start-up needed once, some ten times
/// that with an allocator that keeps it, is gone.
const IDLE_MIB_MAX: f64 = 12.0;
/// What the crowd leaves for good: caches of the threads, a pooled tunnel, tables that have grown. Measured below 2 on a like mesh.
const LEFT_MIB_MAX: f64 = 4.0;

#[test]
fn a_storm_leaves_no_memory_behind() -> Result<()> {
    // Of its own: what other crowds hold at the time must not count.
    let lab = fixture::up("memory", MESH, Options::default())?;
    let settle = |node: &String, max: f64| {
        wait::until(MEMORY_WAIT_MAX, || {
            let now = anonymous_mib(&lab, node)?;
            ensure!(now <= max, "{node} holds {now:.1} MiB of its own, more than {max:.1}");
            Ok(now)
        })
    };
    for server in ["near", "far"] {
        echo(&lab, "mesh/client", &["load", "--url", &format!("http://{server}/"), "--requests", "100"])?;
        short(&lab, &format!("{server}:9000"), 96)?;
    }
    let nodes = lab.nodes();
    let idle = nodes.iter().map(|node| settle(node, IDLE_MIB_MAX)).collect::<Result<Vec<_>>>()?;
    for server in ["near", "far"] {
        short(&lab, &format!("{server}:9000"), 4_992)?;
        let to = format!("{server}:9000");
        echo(&lab, "mesh/client", &["tcp", "--to", &to, "--mode", "hold", "--count", "200"])?;
        let bulk = ["tcp", "--to", &to, "--mode", "transfer", "--bytes", "50000000"];
        echo(&lab, "mesh/client", &bulk)?;
    }
    nodes.iter().zip(idle).try_for_each(|(node, idle)| settle(node, idle + LEFT_MIB_MAX).map(drop))
}
