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
use std::time::Duration;

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

/// Balancing state of every destination, by Service, port and family.
#[derive(Default)]
pub struct Balancers {
    of: RwLock<HashMap<NamespacedName, Vec<Destination>>>,
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
        let balancer = Arc::new(Balancer::new(family));
        let known = Destination { port, family, balancer: balancer.clone() };
        of.entry(service.clone()).or_default().push(known);
        balancer
    }

    /// Forgets the Services for which `keep` is false: those that left the snapshot.
    pub fn retain(&self, mut keep: impl FnMut(&NamespacedName) -> bool) {
        self.of.write().retain(|service, _| keep(service));
    }
}
