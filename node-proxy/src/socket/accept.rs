//! The accept loop: bounded by the pod's share, and calm when the process runs out of descriptors.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::places::{Place, Share};
use crate::enrol::LocalPod;
use crate::telemetry::metrics::Counter;

/// Pause after EMFILE and its like: the connection stays in the backlog, so trying at once would spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until `until` or the listener breaks, within `share` of the pod; `limited` counts how often that was met. `serve`
/// gets each connection with the place that it takes, and must return at once (spawn).
pub async fn each(
    listener: TcpListener,
    until: impl Future<Output = ()>,
    pod: &LocalPod,
    share: &Share,
    limited: Counter,
    mut serve: impl FnMut(TcpStream, SocketAddr, Place),
) {
    let mut until = std::pin::pin!(until);
    loop {
        // First the connection: a loop that waits for one must hold no place. One that finds no place waits here, the
        // others in the backlog.
        let accepted = async {
            let (stream, peer) = listener.accept().await?;
            Ok::<_, io::Error>((stream, peer, share.place(pod, &limited).await))
        };
        let accepted = tokio::select! {
            () = &mut until => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer, place)) => serve(stream, peer, place),
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
