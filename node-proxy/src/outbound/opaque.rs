//! L4: pick → connect, on another endpoint while that is safe → copy both ways → one record.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::stages::Targeted;
use super::{Target, report_nobody, reset};
use crate::balance::{Balancer, Family, Live, Locality, Outcome, Pick};
use crate::connect::{self, ConnectError, Destination, OpaqueUpstream, Source, UpstreamIo, connect_opaque};
use crate::detect::Prefixed;
use crate::inbound::Session;
use crate::l7::Reservation;
use crate::node::Node;
use crate::relay::{self, Leg};
use crate::snapshot::ServiceEntry;
use crate::socket::leg::LegIo;
use crate::telemetry::{ByteCounts, CloseReason, ConnectionRecord, Party, Security};

/// Endpoints that are tried for one connection before it is refused.
const ENDPOINTS_TRIED_MAX: usize = 4;

/// A connection that stands.
struct Connected {
    upstream: OpaqueUpstream,
    party: Party,
    /// Counts as in flight at its endpoint until the end.
    picked: Option<(Pick, Duration)>,
    /// Counts while the connection lives.
    _live: Option<Live>,
    _reservation: Option<Reservation>,
}

/// Why none stands.
struct Failed {
    reason: CloseReason,
    detail: String,
}

impl From<&ConnectError> for Failed {
    fn from(error: &ConnectError) -> Self {
        Self { reason: error.reason(), detail: error.to_string() }
    }
}

pub(super) async fn run(node: &Arc<Node>, targeted: Targeted, first: Bytes) {
    let mut record = node.telemetry.connection(targeted.flow());
    let Targeted { tcp, source, target, .. } = targeted;
    let connected = tokio::select! {
        connected = connect(node, &source, &target) => connected,
        failed = ended_early(node, &source, &tcp) => Err(failed),
    };
    let Connected { upstream, party, picked, _live, _reservation } = match connected {
        Ok(connected) => connected,
        Err(Failed { reason, detail }) => {
            // A reset, as a refused connection is one: an orderly end would look like an empty answer.
            reset(tcp);
            return record.finish(reason, Some(detail));
        }
    };
    describe(&mut record, party, &upstream);
    let OpaqueUpstream { io, session, .. } = upstream;
    let reason = copy(node, &source, tcp, io, session, first, record.bytes()).await;
    if let Some((pick, latency)) = picked {
        pick.finish(Outcome::Success { latency }, Instant::now());
    }
    record.finish(reason, None);
}

fn describe(record: &mut ConnectionRecord, mut party: Party, upstream: &OpaqueUpstream) {
    let security = match (&upstream.peer, &upstream.io) {
        (Some(peer), _) => {
            party.principal = Some(peer.id().clone());
            Security::MutualTls
        }
        (None, UpstreamIo::Local(_)) => Security::Local,
        (None, _) if upstream.session.is_some() => Security::Local,
        (None, _) => Security::None,
    };
    record.destination(party, security);
}

/// The application gave up, its pod ended, or the proxy must.
async fn ended_early(node: &Node, source: &Source, tcp: &TcpStream) -> Failed {
    let failed = |reason, detail: &str| Failed { reason, detail: detail.into() };
    tokio::select! {
        _ = tcp.ready(Interest::ERROR) => failed(CloseReason::Cancelled, "the client went away before it was connected"),
        () = source.pod.gone.cancelled() => failed(CloseReason::PodGone, "the pod is gone"),
        () = node.drain.deadline.cancelled() => failed(CloseReason::Draining, "the time to drain is over"),
    }
}

async fn connect(node: &Arc<Node>, source: &Source, target: &Target) -> Result<Connected, Failed> {
    let to = match target {
        Target::Service { entry, port } => return connect_service(node, source, entry, port.port).await,
        Target::Workload { workload, address } => Destination {
            address: *address,
            workload: Some(Arc::clone(workload)),
            service: None,
            traceparent: None,
        },
        Target::External { address } => {
            Destination { address: *address, workload: None, service: None, traceparent: None }
        }
    };
    let time_out = connect::time_out(None, false);
    let upstream = connect_opaque(node, source, &to, time_out).await.map_err(|error| Failed::from(&error))?;
    Ok(Connected { upstream, party: party(&to), picked: None, _live: None, _reservation: None })
}

fn party(to: &Destination) -> Party {
    Party { workload: to.workload.clone(), principal: None, address: Some(to.address) }
}

/// No byte was forwarded yet, so another endpoint is always safe; the budget bounds how often.
async fn connect_service(
    node: &Arc<Node>,
    source: &Source,
    entry: &Arc<ServiceEntry>,
    port: u16,
) -> Result<Connected, Failed> {
    let family = Family::of(source.client.ip());
    let balancer: Arc<Balancer> = node.balancers.of(&entry.service.id, port, family);
    let live = balancer.begin();
    let here = source.pod.workload.load();
    let locality = Locality { node: Arc::clone(&here.node), zone: Arc::clone(&here.zone) };
    let mut tried: Vec<IpAddr> = Vec::new();
    let mut last = None;
    while tried.len() < ENDPOINTS_TRIED_MAX {
        let started = Instant::now();
        let Some(pick) = balancer.pick(entry, port, &locality, &tried, started, rand::random()) else {
            break;
        };
        if tried.contains(&pick.endpoint.ip) {
            // Only ones that failed already are left.
            break;
        }
        tried.push(pick.endpoint.ip);
        let to = destination(node, entry, &pick);
        let others = tried.len() < ENDPOINTS_TRIED_MAX && balancer.has_untried(&tried);
        match bounded(node, source, &to, entry, others).await {
            Ok((upstream, _reservation)) => {
                let (picked, party) = (Some((pick, started.elapsed())), party(&to));
                return Ok(Connected { upstream, party, picked, _live: Some(live), _reservation });
            }
            Err(error) => {
                // Policy and our own bounds say nothing about the endpoint's health.
                if error.worth_another_endpoint() && !matches!(error, ConnectError::Overloaded(_)) {
                    pick.finish(Outcome::Failure { latency: started.elapsed() }, Instant::now());
                }
                let again = error.worth_another_endpoint() && balancer.try_retry(entry, Instant::now());
                last = Some(Failed::from(&error));
                if !again {
                    break;
                }
            }
        }
    }
    Err(last.unwrap_or_else(|| {
        report_nobody(&balancer, &entry.service.id, port, &source.pod);
        let detail = format!("{} has no endpoint for port {port}", entry.service.id);
        Failed { reason: CloseReason::NoEndpoints, detail }
    }))
}

/// Connects, within the TrafficPolicy's bounds.
async fn bounded(
    node: &Arc<Node>,
    source: &Source,
    to: &Destination,
    entry: &ServiceEntry,
    others: bool,
) -> Result<(OpaqueUpstream, Option<Reservation>), ConnectError> {
    let traffic = entry.traffic_policy.as_deref();
    let reservation = node.upstreams.reserve(&source.pod.uid, to, traffic, others).await?;
    let time_out = connect::time_out(traffic, others);
    Ok((connect_opaque(node, source, to, time_out).await?, reservation))
}

fn destination(node: &Node, entry: &ServiceEntry, pick: &Pick) -> Destination {
    let snapshot = node.snapshot.load();
    let named = pick.endpoint.workload.as_ref().and_then(|uid| snapshot.workload(uid));
    Destination {
        address: SocketAddr::new(pick.endpoint.ip, pick.target_port),
        workload: named.or_else(|| snapshot.workload_by_ip(pick.endpoint.ip)).cloned(),
        service: Some(entry.service.id.clone()),
        traceparent: None,
    }
}

/// Copies until the end; closes the inbound side's record too, where there is one.
async fn copy(
    node: &Node,
    source: &Source,
    tcp: TcpStream,
    io: UpstreamIo,
    mut session: Option<Box<Session>>,
    first: Bytes,
    bytes: Arc<ByteCounts>,
) -> CloseReason {
    let mut counts = vec![bytes];
    counts.extend(session.as_ref().map(|session| session.bytes()));
    let inbound = async {
        match &mut session {
            Some(session) => session.ended().await,
            None => std::future::pending().await,
        }
    };
    let stop = async {
        tokio::select! {
            () = source.pod.gone.cancelled() => CloseReason::PodGone,
            () = node.drain.deadline.cancelled() => CloseReason::Draining,
            reason = inbound => reason,
        }
    };
    let reason = match io {
        UpstreamIo::Tcp(up) => relay::run(Leg::Tcp(tcp), Leg::Tcp(up), first, &counts, stop).await,
        UpstreamIo::Tunnel(up) => relay::run(Leg::Tcp(tcp), Leg::Tunnel(up), first, &counts, stop).await,
        UpstreamIo::Local(up) => {
            relay::run_io(Prefixed::new(first, LegIo::new(tcp)), up, &counts[0], stop).await
        }
    };
    if let Some(session) = session {
        session.finish(reason);
    }
    reason
}
