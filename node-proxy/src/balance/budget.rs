//! The retry budget: how many retries a destination may get on top of its requests.
//!
//! Retries may be a share of the requests of the last [`WINDOW`], plus a minimum per second so that a quiet
//! destination can be retried at all. What is not used is forgotten: hours of calm do not pay for a storm.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use weft_proto::model::RetryPolicy;

/// Share of requests that may be retried when no policy says otherwise.
pub(super) const PERCENT_DEFAULT: u32 = 20;
/// Retries per second that are always allowed when no policy says otherwise.
pub(super) const MIN_PER_S_DEFAULT: u32 = 10;
/// How long a request counts.
const WINDOW: Duration = Duration::from_secs(10);

pub(super) struct Budget {
    requests: AtomicU64,
    spent: Mutex<Spent>,
}

struct Spent {
    at: Instant,
    requests_seen: u64,
    /// Earned by requests.
    share: f64,
    /// Earned by time.
    minimum: f64,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        let spent = Spent { at: now, requests_seen: 0, share: 0.0, minimum: f64::from(MIN_PER_S_DEFAULT) };
        Self { requests: AtomicU64::new(0), spent: Mutex::new(spent) }
    }

    pub(super) fn request(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    /// Takes one retry; false when the budget is spent.
    pub(super) fn take(&self, policy: Option<&RetryPolicy>, now: Instant) -> bool {
        let percent = policy.map_or(PERCENT_DEFAULT, |policy| policy.budget_percent);
        let min_per_s = f64::from(policy.map_or(MIN_PER_S_DEFAULT, |policy| policy.budget_min_per_s));
        let mut spent = self.spent.lock();
        let passed = now.saturating_duration_since(spent.at);
        let requests = self.requests.load(Relaxed);
        let new = requests.saturating_sub(spent.requests_seen) as f64;
        // Of the new requests, those of the last window count; the old balance fades with it.
        let window_s = WINDOW.as_secs_f64();
        let recent = if passed > WINDOW { new * window_s / passed.as_secs_f64() } else { new };
        let kept = (1.0 - passed.as_secs_f64() / window_s).max(0.0);
        spent.share = spent.share * kept + recent * f64::from(percent) / 100.0;
        // One second's worth may be saved up.
        spent.minimum = (spent.minimum + passed.as_secs_f64() * min_per_s).min(min_per_s);
        spent.requests_seen = requests;
        spent.at = spent.at.max(now);
        for purse in [true, false] {
            let purse = if purse { &mut spent.share } else { &mut spent.minimum };
            // Sums of fractions: five fifths may come out a hair under one.
            if *purse >= 1.0 - 1e-9 {
                *purse -= 1.0;
                return true;
            }
        }
        false
    }
}
