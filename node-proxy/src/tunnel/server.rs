//! The server end of a tunnel: TLS and HTTP/2 handshakes, and one [`Connect`] per well-formed CONNECT.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use weft_proto::identity::NamespacedName;

use super::headers::{POLICY, REASON, parse_authority};
use super::limits::{self, Timing};
use super::read_ahead::ReadAhead;
use super::{TunnelError, TunnelStream, keepalive};
use crate::identity::{Identities, VerifiedPeer};
use crate::socket::is_proxy_port;
use crate::telemetry::CloseReason;

/// After a drain's GOAWAY and the end of the last stream the peer gets so long to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A finished TLS handshake.
pub struct TlsPeer {
    pub io: TlsStream<ReadAhead<TcpStream>>,
    pub peer: VerifiedPeer,
    /// What was verified, leaf first: to be looked at again when the trust bundle changes.
    pub chain: Vec<CertificateDer<'static>>,
}

/// TLS with a client whose certificate is required and verified.
pub async fn accept_tls(tcp: TcpStream, config: Arc<rustls::ServerConfig>) -> Result<TlsPeer, TunnelError> {
    let io = ReadAhead::new(tcp);
    let io = timeout(limits::CONNECT_TIMEOUT, TlsAcceptor::from(config).accept(io))
        .await
        .map_err(|_| TunnelError::TimedOut)?
        .map_err(|error| TunnelError::Tls(Arc::new(error)))?;
    let session = io.get_ref().1;
    if session.alpn_protocol() != Some(b"h2") {
        return Err(TunnelError::Alpn);
    }
    let certificates = session.peer_certificates();
    let peer = Identities::peer(certificates)?;
    let chain = certificates.unwrap_or_default().iter().map(|one| one.clone().into_owned()).collect();
    Ok(TlsPeer { io, peer, chain })
}

/// One CONNECT, waiting for its answer.
pub struct Connect {
    /// The address that the client wants.
    pub target: SocketAddr,
    pub headers: HeaderMap,
    body: RecvStream,
    answer: SendResponse<Bytes>,
    place: Place,
}

impl Connect {
    /// Answers 200. Only after policy passed and the application accepted.
    pub fn accept(mut self) -> Result<TunnelStream, h2::Error> {
        let sender = self.answer.send_response(Response::new(()), false)?;
        Ok(TunnelStream::new(sender, self.body, Box::new(self.place)))
    }
    /// `by`: the policy that denied.
    pub fn refuse(mut self, reason: CloseReason, by: Option<&NamespacedName>) {
        let status = match reason {
            CloseReason::PolicyDenied => StatusCode::UNAUTHORIZED,
            // Only the address can be wrong here: what is no address at all was answered by `admit`.
            CloseReason::BadTarget if !is_proxy_port(self.target.port()) => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        refuse(&mut self.answer, status, reason, by);
    }
    /// Waits until the client takes its request back.
    pub async fn cancelled(&mut self) {
        // Both outcomes mean the same: a reset, or the end of the whole tunnel.
        let _ = std::future::poll_fn(|cx| self.answer.poll_reset(cx)).await;
    }
}

fn refuse(
    answer: &mut SendResponse<Bytes>,
    status: StatusCode,
    reason: CloseReason,
    by: Option<&NamespacedName>,
) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert(REASON, HeaderValue::from_static(reason.as_str()));
    if let Some(policy) = by.and_then(|by| HeaderValue::from_str(&by.to_string()).ok()) {
        response.headers_mut().insert(POLICY, policy);
    }
    // Fails when the client has gone: nobody to tell.
    let _ = answer.send_response(response, true);
}

/// Counts a request as open, from its arrival to the end of its stream.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one tunnel until it ends. `ending`: GOAWAY, then the open streams finish; whoever must end them sooner
/// drops this future. `on_connect` must return at once (spawn).
pub async fn serve<IO>(
    io: IO,
    timing: Timing,
    ending: &CancellationToken,
    on_connect: impl Fn(Connect),
) -> Result<(), TunnelError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_frame_size(limits::FRAME_BYTES_MAX)
        .max_header_list_size(limits::HEADER_LIST_BYTES_MAX)
        .max_concurrent_streams(limits::SERVER_STREAMS_MAX)
        .max_send_buffer_size(limits::SEND_BUFFER_BYTES_MAX)
        .data_frame_budget(limits::DATA_FRAME_BUDGET_BYTES)
        .max_pending_accept_reset_streams(limits::PENDING_RESETS_MAX);
    let handshake = timeout(limits::CONNECT_TIMEOUT, builder.handshake::<_, Bytes>(io));
    let mut connection = handshake.await.map_err(|_| TunnelError::TimedOut)??;
    let dead = keepalive::until_dead(connection.ping_pong(), timing);
    tokio::pin!(dead);
    let open = Arc::new(AtomicUsize::new(0));
    let mut window = limits::CONNECTION_WINDOW_BYTES;
    let mut drained = false;
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(accepted) = accepted else { return Ok(()) };
                let (request, answer) = accepted?;
                let streams = open.fetch_add(1, Ordering::Relaxed) + 1;
                let wanted = limits::connection_window(streams);
                if wanted != window {
                    window = wanted;
                    connection.set_target_window_size(wanted);
                }
                admit(request, answer, Place(Arc::clone(&open)), streams, &on_connect);
            }
            () = &mut dead => return Err(TunnelError::TimedOut),
            () = ending.cancelled(), if !drained => {
                drained = true;
                connection.graceful_shutdown();
            }
            () = until_unused(&open), if drained => {
                // The peer should close now; one that does not is closed.
                let _ = timeout(CLOSE_TIMEOUT, std::future::poll_fn(|cx| connection.poll_closed(cx))).await;
                return Ok(());
            }
        }
    }
}

/// After a drain: looks now and then whether the last stream has ended, for peers that never close.
async fn until_unused(open: &AtomicUsize) {
    const LOOK_INTERVAL: Duration = Duration::from_millis(100);
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        if open.load(Ordering::Relaxed) == 0 {
            return;
        }
    }
}

/// Answers what is malformed; hands on what is a CONNECT to an address.
fn admit(
    request: Request<RecvStream>,
    mut answer: SendResponse<Bytes>,
    place: Place,
    streams: usize,
    on_connect: impl Fn(Connect),
) {
    if streams > limits::SERVER_STREAMS_MAX as usize {
        // The peer resets and opens faster than the work behind its requests ends.
        answer.send_reset(Reason::REFUSED_STREAM);
        return;
    }
    let (head, body) = request.into_parts();
    let target = (head.method == Method::CONNECT && head.extensions.get::<h2::ext::Protocol>().is_none())
        .then(|| parse_authority(&head.uri))
        .flatten();
    match target {
        Some(target) => on_connect(Connect { target, headers: head.headers, body, answer, place }),
        None => refuse(&mut answer, StatusCode::BAD_REQUEST, CloseReason::BadTarget, None),
    }
}
