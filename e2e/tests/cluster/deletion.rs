//! A namespace is deleted while others talk to it: they get errors, everybody else notices nothing.

use anyhow::{Result, ensure};
use weft_e2e::lab::wait;

use crate::fixture::{CHANGE_WAIT_MAX, Running, START_WAIT_MAX, Shop, states, together};

#[test]
fn a_namespace_deleted_under_load_takes_nobody_with_it() -> Result<()> {
    let cluster = together()?;
    let stays = Shop::enrolled(&cluster, "stays")?;
    let goes = Shop::enrolled(&cluster, "goes")?;
    stays.reach("client1", "http://server.goes/")?;
    let load = |url, seconds| {
        let rate = ["--url", url, "--rate", "30", "--duration", seconds, "--connections", "2"];
        Running::start(&stays, "client1", &rate)
    };
    let (to_goes, to_stays) = (load("http://server.goes/", "15")?, load("http://server/", "20")?);
    let within = Running::start(
        &goes,
        "client2",
        &["--url", "http://server/", "--rate", "30", "--duration", "20", "--connections", "2"],
    )?;
    cluster.kubectl(&["delete", "namespace", "goes", "--wait=false"])?;
    wait::until(START_WAIT_MAX, || {
        let left = states(&cluster)?.iter().filter(|(name, _)| name.starts_with("goes/")).count();
        ensure!(left == 0, "nodes still know {left} of its pods");
        Ok(())
    })?;
    let (to_goes, to_stays) = (to_goes.finish()?, to_stays.finish()?);
    ensure!(to_goes["ok"].as_u64() > Some(0), "it worked until it was gone: {to_goes}");
    ensure!(to_stays["failed"] == 0 && to_stays["ok"].as_u64() > Some(500), "{to_stays}");
    // Its exec ended with its pod.
    let _ = within.finish();
    for node in cluster.nodes() {
        cluster.node_admin(&node)?.ready()?;
    }
    wait::until(CHANGE_WAIT_MAX, || stays.reach_in_vain("client2", "http://server.goes/"))?;
    stays.reach("client2", "http://server/").map(drop)
}
