//! The kernel side's counters and map fill, as metrics: read at each scrape.

use std::sync::Arc;

use weft_ebpf::{Kernel, Outcome};

use crate::telemetry::Telemetry;
use crate::telemetry::metrics::{Samples, names};

/// From now on every scrape shows what the hooks count.
pub fn publish(telemetry: &Telemetry, kernel: &Arc<Kernel>) {
    let kernel = Arc::downgrade(kernel);
    telemetry.collector(move |samples| {
        if let Some(kernel) = kernel.upgrade() {
            collect(&kernel, samples);
        }
    });
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn collect(kernel: &Kernel, samples: &mut Samples) {
    samples.put(&names::REDIRECT_ENABLED, &[], f64::from(u8::from(kernel.redirect_on())));
    let report = kernel.probe_report();
    for (feature, found) in [
        ("redirect", &report.redirect),
        ("redirect_to_applications", &report.redirect_to_applications),
        ("redirect_accepted", &report.redirect_accepted),
    ] {
        samples.put(&names::PROBE_PASSED, &[("feature", feature)], f64::from(u8::from(found.available())));
    }
    // A map that cannot be read leaves its series out; the hooks do not depend on it.
    if let Ok(counters) = kernel.counters() {
        for (outcome, count) in counters.iter() {
            match outcome {
                Outcome::BytesRedirected => {
                    samples.put(&names::REDIRECT_BYTES, &[("path", "redirected")], count as f64);
                }
                Outcome::BytesStack => {
                    samples.put(&names::REDIRECT_BYTES, &[("path", "stack")], count as f64);
                }
                other => samples.put(&names::KERNEL_EVENTS, &[("outcome", other.name())], count as f64),
            }
        }
    }
    for (map, used, capacity) in kernel.map_fill().unwrap_or_default() {
        samples.put(&names::KERNEL_MAP_ENTRIES, &[("map", map)], used as f64);
        samples.put(&names::KERNEL_MAP_ENTRIES_MAX, &[("map", map)], f64::from(capacity));
    }
}
