//! The node's own state as metrics: configuration, certificates, pods, tunnels. Read at each scrape, never changed here.

use std::sync::Arc;

use crate::node::Node;
use crate::telemetry::metrics::{Samples, names};

/// From now on every scrape shows them.
pub fn publish(node: &Arc<Node>) {
    let weak = Arc::downgrade(node);
    node.telemetry.collector(move |samples| {
        if let Some(node) = weak.upgrade() {
            control(&node, samples);
            certificates(&node, samples);
            tunnels(&node, samples);
            samples.put(&names::PODS_ENROLLED, &[], number(node.pods.all().len() as u64));
            let failures = node.pods.failures();
            let shut = failures.values().filter(|failure| failure.shut).count();
            let not_found = failures.len() - shut;
            samples.put(&names::PODS_FAILED, &[("state", "shut")], number(shut as u64));
            samples.put(&names::PODS_FAILED, &[("state", "not_found")], number(not_found as u64));
        }
    });
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn number(count: u64) -> f64 {
    count as f64
}

fn control(node: &Node, samples: &mut Samples) {
    let control = node.control.borrow();
    samples.put(&names::CONTROL_CONNECTED, &[], f64::from(u8::from(control.connected)));
    samples.put(&names::CONFIG_REVISION, &[], number(control.revision));
    samples.put(&names::CONFIG_PUSHES, &[], number(control.deltas_applied));
    samples.put(&names::CONFIG_NACKS, &[], number(control.deltas_refused));
    if let Some(applied_ms) = control.applied_unix_ms {
        samples.put(&names::CONFIG_APPLIED_TIME, &[], number(applied_ms) / 1_000.0);
    }
}

fn certificates(node: &Node, samples: &mut Samples) {
    for certificate in node.identities.status() {
        if let Some(end) = certificate.not_after_unix_s {
            let labels = [("identity", certificate.identity.as_str())];
            samples.put(&names::CERTIFICATE_EXPIRY, &labels, number(end));
        }
    }
    let (obtained, failed) = node.identities.rotations();
    samples.put(&names::CERTIFICATE_ROTATIONS, &[("result", "ok")], number(obtained));
    samples.put(&names::CERTIFICATE_ROTATIONS, &[("result", "failed")], number(failed));
}

fn tunnels(node: &Node, samples: &mut Samples) {
    let counts = &node.tunnels.counts;
    for (family, counter) in
        [(&names::TUNNELS_OPENED, &counts.opened), (&names::TUNNELS_ACCEPTED, &counts.accepted)]
    {
        samples.put(family, &[("result", "ok")], number(counter.succeeded()));
        samples.put(family, &[("result", "failed")], number(counter.failed()));
    }
    samples.put(&names::TUNNELS_REUSED, &[], number(counts.reused()));
    for (role, live) in [("client", &counts.client), ("server", &counts.server)] {
        samples.put(&names::TUNNELS_LIVE, &[("role", role)], number(live.tunnels.now()));
        samples.put(&names::TUNNEL_STREAMS_LIVE, &[("role", role)], number(live.streams.now()));
    }
}
