//! HTTP/1.1 and HTTP/2 at L7: serving the application's connection (outbound) and the tunnel's stream (inbound).
//!
//! Outbound: `outbound.rs` (the connection) → `exchange.rs` (one request) → `towards.rs` (where to), `mirror.rs` →
//! `attempt.rs` with `retry.rs` (may it be repeated) and `pool.rs`, `lease.rs` (connections to endpoints) → `answer.rs`. Inbound:
//! `inbound.rs`. Both use `conn.rs`, `head.rs` and `frames.rs` (connections), `informational.rs` (1xx), `outgoing.rs` and `body.rs` (bodies), `hop.rs`, `upgrade.rs`,
//! `reply.rs`; every bound is in `limits.rs`.

/// Drives a server connection to its end: told to finish when draining begins or `closed` says that there is nothing
/// behind it any more, dropped at the deadline.
macro_rules! drive {
    ($connection:expr, $drain:expr, $closed:expr) => {{
        let connection = $connection;
        let drain = &$drain;
        let closed = &$closed;
        tokio::pin!(connection);
        let mut draining = false;
        loop {
            tokio::select! {
                // How a client's connection ends is in its requests' records.
                _ = &mut connection => break,
                () = drain.draining.cancelled(), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = closed.cancelled(), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = drain.deadline.cancelled() => break,
            }
        }
    }};
}

mod answer;
mod attempt;
mod body;
mod conn;
mod exchange;
mod frames;
mod head;
mod hop;
pub mod inbound;
mod informational;
mod lease;
mod limits;
pub mod metrics;
mod mirror;
pub mod outbound;
mod outgoing;
mod pool;
mod reply;
mod retry;
#[cfg(test)]
mod tests;
mod towards;
mod upgrade;

pub use pool::{Reservation, Upstreams};
