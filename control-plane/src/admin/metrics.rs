//! Prometheus text of the control plane. Labels are node names and kinds: bounded by the cluster.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use crate::push::PUSH_MS_BUCKETS;
use crate::source::object::Kind;
use crate::world::World;

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

pub(super) fn render(world: &World) -> String {
    let mut out = String::new();
    index(&mut out, world);
    nodes(&mut out, world);
    push_times(&mut out, world);
    let report = world.report.borrow().clone();
    head(&mut out, "weft_control_source_errors", "gauge", "Files or objects that cannot be used.");
    let _ = writeln!(out, "weft_control_source_errors {}", report.errors.len());
    head(&mut out, "weft_control_source_warnings", "gauge", "Unknown fields and kinds.");
    let _ = writeln!(out, "weft_control_source_warnings {}", report.warnings.len());
    for (name, help, value) in [
        (
            "weft_control_certificates_signed_total",
            "Certificates signed.",
            &world.metrics.certificates_signed,
        ),
        ("weft_control_certificates_refused_total", "Requests refused.", &world.metrics.certificates_refused),
        (
            "weft_control_node_certificates_signed_total",
            "Node certificates signed.",
            &world.metrics.node_certificates_signed,
        ),
        (
            "weft_control_node_certificates_refused_total",
            "Requests for node certificates refused.",
            &world.metrics.node_certificates_refused,
        ),
        (
            "weft_control_handshakes_refused_total",
            "TLS handshakes that failed, such as by a client certificate that is not believed.",
            &world.metrics.handshakes_refused,
        ),
        (
            "weft_control_subscriptions_refused_total",
            "Subscriptions refused.",
            &world.metrics.subscriptions_refused,
        ),
    ] {
        head(&mut out, name, "counter", help);
        let _ = writeln!(out, "{name} {}", value.load(Ordering::Relaxed));
    }
    out
}

fn index(out: &mut String, world: &World) {
    let index = world.index.read();
    head(out, "weft_control_revision", "gauge", "Revision of the index.");
    let _ = writeln!(out, "weft_control_revision {}", index.revision().0);
    head(out, "weft_control_objects", "gauge", "Objects by kind.");
    for kind in Kind::ALL {
        let _ =
            writeln!(out, "weft_control_objects{{kind=\"{}\"}} {}", kind.name(), index.objects().count(kind));
    }
}

fn nodes(out: &mut String, world: &World) {
    let statuses = world.hub.statuses();
    head(out, "weft_control_nodes_connected", "gauge", "Nodes with an open stream.");
    let connected = statuses.values().filter(|status| status.connected).count();
    let _ = writeln!(out, "weft_control_nodes_connected {connected}");
    head(out, "weft_control_node_acked_revision", "gauge", "Last revision that the node took.");
    for (node, status) in &statuses {
        let _ = writeln!(
            out,
            "weft_control_node_acked_revision{{node=\"{}\"}} {}",
            label(node),
            status.acked_revision
        );
    }
    head(out, "weft_control_answers_total", "counter", "Answers of nodes to deltas.");
    for (node, status) in &statuses {
        for (answer, count) in [("ack", status.acks), ("nack", status.nacks)] {
            let node = label(node);
            let _ =
                writeln!(out, "weft_control_answers_total{{node=\"{node}\",answer=\"{answer}\"}} {count}");
        }
    }
}

fn push_times(out: &mut String, world: &World) {
    let name = "weft_control_push_milliseconds";
    head(out, name, "histogram", "From a change in the index to the node's ack.");
    let (buckets, sum) = world.hub.push_times();
    let mut total = 0;
    for (i, count) in buckets.iter().enumerate() {
        total += count;
        let le = PUSH_MS_BUCKETS.get(i).map_or_else(|| "+Inf".to_owned(), ToString::to_string);
        let _ = writeln!(out, "{name}_bucket{{le=\"{le}\"}} {total}");
    }
    let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {total}");
}
