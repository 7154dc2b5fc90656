//! Step 1: from node to node, encrypted.

use anyhow::{Result, ensure};

use super::{Evidence, clients};
use crate::lab::Lab;

const TUNNEL_PORT: u16 = 15008;
/// Something that would be seen on the link if it crossed in the clear.
const SECRET: &str = "the-text-of-the-request";

pub(super) fn encrypted(lab: &mut Lab) -> Result<Evidence> {
    let capture = lab.capture("node2", "tcp")?;
    let header = format!("x-secret: {SECRET}");
    let (status, body) = clients::get(lab, "shop/frontend", "http://backend/", &[&header])?;
    let packets = capture.stop()?;
    ensure!(status == 200, "the request was answered {status}: {body}");
    ensure!(body.contains(SECRET), "the backend did not get the header: {body}");
    let records = packets.tls_records(TUNNEL_PORT);
    ensure!(records > 0, "no TLS record on port {TUNNEL_PORT} among {} segments", packets.segments.len());
    ensure!(!packets.contains(SECRET), "the request's text crossed the link in the clear");
    let told: serde_json::Value = serde_json::from_str(&body)?;
    let client = lab.pod("shop/frontend")?.ips[0].to_string();
    let peer = told["peer"].as_str().unwrap_or_default();
    ensure!(peer.starts_with(&client), "the backend saw {peer}, not the client {client}");
    Ok(vec![
        format!("shop/frontend on node1 -> {} on node2: {status}", told["pod"].as_str().unwrap_or("?")),
        format!("the backend saw the client's own address: {peer}"),
        format!(
            "on the link: {records} TLS records on port {TUNNEL_PORT}, {} bytes",
            packets.payload_bytes()
        ),
        format!("the request's text {SECRET:?} on the link: nowhere"),
    ])
}
