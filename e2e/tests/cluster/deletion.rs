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
    let answered = || {
        let client =
            ["reporter=\"source\"", "source_workload=\"client1\"", "source_workload_namespace=\"stays\""];
        let of_goes = ["destination_service_namespace=\"goes\"", "response_code=\"200\""];
        cluster.node_admin("node1")?.metric("istio_requests_total", &[&client[..], &of_goes].concat())
    };
    let load = |url, until: [&str; 2]| {
        let rate = ["--url", url, "--rate", "30", "--connections", "2"];
        Running::start(&stays, "client1", &[&rate[..], &until].concat())
    };
    let to_goes = load("http://server.goes/", ["--duration", "15"])?;
    let to_stays = load("http://server/", ["--requests", "600"])?;
    let within = Running::start(
        &goes,
        "client2",
        &["--url", "http://server/", "--rate", "30", "--duration", "20", "--connections", "2"],
    )?;
    wait::until(START_WAIT_MAX, || {
        // More than the four from above.
        ensure!(answered()? > 4.0, "the load on what goes has not begun");
        Ok(())
    })?;
    cluster.kubectl(&["delete", "namespace", "goes", "--wait=false"])?;
    wait::until(START_WAIT_MAX, || {
        let left = states(&cluster)?.iter().filter(|(name, _)| name.starts_with("goes/")).count();
        ensure!(left == 0, "nodes still know {left} of its pods");
        Ok(())
    })?;
    let (to_goes, to_stays) = (to_goes.finish()?, to_stays.finish()?);
    ensure!(to_goes["ok"].as_u64() > Some(0), "it worked until it was gone: {to_goes}");
    ensure!(to_stays["failed"] == 0 && to_stays["ok"] == 600, "{to_stays}");
    // Its exec ended with its pod.
    let _ = within.finish();
    for node in cluster.nodes() {
        cluster.node_admin(&node)?.ready()?;
    }
    wait::until(CHANGE_WAIT_MAX, || stays.reach_in_vain("client2", "http://server.goes/"))?;
    stays.reach("client2", "http://server/").map(drop)
}
