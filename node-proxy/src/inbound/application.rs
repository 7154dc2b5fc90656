//! The connection to a pod's own application. The application sees the client pod as its peer.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::net::TcpStream;
use weft_ebpf::PeerName;

use super::{Incoming, Refusal};
use crate::node::Node;
use crate::socket;
use crate::telemetry::CloseReason;

/// An accepted connection to the application.
pub(super) struct Application {
    pub(super) tcp: TcpStream,
    pub(super) name: Name,
}

/// The application may ask `getpeername()` as long as the connection lives.
pub(super) struct Name {
    /// Dropped first: the entry must be gone before the port is free, or it would be removed under the port's next user.
    _peer: PeerName,
    /// Another descriptor of the socket: holds the port. The connection is closed when both are.
    _port: OwnedFd,
}

pub(super) async fn connect(
    node: &Node,
    incoming: &Incoming,
    time_out: Duration,
) -> Result<Application, Refusal> {
    if socket::is_proxy_port(incoming.port) {
        return Err(Refusal::new(CloseReason::BadTarget, "a port of the proxy itself"));
    }
    let netns = &incoming.pod.netns;
    let failed = |error: std::io::Error| {
        let reason = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => CloseReason::ConnectRefused,
            std::io::ErrorKind::TimedOut => CloseReason::ConnectTimeout,
            _ => CloseReason::ConnectFailed,
        };
        Refusal::new(reason, format!("the application at {}: {error}", incoming.address))
    };
    // From the pod's own address: the hooks know by it that this is the proxy's leg, and leave it alone.
    let bound = socket::bind(netns, incoming.address.ip(), incoming.address).map_err(failed)?;
    let name = node.kernel.name_peer(netns.cookie, bound.local_addr(), incoming.client).map_err(|error| {
        Refusal::new(CloseReason::Overloaded, format!("the peer cannot be named: {error}"))
    })?;
    let port = bound.hold_port().map_err(failed)?;
    let name = Name { _peer: name, _port: port };
    let tcp = bound.connect(incoming.address, time_out).await.map_err(failed)?;
    Ok(Application { tcp, name })
}
