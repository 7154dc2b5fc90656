//! Step 8: what sk_msg takes past the TCP/IP stack, and the same without it.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{Evidence, clients};
use crate::lab::{Lab, wait};

const BACK_WAIT_MAX: Duration = Duration::from_secs(10);
const REQUESTS: &str = "1000";
/// Local bytes that must skip the stack while redirect is on.
const SHARE_MIN_PERCENT: f64 = 90.0;

/// Bytes of local legs on both nodes, by the kernel's counters.
#[derive(Debug, Clone, Copy)]
struct Local {
    redirected: u64,
    stack: u64,
}

pub(super) fn share(lab: &mut Lab) -> Result<Evidence> {
    let with = traffic(lab)?;
    restart_nodes(lab, &["--redirect=off"])?;
    let without = traffic(lab);
    restart_nodes(lab, &[])?;
    let without = without?;
    let share = clients::percent(with.1.redirected, with.1.redirected + with.1.stack);
    ensure!(
        share >= SHARE_MIN_PERCENT,
        "only {share:.1} % of the local bytes skipped the stack: {:?}",
        with.1
    );
    ensure!(without.1.redirected == 0, "redirect is off and bytes were redirected: {:?}", without.1);
    Ok(vec![
        format!(
            "{REQUESTS} requests, {} failed: {} of {} local bytes skipped the TCP/IP stack, {share:.1} %",
            with.0["failed"],
            with.1.redirected,
            with.1.redirected + with.1.stack
        ),
        format!("p50 {} ms, p99 {} ms", with.0["ms"]["p50"], with.0["ms"]["p99"]),
        format!(
            "both nodes with --redirect=off: {REQUESTS} requests, {} failed, no byte redirected",
            without.0["failed"]
        ),
        format!("p50 {} ms, p99 {} ms", without.0["ms"]["p50"], without.0["ms"]["p99"]),
    ])
}

fn traffic(lab: &Lab) -> Result<(Value, Local)> {
    let before = local(lab)?;
    let load = ["load", "--url", "http://backend/", "--requests", REQUESTS, "--connections", "2"];
    let told = clients::echo(lab, "shop/frontend", &load)?;
    ensure!(told["failed"] == 0, "requests failed: {told}");
    let after = local(lab)?;
    let moved = Local { redirected: after.redirected - before.redirected, stack: after.stack - before.stack };
    Ok((told, moved))
}

fn local(lab: &Lab) -> Result<Local> {
    let mut sum = Local { redirected: 0, stack: 0 };
    for node in lab.nodes() {
        let bytes = |path: &str| lab.node_admin(&node).metric("weft_redirect_bytes_total", &[path]);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a counter, far below 2^53"
        )]
        let whole = |value: f64| value as u64;
        sum.redirected += whole(bytes("path=\"redirected\"")?);
        sum.stack += whole(bytes("path=\"stack\"")?);
    }
    Ok(sum)
}

fn restart_nodes(lab: &mut Lab, args: &[&str]) -> Result<()> {
    lab.set_node_args(args)?;
    let nodes = lab.nodes();
    nodes.iter().try_for_each(|node| lab.kill_node(node))?;
    nodes.iter().try_for_each(|node| lab.spawn_node(node))?;
    nodes.iter().try_for_each(|node| lab.wait_node(node))?;
    for pod in ["shop/frontend", "shop/backend-v1", "shop/backend-v2"] {
        lab.wait_mesh_state(pod, "enrolled", BACK_WAIT_MAX)?;
    }
    wait::until(BACK_WAIT_MAX, || {
        let (status, said) = clients::get(lab, "shop/frontend", "http://backend/", &[])?;
        ensure!(status == 200, "after the restart: {status} {said}");
        Ok(())
    })
}
