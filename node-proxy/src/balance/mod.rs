//! Which endpoint gets the next request or connection: P2C on peak-EWMA latency, ejection, retry budgets.
//!
//! Decisions are pure functions of the state, the time and the randomness passed in; the state of every destination
//! lives in [`Balancers`] and outlives snapshots.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_proto::identity::NamespacedName;
use weft_proto::model::Endpoint;

use crate::snapshot::ServiceEntry;

/// Where the client is, for preferring near endpoints.
#[derive(Debug, Clone)]
pub struct Locality {
    pub node: Arc<str>,
    pub zone: Arc<str>,
}

/// How an attempt on an endpoint ended, as the balancer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Success {
        latency: Duration,
    },
    /// Connect failure, 5xx, 429, time-out.
    Failure {
        latency: Duration,
    },
    /// The client went away: says nothing about the endpoint.
    Cancelled,
}

/// Balancing state of every destination, by Service and port.
#[derive(Default)]
pub struct Balancers {
    _private: (),
}

impl Balancers {
    pub fn of(&self, _service: &NamespacedName, _port: u16) -> Arc<Balancer> {
        todo!()
    }
}

/// Balancing state of one Service port.
pub struct Balancer {
    _private: (),
}

impl Balancer {
    /// Picks among the ready endpoints that serve `port`, avoiding `tried` while there are others. None: there are none.
    pub fn pick(
        self: &Arc<Self>,
        _entry: &ServiceEntry,
        _port: u16,
        _from: &Locality,
        _tried: &[IpAddr],
        _now: Instant,
        _random: u64,
    ) -> Option<Pick> {
        todo!()
    }
    /// Counts a new (first-attempt) request or connection as live until the guard is dropped; its share is the retry budget.
    pub fn begin(self: &Arc<Self>) -> Live {
        todo!()
    }
    /// Takes one retry out of the budget; false when it is spent.
    pub fn try_retry(&self, _entry: &ServiceEntry, _now: Instant) -> bool {
        todo!()
    }
}

/// Counts as a live request while it exists.
pub struct Live {
    _private: (),
}

/// A chosen endpoint; counts as in flight until finished or dropped (dropped: cancelled).
pub struct Pick {
    pub endpoint: Arc<Endpoint>,
    pub target_port: u16,
}

impl Pick {
    pub fn finish(self, _outcome: Outcome, _now: Instant) {
        todo!()
    }
}
