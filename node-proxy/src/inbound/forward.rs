//! From a permitted connection to its application: which protocol, then copying or HTTP, until the end or a revocation.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use weft_proto::model::AppProtocol;

use super::permit::{Permit, needs_http_refusal};
use super::{Incoming, Refusal};
use crate::detect::{self, Prefixed, first_bytes};
use crate::l7;
use crate::l7::outbound::Protocol;
use crate::node::Node;
use crate::relay::{self, Leg};
use crate::snapshot::port_protocol;
use crate::telemetry::CloseReason;

/// What is known of the protocol before the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// HTTP by declaration or because policy needs it.
    Http,
    /// Bytes that nobody looks at.
    Opaque,
    /// The first bytes decide.
    Either,
}

/// `hint_opaque`: the client's proxy says that it is not HTTP.
pub(super) fn expect(incoming: &Incoming, permit: &Permit, hint_opaque: bool) -> Expect {
    let declared = port_protocol(&incoming.pod.workload.load(), incoming.port);
    if permit.needs_http() || declared.is_http() {
        return Expect::Http;
    }
    if declared == AppProtocol::Tcp || hint_opaque || detect::server_speaks_first(incoming.port) {
        return Expect::Opaque;
    }
    Expect::Either
}

/// Something that can be read for its first bytes, and then be relayed or served.
pub(super) trait ClientIo: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn into_leg(self) -> Leg;
}

impl ClientIo for TcpStream {
    fn into_leg(self) -> Leg {
        Leg::Tcp(self)
    }
}

impl ClientIo for crate::tunnel::TunnelStream {
    fn into_leg(self) -> Leg {
        Leg::Tunnel(self)
    }
}

/// Forwards until the end. Leaves exactly one record, or one per request.
pub(super) async fn forward(
    node: Arc<Node>,
    incoming: Incoming,
    mut permit: Permit,
    application: TcpStream,
    mut io: impl ClientIo,
    hint_opaque: bool,
) {
    let (protocol, first) = match detected(&incoming, &permit, hint_opaque, &mut io).await {
        Ok(detected) => detected,
        Err(refusal) => {
            incoming.refused(&node, &refusal);
            io.into_leg().reset();
            Leg::Tcp(application).reset();
            return;
        }
    };
    let Some(protocol) = protocol else {
        copy(&node, &incoming, permit, io.into_leg(), Leg::Tcp(application), first).await;
        return;
    };
    let serving = l7::inbound::serve(
        Arc::clone(&node),
        incoming.clone(),
        protocol,
        Prefixed::new(first, io),
        application,
    );
    tokio::select! {
        () = serving => {}
        refusal = ended(&node, &incoming, &mut permit, true) => {
            // The requests that were cut off report for themselves when the service is dropped.
            tracing::info!(client = %incoming.client, port = incoming.port, detail = refusal.detail, "ended");
        }
    }
}

/// HTTP of which version, and what was read to know it.
async fn detected(
    incoming: &Incoming,
    permit: &Permit,
    hint_opaque: bool,
    io: &mut impl ClientIo,
) -> Result<(Option<Protocol>, Bytes), Refusal> {
    match expect(incoming, permit, hint_opaque) {
        Expect::Opaque => Ok((None, Bytes::new())),
        Expect::Http => look(permit, io, detect::DECLARED_SILENCE_MAX).await,
        Expect::Either => look(permit, io, detect::SILENCE_MAX).await,
    }
}

/// For a connection that is HTTP, or ought to be.
pub(super) async fn first(
    incoming: &Incoming,
    permit: &Permit,
    io: &mut (impl AsyncRead + Unpin),
) -> Result<(Option<Protocol>, Bytes), Refusal> {
    let silence_max = match expect(incoming, permit, false) {
        Expect::Http => detect::DECLARED_SILENCE_MAX,
        Expect::Opaque | Expect::Either => detect::SILENCE_MAX,
    };
    look(permit, io, silence_max).await
}

async fn look(
    permit: &Permit,
    io: &mut (impl AsyncRead + Unpin),
    silence_max: Duration,
) -> Result<(Option<Protocol>, Bytes), Refusal> {
    let (protocol, first) = first_bytes(io, silence_max)
        .await
        .map_err(|error| Refusal::new(CloseReason::ClientReset, error.to_string()))?;
    if protocol.is_none() && permit.needs_http() {
        return Err(needs_http_refusal());
    }
    Ok((protocol, first))
}

async fn copy(
    node: &Arc<Node>,
    incoming: &Incoming,
    mut permit: Permit,
    client: Leg,
    app: Leg,
    first: Bytes,
) {
    let mut record = node.telemetry.connection(incoming.flow(node));
    permit.note(&mut record);
    let mut refusal = None;
    let stop = async {
        let ended = ended(node, incoming, &mut permit, false).await;
        let reason = ended.reason;
        refusal = Some(ended);
        reason
    };
    let reason = relay::run(client, app, first, &[record.bytes()], stop).await;
    if let Some(by) = refusal.as_ref().and_then(|refusal| refusal.by.clone()) {
        record.policy(by);
    }
    record.finish(reason, refusal.map(|refusal| refusal.detail));
}

/// Returns when a live connection must end: policy, the pod's end, the proxy's deadline.
pub(super) async fn ended(node: &Node, incoming: &Incoming, permit: &mut Permit, is_http: bool) -> Refusal {
    tokio::select! {
        refusal = permit.revoked(node, incoming, is_http) => refusal,
        () = incoming.pod.gone.cancelled() => Refusal::new(CloseReason::PodGone, "the pod is gone"),
        () = node.drain.deadline.cancelled() => Refusal::new(CloseReason::Draining, "the time to drain is over"),
    }
}
