//! The accept loop: bounded, and calm when the process runs out of descriptors.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::telemetry::metrics::Counter;

/// Live connections of one pod in one direction. One pod's storm must not take the descriptors of the others; beyond
/// it, connections wait in the listener's backlog.
pub const CONNECTIONS_PER_POD_MAX: usize = 16_384;
/// Pause after EMFILE and its like: the connection stays in the backlog, so trying at once would spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until `until` or the listener breaks. `limited` counts how often the limit was met. `serve` gets each connection with the place that it takes, and must
/// return at once (spawn).
pub async fn each(
    listener: TcpListener,
    until: impl Future<Output = ()>,
    limited: Counter,
    mut serve: impl FnMut(TcpStream, SocketAddr, OwnedSemaphorePermit),
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_PER_POD_MAX));
    let mut until = std::pin::pin!(until);
    loop {
        let accepted = async {
            if places.available_permits() == 0 {
                limited.increment();
            }
            let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes the semaphore");
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            () = &mut until => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => serve(stream, peer, place),
            Err(error) => match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
                // The connection was gone before it was accepted; the errors that accept(2) says to retry.
                _ => tracing::debug!(%error, "accept"),
            },
        }
    }
}

/// Until the pod leaves the mesh or the proxy drains.
pub async fn while_enrolled(released: &CancellationToken, draining: &CancellationToken) {
    tokio::select! {
        () = released.cancelled() => {}
        () = draining.cancelled() => {}
    }
}
