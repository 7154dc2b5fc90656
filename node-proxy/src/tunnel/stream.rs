//! The byte stream over one CONNECT stream: whole as [`TunnelStream`], or in halves that move [`Bytes`] uncopied.
//!
//! END_STREAM and `shutdown(WR)` are the same thing. A reset with NO_ERROR or CANCEL reads as the end of the stream,
//! any other as `ConnectionReset`; a broken connection reads as `ConnectionAborted`.

use std::any::Any;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::counts::One;
use super::limits::SEND_BUFFER_BYTES_MAX;

/// Counts the stream as open on its connection for as long as it is held.
pub(super) type Slot = Box<dyn Any + Send + Sync>;

/// A byte stream over one CONNECT stream.
pub struct TunnelStream {
    pub(crate) receiver: Receiver,
    pub(crate) sender: Sender,
    _slot: Slot,
}

/// The receiving half. What was taken must be released for the peer to send more.
pub(crate) struct Receiver {
    stream: RecvStream,
    /// Taken from the stream, not yet read (only by `AsyncRead`).
    rest: Bytes,
    ended: bool,
}

/// The sending half.
pub(crate) struct Sender {
    stream: SendStream<Bytes>,
    ended: bool,
}

impl TunnelStream {
    pub(super) fn new(sender: SendStream<Bytes>, receiver: RecvStream, slot: Slot) -> Self {
        Self {
            receiver: Receiver { stream: receiver, rest: Bytes::new(), ended: false },
            sender: Sender { stream: sender, ended: false },
            _slot: slot,
        }
    }
    /// Counts it while it is held.
    pub(super) fn counted(mut self, one: One) -> Self {
        self._slot = Box::new((self._slot, one));
        self
    }
    /// Ends both directions at once; the peer's application sees a reset connection.
    pub fn reset(&mut self) {
        self.sender.reset();
    }
}

impl Receiver {
    /// The next bytes; None at the end.
    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.rest))));
        }
        loop {
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            match ready!(self.stream.poll_data(cx)) {
                // An empty frame carries nothing but, perhaps, the end.
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => return Poll::Ready(Ok(Some(chunk))),
                Some(Err(error)) if is_end(&error) => self.ended = true,
                Some(Err(error)) => return Poll::Ready(Err(to_io(error))),
                None => self.ended = true,
            }
        }
    }
    /// The bytes went on: the peer may send as many again.
    pub(crate) fn release(&mut self, bytes: usize) {
        // Fails only if more is released than was received, which `relay` and `poll_read` do not do.
        let _ = self.stream.flow_control().release_capacity(bytes);
    }
}

impl Sender {
    /// How many of `wanted` bytes may be sent now; at least 1.
    fn poll_capacity(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.stream.reserve_capacity(wanted.min(SEND_BUFFER_BYTES_MAX));
        loop {
            // Asked first: h2 wakes only when the capacity grows.
            let capacity = self.stream.capacity();
            if capacity > 0 {
                return Poll::Ready(Ok(capacity.min(wanted)));
            }
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(to_io(error))),
                None => return Poll::Ready(Err(self.why_closed(cx))),
            }
        }
    }
    fn why_closed(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.stream.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => to_io(reason.into()),
            Poll::Ready(Err(error)) => to_io(error),
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }
    /// Sends all of it, in as many pieces as the windows ask for.
    pub(crate) async fn send(&mut self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            let capacity = poll_fn(|cx| self.poll_capacity(cx, bytes.len())).await?;
            self.stream.send_data(bytes.split_to(capacity), false).map_err(to_io)?;
        }
        Ok(())
    }
    /// Ends this direction.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        if self.ended {
            return Ok(());
        }
        self.ended = true;
        self.stream.send_data(Bytes::new(), true).map_err(to_io)
    }
    /// Ready when the peer does not want more: its reset or the connection's end.
    pub(crate) fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.stream.poll_reset(cx).map(|reason| match reason {
            Ok(reason) => to_io(reason.into()),
            Err(error) => to_io(error),
        })
    }
    /// Waits until what was sent has left for the wire: a reset would discard it.
    pub(crate) async fn flush(&mut self) {
        if self.ended {
            return;
        }
        self.stream.reserve_capacity(SEND_BUFFER_BYTES_MAX);
        while self.stream.capacity() < SEND_BUFFER_BYTES_MAX {
            match poll_fn(|cx| self.stream.poll_capacity(cx)).await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            }
        }
    }
    /// As RFC 9113, 8.5 says for a TCP connection that broke.
    pub(crate) fn reset(&mut self) {
        self.ended = true;
        self.stream.send_reset(Reason::CONNECT_ERROR);
    }
}

impl Drop for Sender {
    /// Dropped without an end: somebody gave up. HTTP/2 would say CANCEL and discard what is queued, which reads as an
    /// orderly end of less than was sent; so it is a reset.
    fn drop(&mut self) {
        if !self.ended {
            self.reset();
        }
    }
}

fn is_end(error: &h2::Error) -> bool {
    error.is_reset() && matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL))
}

/// `BrokenPipe`: the peer stopped reading in good order. `ConnectionReset`: the stream was reset.
/// `ConnectionAborted`: the tunnel as a whole is gone.
pub(super) fn to_io(error: h2::Error) -> io::Error {
    let kind = match error.reason() {
        // Made of a bare reason (`poll_reset`), or received: in both cases the stream's.
        _ if error.is_go_away() || error.is_io() => io::ErrorKind::ConnectionAborted,
        Some(Reason::NO_ERROR | Reason::CANCEL) => io::ErrorKind::BrokenPipe,
        Some(_) => io::ErrorKind::ConnectionReset,
        None => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, error)
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let receiver = &mut self.receiver;
        let Some(mut chunk) = ready!(receiver.poll_chunk(cx))? else { return Poll::Ready(Ok(())) };
        let length = chunk.len().min(into.remaining());
        into.put_slice(&chunk[..length]);
        chunk.advance(length);
        receiver.rest = chunk;
        receiver.release(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let length = ready!(self.sender.poll_capacity(cx, bytes.len()))?;
        let chunk = Bytes::copy_from_slice(&bytes[..length]);
        Poll::Ready(self.sender.stream.send_data(chunk, false).map_err(to_io).map(|()| length))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task writes as soon as it can.
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.sender.finish())
    }
}
