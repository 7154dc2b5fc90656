//! HBONE: mutual TLS and HTTP/2 CONNECT between nodes. Client pool, server, and the byte stream over an h2 stream.
//!
//! Knows nothing of pods, policy or Services: it is given TLS configurations and sockets, and gives streams. Start
//! reading at [`pool::Pool::open`] (client), [`server::serve`] (server) and [`stream::TunnelStream`] (both).

mod client;
mod counts;
mod error;
pub mod headers;
mod keepalive;
pub mod limits;
mod pool;
mod read_ahead;
mod server;
mod stream;
#[cfg(test)]
mod tests;

pub use client::{Tunnel, connect_tls};
pub use counts::Counts;
pub use error::TunnelError;
pub use headers::ConnectHead;
pub use pool::{Pool, PoolKey};
pub use server::{Connect, TlsPeer, accept_tls, serve};
pub use stream::TunnelStream;
pub(crate) use stream::{Receiver, Sender};
