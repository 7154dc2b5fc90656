//! A client application's HTTP connection: per request route → balance → attempt → retry.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::connect::Source;
use crate::node::Node;
use crate::outbound::Target;

/// HTTP of which version the first bytes show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

/// Serves an application's connection until it ends.
pub async fn serve<IO>(_node: Arc<Node>, _source: Source, _target: Target, _protocol: Protocol, _io: IO)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    todo!()
}
