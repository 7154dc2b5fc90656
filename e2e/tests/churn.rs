//! Many connections, at once and one after the other: nothing of them stays behind.

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use weft_e2e::fixture::{MESH, Readings, Shared};
use weft_e2e::lab::{Lab, Options};
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
