//! Wall clocks that jump: of the whole mesh at once, as on a machine that slept or whose clock is set, and of one node alone.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weft_e2e::fixture::{self, MESH, Running};
use weft_e2e::lab::{Lab, Options, wait};
use weft_e2e::story::clients::get;

const DAY: i64 = 24 * 3_600;
/// docs/identity.md: 15 s after the clocks agree. The rest is for a busy machine.
const MENDED_WAIT_MAX: Duration = Duration::from_secs(15 + 15);
const PROCESSES: [&str; 3] = ["control", "node1", "node2"];

/// The usual mesh, and clients that nobody has a tunnel for yet: each request of one of them begins with a handshake.
fn lab(name: &str, strangers: usize) -> Result<Lab> {
    let client =
        MESH.split("---\n").find(|document| document.contains("kind: Pod\nmetadata: {name: client,"));
    let client = client.context("no client in the mesh")?;
    let fresh = (1..=strangers).map(|nth| client.replace("{name: client,", &format!("{{name: fresh{nth},")));
    let manifests: Vec<String> = [MESH.to_owned()].into_iter().chain(fresh).collect();
    fixture::up(name, &manifests.join("---\n"), Options { clocks: true, ..Options::default() })
}

fn far(lab: &Lab, pod: &str) -> Result<()> {
    let (status, body) = get(lab, pod, "http://far/", &[])?;
    ensure!(status == 200, "{pod} to far: {status} {body}");
    Ok(())
}

/// A node's certificates, by its own clock.
fn in_time(lab: &Lab, node: &str, ahead: i64) -> Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let now = i64::try_from(now)? + ahead;
    let status = lab.node_status(node)?;
    let all = status["certificates"].as_array().context("no certificates")?;
    let valid = |one: &Value| {
        let at = |end: &str| one[end].as_i64();
        at("not_before_unix_s").is_some_and(|from| from <= now)
            && at("not_after_unix_s").is_some_and(|to| now < to)
    };
    ensure!(!all.is_empty() && all.iter().all(valid), "{node} at {now}: {all:?}");
    Ok(())
}

/// As on a machine that slept for two days, and whose clock is then set by hand.
#[test]
fn clocks_that_jump_together_past_every_certificate_are_followed_without_a_failure() -> Result<()> {
    let lab = lab("clocks", 4)?;
    far(&lab, "mesh/client")?;
    let mut live = Running::start(&lab, "mesh/client", &["tcp", "--to", "far:9000", "--mode", "live"])?;
    fixture::wait_in_flight(&lab, "node1", 1.0, 0.0)?;
    let load = ["load", "--url", "http://far/", "--connections", "2", "--until-eof"];
    let load = Running::start(&lab, "mesh/client", &load)?;
    let mended = |fresh: &str, ahead: i64| {
        PROCESSES.iter().try_for_each(|process| lab.set_clock(process, ahead))?;
        for node in lab.nodes() {
            wait::until(MENDED_WAIT_MAX, || in_time(&lab, &node, ahead))?;
        }
        wait::until(MENDED_WAIT_MAX, || far(&lab, fresh)).with_context(|| format!("{ahead} s ahead"))
    };
    mended("mesh/fresh1", 2 * DAY)?;
    mended("mesh/fresh2", 0)?;
    mended("mesh/fresh3", -2 * DAY)?;
    ensure!(live.runs()?, "a live stream ended when the clocks jumped");
    let told = load.told()?;
    ensure!(told["failed"] == 0, "{told}");
    // Who comes anew is let in by the clocks as they are.
    lab.kill_node("node2")?;
    lab.start_node("node2")?;
    mended("mesh/fresh4", 0)
}

/// node1 tells of a jump, in its log from this byte on.
fn jump_told(lab: &Lab, log: usize, by: i64) -> Result<()> {
    let told = std::fs::read_to_string(lab.node_log("node1"))?;
    let jump =
        |line: &str| line.contains("the wall clock jumped") && line.contains(&format!("\"seconds\":{by},"));
    ensure!(told[log..].lines().any(jump), "node1 does not say that its clock jumped by {by} s");
    Ok(())
}

/// node1 tells how wrong its clock is, and why its pods have no certificates by it.
fn tells(lab: &Lab, ahead: i64) -> Result<()> {
    let status = lab.node_status("node1")?;
    let differ = "the clocks of this node and the control plane differ";
    let is_told = |one: &Value| one["last_error"].as_str().is_some_and(|error| error.contains(differ));
    let all = status["certificates"].as_array().context("no certificates")?;
    ensure!(!all.is_empty() && all.iter().all(is_told), "{all:?}");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let clock = status["clock_unix_s"].as_i64().context("no clock")? - i64::try_from(now)?;
    ensure!((clock - ahead).abs() < 60, "it says that it is {clock} s ahead");
    Ok(())
}

#[test]
fn a_node_whose_clock_is_wrong_says_so_and_stays_shut_until_it_is_right() -> Result<()> {
    let lab = lab("onclock", 4)?;
    let mut live = Running::start(&lab, "mesh/client", &["tcp", "--to", "far:9000", "--mode", "live"])?;
    fixture::wait_in_flight(&lab, "node1", 1.0, 0.0)?;
    for (ahead, before, after) in [(2 * DAY, "fresh1", "fresh2"), (-2 * DAY, "fresh3", "fresh4")] {
        let log = std::fs::read_to_string(lab.node_log("node1"))?.len();
        lab.set_clock("node1", ahead)?;
        wait::until(MENDED_WAIT_MAX, || jump_told(&lab, log, ahead))?;
        wait::until(MENDED_WAIT_MAX, || tells(&lab, ahead))?;
        // Neither out nor in, and nothing in the clear.
        let before = format!("mesh/{before}");
        for (from, url) in [
            (before.as_str(), "http://far/"),
            ("mesh/far", "http://near/"),
            ("outside/stranger", "http://near.mesh/"),
        ] {
            let (status, body) = get(&lab, from, url, &[])?;
            ensure!(status != 200, "{ahead} s ahead, {from} to {url}: {status} {body}");
        }
        ensure!(live.runs()?, "a live stream ended when the clock jumped");
        lab.set_clock("node1", 0)?;
        for pod in [before.as_str(), &format!("mesh/{after}")] {
            wait::until(MENDED_WAIT_MAX, || far(&lab, pod))?;
        }
        wait::until(MENDED_WAIT_MAX, || jump_told(&lab, log, -ahead))?;
        wait::until(MENDED_WAIT_MAX, || in_time(&lab, "node1", 0))?;
    }
    Ok(())
}
