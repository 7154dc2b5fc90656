//! Every bound of the HTTP data plane, in one place, with the reason for its value.

use std::time::Duration;

/// Read and write buffer of an HTTP/1 connection, and so the largest head: servers in use accept 8 to 64 KiB; the rest
/// lets large bodies move in large pieces.
pub(super) const H1_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// Largest header list of HTTP/2, as decoded. gRPC's own default is 8 KiB, Envoy's 60 KiB. h2 derives the number of frames
/// that a head may have from it: 7, of 16 KiB each.
pub(super) const HEADER_BYTES_MAX: u32 = 64 * 1024;
/// What a peer may send on one stream before it is read: the tunnel below has 4 MiB, more would only move the queue.
pub(super) const H2_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// ... and on one connection: four full streams.
pub(super) const H2_CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// What of one stream may wait to be written: a client that opens its windows and does not read costs this for each of its
/// streams, 16 MiB a connection. Four frames keep the socket below busy.
pub(super) const H2_SEND_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Streams that the peer reset before they were looked at: more is a "rapid reset" attack and ends the connection. As on
/// the tunnel.
pub(super) const PENDING_RESETS_MAX: usize = 20;
/// Streams of one connection that were reset for the peer's mistakes, until it is ended: each costs a frame that the peer
/// need not read. Room for a client that opens a thousand streams before it has heard of our bound.
pub(super) const ERROR_RESETS_MAX: usize = 1024;
/// A client that has begun a request's head gets this long for the rest of it: heads are a packet or a few, and 30 s is
/// time for several lost ones. Clients that trickle them on purpose hold a connection to the application no longer. The same
/// for HTTP/2's preface and each of its frames but DATA.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Streams that an application may open towards us at a time (HTTP/2 recommends at least 100).
pub(super) const STREAMS_OF_CLIENT_MAX: u32 = 250;
/// Requests in flight on one HTTP/2 connection to an endpoint: the number that servers commonly allow.
pub(super) const STREAMS_PER_CONNECTION_MAX: u32 = 100;
/// Connections in use from one pod to one endpoint, when no TrafficPolicy says otherwise.
pub(super) const CONNECTIONS_MAX: u32 = 1024;
/// Requests that may wait for one of them.
pub(super) const PENDING_MAX: u32 = 1024;
/// Idle HTTP/1 connections kept per pod and endpoint: a burst's worth, a small part of a pod's descriptors.
pub(super) const IDLE_PER_DESTINATION_MAX: usize = 64;
/// Destinations whose slots a pod keeps before the empty ones are dropped.
pub(super) const DESTINATIONS_PER_POD_MAX: usize = 1024;
/// An unused connection is closed after between this and one and a half of it: far below the common 60 s and 75 s of
/// servers, so that it is us who close. Balancing spreads a few busy connections over many endpoints, each of which keeps
/// some; they cost 30 KiB on either node, and a new one is a stream of a tunnel that is open.
pub(super) const UPSTREAM_IDLE: Duration = Duration::from_secs(10);
/// Bytes of a request's body that are kept for sending it again.
pub(super) const REPLAY_BYTES_MAX: usize = 64 * 1024;
/// Buffer of each direction after an upgrade: a page of WebSocket frames, held as long as the connection lives.
pub(super) const UPGRADED_BUFFER_BYTES: usize = 16 * 1024;
/// A body behind `Expect: 100-continue` is sent after this without the word: servers that ignore the header never say
/// it, and one second is what clients in use wait.
pub(super) const CONTINUE_WAIT: Duration = Duration::from_secs(1);
/// Informational heads (103 Early Hints, ...) that wait for a client that does not read; more are dropped. A page's worth of
/// `Link` headers is a few KiB.
pub(super) const INFORMATIONAL_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an answer that is thrown away which are read for keeping its connection: reading them costs less than a new
/// connection through TLS.
pub(super) const DISCARD_BYTES_MAX: u64 = 64 * 1024;
/// ... and how long they may take.
pub(super) const DISCARD_WAIT: Duration = Duration::from_secs(1);
/// A connection that was given back but is still busy (with the rest of a request's body that nobody wants) gets this
/// long to become free before another is taken. Its own task needs microseconds.
pub(super) const READY_WAIT: Duration = Duration::from_millis(10);
/// Copies of requests under way per pod; more are not made. Mirrors must not cost what they are there to measure.
pub(super) const MIRRORS_MAX: usize = 128;
/// Frames of a body waiting for a slow mirror, at most [`H1_BUFFER_BYTES_MAX`] each; a mirror that falls further behind
/// loses its copy.
pub(super) const MIRROR_FRAMES_MAX: usize = 16;
/// A copy takes no longer than this.
pub(super) const MIRROR_TIMEOUT: Duration = Duration::from_secs(30);
