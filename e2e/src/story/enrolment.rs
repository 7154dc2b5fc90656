//! Step 6: a namespace leaves the mesh and comes back.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::{Evidence, SHOP, clients};
use crate::lab::{Lab, cgroup, wait};

const CHANGE_WAIT_MAX: Duration = Duration::from_secs(10);
const TUNNEL_PORT: u16 = 15008;
const PERMISSIVE: &str = "apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: permissive, namespace: shop}
spec:
  selector: {matchLabels: {app: backend}}
  inbound: {mode: PERMISSIVE}
";

pub(super) fn out_and_in(lab: &mut Lab) -> Result<Evidence> {
    let pods =
        ["shop/frontend", "shop/backend-v1", "shop/backend-v2", "shop/flaky", "shop/pair-1", "shop/pair-2"];
    let pids = |lab: &Lab| -> Result<Vec<i32>> {
        let of = |pod: &&str| Ok(cgroup::pids(&lab.pod_cgroup(lab.pod(pod)?).join("main")));
        Ok(pods.iter().map(of).collect::<Result<Vec<_>>>()?.concat())
    };
    let before = pids(lab)?;
    let (refused, said) = clients::get(lab, "outside/stranger", "http://backend.shop/", &[])?;
    ensure!(refused != 200, "a pod outside the mesh talked to a STRICT one: {said}");
    let permissive = permissive(lab)?;

    lab.write_manifest("main", &SHOP.replace("weft.dev/mesh: enabled", "weft.dev/mesh: disabled"))?;
    pods.iter().try_for_each(|p| lab.wait_mesh_state(p, "not_enrolled", CHANGE_WAIT_MAX))?;
    let (tls, plain) = link(lab)?;
    ensure!(tls == 0 && plain, "outside the mesh: {tls} TLS records, in the clear: {plain}");
    let (outside, said) = clients::get(lab, "outside/stranger", "http://backend.shop/", &[])?;
    ensure!(outside == 200, "a pod outside could not talk to another outside: {outside} {said}");

    lab.write_manifest("main", SHOP)?;
    pods.iter().try_for_each(|p| lab.wait_mesh_state(p, "enrolled", CHANGE_WAIT_MAX))?;
    let (tls_again, plain_again) = link(lab)?;
    ensure!(tls_again > 0 && !plain_again, "back: {tls_again} TLS records, in the clear: {plain_again}");
    ensure!(pids(lab)? == before, "a pod was restarted");
    Ok(vec![
        format!("a pod outside asks a STRICT one: refused ({})", first_line(&said_of(refused, &said))),
        permissive,
        "label removed: the request crosses the link in the clear".into(),
        format!("label put back: {tls_again} TLS records on port {TUNNEL_PORT}, no text"),
        format!("processes {before:?}: the same all along"),
    ])
}

/// A pod outside reaches pods that a policy makes PERMISSIVE, until the policy goes.
fn permissive(lab: &Lab) -> Result<String> {
    let asked = || clients::get(lab, "outside/stranger", "http://backend.shop/", &[]);
    lab.write_manifest("permissive", PERMISSIVE)?;
    wait::until(CHANGE_WAIT_MAX, || match asked()? {
        (200, _) => Ok(()),
        (status, said) => bail!("a PERMISSIVE pod answered {status}: {said}"),
    })?;
    lab.remove_manifest("permissive")?;
    wait::until(CHANGE_WAIT_MAX, || match asked()? {
        (200, _) => bail!("the pod is STRICT again and answers one outside"),
        _ => Ok(()),
    })?;
    Ok("a policy makes it PERMISSIVE: 200; the policy gone: refused again".into())
}

fn said_of(status: u16, said: &str) -> String {
    if status == 0 { "no answer".into() } else { format!("{status} {said}") }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// One request across the link: TLS records of the tunnel, and whether its text was seen.
fn link(lab: &Lab) -> Result<(usize, bool)> {
    const TEXT: &str = "seen-on-the-link";
    let capture = lab.capture("node2", "tcp")?;
    let (status, body) = clients::get(lab, "shop/frontend", &format!("http://backend/{TEXT}"), &[])?;
    let packets = capture.stop()?;
    ensure!(status == 200, "answered {status}: {body}");
    Ok((packets.tls_records(TUNNEL_PORT), packets.contains(TEXT)))
}
