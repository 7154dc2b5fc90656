//! The connection to a pod's own application. The application sees the client pod as its peer.

use std::time::Duration;

use tokio::net::TcpStream;

use super::{Incoming, Refusal};
use crate::node::Node;
use crate::socket;
use crate::telemetry::CloseReason;

pub(super) async fn connect(
    node: &Node,
    incoming: &Incoming,
    time_out: Duration,
) -> Result<TcpStream, Refusal> {
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
    // To the pod's own address: what an application binds to loopback stays private.
    let unconnected =
        socket::bind(netns, socket::towards_application(incoming.address.ip())).map_err(failed)?;
    node.kernel.name_peer(&unconnected, incoming.client).map_err(|error| {
        Refusal::new(CloseReason::Overloaded, format!("the peer cannot be named: {error}"))
    })?;
    unconnected.connect(incoming.address, time_out).await.map_err(failed)
}
