//! Metrics: Istio's families per flow, Weft's own families, and their text forms.
//!
//! Owns the registry. Label sets are resolved once per flow ([`flow::Flows::resolve`]) and kept by the record; counting
//! is then an atomic addition. Every number of series is bounded. Start at [`Metrics`].

pub(crate) mod flow;
pub mod names;
mod own;
mod process;
mod text;

use std::time::Duration;

pub use names::{Family, Kind};
pub use own::{Counter, Gauge, Samples};
pub use text::TextFormat;

use flow::Flows;
use own::Own;

/// Everything that `/metrics` shows.
pub(crate) struct Metrics {
    pub(crate) flows: Flows,
    own: Own,
}

impl Metrics {
    pub(crate) fn new(cluster_domain: &str) -> Self {
        Self { flows: Flows::new(cluster_domain), own: Own::default() }
    }

    pub(crate) fn counter(&self, family: &'static Family, labels: &[(&str, &str)]) -> Counter {
        self.own.counter(family, labels)
    }

    pub(crate) fn gauge(&self, family: &'static Family, labels: &[(&str, &str)]) -> Gauge {
        self.own.gauge(family, labels)
    }

    pub(crate) fn collector(&self, collect: impl Fn(&mut Samples) + Send + Sync + 'static) {
        self.own.collector(Box::new(collect));
    }

    /// The exposition. Idle flow series are dropped first.
    pub(crate) fn render(&self, format: TextFormat, now: Duration) -> String {
        self.flows.expire(now);
        let mut out = text::Writer::new(format);
        self.flows.render(&mut out);
        let mut samples = self.own.collect();
        process::collect(&mut samples);
        samples.put(&names::FLOW_SERIES, &[], to_f64(self.flows.count()));
        samples.put(&names::FLOW_SERIES_OVERFLOW, &[], to_f64(self.flows.overflowed()));
        for (family, series) in samples.into_families() {
            out.header(family);
            for (labels, value) in &series {
                out.sample(family.name, &[labels], *value);
            }
        }
        out.finish()
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus values are f64: exact up to 2^53")]
pub(crate) fn to_f64(value: u64) -> f64 {
    value as f64
}
