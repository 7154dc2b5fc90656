//! Informational answers of an application (103 Early Hints, 102, ...) on their way to an HTTP/1 client.
//!
//! hyper tells of them as a client, but as a server it gives one answer per request and no other. So they are written
//! below it: [`Hinting`] is the client's stream, and puts a head in where hyper's own bytes have ended and the answer's
//! have not begun. 100 and 101 are hyper's and do not come here; HTTP/2 never does (`docs/routing.md`).

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode, Version, header};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::hop;
use super::limits::INFORMATIONAL_BYTES_MAX;

/// What one client connection's stream and its requests share.
#[derive(Debug, Clone, Default)]
pub(super) struct Hints(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Whole heads that wait for their place.
    heads: BytesMut,
    /// Which request is being answered; a late word for another one is dropped.
    request: u64,
    /// Its answer has not begun.
    open: bool,
    /// Nothing of hyper's is left to write: the client has seen whole messages only, or waits for the rest of one that
    /// is still being made.
    flushed: bool,
    /// Of the task that writes.
    waker: Option<Waker>,
}

impl Default for State {
    fn default() -> Self {
        Self { heads: BytesMut::new(), request: 0, open: false, flushed: true, waker: None }
    }
}

impl Hints {
    /// A request has come: its attempts find a [`Hinter`] among its extensions. HTTP/1.0 knows no such answers.
    pub(super) fn request<B>(&self, request: &mut Request<B>) {
        let mut state = self.0.lock();
        state.request += 1;
        state.open = request.version() == Version::HTTP_11;
        if state.open {
            let hinter = Hinter { hints: self.clone(), request: state.request };
            request.extensions_mut().insert(hinter);
        }
    }

    /// The answer is handed to hyper, which writes it behind what it has: no head may come between from now on.
    pub(super) fn answered(&self) {
        let mut state = self.0.lock();
        state.open = false;
        if !state.flushed {
            state.heads.clear();
        }
    }
}

/// For one request's attempts.
#[derive(Debug, Clone)]
pub(super) struct Hinter {
    hints: Hints,
    request: u64,
}

impl Hinter {
    /// Passes a head on. Dropped when the client reads too slowly, or has its answer already: nobody must wait for hints.
    pub(super) fn hint(&self, status: StatusCode, headers: &HeaderMap) {
        let ours = status != StatusCode::CONTINUE && status != StatusCode::SWITCHING_PROTOCOLS;
        let mut state = self.hints.0.lock();
        if !ours || !state.open || state.request != self.request {
            return;
        }
        let head = encode(status, headers.clone());
        if state.heads.len() + head.len() > INFORMATIONAL_BYTES_MAX {
            return;
        }
        state.heads.unsplit(head);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

fn encode(status: StatusCode, mut headers: HeaderMap) -> BytesMut {
    hop::strip(&mut headers, false);
    // There is no body to frame.
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
    let mut head = BytesMut::new().writer();
    let reason = status.canonical_reason().unwrap_or_default();
    // Into memory: cannot fail.
    let _ = write!(head, "HTTP/1.1 {} {reason}\r\n", status.as_u16());
    let mut head = head.into_inner();
    for (name, value) in &headers {
        head.put_slice(name.as_str().as_bytes());
        head.put_slice(b": ");
        head.put_slice(value.as_bytes());
        head.put_slice(b"\r\n");
    }
    head.put_slice(b"\r\n");
    head
}

/// The client's stream below hyper.
pub(super) struct Hinting<IO> {
    io: IO,
    hints: Hints,
    /// Heads that have begun to be written: they go on before anything else.
    writing: Bytes,
}

impl<IO: AsyncWrite + Unpin> Hinting<IO> {
    pub(super) fn new(io: IO, hints: Hints) -> Self {
        Self { io, hints, writing: Bytes::new() }
    }

    /// Writes what waits, if this is the place for it. `more`: hyper has bytes of its own to write next.
    fn poll_heads(&mut self, more: bool, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        {
            let mut state = self.hints.0.lock();
            if !more {
                // hyper flushes its stream when it has written all that it had.
                state.flushed = true;
            }
            if state.flushed && self.writing.is_empty() && !state.heads.is_empty() {
                self.writing = state.heads.split().freeze();
            }
            if more {
                // From here on its bytes may lie in its own buffer, also if the stream takes none now.
                state.flushed = false;
            } else if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.waker = Some(cx.waker().clone());
            }
        }
        while !self.writing.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.writing))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.writing.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Hinting<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Hinting<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_heads(true, cx))?;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_heads(true, cx))?;
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_heads(false, cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const HEAD: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\n";

    fn hint(hints: &Hints) {
        let mut request = Request::new(());
        hints.request(&mut request);
        let headers = [(header::LINK, http::HeaderValue::from_static("<a>"))].into_iter().collect();
        request.extensions().get::<Hinter>().unwrap().hint(StatusCode::EARLY_HINTS, &headers);
    }

    /// Requests sent behind each other: the next one's hints come while the last answer is being written.
    #[tokio::test]
    async fn a_head_never_gets_into_what_is_being_written() {
        for answered in [false, true] {
            let (mut client, io) = tokio::io::duplex(4);
            let hints = Hints::default();
            let mut io = Hinting::new(io, hints.clone());
            // The first half fits; the other one lies in hyper's buffer.
            assert_eq!(io.write(b"bodybody").await.unwrap(), 4);
            hint(&hints);
            if answered {
                // Its answer may lie behind it, in the same buffer.
                hints.answered();
            }
            let write = async {
                io.write_all(b"body").await.unwrap();
                io.flush().await.unwrap();
                drop(io);
            };
            let mut seen = Vec::new();
            let (_, read) = tokio::join!(write, client.read_to_end(&mut seen));
            read.unwrap();
            let want = if answered { b"bodybody".to_vec() } else { [b"bodybody", HEAD].concat() };
            assert_eq!(
                String::from_utf8_lossy(&seen),
                String::from_utf8_lossy(&want),
                "answered: {answered}"
            );
        }
    }

    #[tokio::test]
    async fn a_word_for_an_earlier_request_is_dropped() {
        let (mut client, io) = tokio::io::duplex(4096);
        let hints = Hints::default();
        let mut io = Hinting::new(io, hints.clone());
        let mut first = Request::new(());
        hints.request(&mut first);
        hints.answered();
        hints.request(&mut Request::new(()));
        first.extensions().get::<Hinter>().unwrap().hint(StatusCode::EARLY_HINTS, &HeaderMap::new());
        io.write_all(b"answer").await.unwrap();
        drop(io);
        let mut seen = String::new();
        client.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "answer");
    }
}
