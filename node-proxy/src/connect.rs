//! Reaching a chosen destination: through a tunnel, on the same node without one, or in plaintext outside the mesh.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use weft_proto::identity::NamespacedName;
use weft_proto::model::Workload;

use crate::enrol::LocalPod;
use crate::identity::VerifiedPeer;
use crate::node::Node;
use crate::tunnel::TunnelStream;

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

/// A connection to the application of a destination. Reads and writes; shutting down is a half-close.
pub enum UpstreamIo {
    /// Plaintext to somewhere outside the mesh, or straight to an application of this node.
    Tcp(TcpStream),
    /// One stream of a tunnel.
    Tunnel(TunnelStream),
    /// Handed to this node's own inbound side.
    Local(tokio::io::DuplexStream),
}

pub struct Upstream {
    pub io: UpstreamIo,
    /// None: plaintext.
    pub peer: Option<VerifiedPeer>,
}

/// Why a destination was not reached. No byte of the client has been forwarded: trying another one is safe.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{0} refused the connection")]
    Refused(SocketAddr),
}

/// Connects. Returns when the application has accepted the connection and policy has passed.
pub async fn connect(_node: &Node, _source: &Source, _to: &Destination) -> Result<Upstream, ConnectError> {
    todo!()
}
