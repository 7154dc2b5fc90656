//! The halves of a leg: bytes out of a socket or a tunnel's stream, and into one. No byte is copied between them.

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind, IoSlice};
use std::pin::pin;
use std::task::Poll;

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::socket::leg::Pace;
use crate::tunnel::{Receiver, Sender};

/// First read of a connection that was idle: most messages fit.
const BUFFER_BYTES_MIN: usize = 16 << 10;
/// Reads grow to this while they fill the buffer: fewer system calls and frames per byte of a bulk transfer.
const BUFFER_BYTES_MAX: usize = 256 << 10;
/// Chunks of a stream that are written by one system call.
const CHUNKS_MAX: usize = 16;
/// ... and their bytes, about what a socket takes at once.
const GATHER_BYTES_MAX: usize = 512 << 10;

pub(super) enum Reader<'a> {
    Tcp { tcp: ReadHalf<'a>, buffer: BytesMut, size: usize, received: u64 },
    Tunnel(&'a mut Receiver),
}

pub(super) enum Writer<'a> {
    Tcp { tcp: WriteHalf<'a>, pace: Pace },
    Tunnel(&'a mut Sender),
}

impl<'a> Reader<'a> {
    pub(super) fn tcp(tcp: ReadHalf<'a>) -> Self {
        Self::Tcp { tcp, buffer: BytesMut::new(), size: BUFFER_BYTES_MIN, received: 0 }
    }

    /// Waits for bytes and puts them, with what else is there already, into `chunks`. Their number; 0 is the end.
    ///
    /// Cancel-safe: bytes are in `chunks` or not taken.
    pub(super) async fn take(&mut self, chunks: &mut Vec<Bytes>) -> io::Result<usize> {
        match self {
            Self::Tcp { tcp, buffer, size, received } => {
                let length = if *received < weft_ebpf::UNREAD_BYTES_MAX {
                    read(tcp, buffer, size, chunks).await?
                } else {
                    read_to_the_end(tcp, buffer, chunks).await?
                };
                *received += length as u64;
                Ok(length)
            }
            Self::Tunnel(receiver) => gather(receiver, chunks).await,
        }
    }
    /// What was taken has been forwarded.
    pub(super) fn release(&mut self, bytes: usize) {
        if let Self::Tunnel(receiver) = self {
            receiver.release(bytes);
        }
    }
}

/// After so many bytes the kernel may have changed the path of this direction from redirected to the stack, once (`decide::way`):
/// then a read stops where the redirected queue ends, while the event of what lies in the other may have passed. So the
/// socket is known to be empty only when the kernel says so.
async fn read_to_the_end(
    tcp: &ReadHalf<'_>,
    buffer: &mut BytesMut,
    chunks: &mut Vec<Bytes>,
) -> io::Result<usize> {
    loop {
        if buffer.capacity() < BUFFER_BYTES_MAX / 4 {
            buffer.reserve(BUFFER_BYTES_MAX);
        }
        match tcp.try_read_buf(buffer) {
            Ok(length) => {
                if length > 0 {
                    chunks.push(buffer.split().freeze());
                }
                return Ok(length);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                *buffer = BytesMut::new();
                tcp.readable().await?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A read that leaves the buffer unfilled is known to have emptied the socket: unlike `try_read`, the read of
/// `AsyncRead` then waits for the next wake-up without asking the kernel again.
async fn read(
    tcp: &mut ReadHalf<'_>,
    buffer: &mut BytesMut,
    size: &mut usize,
    chunks: &mut Vec<Bytes>,
) -> io::Result<usize> {
    let length = poll_fn(|cx| {
        // Takes the allocation up again where the rest of the last read left off, or makes a new one.
        if buffer.capacity() < BUFFER_BYTES_MIN.max(*size / 4) {
            buffer.reserve(*size);
        }
        let room = buffer.capacity();
        let read = pin!(tcp.read_buf(buffer)).poll(cx);
        match &read {
            Poll::Ready(Ok(length)) if *length == room => *size = (*size * 2).min(BUFFER_BYTES_MAX),
            Poll::Ready(Ok(length)) if *length < *size / 4 => *size = (*size / 2).max(BUFFER_BYTES_MIN),
            Poll::Ready(_) => {}
            // Nothing there: a waiting connection holds no buffer.
            Poll::Pending => *buffer = BytesMut::new(),
        }
        read
    })
    .await?;
    if length > 0 {
        chunks.push(buffer.split().freeze());
    }
    Ok(length)
}

async fn gather(receiver: &mut Receiver, chunks: &mut Vec<Bytes>) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut taken = 0;
        while chunks.len() < CHUNKS_MAX && taken < GATHER_BYTES_MAX {
            match receiver.poll_chunk(cx) {
                Poll::Ready(Ok(Some(chunk))) => {
                    taken += chunk.len();
                    chunks.push(chunk);
                }
                // The end, or the error, comes again with the next call.
                Poll::Ready(_) | Poll::Pending if taken > 0 => break,
                Poll::Ready(Ok(None)) => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(taken))
    })
    .await
}

impl Writer<'_> {
    /// Sends all of it and empties `chunks`.
    pub(super) async fn send(&mut self, chunks: &mut Vec<Bytes>) -> io::Result<()> {
        match self {
            Self::Tcp { tcp, pace } => {
                let result = write_all(tcp, pace, chunks).await;
                chunks.clear();
                result
            }
            Self::Tunnel(sender) => {
                for chunk in chunks.drain(..) {
                    sender.send(chunk).await?;
                }
                Ok(())
            }
        }
    }
    /// Half-close.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp { tcp, .. } => {
                match SockRef::from(AsRef::<TcpStream>::as_ref(tcp)).shutdown(std::net::Shutdown::Write) {
                    // The other side closed both directions first: nobody to tell.
                    Err(error) if error.kind() == ErrorKind::NotConnected => Ok(()),
                    result => result,
                }
            }
            Self::Tunnel(sender) => sender.finish(),
        }
    }
    /// Waits until what was sent has left this process; a reset that follows does not overtake it.
    pub(super) async fn flush(&mut self) {
        if let Self::Tunnel(sender) = self {
            let _ = tokio::time::timeout(super::LAST_BYTES_TIMEOUT, sender.flush()).await;
        }
    }
    /// Returns when the other side cannot take more: a reset, or its wish.
    pub(super) async fn stopped(&mut self) -> io::Error {
        match self {
            // The error itself is left for the reader of the same socket, which first drains what came before it.
            Self::Tcp { tcp, .. } => match tcp.ready(Interest::ERROR).await {
                Ok(_) => ErrorKind::ConnectionReset.into(),
                Err(error) => error,
            },
            Self::Tunnel(sender) => poll_fn(|cx| sender.poll_stopped(cx)).await,
        }
    }
}

async fn write_all(tcp: &mut WriteHalf<'_>, pace: &mut Pace, chunks: &mut [Bytes]) -> io::Result<()> {
    let mut done = 0;
    while done < chunks.len() {
        poll_fn(|cx| pace.poll_room(AsRef::<TcpStream>::as_ref(tcp), cx)).await;
        let rest = &mut chunks[done..];
        let written = match rest {
            [one] => tcp.write(one).await,
            several => {
                let mut slices = [IoSlice::new(&[]); CHUNKS_MAX];
                let count = several.len().min(CHUNKS_MAX);
                for (slice, chunk) in slices.iter_mut().zip(several.iter()) {
                    *slice = IoSlice::new(chunk);
                }
                tcp.write_vectored(&slices[..count]).await
            }
        };
        match written {
            Ok(mut written) => {
                pace.sent(written);
                while let Some(chunk) = chunks.get_mut(done) {
                    let step = written.min(chunk.len());
                    chunk.advance(step);
                    written -= step;
                    if !chunk.is_empty() {
                        break;
                    }
                    // Its memory is free again at once.
                    *chunk = Bytes::new();
                    done += 1;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
