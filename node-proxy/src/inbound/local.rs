//! A pod of this node connects to another one: no wire, no TLS, the same policy. The client is known by its namespace.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::net::TcpStream;

use super::forward::{self, Expect};
use super::permit::Permit;
use super::{Incoming, Peer, Refusal, application};
use crate::connect::{ConnectError, Source};
use crate::enrol::LocalPod;
use crate::l7;
use crate::node::Node;
use crate::relay;
use crate::socket::leg::LegIo;
use crate::socket::places::Place;
use crate::telemetry::{ByteCounts, CloseReason, ConnectionRecord};

/// Bytes between the two sides, each way: a few messages, so that neither waits for the other's every turn.
const BUFFER_BYTES: usize = 64 << 10;

/// What an L4 client gets.
pub enum HandOver {
    /// The application's own socket, to be copied to directly.
    Direct(TcpStream, Box<Session>),
    /// Policy or the port's protocol wants to look into it first.
    Inspected(DuplexStream),
}

/// The inbound side of a connection that is copied by the outbound side.
pub struct Session {
    node: Arc<Node>,
    incoming: Incoming,
    permit: Permit,
    record: ConnectionRecord,
    refusal: Option<Refusal>,
    _place: Place,
}

impl Session {
    /// The inbound record's counters.
    pub fn bytes(&self) -> Arc<ByteCounts> {
        self.record.bytes()
    }
    /// Returns when the inbound side wants the connection to end.
    pub async fn ended(&mut self) -> CloseReason {
        let refusal = forward::ended(&self.node, &self.incoming, &mut self.permit, false).await;
        let reason = refusal.reason;
        self.refusal = Some(refusal);
        reason
    }
    /// Closes the inbound record.
    pub fn finish(mut self, reason: CloseReason) {
        let refusal = self.refusal.take();
        if let Some(by) = refusal.as_ref().and_then(|refusal| refusal.by.clone()) {
            self.record.policy(by);
        }
        self.record.finish(reason, refusal.map(|refusal| refusal.detail));
    }
}

struct Admitted {
    incoming: Incoming,
    permit: Permit,
    application: TcpStream,
    place: Place,
}

async fn admit(
    node: &Arc<Node>,
    source: &Source,
    pod: Arc<LocalPod>,
    address: SocketAddr,
    time_out: Duration,
) -> Result<Admitted, ConnectError> {
    let peer = Peer::Local(source.pod.identity.clone());
    let incoming = Incoming::new(pod, address, peer, source.client, Some(source.clone()));
    let admitted = async {
        if incoming.pod.gone.is_cancelled() {
            return Err(Refusal::new(CloseReason::PodGone, "the pod is gone"));
        }
        let place = incoming.place(node, "local")?;
        let permit = Permit::decide(node, &incoming)?;
        let application = application::connect(node, &incoming, time_out).await?;
        Ok((permit, application, place))
    };
    match admitted.await {
        Ok((permit, application, place)) => Ok(Admitted { incoming, permit, application, place }),
        Err(refusal) => {
            incoming.refused(node, &refusal);
            Err(to_connect_error(address, refusal))
        }
    }
}

fn to_connect_error(to: SocketAddr, refusal: Refusal) -> ConnectError {
    match refusal.reason {
        CloseReason::ConnectRefused => ConnectError::Refused(to),
        CloseReason::ConnectTimeout => ConnectError::TimedOut(to),
        CloseReason::PolicyDenied => {
            let by =
                refusal.by.map_or_else(|| "default (no ALLOW policy matches)".into(), |by| by.to_string());
            ConnectError::Denied { to, by }
        }
        CloseReason::BadTarget => ConnectError::BadTarget(to),
        CloseReason::Overloaded => ConnectError::Overloaded(to),
        CloseReason::PodGone => ConnectError::PodGone(to),
        _ => ConnectError::Failed { to, cause: Arc::new(std::io::Error::other(refusal.detail)) },
    }
}

/// For a client side that speaks HTTP: the inbound side looks at the requests too.
pub async fn hand_over(
    node: &Arc<Node>,
    source: &Source,
    pod: Arc<LocalPod>,
    address: SocketAddr,
    time_out: Duration,
) -> Result<DuplexStream, ConnectError> {
    let admitted = admit(node, source, pod, address, time_out).await?;
    Ok(inspect(node, admitted))
}

/// For a client side that copies bytes.
pub async fn hand_over_opaque(
    node: &Arc<Node>,
    source: &Source,
    pod: Arc<LocalPod>,
    address: SocketAddr,
    time_out: Duration,
) -> Result<HandOver, ConnectError> {
    let admitted = admit(node, source, pod, address, time_out).await?;
    if forward::expect(&admitted.incoming, &admitted.permit, true) != Expect::Opaque {
        return Ok(HandOver::Inspected(inspect(node, admitted)));
    }
    let Admitted { incoming, permit, application, place } = admitted;
    let mut record = node.telemetry.connection(incoming.flow(node));
    permit.note(&mut record);
    let node = Arc::clone(node);
    let session = Session { node, incoming, permit, record, refusal: None, _place: place };
    Ok(HandOver::Direct(application, Box::new(session)))
}

/// Serves the inbound side of a pipe; gives its other end.
fn inspect(node: &Arc<Node>, admitted: Admitted) -> DuplexStream {
    let (client_end, mut io) = tokio::io::duplex(BUFFER_BYTES);
    let node = Arc::clone(node);
    node.drain.connections.clone().spawn(async move {
        let Admitted { incoming, mut permit, application, place: _place } = admitted;
        let (protocol, first) = match forward::first(&incoming, &permit, &mut io).await {
            Ok(seen) => seen,
            Err(refusal) => return incoming.refused(&node, &refusal),
        };
        let Some(protocol) = protocol else {
            return relay_pipe(&node, &incoming, permit, io, application, first).await;
        };
        let io = crate::detect::Prefixed::new(first, io);
        let serving = l7::inbound::serve(Arc::clone(&node), incoming.clone(), protocol, io, application);
        tokio::select! {
            () = serving => {}
            _ = forward::ended(&node, &incoming, &mut permit, true) => {}
        }
    });
    client_end
}

/// Not HTTP after all, and nobody minds: the rare case, so the simple copy.
async fn relay_pipe(
    node: &Node,
    incoming: &Incoming,
    mut permit: Permit,
    io: DuplexStream,
    tcp: TcpStream,
    first: bytes::Bytes,
) {
    let mut record = node.telemetry.connection(incoming.flow(node));
    permit.note(&mut record);
    let stop = async { forward::ended(node, incoming, &mut permit, false).await.reason };
    let reason =
        relay::run_io(crate::detect::Prefixed::new(first, io), LegIo::new(tcp), &record.bytes(), stop).await;
    record.finish(reason, None);
}
