//! How many tunnels and streams there were and are: what the metrics show.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Of one node, both roles.
#[derive(Debug, Default)]
pub struct Counts {
    /// Dials, with everything up to the HTTP/2 handshake.
    pub opened: Tries,
    /// TLS handshakes taken.
    pub accepted: Tries,
    pub client: Live,
    pub server: Live,
    reused: AtomicU64,
}

impl Counts {
    /// Streams that found a tunnel open.
    pub fn reused(&self) -> u64 {
        self.reused.load(Relaxed)
    }
    pub(super) fn count_reuse(&self) {
        self.reused.fetch_add(1, Relaxed);
    }
}

#[derive(Debug, Default)]
pub struct Tries {
    succeeded: AtomicU64,
    failed: AtomicU64,
}

impl Tries {
    pub fn count(&self, success: bool) {
        if success { &self.succeeded } else { &self.failed }.fetch_add(1, Relaxed);
    }
    pub fn succeeded(&self) -> u64 {
        self.succeeded.load(Relaxed)
    }
    pub fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }
}

/// What is open now.
#[derive(Debug, Default)]
pub struct Live {
    pub tunnels: Number,
    pub streams: Number,
}

/// A number of things that exist now.
#[derive(Debug, Clone, Default)]
pub struct Number(Arc<AtomicU64>);

impl Number {
    pub fn now(&self) -> u64 {
        self.0.load(Relaxed)
    }
    /// One more, until the guard is dropped.
    pub fn one(&self) -> One {
        self.0.fetch_add(1, Relaxed);
        One(Arc::clone(&self.0))
    }
}

/// One of a [`Number`].
#[derive(Debug)]
pub struct One(Arc<AtomicU64>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
