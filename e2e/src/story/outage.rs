//! Step 9: the mesh's own processes die and come back.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::{Evidence, clients};
use crate::lab::{Lab, wait};

const SYNC_WAIT_MAX: Duration = Duration::from_secs(10);

pub(super) fn control_and_node(lab: &mut Lab) -> Result<Evidence> {
    let load = ["load", "--url", "http://backend/", "--requests", "200"];
    lab.kill_control()?;
    let without = clients::echo(lab, "shop/frontend", &load)?;
    ensure!(without["failed"] == 0, "requests failed without weft-control: {without}");
    lab.start_control()?;
    let back = Instant::now();
    for node in lab.nodes() {
        wait::until(SYNC_WAIT_MAX, || match &lab.control_status()?["nodes"][&node] {
            told if told["in_sync"] == true => Ok(()),
            told => bail!("{node} is not in sync again: {told}"),
        })?;
    }
    let synced = back.elapsed();

    lab.kill_node("node1")?;
    let (status, said) = clients::get(lab, "shop/frontend", "http://backend/", &[])?;
    ensure!(status == 0, "an enrolled pod without its proxy got {status}: {said}");
    // Inbound as well: a plain connection from outside must not reach the application behind the dead proxy's back.
    let (plain, body) = clients::get(
        lab,
        "outside/stranger",
        &format!("http://{}:8080/", lab.pod("shop/frontend")?.ips[0]),
        &[],
    )?;
    ensure!(plain == 0, "an enrolled pod without its proxy answered {plain}: {body}");
    let start = Instant::now();
    lab.start_node("node1")?;
    lab.wait_mesh_state("shop/frontend", "enrolled", SYNC_WAIT_MAX)?;
    let mended = start.elapsed();
    let again = clients::echo(lab, "shop/frontend", &load)?;
    ensure!(again["failed"] == 0, "requests failed after weft-node came back: {again}");
    Ok(vec![
        format!("weft-control killed: {} requests, {} failed", without["requests"], without["failed"]),
        format!("weft-control back: both nodes in sync again after {} ms", synced.as_millis()),
        format!("weft-node of node1 killed: its pod fails closed: out {said:?}, in {body:?}"),
        format!(
            "weft-node back after {} ms: {} requests, {} failed",
            mended.as_millis(),
            again["requests"],
            again["failed"]
        ),
    ])
}
