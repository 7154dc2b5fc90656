//! Connections that come into an enrolled pod: authenticated → permit → forward.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::connect::Source;
use crate::enrol::LocalPod;
use crate::identity::VerifiedPeer;
use crate::node::Node;

/// How the client is known.
#[derive(Debug, Clone)]
pub enum Peer {
    /// By its certificate.
    Verified(VerifiedPeer),
    /// A pod of this node, by its network namespace.
    Local(weft_proto::identity::SpiffeId),
    /// Plaintext from outside the mesh (PERMISSIVE, probes).
    Anonymous,
}

/// A connection towards an application of this node, before policy.
#[derive(Clone)]
pub struct Incoming {
    pub pod: Arc<LocalPod>,
    /// The pod's own address and the port that the client wants.
    pub address: SocketAddr,
    /// The port of `address`.
    pub port: u16,
    pub peer: Peer,
    /// The client pod's own address, which the application will see.
    pub client: SocketAddr,
    /// The local pod that connects, when it is one.
    pub local_source: Option<Source>,
}

/// Accepts the steered connections of `:15006`, until `pod.released` or `node.drain.draining`.
pub async fn run_plaintext(_node: Arc<Node>, _pod: Arc<LocalPod>, _listener: TcpListener) {
    todo!()
}

/// Accepts tunnels at `:15008`, until `pod.released` or `node.drain.draining`.
pub async fn run_tunnel(_node: Arc<Node>, _pod: Arc<LocalPod>, _listener: TcpListener) {
    todo!()
}
