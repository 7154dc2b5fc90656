//! A read buffer below TLS that exists only while there is something to read.
//!
//! rustls asks for 4 KiB at a time; with the buffer that is one system call for many of its reads. A node has an open
//! tunnel per pair of pods that ever talked, nearly all of them silent: one that waits must hold no buffer.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::limits::READ_BUFFER_BYTES;
use crate::forward_writes::forward_writes;

/// Reads from `IO` in large pieces; writes go through.
pub struct ReadAhead<IO> {
    io: IO,
    buffer: BytesMut,
}

impl<IO> ReadAhead<IO> {
    pub(super) fn new(io: IO) -> Self {
        Self { io, buffer: BytesMut::new() }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ReadAhead<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, buffer } = &mut *self;
        if buffer.is_empty() {
            buffer.reserve(READ_BUFFER_BYTES);
            let read = pin!(io.read_buf(buffer)).poll(cx);
            if read.is_pending() {
                *buffer = BytesMut::new();
            }
            ready!(read)?;
        }
        let length = buffer.len().min(into.remaining());
        into.put_slice(&buffer[..length]);
        buffer.advance(length);
        Poll::Ready(Ok(()))
    }
}

forward_writes!(ReadAhead);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn small_reads_get_every_byte_and_a_wait_holds_no_buffer() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut near = ReadAhead::new(near);
        let sent: Vec<u8> = (0..=255).cycle().take(3 * READ_BUFFER_BYTES + 7).collect();
        far.write_all(&sent).await.unwrap();
        let mut got = Vec::new();
        let mut piece = [0; 4096];
        while got.len() < sent.len() {
            let length = near.read(&mut piece).await.unwrap();
            got.extend_from_slice(&piece[..length]);
        }
        assert!(got == sent);
        let waits = std::future::poll_fn(|cx| {
            let mut into = ReadBuf::new(&mut piece);
            Poll::Ready(Pin::new(&mut near).poll_read(cx, &mut into).is_pending())
        });
        assert!(waits.await);
        assert_eq!(near.buffer.capacity(), 0);
        drop(far);
        assert_eq!(near.read(&mut piece).await.unwrap(), 0, "the end shows");
    }
}
