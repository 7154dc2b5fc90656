//! Which endpoint gets the next request or connection: P2C on peak-EWMA latency, ejection, retry budgets.
//!
//! Decisions are pure functions of the state, the time and the randomness passed in; the state of every destination
//! lives in [`Balancers`] and outlives snapshots. Start at [`Balancer::pick`] in `balancer.rs`; what is remembered of
//! one endpoint is in `health.rs`, the retry budget in `budget.rs`.

mod balancer;
mod budget;
mod health;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use weft_proto::identity::NamespacedName;

pub use balancer::{Balancer, Live, Pick};

/// Most destinations remembered at a time: four times the Services of a large cluster's busiest node. Beyond it, those
/// that nobody is using are forgotten.
const BALANCERS_MAX: usize = 4096;

/// Where the client is, for preferring near endpoints.
#[derive(Debug, Clone)]
pub struct Locality {
    pub node: Arc<str>,
    pub zone: Arc<str>,
}

/// Addresses of which family the client speaks: endpoints of the same are preferred, because an application may listen
/// on one of them only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
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

/// What happened at all destinations together, also those that are forgotten since: for metrics.
#[derive(Debug, Default)]
pub struct Totals {
    ejections: AtomicU64,
    budget_spent: AtomicU64,
}

impl Totals {
    /// Endpoints that were ejected.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Relaxed)
    }
    /// Retries that were not made because the budget was spent.
    pub fn budget_spent(&self) -> u64 {
        self.budget_spent.load(Relaxed)
    }
}

/// Balancing state of every destination, by Service, port and family.
#[derive(Default)]
pub struct Balancers {
    of: RwLock<HashMap<NamespacedName, Vec<Destination>>>,
    totals: Arc<Totals>,
}

struct Destination {
    port: u16,
    family: Family,
    balancer: Arc<Balancer>,
}

impl Balancers {
    pub fn of(&self, service: &NamespacedName, port: u16, family: Family) -> Arc<Balancer> {
        let find = |known: &Vec<Destination>| {
            let wanted = |known: &&Destination| known.port == port && known.family == family;
            known.iter().find(wanted).map(|known| known.balancer.clone())
        };
        if let Some(balancer) = self.of.read().get(service).and_then(find) {
            return balancer;
        }
        let mut of = self.of.write();
        if let Some(balancer) = of.get(service).and_then(find) {
            return balancer;
        }
        if of.len() >= BALANCERS_MAX {
            of.retain(|_, known| known.iter().any(|known| Arc::strong_count(&known.balancer) > 1));
        }
        let balancer = Arc::new(Balancer::new(family, Arc::clone(&self.totals)));
        let known = Destination { port, family, balancer: balancer.clone() };
        of.entry(service.clone()).or_default().push(known);
        balancer
    }

    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Endpoints that are ejected now.
    pub fn ejected(&self, now: Instant) -> usize {
        self.of.read().values().flatten().map(|known| known.balancer.ejected(now)).sum()
    }

    /// Forgets the Services for which `keep` is false: those that left the snapshot.
    pub fn retain(&self, mut keep: impl FnMut(&NamespacedName) -> bool) {
        self.of.write().retain(|service, _| keep(service));
    }
}
