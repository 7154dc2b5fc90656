//! Promises of balancing: the cheaper and nearer endpoint, ejection with a floor, the retry budget.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use weft_proto::identity::NamespacedName;
use weft_proto::model::{Ejection, Endpoint, RetryPolicy, Service, TrafficPolicy};

use super::balancer::EJECTION_DEFAULT;
use super::*;
use crate::snapshot::ServiceEntry;

const PORT: u16 = 80;

fn service() -> NamespacedName {
    NamespacedName::new("shop", "backend").unwrap()
}

fn endpoint(n: u8, node: &str) -> Endpoint {
    Endpoint {
        service: service(),
        ip: [10, 1, 0, n].into(),
        workload: None,
        ports: [(PORT, 8080)].into(),
        ready: true,
        serving: true,
        terminating: false,
        node: node.into(),
        zone: "".into(),
    }
}

fn entry(endpoints: Vec<Endpoint>) -> ServiceEntry {
    ServiceEntry {
        service: Arc::new(Service { id: service(), vips: vec![], ports: vec![], node_local: false }),
        endpoints: endpoints.into_iter().map(Arc::new).collect(),
        traffic_policy: None,
        routes: Arc::default(),
    }
}

#[test]
fn that_nobody_is_there_is_news_once_a_minute() {
    let epoch = Instant::now();
    let balancer = Balancer::with_epoch(Family::V4, epoch, Arc::default());
    let news = |s: u64| balancer.nobody_is_news(epoch + Duration::from_secs(s));
    assert_eq!([0, 0, 59, 60, 61, 130].map(news), [true, false, false, true, false, true]);
}

fn endpoints(count: u8) -> ServiceEntry {
    entry((1..=count).map(|n| endpoint(n, "elsewhere")).collect())
}

fn with_policy(mut entry: ServiceEntry, f: impl FnOnce(&mut TrafficPolicy)) -> ServiceEntry {
    let mut policy = TrafficPolicy {
        id: service(),
        created_unix_s: 0,
        services: vec![],
        retry: None,
        connect_timeout: None,
        ejection: None,
        max_connections: None,
        max_pending_requests: None,
    };
    f(&mut policy);
    entry.traffic_policy = Some(Arc::new(policy));
    entry
}

/// A destination in virtual time.
struct World {
    balancer: Arc<Balancer>,
    now: Instant,
    random: u64,
    here: Locality,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let here = Locality { node: "here".into(), zone: "z".into() };
        Self {
            balancer: Arc::new(Balancer::with_epoch(Family::V4, now, Arc::default())),
            now,
            random: 7,
            here,
        }
    }
    fn pass(&mut self, time: Duration) {
        self.now += time;
    }
    fn pick(&mut self, entry: &ServiceEntry, tried: &[IpAddr]) -> Option<Pick> {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.balancer.pick(entry, PORT, &self.here, tried, self.now, self.random)
    }
    /// One request after the other; how many each endpoint (by last byte) got.
    fn run(
        &mut self,
        entry: &ServiceEntry,
        count: usize,
        answer: impl Fn(u8) -> Outcome,
    ) -> std::collections::BTreeMap<u8, usize> {
        let mut got = std::collections::BTreeMap::new();
        for _ in 0..count {
            let pick = self.pick(entry, &[]).unwrap();
            let n = last(&pick);
            *got.entry(n).or_default() += 1;
            let outcome = answer(n);
            if let Outcome::Success { latency } | Outcome::Failure { latency } = outcome {
                self.pass(latency);
            }
            pick.finish(outcome, self.now);
        }
        got
    }
}

fn last(pick: &Pick) -> u8 {
    match pick.endpoint.ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => unreachable!(),
    }
}

fn ok(ms: u64) -> Outcome {
    Outcome::Success { latency: Duration::from_millis(ms) }
}

fn failed(ms: u64) -> Outcome {
    Outcome::Failure { latency: Duration::from_millis(ms) }
}

#[test]
fn only_ready_endpoints_of_the_port_are_picked_and_serving_ones_as_a_last_resort() {
    let mut world = World::new();
    let mut ends = [endpoint(1, "a"), endpoint(2, "a"), endpoint(3, "a"), endpoint(4, "a")];
    ends[1].ready = false;
    ends[2].terminating = true;
    ends[3].ports = [(81, 8081)].into();
    let some = entry(ends.to_vec());
    assert_eq!(world.run(&some, 50, |_| ok(1)).into_iter().collect::<Vec<_>>(), [(1, 50)]);
    // Only a terminating one is left, and it still serves.
    ends[1].serving = false;
    let leaving = entry(ends[1..].to_vec());
    assert_eq!(last(&world.pick(&leaving, &[]).unwrap()), 3);
    assert!(world.pick(&entry(vec![]), &[]).is_none());
    assert!(world.pick(&entry(vec![ends[3].clone()]), &[]).is_none());
    assert_eq!(world.pick(&some, &[]).unwrap().target_port, 8080);
}

#[test]
fn equal_endpoints_get_equal_shares_and_a_slow_one_less() {
    let got = World::new().run(&endpoints(4), 4000, |_| ok(2));
    for (n, count) in &got {
        assert!((800..1200).contains(count), "{n}: {got:?}");
    }
    let got = World::new().run(&endpoints(4), 4000, |n| if n == 4 { ok(50) } else { ok(2) });
    assert!(got[&4] < 200, "{got:?}");
    assert!(got[&4] > 0, "a slow endpoint is still asked now and then: {got:?}");
}

#[test]
fn requests_in_flight_push_new_ones_elsewhere() {
    let mut world = World::new();
    let entry = endpoints(4);
    let held: Vec<Pick> = (0..400).map(|_| world.pick(&entry, &[]).unwrap()).collect();
    let flight = world.balancer.in_flight();
    assert!(flight.iter().all(|n| (60..140).contains(n)), "{flight:?}");
    drop(held);
    assert_eq!(world.balancer.in_flight(), [0; 4]);
}

#[test]
fn the_near_endpoint_is_preferred_and_the_far_one_does_not_starve() {
    let near = entry(vec![endpoint(1, "here"), endpoint(2, "elsewhere")]);
    let got = World::new().run(&near, 3000, |_| ok(1));
    assert!((1800..2200).contains(&got[&1]), "{got:?}");
}

#[test]
fn a_node_local_service_is_served_by_the_clients_node_or_not_at_all() {
    let mut world = World::new();
    let of = |endpoints: Vec<Endpoint>, node_local| {
        let mut entry = entry(endpoints);
        entry.service = Arc::new(Service { node_local, ..(*entry.service).clone() });
        entry
    };
    let both = vec![endpoint(1, "here"), endpoint(2, "elsewhere")];
    assert_eq!(world.run(&of(both.clone(), true), 50, |_| ok(1)).into_iter().collect::<Vec<_>>(), [(1, 50)]);
    assert!(world.pick(&of(both[1..].to_vec(), true), &[]).is_none());
    // The Service is changed, its endpoints are the same.
    let mut shared = of(both[1..].to_vec(), true);
    assert!(world.pick(&shared, &[]).is_none());
    shared.service = Arc::new(Service { node_local: false, ..(*shared.service).clone() });
    assert_eq!(last(&world.pick(&shared, &[]).unwrap()), 2);
}

#[test]
fn an_endpoint_that_fails_is_ejected_and_comes_back() {
    let mut world = World::new();
    let entry = endpoints(3);
    let got = world.run(&entry, 300, |n| if n == 1 { failed(1) } else { ok(1) });
    assert!(got[&1] <= 5, "at most the failures that ejection takes: {got:?}");
    // Penalised, so perhaps not asked five times at once: force the rest.
    while world.balancer.ejected(world.now) == 0 {
        let pick = world.pick(&entry, &[[10, 1, 0, 2].into(), [10, 1, 0, 3].into()]).unwrap();
        assert_eq!(last(&pick), 1);
        pick.finish(failed(1), world.now);
    }
    for _ in 0..200 {
        assert_ne!(last(&world.pick(&entry, &[]).unwrap()), 1);
    }
    world.pass(Duration::from_secs(60));
    let got = world.run(&entry, 3000, |_| ok(1));
    assert!(got[&1] > 700, "recovered: {got:?}");
}

#[test]
fn ejection_lasts_longer_each_time_and_forgets_by_successes() {
    let health = health::Health::default();
    let s = |s: u64| s * 1_000_000_000;
    let base = Duration::from_secs(5);
    health.eject(base, 0);
    assert!(health.ejected(s(4)) && !health.ejected(s(5)));
    health.eject(base, s(10));
    assert!(health.ejected(s(19)) && !health.ejected(s(20)));
    health.eject(base, s(30));
    assert!(health.ejected(s(49)) && !health.ejected(s(50)));
    for _ in 0..3 {
        health.succeeded(Duration::from_millis(1), s(60));
    }
    health.eject(base, s(70));
    assert!(health.ejected(s(74)) && !health.ejected(s(75)));
    for n in 0..40 {
        health.eject(base, s(100) + n);
    }
    assert!(!health.ejected(s(100) + 40 + health::EJECTION_MAX.as_nanos() as u64));
}

#[test]
fn a_tried_endpoint_is_avoided_while_there_are_others() {
    let mut world = World::new();
    let entry = endpoints(3);
    for _ in 0..100 {
        let pick = world.pick(&entry, &[[10, 1, 0, 1].into(), [10, 1, 0, 3].into()]).unwrap();
        assert_eq!(last(&pick), 2);
    }
    let all: Vec<IpAddr> = (1..=3).map(|n| [10, 1, 0, n].into()).collect();
    assert!(world.pick(&entry, &all).is_some());
    assert!(world.balancer.has_untried(&all[..2]));
    assert!(!world.balancer.has_untried(&all));
}

#[test]
fn an_ejected_endpoint_is_tried_before_one_that_has_just_failed_the_request() {
    let mut world = World::new();
    let entry = endpoints(2);
    let only_first: [IpAddr; 1] = [[10, 1, 0, 2].into()];
    while world.balancer.ejected(world.now) == 0 {
        world.pick(&entry, &only_first).unwrap().finish(failed(1), world.now);
    }
    assert_eq!(last(&world.pick(&entry, &[]).unwrap()), 2, "the first one is ejected");
    assert_eq!(
        last(&world.pick(&entry, &only_first).unwrap()),
        1,
        "but better than the second, which failed"
    );
    assert!(world.balancer.has_untried(&only_first));
}

#[test]
fn the_health_of_an_endpoint_survives_a_new_snapshot_and_dies_with_it() {
    let mut world = World::new();
    let three = endpoints(3);
    let others: [IpAddr; 2] = [[10, 1, 0, 2].into(), [10, 1, 0, 3].into()];
    for _ in 0..5 {
        world.pick(&three, &others).unwrap().finish(failed(1), world.now);
    }
    assert_eq!(world.balancer.ejected(world.now), 1);
    let more = endpoints(5);
    assert!(world.pick(&more, &[]).is_some());
    assert_eq!(world.balancer.ejected(world.now), 1);
    let gone = entry((2..=5).map(|n| endpoint(n, "elsewhere")).collect());
    assert!(world.pick(&gone, &[]).is_some());
    assert!(world.pick(&more, &[]).is_some());
    assert_eq!(world.balancer.ejected(world.now), 0);
}

#[test]
fn retries_are_a_share_of_requests_and_a_minimum_per_second() {
    let mut world = World::new();
    let entry = with_policy(endpoints(1), |policy| {
        policy.retry = Some(RetryPolicy {
            codes: vec![],
            attempts: 2,
            backoff: None,
            methods: vec![],
            budget_percent: 20,
            budget_min_per_s: 3,
            per_try_timeout: None,
        });
    });
    let taken = |world: &World| {
        let mut taken = 0;
        while world.balancer.try_retry(&entry, world.now) {
            taken += 1;
        }
        taken
    };
    assert_eq!(taken(&world), 3);
    for _ in 0..100 {
        drop(world.balancer.begin());
    }
    assert_eq!(taken(&world), 20);
    world.pass(Duration::from_secs(1));
    assert_eq!(taken(&world), 3);
    // An hour of calm, then a storm: only the last ten seconds' share counts.
    for _ in 0..360_000 {
        drop(world.balancer.begin());
    }
    world.pass(Duration::from_secs(3600));
    assert_eq!(taken(&world), 200 + 3);
    assert_eq!(world.balancer.live(), 0);
}

#[test]
fn the_state_of_a_destination_is_one_and_ends_with_its_service() {
    let balancers = Balancers::default();
    let a = balancers.of(&service(), 80, Family::V4);
    assert!(Arc::ptr_eq(&a, &balancers.of(&service(), 80, Family::V4)));
    assert!(!Arc::ptr_eq(&a, &balancers.of(&service(), 81, Family::V4)));
    balancers.retain(|_| false);
    assert!(!Arc::ptr_eq(&a, &balancers.of(&service(), 80, Family::V4)));
}

proptest! {
    /// Whatever fails, a floor of endpoints stays, and something is always picked.
    #[test]
    fn ejection_never_goes_below_its_floor(
        count in 1u8..9,
        percent in 0u32..=100,
        steps in prop::collection::vec((0u8..9, prop::bool::ANY, 0u64..2000), 1..300),
    ) {
        let mut world = World::new();
        let entry = with_policy(endpoints(count), |policy| {
            policy.ejection = Some(Ejection { consecutive_failures: 2, max_ejected_percent: percent, ..EJECTION_DEFAULT });
        });
        for (n, fails, ms) in steps {
            world.pass(Duration::from_millis(ms));
            let others: Vec<IpAddr> =
                (1..=count).filter(|m| *m != n % count + 1).map(|m| [10, 1, 0, m].into()).collect();
            let pick = world.pick(&entry, &others);
            prop_assert!(pick.is_some());
            pick.unwrap().finish(if fails { failed(1) } else { ok(1) }, world.now);
            let ejected = world.balancer.ejected(world.now);
            prop_assert!(ejected < usize::from(count));
            prop_assert!(ejected * 100 <= usize::from(count) * percent as usize);
        }
    }
}

#[test]
fn a_client_meets_endpoints_of_its_own_family_while_there_are_any() {
    let mut endpoints = vec![endpoint(1, "here"), endpoint(2, "here")];
    endpoints[1].ip = "fd00::2".parse().unwrap();
    let both = entry(endpoints.clone());
    let only_v4 = entry(endpoints[..1].to_vec());
    let here = Locality { node: "here".into(), zone: "z".into() };
    let now = Instant::now();
    let picked = |entry: &ServiceEntry, family: Family| {
        let balancer = Arc::new(Balancer::with_epoch(family, now, Arc::default()));
        let random = [0, 1, u64::MAX / 2, u64::MAX];
        random.map(|random| balancer.pick(entry, 80, &here, &[], now, random).map(|pick| pick.endpoint.ip))
    };
    assert_eq!(picked(&both, Family::V4), [Some(endpoints[0].ip); 4]);
    assert_eq!(picked(&both, Family::V6), [Some(endpoints[1].ip); 4]);
    assert_eq!(picked(&only_v4, Family::V6), [Some(endpoints[0].ip); 4], "any is better than none");
}
