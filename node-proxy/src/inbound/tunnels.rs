//! Tunnels from other nodes: mutual TLS with the pod's identity, then per CONNECT target → permit → application → 200.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls_pki_types::UnixTime;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::forward::forward;
use super::permit::Permit;
use super::{Incoming, Peer, Refusal, application};
use crate::enrol::LocalPod;
use crate::identity::{PeerSide, VerifiedPeer};
use crate::node::Node;
use crate::socket::{accept, is_proxy_port};
use crate::telemetry::CloseReason;
use crate::telemetry::metrics::names;
use crate::tunnel::limits::{CONNECT_TIMEOUT, Timing};
use crate::tunnel::{Connect, TlsPeer, TunnelError, accept_tls, headers, serve};

pub(super) async fn run(node: Arc<Node>, pod: Arc<LocalPod>, listener: TcpListener) {
    let until = accept::while_enrolled(&pod.released, &node.drain.draining);
    let limited = node.telemetry.counter(&names::ACCEPT_LIMITED, &[("listener", "tunnel")]);
    let places = node.places.of(&pod.uid);
    accept::each(listener, until, &pod, &places.inbound, limited, |tcp, peer, place| {
        let (node, pod) = (Arc::clone(&node), Arc::clone(&pod));
        node.drain.connections.clone().spawn(async move {
            tunnel(node, pod, tcp, peer).await;
            drop(place);
        });
    })
    .await;
}

/// What is the same for all streams of a tunnel.
struct From {
    pod: Arc<LocalPod>,
    peer: VerifiedPeer,
    /// The client pod: a tunnel comes from its namespace and so from its address.
    remote: SocketAddr,
    /// The address that the tunnel was opened to.
    local: SocketAddr,
}

async fn tunnel(node: Arc<Node>, pod: Arc<LocalPod>, tcp: TcpStream, remote: SocketAddr) {
    let Ok(local) = tcp.local_addr() else { return };
    let (remote, local) = (canonical(remote), canonical(local));
    let tls = handshake(&node, &pod, tcp).await;
    node.tunnels.counts.accepted.count(tls.is_ok());
    let TlsPeer { io, peer, chain } = match tls {
        Ok(tls) => tls,
        Err(error) => return report_handshake(&node, &pod, remote, local, &error),
    };
    let _live = node.tunnels.counts.server.tunnels.one();
    let handshake_at = UnixTime::now();
    let from = Arc::new(From { pod: Arc::clone(&pod), peer, remote, local });
    let ending = CancellationToken::new();
    let serving = serve(io, Timing::default(), &ending, |connect| {
        let (node, from) = (Arc::clone(&node), Arc::clone(&from));
        node.drain.connections.clone().spawn(stream(node, from, connect));
    });
    let finish = async {
        tokio::select! {
            () = pod.released.cancelled() => {}
            () = node.drain.draining.cancelled() => {}
            () = told_to_end(&pod.ending) => {}
        }
        ending.cancel();
        std::future::pending::<()>().await;
    };
    let distrusted = async {
        let mut changes = node.identities.subscribe();
        while node.identities.still_trusted(&chain, PeerSide::Client, handshake_at) {
            if changes.changed().await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        ended = serving => if let Err(error) = ended {
            tracing::debug!(%remote, %error, "tunnel ended");
        },
        () = finish => {}
        () = distrusted => tracing::info!(%remote, peer = %from.peer.id(), "tunnel of a peer no longer trusted ended"),
        // Streams have their own way to end with `PodGone`; the tunnel must not outlive them.
        () = pod.gone.cancelled() => {}
        () = node.drain.deadline.cancelled() => {}
    }
}

/// Returns when the pod is told to end: its tunnels then take no new streams. One that is opened later serves as ever:
/// its client has no other endpoint left.
async fn told_to_end(ending: &CancellationToken) {
    if ending.is_cancelled() {
        return std::future::pending().await;
    }
    ending.cancelled().await;
}

async fn handshake(node: &Node, pod: &LocalPod, tcp: TcpStream) -> Result<TlsPeer, TunnelError> {
    let config = node.identities.server_config(&pod.identity).await?;
    accept_tls(tcp, config).await
}

fn report_handshake(
    node: &Node,
    pod: &Arc<LocalPod>,
    remote: SocketAddr,
    local: SocketAddr,
    error: &TunnelError,
) {
    let reason = match error {
        TunnelError::Identity(error) => error.close_reason(),
        TunnelError::Tls(error) => crate::identity::handshake_close_reason(error),
        TunnelError::TimedOut => CloseReason::ConnectTimeout,
        _ => CloseReason::TlsFailed,
    };
    let incoming = Incoming::new(Arc::clone(pod), local, Peer::Anonymous, remote, None);
    incoming.refused(node, &Refusal::new(reason, error.to_string()));
}

/// One CONNECT.
async fn stream(node: Arc<Node>, from: Arc<From>, mut connect: Connect) {
    let _live = node.tunnels.counts.server.streams.one();
    let target = connect.target;
    let incoming = Incoming::new(
        Arc::clone(&from.pod),
        target,
        Peer::Verified(from.peer.clone()),
        client(&from, &connect),
        None,
    );
    let hint_opaque = connect.headers.get(headers::INNER) == Some(&headers::INNER_OPAQUE);
    let admitted = async {
        check_target(&from, target)?;
        let place = incoming.place(&node, "stream")?;
        let permit = Permit::decide(&node, &incoming)?;
        let application = application::connect(&node, &incoming, CONNECT_TIMEOUT).await?;
        Ok((permit, application, place))
    };
    let admitted = tokio::select! {
        admitted = admitted => admitted,
        () = connect.cancelled() => Err(Refusal::new(CloseReason::Cancelled, "the client took it back")),
    };
    let (permit, application, _place) = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            incoming.refused(&node, &refusal);
            return connect.refuse(refusal.reason, refusal.by.as_ref());
        }
    };
    match connect.accept() {
        Ok(io) => forward(node, incoming, permit, application, io, hint_opaque).await,
        Err(error) => {
            incoming.refused(&node, &Refusal::new(CloseReason::TunnelLost, error.to_string()));
            crate::relay::Leg::Tcp(application).reset();
        }
    }
}

/// The client's address is the tunnel's own; only its port is taken from what the request says.
fn client(from: &From, connect: &Connect) -> SocketAddr {
    headers::forwarded_for(&connect.headers)
        .map(canonical)
        .filter(|said| said.ip() == from.remote.ip())
        .unwrap_or(from.remote)
}

/// The request must be for the address that the tunnel goes to, which is one of the pod's.
fn check_target(from: &From, target: SocketAddr) -> Result<(), Refusal> {
    let bad = |detail: String| Err(Refusal::new(CloseReason::BadTarget, detail));
    if is_proxy_port(target.port()) {
        return bad(format!("{target} is a port of the proxy itself"));
    }
    let own = from.pod.workload.load().ips.iter().any(|ip| ip.to_canonical() == target.ip());
    if target.ip() != from.local.ip() || !own {
        return bad(format!("{target} is not the address of this tunnel, {}", from.local.ip()));
    }
    Ok(())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn tunnels_that_are_there_when_a_pod_is_told_to_end_drain_and_later_ones_serve() {
        let ending = CancellationToken::new();
        let mut there = Box::pin(told_to_end(&ending));
        assert_eq!(there.as_mut().now_or_never(), None);
        ending.cancel();
        assert_eq!(there.now_or_never(), Some(()));
        assert_eq!(told_to_end(&ending).now_or_never(), None);
    }
}
