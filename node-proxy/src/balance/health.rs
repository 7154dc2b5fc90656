//! What is remembered of one endpoint: latency, requests in flight, failures, ejection. Atomics only: no lock.
//!
//! Times are nanoseconds since the balancer was made. Two racing updates may lose one sample, which only makes the
//! estimate a little older.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Time in which the weight of an old latency falls to 1/e. Short enough that an endpoint that recovered gets its share
/// back within half a minute, long enough to smooth over single slow requests.
pub(super) const DECAY: Duration = Duration::from_secs(5);
/// Latencies below this count as equal: differences of that size come from where the pod is, and are not worth sending
/// everything to one endpoint.
pub(super) const LATENCY_FLOOR: Duration = Duration::from_millis(1);
/// What a failure counts as at least. A fast error must not look like a fast endpoint.
pub(super) const FAILURE_LATENCY: Duration = Duration::from_millis(100);
/// Ejections double in length up to this.
pub(super) const EJECTION_MAX: Duration = Duration::from_secs(300);
/// ... which is at most this many doublings.
const DOUBLINGS_MAX: u32 = 16;

#[derive(Debug, Default)]
pub(super) struct Health {
    latency_ns: AtomicU64,
    latency_at_ns: AtomicU64,
    in_flight: AtomicU32,
    consecutive_failures: AtomicU32,
    /// How many ejections in a row, for the backoff.
    ejections: AtomicU32,
    /// 0: not ejected.
    ejected_until_ns: AtomicU64,
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Health {
    /// The decayed latency times the requests in flight with one more.
    pub(super) fn cost(&self, now_ns: u64) -> f64 {
        let latency = self.latency_ns(now_ns).max(ns(LATENCY_FLOOR) as f64);
        latency * (f64::from(self.in_flight.load(Relaxed)) + 1.0)
    }

    fn latency_ns(&self, now_ns: u64) -> f64 {
        let age_ns = now_ns.saturating_sub(self.latency_at_ns.load(Relaxed));
        self.latency_ns.load(Relaxed) as f64 * decay(age_ns)
    }

    /// Peak-EWMA: a worse sample counts at once, better ones only by and by.
    pub(super) fn record_latency(&self, sample: Duration, now_ns: u64) {
        let sample_ns = ns(sample) as f64;
        let before_ns = self.latency_ns.load(Relaxed) as f64;
        let weight = decay(now_ns.saturating_sub(self.latency_at_ns.load(Relaxed)));
        let after_ns =
            if sample_ns >= before_ns { sample_ns } else { before_ns * weight + sample_ns * (1.0 - weight) };
        self.latency_ns.store(after_ns as u64, Relaxed);
        self.latency_at_ns.fetch_max(now_ns, Relaxed);
    }

    pub(super) fn start(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(super) fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// A success ends the run of failures, and one step of the backoff.
    pub(super) fn succeeded(&self, latency: Duration, now_ns: u64) {
        self.record_latency(latency, now_ns);
        if self.consecutive_failures.swap(0, Relaxed) == 0 && self.ejections.load(Relaxed) > 0 {
            let _ = self.ejections.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
        }
    }

    /// The length of the run of failures.
    pub(super) fn failed(&self, latency: Duration, now_ns: u64) -> u32 {
        self.record_latency(latency.max(FAILURE_LATENCY), now_ns);
        self.consecutive_failures.fetch_add(1, Relaxed).saturating_add(1)
    }

    pub(super) fn ejected(&self, now_ns: u64) -> bool {
        self.ejected_until_ns.load(Relaxed) > now_ns
    }

    pub(super) fn eject(&self, base: Duration, now_ns: u64) {
        let doublings = self.ejections.fetch_add(1, Relaxed).min(DOUBLINGS_MAX);
        let length = base.saturating_mul(1 << doublings).min(EJECTION_MAX.max(base));
        self.consecutive_failures.store(0, Relaxed);
        self.ejected_until_ns.store(now_ns.saturating_add(ns(length)), Relaxed);
    }

    #[cfg(test)]
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }
}

fn decay(age_ns: u64) -> f64 {
    (-(age_ns as f64) / ns(DECAY) as f64).exp()
}
