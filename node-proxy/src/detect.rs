//! Which protocol a connection speaks, by its first bytes: bounded in size and in time, consuming nothing.
//!
//! [`classify`] is pure; [`first_bytes`] reads until it is sure; [`Prefixed`] gives the bytes back.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::time::timeout;

use crate::forward_writes::forward_writes;
use crate::l7::outbound::Protocol;

/// A client that is silent for so long waits for the server to speak first. Every such connection to a port that is
/// not declared or well known pays this once, so it is short; a client that sends later is forwarded as it is.
pub const SILENCE_MAX: Duration = Duration::from_millis(300);
/// On a port that is declared HTTP a client may connect ahead of its first request.
pub const DECLARED_SILENCE_MAX: Duration = Duration::from_secs(300);
/// Longest request line that is recognised: beyond it a request is HTTP by its method alone.
const BYTES_MAX: usize = 8192;
/// What one read takes: a request's head, mostly.
const FIRST_READ_BYTES: usize = 2048;
/// Ports whose protocols let the server speak first (or are known not to be HTTP): never waited for.
const SERVER_FIRST_PORTS: [u16; 8] = [25, 587, 3306, 4444, 5432, 6379, 9300, 11211];
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// Longest method that is taken for one (WebDAV's are up to 16).
const METHOD_BYTES_MAX: usize = 24;

pub fn server_speaks_first(port: u16) -> bool {
    SERVER_FIRST_PORTS.contains(&port)
}

/// What the first bytes show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    Http(Protocol),
    /// Certainly not HTTP.
    Other,
    /// More bytes are needed.
    Unclear,
}

/// Looks at the first bytes of a connection.
pub fn classify(bytes: &[u8]) -> Seen {
    let common = bytes.len().min(H2_PREFACE.len());
    if bytes[..common] == H2_PREFACE[..common] {
        return if common == H2_PREFACE.len() { Seen::Http(Protocol::Http2) } else { Seen::Unclear };
    }
    let method = bytes.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
    if method > METHOD_BYTES_MAX || method == 0 {
        return if bytes.is_empty() { Seen::Unclear } else { Seen::Other };
    }
    match bytes.get(method) {
        None => return Seen::Unclear,
        Some(b' ') => {}
        Some(_) => return Seen::Other,
    }
    let rest = &bytes[method + 1..];
    let target = rest.iter().take_while(|byte| byte.is_ascii_graphic() || !byte.is_ascii()).count();
    let version = &rest[target..];
    if version.is_empty() {
        // Still inside the target; something that long after a method is a request.
        return if bytes.len() >= BYTES_MAX { Seen::Http(Protocol::Http1) } else { Seen::Unclear };
    }
    let expected = b" HTTP/1.";
    let common = version.len().min(expected.len());
    if target == 0 || version[..common] != expected[..common] {
        return Seen::Other;
    }
    if common == expected.len() { Seen::Http(Protocol::Http1) } else { Seen::Unclear }
}

/// Reads until the protocol is clear, the client is silent for `silence_max`, or ends. The bytes read come along.
pub async fn first_bytes<IO>(io: &mut IO, silence_max: Duration) -> io::Result<(Option<Protocol>, Bytes)>
where
    IO: AsyncRead + Unpin,
{
    let mut bytes = BytesMut::with_capacity(FIRST_READ_BYTES);
    let sure = timeout(silence_max, async {
        loop {
            match classify(&bytes) {
                Seen::Http(protocol) => return Ok::<_, io::Error>(Some(protocol)),
                Seen::Other => return Ok(None),
                Seen::Unclear if bytes.len() >= BYTES_MAX => return Ok(None),
                Seen::Unclear => {}
            }
            if io.read_buf(&mut bytes).await? == 0 {
                return Ok(None);
            }
        }
    });
    let protocol = match sure.await {
        Ok(result) => result?,
        Err(_) => None,
    };
    Ok((protocol, bytes.freeze()))
}

/// A connection whose first bytes were read already.
pub struct Prefixed<IO> {
    prefix: Bytes,
    io: IO,
}

impl<IO> Prefixed<IO> {
    pub fn new(prefix: Bytes, io: IO) -> Self {
        Self { prefix, io }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Prefixed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, into);
        }
        let length = self.prefix.len().min(into.remaining());
        into.put_slice(&self.prefix[..length]);
        self.prefix.advance(length);
        if self.prefix.is_empty() {
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

forward_writes!(Prefixed);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn the_first_bytes_decide() {
        let http1 = Seen::Http(Protocol::Http1);
        for (bytes, seen) in [
            (&b""[..], Seen::Unclear),
            (b"G", Seen::Unclear),
            (b"GET ", Seen::Unclear),
            (b"GET /a HTT", Seen::Unclear),
            (b"GET /a HTTP/1.", http1),
            (b"GET /a HTTP/1.1\r\n", http1),
            (b"M-SEARCH * HTTP/1.1\r\n", http1),
            (b"GET /a HTTP/3", Seen::Other),
            (b"GET /a\r\n", Seen::Other),
            (b"GET  HTTP/1.1", Seen::Other),
            (b"P", Seen::Unclear),
            (b"PRI * HTTP/2.0\r", Seen::Unclear),
            (b"PRI * HTTP/2.0\r\n\r\nSM", Seen::Http(Protocol::Http2)),
            (b"PROPFIND / HTTP/1.1", http1),
            (b"\x16\x03\x01", Seen::Other),
            (b"*1\r\n$4\r\nPING\r\n", Seen::Other),
            (b"SSH-2.0-x\r\n", Seen::Other),
            (b"PING\r\n", Seen::Other),
            (b"get / HTTP/1.1", Seen::Other),
        ] {
            assert_eq!(classify(bytes), seen, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    proptest! {
        /// What was decided stays decided, however the bytes are cut.
        #[test]
        fn more_bytes_never_change_a_decision(
            bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0_usize..64,
        ) {
            let early = classify(&bytes[..cut.min(bytes.len())]);
            if early != Seen::Unclear {
                prop_assert_eq!(early, classify(&bytes));
            }
        }
    }

    #[tokio::test]
    async fn nothing_is_lost_and_silence_ends_the_wait() {
        let (mut client, mut server) = tokio::io::duplex(64);
        client.write_all(b"GET").await.unwrap();
        let (protocol, bytes) = first_bytes(&mut server, Duration::from_millis(20)).await.unwrap();
        assert_eq!((protocol, &bytes[..]), (None, &b"GET"[..]));
        client.write_all(b" more").await.unwrap();
        drop(client);
        let mut all = String::new();
        Prefixed::new(bytes, server).read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "GET more");
    }

    #[tokio::test]
    async fn a_request_in_pieces_is_recognised() {
        let (mut client, mut server) = tokio::io::duplex(64);
        client.write_all(b"GE").await.unwrap();
        let wait = Duration::from_secs(5);
        let (sent, seen) =
            tokio::join!(client.write_all(b"T / HTTP/1.1\r\n"), first_bytes(&mut server, wait));
        sent.unwrap();
        assert_eq!(seen.unwrap().0, Some(Protocol::Http1));
    }
}
