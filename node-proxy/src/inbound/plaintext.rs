//! Plaintext from outside the mesh: forwarded without an identity where PERMISSIVE, refused where STRICT.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use weft_proto::model::InboundMode;

use super::forward::forward;
use super::permit::Permit;
use super::{Incoming, Peer, Refusal, application};
use crate::enrol::LocalPod;
use crate::node::Node;
use crate::relay::Leg;
use crate::socket::accept;
use crate::telemetry::CloseReason;
use crate::telemetry::metrics::names;
use crate::tunnel::limits::CONNECT_TIMEOUT;

pub(super) async fn run(node: Arc<Node>, pod: Arc<LocalPod>, listener: TcpListener) {
    let until = accept::while_enrolled(&pod.released, &node.drain.draining);
    let limited = node.telemetry.counter(&names::ACCEPT_LIMITED, &[("listener", "plaintext")]);
    let places = node.places.of(&pod.uid);
    accept::each(listener, until, &pod, &places.inbound, limited, |tcp, peer, place| {
        let (node, pod) = (Arc::clone(&node), Arc::clone(&pod));
        node.drain.connections.clone().spawn(async move {
            connection(node, pod, tcp, peer).await;
            drop(place);
        });
    })
    .await;
}

async fn connection(node: Arc<Node>, pod: Arc<LocalPod>, tcp: TcpStream, client: SocketAddr) {
    // sk_lookup steers without rewriting: the local address is where the client wanted to go.
    let Ok(address) = tcp.local_addr() else { return };
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let incoming = Incoming::new(pod, canonical(address), Peer::Anonymous, canonical(client), None);
    let admitted = async {
        check_mode(&incoming)?;
        let permit = Permit::decide(&node, &incoming)?;
        let application = application::connect(&node, &incoming, CONNECT_TIMEOUT).await?;
        Ok((permit, application))
    };
    match admitted.await {
        Ok((permit, application)) => forward(node, incoming, permit, application, tcp, false).await,
        Err(refusal) => {
            incoming.refused(&node, &refusal);
            Leg::Tcp(tcp).reset();
        }
    }
}

fn check_mode(incoming: &Incoming) -> Result<(), Refusal> {
    match incoming.pod.workload.load().inbound_mode {
        InboundMode::Permissive => Ok(()),
        // The kubelet's probes do not come here: the kernel knows them by the process that connects (docs/kernel.md).
        InboundMode::Strict => {
            Err(Refusal::new(CloseReason::PlaintextRefused, "only mutual TLS is let in (STRICT)"))
        }
    }
}
