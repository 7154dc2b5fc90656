//! HTTP/1.1 and HTTP/2 at L7: serving the application's connection (outbound) and the tunnel's stream (inbound).

pub mod inbound;
pub mod outbound;
mod pool;

pub use pool::Upstreams;
