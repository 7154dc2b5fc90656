//! Reaching a chosen destination: through a tunnel, on the same node without one, or in plaintext outside the mesh.
//!
//! [`connect`] gives a stream to somebody who speaks HTTP over it; [`connect_opaque`] gives it to somebody who copies
//! bytes, and spares the copying that it can. Both return when the application has accepted and policy has passed.

mod error;
mod io;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use weft_proto::identity::{NamespacedName, SpiffeId};
use weft_proto::model::{TrafficPolicy, Workload};

pub use error::ConnectError;
pub use io::UpstreamIo;

use crate::enrol::LocalPod;
use crate::identity::VerifiedPeer;
use crate::inbound::{self, Session};
use crate::node::Node;
use crate::socket::{self, TUNNEL_PORT, Use, is_proxy_port};
use crate::tunnel::limits::{CONNECT_TIMEOUT, Timing};
use crate::tunnel::{ConnectHead, PoolKey, Tunnel, TunnelError, connect_tls, headers};

/// For a connection while other endpoints are left to try: one lost SYN is repeated after 1 s, so 2 s is time for two.
const TIME_OUT_WITH_OTHERS: Duration = Duration::from_secs(2);

/// Who connects: a pod of this node, known by its network namespace.
#[derive(Clone)]
pub struct Source {
    pub pod: Arc<LocalPod>,
    /// The application's own address.
    pub client: SocketAddr,
}

/// One chosen address.
#[derive(Clone)]
pub struct Destination {
    pub address: SocketAddr,
    /// The pod behind the address, if the mesh knows one.
    pub workload: Option<Arc<Workload>>,
    /// The Service that the client addressed.
    pub service: Option<NamespacedName>,
    /// W3C traceparent for the CONNECT request.
    pub traceparent: Option<String>,
}

pub struct Upstream {
    pub io: UpstreamIo,
    /// None: plaintext, or a pod of this node.
    pub peer: Option<VerifiedPeer>,
}

/// An upstream for bytes that nobody looks at.
pub struct OpaqueUpstream {
    pub io: UpstreamIo,
    pub peer: Option<VerifiedPeer>,
    /// Straight to an application of this node: the inbound side's record and right to go on.
    pub session: Option<Box<Session>>,
}

/// How a destination is reached.
enum Way {
    Plain,
    Local(Arc<LocalPod>),
    Tunnel { expected: SpiffeId },
}

/// How long a connection to one endpoint may take, at L4 and at L7: what the TrafficPolicy says; else short while `others`
/// are left to try, and as long as the wire allows where there is nobody else. Never longer than that.
pub fn time_out(traffic: Option<&TrafficPolicy>, others: bool) -> Duration {
    let default = if others { TIME_OUT_WITH_OTHERS } else { CONNECT_TIMEOUT };
    traffic.and_then(|traffic| traffic.connect_timeout).unwrap_or(default).min(CONNECT_TIMEOUT)
}

/// Connects for somebody who speaks HTTP.
pub async fn connect(
    node: &Arc<Node>,
    source: &Source,
    to: &Destination,
    time_out: Duration,
) -> Result<Upstream, ConnectError> {
    match way(node, to)? {
        Way::Plain => {
            let tcp = plain(source, to, time_out).await?;
            Ok(Upstream { io: UpstreamIo::Tcp(tcp), peer: None })
        }
        Way::Local(pod) => {
            let io = inbound::hand_over(node, source, pod, to.address, time_out).await?;
            Ok(Upstream { io: UpstreamIo::Local(io), peer: None })
        }
        Way::Tunnel { expected } => tunnel(node, source, to, expected, time_out, false).await,
    }
}

/// Connects for somebody who copies bytes.
pub async fn connect_opaque(
    node: &Arc<Node>,
    source: &Source,
    to: &Destination,
    time_out: Duration,
) -> Result<OpaqueUpstream, ConnectError> {
    let (io, peer, session) = match way(node, to)? {
        Way::Plain => (UpstreamIo::Tcp(plain(source, to, time_out).await?), None, None),
        Way::Local(pod) => match inbound::hand_over_opaque(node, source, pod, to.address, time_out).await? {
            inbound::HandOver::Direct(tcp, session) => (UpstreamIo::Tcp(tcp), None, Some(session)),
            inbound::HandOver::Inspected(io) => (UpstreamIo::Local(io), None, None),
        },
        Way::Tunnel { expected } => {
            let upstream = tunnel(node, source, to, expected, time_out, true).await?;
            (upstream.io, upstream.peer, None)
        }
    };
    Ok(OpaqueUpstream { io, peer, session })
}

fn way(node: &Node, to: &Destination) -> Result<Way, ConnectError> {
    let Some(workload) = to.workload.as_ref().filter(|workload| workload.enrolled) else {
        return Ok(Way::Plain);
    };
    let port = to.address.port();
    if is_proxy_port(port) {
        return Err(ConnectError::BadTarget(to.address));
    }
    if workload.excluded_inbound_ports.contains(&port) {
        return Ok(Way::Plain);
    }
    if let Some(pod) = node.pods.by_uid(&workload.uid) {
        return Ok(Way::Local(pod));
    }
    Ok(Way::Tunnel { expected: identity_of(node, workload).ok_or(ConnectError::NotReady)? })
}

/// The identity of a workload of this mesh. None: the mesh is not configured yet.
pub fn identity_of(node: &Node, workload: &Workload) -> Option<SpiffeId> {
    let snapshot = node.snapshot.load();
    let trust_domain = snapshot.mesh()?.trust_domain.clone();
    SpiffeId::new(trust_domain, &workload.namespace, &workload.service_account).ok()
}

/// The client's own address where the family fits: a pod may have several.
fn bind_address(source: &Source, to: SocketAddr) -> Option<std::net::IpAddr> {
    let client = source.client.ip().to_canonical();
    let own = source.pod.workload.load().ips.iter().any(|ip| ip.to_canonical() == client);
    (own && client.is_ipv4() == to.is_ipv4()).then_some(client)
}

async fn plain(source: &Source, to: &Destination, time_out: Duration) -> Result<TcpStream, ConnectError> {
    let from = bind_address(source, to.address);
    socket::connect_from(&source.pod.netns, from, to.address, Use::Plain, time_out)
        .await
        .map_err(|error| ConnectError::tcp(to.address, Arc::new(error)))
}

async fn tunnel(
    node: &Arc<Node>,
    source: &Source,
    to: &Destination,
    expected: SpiffeId,
    time_out: Duration,
    opaque: bool,
) -> Result<Upstream, ConnectError> {
    let head = ConnectHead {
        authority: to.address,
        client: source.client,
        service: to.service.clone(),
        baggage: headers::baggage(&source.pod.workload.load()),
        traceparent: to.traceparent.clone(),
        opaque,
    };
    let key = PoolKey {
        source: source.pod.identity.clone(),
        expected: vec![expected.clone()],
        to: SocketAddr::new(to.address.ip(), TUNNEL_PORT),
        from: source.client.ip(),
        netns_cookie: source.pod.netns.cookie,
    };
    let from = bind_address(source, to.address);
    let dial = || dial(Arc::clone(node), Arc::clone(&source.pod), key.clone(), from);
    let request = head.request();
    let opened = tokio::time::timeout(time_out, node.tunnels.open(&key, &request, time_out, dial));
    let (stream, peer) = opened
        .await
        .unwrap_or(Err(TunnelError::TimedOut))
        .map_err(|error| ConnectError::tunnel(to.address, &expected, error))?;
    Ok(Upstream { io: UpstreamIo::Tunnel(stream), peer: Some(peer) })
}

/// For all that wait for this tunnel, the most patient included: each of them has a time-out of its own.
async fn dial(
    node: Arc<Node>,
    pod: Arc<LocalPod>,
    key: PoolKey,
    from: Option<std::net::IpAddr>,
) -> Result<Arc<Tunnel>, TunnelError> {
    let config = node.identities.client_config(&key.source, &key.expected).await?;
    let tcp = socket::connect_from(&pod.netns, from, key.to, Use::Tunnel, CONNECT_TIMEOUT)
        .await
        .map_err(|error| TunnelError::Connect(Arc::new(error)))?;
    let (io, peer) = connect_tls(tcp, key.to.ip(), config).await?;
    Tunnel::start(io, peer, Timing::default()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_endpoint_gets_less_time_while_others_are_left_unless_the_policy_says_how_long() {
        let of_ms = |ms: Option<u64>| TrafficPolicy {
            id: "shop/policy".parse().unwrap(),
            created_unix_s: 0,
            services: Vec::new(),
            retry: None,
            connect_timeout: ms.map(Duration::from_millis),
            ejection: None,
            max_connections: None,
            max_pending_requests: None,
        };
        for (policy_ms, others, expected_ms) in [
            (None, true, 2_000),
            (None, false, 10_000),
            (Some(5_000), true, 5_000),
            (Some(500), true, 500),
            (Some(500), false, 500),
            (Some(60_000), true, 10_000),
        ] {
            let policy = of_ms(policy_ms);
            let found = time_out(Some(&policy), others);
            assert_eq!(found.as_millis(), expected_ms, "{policy_ms:?} ms, others: {others}");
        }
        assert_eq!(time_out(None, true), TIME_OUT_WITH_OTHERS);
        assert_eq!(time_out(None, false), CONNECT_TIMEOUT);
    }
}
