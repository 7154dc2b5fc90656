//! An HTTP connection towards an application of this node: policy and span per request, then 1:1 over `app`.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::outbound::Protocol;
use crate::inbound::Incoming;
use crate::node::Node;

/// Serves one connection until it ends. The L4 part of the policy has already passed.
pub async fn serve<IO>(_node: Arc<Node>, _incoming: Incoming, _protocol: Protocol, _io: IO, _app: TcpStream)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    todo!()
}
