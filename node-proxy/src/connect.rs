//! Reaching a chosen destination: through a tunnel, on the same node without one, or in plaintext outside the mesh.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use weft_proto::identity::{NamespacedName, SpiffeId};
use weft_proto::model::Workload;

use crate::enrol::LocalPod;
use crate::identity::{IdentityError, VerifiedPeer};
use crate::node::Node;
use crate::telemetry::CloseReason;
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
    #[error("no answer from {0} in time")]
    TimedOut(SocketAddr),
    #[error("{to} cannot be reached: {cause}")]
    Failed { to: SocketAddr, cause: std::io::Error },
    #[error("TLS with {to} failed: {cause}")]
    Tls { to: SocketAddr, cause: std::io::Error },
    #[error("{to} is not {expected}: {cause}")]
    PeerIdentity { to: SocketAddr, expected: SpiffeId, cause: std::io::Error },
    #[error(transparent)]
    NoCertificate(#[from] IdentityError),
    #[error("the proxy of {to} answered {status}: {detail}")]
    TunnelRefused { to: SocketAddr, status: u16, detail: String },
    #[error("the tunnel to {to} broke: {cause}")]
    TunnelLost { to: SocketAddr, cause: std::io::Error },
    #[error("policy of {0} forbids it")]
    Denied(SocketAddr),
    #[error("{0} is a port of the proxy itself")]
    BadTarget(SocketAddr),
    #[error("too many connections to {0}")]
    Overloaded(SocketAddr),
    #[error("the pod at {0} is going away")]
    PodGone(SocketAddr),
    #[error("the mesh is not configured yet")]
    NotReady,
}

impl ConnectError {
    /// The one reason that metrics and log show.
    pub fn reason(&self) -> CloseReason {
        match self {
            Self::Refused(_) => CloseReason::ConnectRefused,
            Self::TimedOut(_) => CloseReason::ConnectTimeout,
            Self::Failed { .. } => CloseReason::ConnectFailed,
            Self::Tls { .. } => CloseReason::TlsFailed,
            Self::PeerIdentity { .. } => CloseReason::PeerIdentity,
            Self::NoCertificate(_) => CloseReason::NoCertificate,
            Self::TunnelRefused { .. } => CloseReason::TunnelRefused,
            Self::TunnelLost { .. } => CloseReason::TunnelLost,
            Self::Denied(_) => CloseReason::PolicyDenied,
            Self::BadTarget(_) => CloseReason::BadTarget,
            Self::Overloaded(_) => CloseReason::Overloaded,
            Self::PodGone(_) => CloseReason::PodGone,
            Self::NotReady => CloseReason::UnknownDestination,
        }
    }
}

/// Connects. Returns when the application has accepted the connection and policy has passed.
pub async fn connect(
    _node: &Arc<Node>,
    _source: &Source,
    _to: &Destination,
) -> Result<Upstream, ConnectError> {
    todo!()
}
