//! One Service port: its candidates, and picking among them.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use weft_proto::model::{Ejection, Endpoint};

use super::budget::Budget;
use super::health::Health;
use super::{Family, Locality, Outcome, Totals};
use crate::snapshot::ServiceEntry;

/// Ejection when no TrafficPolicy says otherwise: after five failures in a row, for 5 s (doubling with each further
/// one), and never more than half of the endpoints.
pub(super) const EJECTION_DEFAULT: Ejection =
    Ejection { consecutive_failures: 5, base_ejection: Duration::from_secs(5), max_ejected_percent: 50 };
/// Costs closer than this factor are a tie: latency varies that much by itself.
const TIE_RATIO: f64 = 1.25;
/// In a tie the nearer endpoint wins this many times of [`NEAR_ODDS_OF`]: traffic leans to the near without starving
/// the far.
const NEAR_ODDS: u64 = 2;
const NEAR_ODDS_OF: u64 = 3;

/// A Service without endpoints that is asked for is news so often.
const NOBODY_TOLD_EVERY: Duration = Duration::from_secs(60);
const NEVER: u64 = u64::MAX;

/// Balancing state of one Service port.
pub struct Balancer {
    members: ArcSwap<Members>,
    live: AtomicU32,
    budget: Budget,
    family: Family,
    /// Zero of the nanoseconds in [`Health`].
    epoch: Instant,
    totals: Arc<Totals>,
    /// When it was news that there is no endpoint, or [`NEVER`].
    nobody_told_ns: AtomicU64,
}

/// The candidates of one state of the Service's endpoints.
#[derive(Default)]
struct Members {
    /// What these members were made of: holding them makes comparing pointers sound.
    made_of: Vec<Arc<Endpoint>>,
    candidates: Vec<Candidate>,
    ejection: Option<Ejection>,
    node_local: bool,
}

#[derive(Clone)]
struct Candidate {
    endpoint: Arc<Endpoint>,
    target_port: u16,
    health: Arc<Health>,
}

impl Members {
    fn is_of(&self, entry: &ServiceEntry) -> bool {
        self.made_of.len() == entry.endpoints.len()
            && self.made_of.iter().zip(&entry.endpoints).all(|(a, b)| Arc::ptr_eq(a, b))
            && self.ejection == entry.traffic_policy.as_ref().and_then(|policy| policy.ejection)
            && self.node_local == entry.service.node_local
    }

    /// Ready endpoints that are not going away; without any, those that still serve. Of the client's family if there
    /// are such. Of a Service with `internalTrafficPolicy: Local` those of the client's node, or none. Health is kept by address.
    fn new(entry: &ServiceEntry, port: u16, family: Family, from: &Locality, before: &Members) -> Self {
        let node_local = entry.service.node_local;
        let reached = |endpoint: &Endpoint| !node_local || endpoint.node == from.node;
        let eligible = |want: &dyn Fn(&Endpoint) -> bool| -> Vec<Candidate> {
            let mut candidates = Vec::new();
            for endpoint in entry.endpoints.iter().filter(|endpoint| reached(endpoint) && want(endpoint)) {
                let Some(&target_port) = endpoint.ports.get(&port) else { continue };
                let known = before
                    .candidates
                    .iter()
                    .find(|old| old.endpoint.ip == endpoint.ip && old.endpoint.workload == endpoint.workload);
                let health = known.map_or_else(Arc::default, |old| old.health.clone());
                candidates.push(Candidate { endpoint: endpoint.clone(), target_port, health });
            }
            candidates
        };
        let same = |endpoint: &Endpoint| Family::of(endpoint.ip) == family;
        let live = |endpoint: &Endpoint| endpoint.ready && !endpoint.terminating;
        let wanted: [&dyn Fn(&Endpoint) -> bool; 4] = [
            &|endpoint| same(endpoint) && live(endpoint),
            &live,
            &|endpoint| same(endpoint) && endpoint.serving,
            &|endpoint| endpoint.serving,
        ];
        let candidates =
            wanted.iter().map(|want| eligible(want)).find(|found| !found.is_empty()).unwrap_or_default();
        Self {
            made_of: entry.endpoints.clone(),
            candidates,
            ejection: entry.traffic_policy.as_ref().and_then(|policy| policy.ejection),
            node_local,
        }
    }
}

impl Balancer {
    pub(super) fn new(family: Family, totals: Arc<Totals>) -> Self {
        // Not a decision by the clock: only the zero from which the given times are counted.
        Self::with_epoch(family, Instant::now(), totals)
    }

    pub(super) fn with_epoch(family: Family, epoch: Instant, totals: Arc<Totals>) -> Self {
        let budget = Budget::new(epoch);
        let (members, live, nobody_told_ns) = (ArcSwap::default(), AtomicU32::new(0), AtomicU64::new(NEVER));
        Self { members, live, budget, family, epoch, totals, nobody_told_ns }
    }

    /// Whether the log should say now that nobody was there to be picked.
    pub fn nobody_is_news(&self, now: Instant) -> bool {
        let (now_ns, told_ns) = (self.ns(now), self.nobody_told_ns.load(Relaxed));
        let since = Duration::from_nanos(now_ns.saturating_sub(told_ns));
        // Of several that find it out at once, one says it.
        (told_ns == NEVER || since >= NOBODY_TOLD_EVERY)
            && self.nobody_told_ns.compare_exchange(told_ns, now_ns, Relaxed, Relaxed).is_ok()
    }

    fn ns(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Picks among the ready endpoints that serve `port`, avoiding `tried` while there are others. None: there are none.
    pub fn pick(
        self: &Arc<Self>,
        entry: &ServiceEntry,
        port: u16,
        from: &Locality,
        tried: &[IpAddr],
        now: Instant,
        random: u64,
    ) -> Option<Pick> {
        let mut members = self.members.load();
        if !members.is_of(entry) {
            self.members.store(Arc::new(Members::new(entry, port, self.family, from, &members)));
            members = self.members.load();
        }
        let candidates = &members.candidates;
        let now_ns = self.ns(now);
        let index = match candidates.len() {
            0 => return None,
            1 => 0,
            _ => choose(candidates, from, tried, now_ns, random),
        };
        let candidate = candidates[index].clone();
        candidate.health.start();
        Some(Pick {
            endpoint: candidate.endpoint,
            target_port: candidate.target_port,
            health: candidate.health,
            balancer: self.clone(),
        })
    }

    /// Whether there is an endpoint that `pick` would prefer to those `tried`.
    pub fn has_untried(&self, tried: &[IpAddr]) -> bool {
        self.members.load().candidates.iter().any(|c| !tried.contains(&c.endpoint.ip))
    }

    /// Counts a new (first-attempt) request or connection as live until the guard is dropped; its share is the retry budget.
    pub fn begin(self: &Arc<Self>) -> Live {
        self.live.fetch_add(1, Relaxed);
        self.budget.request();
        Live { balancer: self.clone() }
    }

    /// Requests and connections that are live now.
    pub fn live(&self) -> u32 {
        self.live.load(Relaxed)
    }

    /// Takes one retry out of the budget; false when it is spent.
    pub fn try_retry(&self, entry: &ServiceEntry, now: Instant) -> bool {
        let policy = entry.traffic_policy.as_ref().and_then(|policy| policy.retry.as_ref());
        let taken = self.budget.take(policy, now);
        if !taken {
            self.totals.budget_spent.fetch_add(1, Relaxed);
        }
        taken
    }

    /// How many endpoints are ejected now.
    pub fn ejected(&self, now: Instant) -> usize {
        let now_ns = self.ns(now);
        self.members.load().candidates.iter().filter(|c| c.health.ejected(now_ns)).count()
    }

    fn observe(&self, health: &Health, outcome: Outcome, now: Instant) {
        let now_ns = self.ns(now);
        match outcome {
            Outcome::Success { latency } => health.succeeded(latency, now_ns),
            Outcome::Cancelled => {}
            Outcome::Failure { latency } => {
                let failures = health.failed(latency, now_ns);
                let members = self.members.load();
                let ejection = members.ejection.unwrap_or(EJECTION_DEFAULT);
                if failures >= ejection.consecutive_failures.max(1)
                    && !health.ejected(now_ns)
                    && members.may_eject_one(&ejection, now_ns)
                {
                    health.eject(ejection.base_ejection, now_ns);
                    self.totals.ejections.fetch_add(1, Relaxed);
                }
            }
        }
    }
}

impl Members {
    /// At most the given share, and always one that stays.
    fn may_eject_one(&self, ejection: &Ejection, now_ns: u64) -> bool {
        let total = self.candidates.len();
        let ejected = self.candidates.iter().filter(|c| c.health.ejected(now_ns)).count() + 1;
        let percent = ejection.max_ejected_percent.min(100) as usize;
        ejected < total && ejected * 100 <= total * percent
    }
}

/// Two by chance, the cheaper wins. Not ejected and not tried come first, then ejected ones that were not tried: where all
/// others have failed this very request, one that failed a while ago is the better bet. Then anything.
fn choose(
    candidates: &[Candidate],
    from: &Locality,
    tried: &[IpAddr],
    now_ns: u64,
    mut random: u64,
) -> usize {
    let healthy = |i: usize| !candidates[i].health.ejected(now_ns);
    let fresh = |i: usize| !tried.contains(&candidates[i].endpoint.ip);
    // Two at random are nearly always both good: no need to look at all.
    let (a, b) = two_of(candidates.len(), &mut random);
    if healthy(a) && healthy(b) && fresh(a) && fresh(b) {
        return better(candidates, a, b, from, now_ns, &mut random);
    }
    let filters: [&dyn Fn(usize) -> bool; 4] = [&|i| healthy(i) && fresh(i), &fresh, &healthy, &|_| true];
    for filter in filters {
        let count = (0..candidates.len()).filter(|&i| filter(i)).count();
        let nth = |n: usize| (0..candidates.len()).filter(|&i| filter(i)).nth(n);
        match count {
            0 => {}
            1 => return nth(0).unwrap_or(0),
            _ => {
                let (a, b) = two_of(count, &mut random);
                if let (Some(a), Some(b)) = (nth(a), nth(b)) {
                    return better(candidates, a, b, from, now_ns, &mut random);
                }
            }
        }
    }
    0
}

/// Two different indices below `count`, which is at least 2.
fn two_of(count: usize, random: &mut u64) -> (usize, usize) {
    let a = below(count as u64, random) as usize;
    let b = below(count as u64 - 1, random) as usize;
    (a, if b >= a { b + 1 } else { b })
}

fn better(
    candidates: &[Candidate],
    a: usize,
    b: usize,
    from: &Locality,
    now_ns: u64,
    random: &mut u64,
) -> usize {
    let (cost_a, cost_b) = (candidates[a].health.cost(now_ns), candidates[b].health.cost(now_ns));
    if cost_a > cost_b * TIE_RATIO {
        return b;
    }
    if cost_b > cost_a * TIE_RATIO {
        return a;
    }
    let (far_a, far_b) = (distance(&candidates[a].endpoint, from), distance(&candidates[b].endpoint, from));
    // a and b came in random order: without a nearer one, a is as good as a coin.
    let (near, far) = if far_b < far_a { (b, a) } else { (a, b) };
    if far_a == far_b || below(NEAR_ODDS_OF, random) < NEAR_ODDS { near } else { far }
}

/// 0: same node, 1: same zone, 2: elsewhere.
fn distance(endpoint: &Endpoint, from: &Locality) -> u8 {
    if !from.node.is_empty() && endpoint.node == from.node {
        0
    } else if !from.zone.is_empty() && endpoint.zone == from.zone {
        1
    } else {
        2
    }
}

/// A number below `bound` (at least 1); moves `random` on (SplitMix64).
fn below(bound: u64, random: &mut u64) -> u64 {
    *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *random;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    ((u128::from(z) * u128::from(bound)) >> 64) as u64
}

/// Counts as a live request while it exists.
pub struct Live {
    balancer: Arc<Balancer>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.balancer.live.fetch_sub(1, Relaxed);
    }
}

/// A chosen endpoint; counts as in flight until finished or dropped (dropped unobserved: cancelled).
pub struct Pick {
    pub endpoint: Arc<Endpoint>,
    pub target_port: u16,
    health: Arc<Health>,
    balancer: Arc<Balancer>,
}

impl Pick {
    /// Says how it went, while the rest (a response's body) is still in flight.
    pub fn observe(&self, outcome: Outcome, now: Instant) {
        self.balancer.observe(&self.health, outcome, now);
    }

    pub fn finish(self, outcome: Outcome, now: Instant) {
        self.observe(outcome, now);
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.health.end();
    }
}

#[cfg(test)]
impl Balancer {
    pub(super) fn in_flight(&self) -> Vec<u32> {
        self.members.load().candidates.iter().map(|c| c.health.in_flight()).collect()
    }
}
