//! The bounds of a tunnel, each with its reason. `docs/wire.md` shows them as a table.

use std::time::Duration;

/// Bytes of one stream that the receiver holds for an application that does not read.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Least bytes of all streams together. Must be larger than one stream's (equal values deadlock).
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Streams whose windows fit beside those of the open ones: what a burst of new streams may send before the window
/// has been raised for them.
const WINDOW_SPARE_STREAMS: usize = 2;
/// Largest frame that is taken: fewer headers and wake-ups per byte at high rates.
pub const FRAME_BYTES_MAX: u32 = 1 << 20;
/// Largest list of request or response headers. HBONE's are a few hundred bytes.
pub const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// Concurrent streams that a server takes on one connection.
pub const SERVER_STREAMS_MAX: u32 = 200;
/// Concurrent streams that a client opens on one connection; below the server's bound, so that it is never met.
pub const CLIENT_STREAMS_MAX: usize = 100;
/// Tunnels with the same key: 16 × 100 connections between one pair of pods.
pub const TUNNELS_PER_KEY_MAX: usize = 16;
/// Bytes of one stream that were written and not yet encrypted.
pub const SEND_BUFFER_BYTES_MAX: usize = 512 << 10;
/// rustls asks the socket for 4 KiB at a time; a buffer below it turns that into few system calls. Only a connection that
/// has something to read holds one.
pub const READ_BUFFER_BYTES: usize = 64 << 10;
/// What buffered small DATA frames may cost in memory beyond their payload before the peer is told to calm down.
pub const DATA_FRAME_BUDGET_BYTES: usize = 64 << 20;
/// Streams that the peer reset and nobody accepted yet: more is a "rapid reset" attack and ends the connection.
pub const PENDING_RESETS_MAX: usize = 20;
/// TCP connect, TLS and HTTP/2 handshake, each.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Times that tests shorten; the defaults are the wire's.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Both ends ask so often whether the other is there.
    pub ping_interval: Duration,
    /// ... and give the tunnel up without an answer for so long.
    pub ping_timeout: Duration,
    /// A pooled connection without streams is closed after this.
    pub idle: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            idle: Duration::from_secs(300),
        }
    }
}

/// The connection's window with `streams` open: every one of them may be full without stopping another. So a reader
/// that stalls costs its own window and nobody else's.
pub fn connection_window(streams: usize) -> u32 {
    let wanted = (streams + WINDOW_SPARE_STREAMS) as u64 * u64::from(STREAM_WINDOW_BYTES);
    // 2^31 - 1 is HTTP/2's largest window; 200 streams stay far below.
    u32::try_from(wanted).unwrap_or(u32::MAX).clamp(CONNECTION_WINDOW_BYTES, i32::MAX as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_holds_all_streams_and_never_less_than_the_base() {
        assert_eq!(connection_window(0), CONNECTION_WINDOW_BYTES);
        assert_eq!(connection_window(2), CONNECTION_WINDOW_BYTES);
        for streams in 1..=SERVER_STREAMS_MAX as usize {
            assert!(u64::from(connection_window(streams)) > streams as u64 * u64::from(STREAM_WINDOW_BYTES));
        }
        assert_eq!(connection_window(usize::MAX >> 32), i32::MAX as u32);
    }
}
