//! Copies bytes between a client and an upstream, both ways, until both directions have ended or one side broke.
//!
//! Each direction is driven to its own end: an end of stream on one side becomes a half-close on the other. A reset on
//! either side becomes a reset on the other. Bytes are counted as they go. An idle connection holds no buffer.
//! `io` holds the four halves; start reading at [`run`].

mod io;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::socket;
use crate::socket::leg::Pace;
use crate::telemetry::{ByteCounts, CloseReason};
use crate::tunnel::TunnelStream;
use io::{Reader, Writer};

/// After one side broke, what the other had already sent in the opposite direction gets so long to arrive.
const LAST_BYTES_TIMEOUT: Duration = Duration::from_secs(2);

/// One end of a relayed connection.
pub enum Leg {
    Tcp(TcpStream),
    Tunnel(TunnelStream),
}

impl Leg {
    fn halves(&mut self) -> (Reader<'_>, Writer<'_>) {
        match self {
            Self::Tcp(tcp) => {
                let (reader, writer) = tcp.split();
                (Reader::tcp(reader), Writer::Tcp { tcp: writer, pace: Pace::default() })
            }
            Self::Tunnel(stream) => {
                (Reader::Tunnel(&mut stream.receiver), Writer::Tunnel(&mut stream.sender))
            }
        }
    }
    /// Closes at once; the peer sees a reset.
    pub fn reset(self) {
        match self {
            Self::Tcp(tcp) => socket::reset_on_close(&tcp),
            Self::Tunnel(mut stream) => stream.reset(),
        }
    }
    fn is_tunnel(&self) -> bool {
        matches!(self, Self::Tunnel(_))
    }
}

/// Which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Upstream,
}

/// Which sides were found reset by a write. The kernel tells of a reset once: after that, reading the same socket looks
/// like an orderly end, and must not be passed on as one.
#[derive(Debug, Default)]
struct Resets {
    client: AtomicBool,
    upstream: AtomicBool,
}

impl Resets {
    fn of(&self, side: Side) -> &AtomicBool {
        match side {
            Side::Client => &self.client,
            Side::Upstream => &self.upstream,
        }
    }
}

/// How one direction broke: on which side, and how.
#[derive(Debug)]
struct Broken {
    side: Side,
    error: std::io::Error,
}

/// Relays until the end. `first`: bytes of the client that were read before. `stop`: ends it at once, with its reason.
///
/// `counts`: everybody who counts this flow.
pub async fn run(
    mut client: Leg,
    mut upstream: Leg,
    first: Bytes,
    counts: &[Arc<ByteCounts>],
    stop: impl Future<Output = CloseReason>,
) -> CloseReason {
    let (client_is_tunnel, upstream_is_tunnel) = (client.is_tunnel(), upstream.is_tunnel());
    let reason = {
        let (client_reader, client_writer) = client.halves();
        let (upstream_reader, upstream_writer) = upstream.halves();
        let sent = |n| counts.iter().for_each(|count| add(&count.sent, n));
        let received = |n| counts.iter().for_each(|count| add(&count.received, n));
        let resets = Resets::default();
        let forth = pump(client_reader, upstream_writer, first, sent, Side::Client, Side::Upstream, &resets);
        let none = Bytes::new();
        let back =
            pump(upstream_reader, client_writer, none, received, Side::Upstream, Side::Client, &resets);
        tokio::select! {
            ended = both(forth, back) => match ended {
                Ok(()) => return CloseReason::Ok,
                // It stopped reading in good order: what was delivered to either side stays delivered.
                Err(broken) if broken.error.kind() == ErrorKind::BrokenPipe => {
                    return broken.reason(client_is_tunnel, upstream_is_tunnel);
                }
                Err(broken) => broken.reason(client_is_tunnel, upstream_is_tunnel),
            },
            reason = stop => reason,
        }
    };
    client.reset();
    upstream.reset();
    reason
}

/// The same for an upstream or a client that is neither socket nor tunnel. Copies more and counts at the end only.
pub async fn run_io(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut upstream: impl AsyncRead + AsyncWrite + Unpin,
    counts: &ByteCounts,
    stop: impl Future<Output = CloseReason>,
) -> CloseReason {
    tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut client, &mut upstream) => match copied {
            Ok((sent, received)) => {
                counts.sent.fetch_add(sent, Ordering::Relaxed);
                counts.received.fetch_add(received, Ordering::Relaxed);
                CloseReason::Ok
            }
            Err(_) => CloseReason::ServerReset,
        },
        reason = stop => reason,
    }
}

fn add(count: &AtomicU64, bytes: usize) {
    count.fetch_add(bytes as u64, Ordering::Relaxed);
}

impl Broken {
    fn reason(&self, client_is_tunnel: bool, upstream_is_tunnel: bool) -> CloseReason {
        let tunnel = match self.side {
            Side::Client => client_is_tunnel,
            Side::Upstream => upstream_is_tunnel,
        };
        match (self.error.kind(), self.side) {
            (ErrorKind::ConnectionAborted, _) if tunnel => CloseReason::TunnelLost,
            (ErrorKind::BrokenPipe, Side::Client) => CloseReason::Cancelled,
            (_, Side::Client) => CloseReason::ClientReset,
            (_, Side::Upstream) => CloseReason::ServerReset,
        }
    }
}

/// Both to their end. After one broke, the other may deliver what is on its way.
async fn both(
    forth: impl Future<Output = Result<(), Broken>>,
    back: impl Future<Output = Result<(), Broken>>,
) -> Result<(), Broken> {
    let (mut forth, mut back) = (pin!(forth), pin!(back));
    tokio::select! {
        ended = &mut forth => match ended {
            Ok(()) => back.await,
            Err(broken) => {
                let _ = tokio::time::timeout(LAST_BYTES_TIMEOUT, back).await;
                Err(broken)
            }
        },
        ended = &mut back => match ended {
            Ok(()) => forth.await,
            Err(broken) => {
                let _ = tokio::time::timeout(LAST_BYTES_TIMEOUT, forth).await;
                Err(broken)
            }
        },
    }
}

/// One direction.
async fn pump(
    mut from: Reader<'_>,
    mut to: Writer<'_>,
    first: Bytes,
    count: impl Fn(usize),
    from_side: Side,
    to_side: Side,
    resets: &Resets,
) -> Result<(), Broken> {
    let read_broke = |error| Broken { side: from_side, error };
    let write_broke = |error: std::io::Error| {
        if error.kind() == ErrorKind::ConnectionReset {
            resets.of(to_side).store(true, Ordering::Relaxed);
        }
        Broken { side: to_side, error }
    };
    let mut chunks = Vec::new();
    if !first.is_empty() {
        let length = first.len();
        chunks.push(first);
        to.send(&mut chunks).await.map_err(write_broke)?;
        count(length);
    }
    loop {
        // While there is nothing to forward, the receiver's going away must be noticed all the same.
        let taken = tokio::select! {
            biased;
            taken = from.take(&mut chunks) => taken,
            error = to.stopped() => return Err(write_broke(error)),
        };
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) => {
                to.flush().await;
                return Err(read_broke(error));
            }
        };
        if taken == 0 {
            if resets.of(from_side).load(Ordering::Relaxed) {
                return Err(read_broke(ErrorKind::ConnectionReset.into()));
            }
            return to.finish().map_err(write_broke);
        }
        to.send(&mut chunks).await.map_err(write_broke)?;
        from.release(taken);
        count(taken);
        tokio::task::consume_budget().await;
    }
}
