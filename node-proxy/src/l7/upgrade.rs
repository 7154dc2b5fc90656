//! Requests that leave HTTP (Upgrade, CONNECT): bytes both ways, each direction to its own end.
//!
//! hyper's connection ends when it hands its stream over; what goes on belongs to the [`Upgrades`] of the connection it
//! was, which is served until they have ended, and whose end is theirs.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::limits;
use crate::telemetry::{ByteCounts, CloseReason};

/// What one client connection became.
#[derive(Default)]
pub(super) struct Upgrades {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Upgrades {
    /// Copies until the end, and tells it: None when it was stopped.
    pub(super) fn start(
        &self,
        client: OnUpgrade,
        server: OnUpgrade,
        bytes: Arc<ByteCounts>,
        end: impl FnOnce(Option<CloseReason>) + Send + 'static,
    ) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let reason = tokio::select! {
                reason = relay(client, server, bytes) => Some(reason),
                () = stop.cancelled() => None,
            };
            end(reason);
        });
    }

    /// Stops them all when it is dropped.
    pub(super) fn guard(&self) -> DropGuard {
        self.stop.clone().drop_guard()
    }

    /// Returns when all have ended.
    pub(super) async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn relay(client: OnUpgrade, server: OnUpgrade, bytes: Arc<ByteCounts>) -> CloseReason {
    let Ok((client, server)) = tokio::try_join!(client, server) else { return CloseReason::Cancelled };
    let mut client = TokioIo::new(client);
    let mut server = Counted { io: TokioIo::new(server), bytes };
    let size = limits::UPGRADED_BUFFER_BYTES;
    match tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, size, size).await {
        Ok(_) => CloseReason::Ok,
        Err(_) => CloseReason::ServerReset,
    }
}

/// The server's end; counts as it goes, because such connections live long.
struct Counted {
    io: TokioIo<Upgraded>,
    bytes: Arc<ByteCounts>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, into))?;
        self.bytes.received.fetch_add((into.filled().len() - before) as u64, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, from))?;
        self.bytes.sent.fetch_add(written as u64, Relaxed);
        Poll::Ready(Ok(written))
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
