//! The client end of one tunnel: TLS and HTTP/2 handshakes, the task that drives it, and its streams.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::{Request, StatusCode};
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::counts::One;
use super::headers::{POLICY, REASON};
use super::limits::{self, Timing};
use super::read_ahead::ReadAhead;
use super::{TunnelError, TunnelStream, keepalive};
use crate::identity::{Identities, VerifiedPeer};

/// TLS with the proxy of the pod at `to`; whom to expect is in the configuration.
pub async fn connect_tls(
    tcp: TcpStream,
    to: IpAddr,
    config: Arc<rustls::ClientConfig>,
) -> Result<(TlsStream<ReadAhead<TcpStream>>, VerifiedPeer), TunnelError> {
    let io = ReadAhead::new(tcp);
    // The name is not sent (an address never is) and not checked: the SPIFFE ID is.
    let handshake = TlsConnector::from(config).connect(ServerName::IpAddress(to.into()), io);
    let tls = timeout(limits::CONNECT_TIMEOUT, handshake)
        .await
        .map_err(|_| TunnelError::TimedOut)?
        .map_err(|error| TunnelError::Tls(Arc::new(error)))?;
    let session = tls.get_ref().1;
    if session.alpn_protocol() != Some(b"h2") {
        return Err(TunnelError::Alpn);
    }
    let peer = Identities::peer(session.peer_certificates())?;
    Ok((tls, peer))
}

/// One open tunnel. Usable until it is retired: by GOAWAY, idleness, or its end.
pub struct Tunnel {
    peer: VerifiedPeer,
    state: Mutex<State>,
    /// The number of streams changed, or the tunnel was retired.
    changed: Notify,
}

struct State {
    /// None: retired. Open streams go on, new ones go elsewhere.
    requests: Option<SendRequest<Bytes>>,
    streams: usize,
    idle_since: Instant,
    /// Until its connection ends.
    _counted: Option<One>,
}

/// A stream of a tunnel, reserved or open.
pub(super) struct Reserved {
    place: Place,
    requests: SendRequest<Bytes>,
}

/// Gives the place back.
struct Place(Arc<Tunnel>);

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.streams -= 1;
        state.idle_since = Instant::now();
        drop(state);
        self.0.changed.notify_one();
    }
}

impl Tunnel {
    /// HTTP/2 over a connection to `peer`; spawns the task that drives it.
    pub async fn start<IO>(io: IO, peer: VerifiedPeer, timing: Timing) -> Result<Arc<Self>, TunnelError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(limits::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
            .max_frame_size(limits::FRAME_BYTES_MAX)
            .max_header_list_size(limits::HEADER_LIST_BYTES_MAX)
            .max_send_buffer_size(limits::SEND_BUFFER_BYTES_MAX)
            .data_frame_budget(limits::DATA_FRAME_BUDGET_BYTES)
            .initial_max_send_streams(limits::CLIENT_STREAMS_MAX)
            .enable_push(false);
        let handshake = timeout(limits::CONNECT_TIMEOUT, builder.handshake(io));
        let (requests, connection) = handshake.await.map_err(|_| TunnelError::TimedOut)??;
        let state =
            State { requests: Some(requests), streams: 0, idle_since: Instant::now(), _counted: None };
        let tunnel = Arc::new(Self { peer, state: Mutex::new(state), changed: Notify::new() });
        tokio::spawn(drive(connection, Arc::clone(&tunnel), timing));
        Ok(tunnel)
    }

    /// Whose certificate was verified.
    pub fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    /// Counts it until its connection ends.
    pub(super) fn counted(&self, one: One) {
        let mut state = self.state.lock();
        // One that has ended already is no more to be counted.
        if state.requests.is_some() {
            state._counted = Some(one);
        }
    }

    /// Takes a place for one more stream, unless the tunnel is full or retired.
    pub(super) fn reserve(self: &Arc<Self>) -> Option<Reserved> {
        let mut state = self.state.lock();
        let requests = state.requests.clone()?;
        if state.streams >= limits::CLIENT_STREAMS_MAX.min(requests.current_max_send_streams()) {
            return None;
        }
        state.streams += 1;
        drop(state);
        self.changed.notify_one();
        Some(Reserved { place: Place(Arc::clone(self)), requests })
    }

    /// No new stream from now on; ends when the open ones have.
    pub(super) fn retire(&self) {
        self.state.lock().requests = None;
        self.changed.notify_one();
    }
    pub(super) fn retired(&self) -> bool {
        self.state.lock().requests.is_none()
    }
    fn retire_if_idle(&self, timing: &Timing) -> bool {
        let mut state = self.state.lock();
        let idle = state.streams == 0 && state.idle_since.elapsed() >= timing.idle;
        if idle {
            state.requests = None;
        }
        idle
    }
    fn streams(&self) -> usize {
        self.state.lock().streams
    }
}

impl Reserved {
    pub(super) fn peer(&self) -> VerifiedPeer {
        self.place.0.peer.clone()
    }

    /// Sends the CONNECT. Returns when the other side has answered 200: policy passed, the application accepted.
    pub(super) async fn open(self, request: Request<()>) -> Result<TunnelStream, TunnelError> {
        let place = self.place;
        let opened = async {
            let mut requests = self.requests.ready().await?;
            let (response, sender) = requests.send_request(request, false)?;
            drop(requests);
            Ok::<_, h2::Error>((response.await?, sender))
        };
        let (response, sender) = match opened.await {
            Ok(opened) => opened,
            Err(error) => {
                // GOAWAY, a broken connection: others must not come here. A stream's own reset concerns only it.
                if !error.is_reset() {
                    place.0.retire();
                }
                return Err(error.into());
            }
        };
        let status = response.status();
        if status != StatusCode::OK {
            let text = |name| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
            return Err(TunnelError::Refused { status, reason: text(REASON), policy: text(POLICY) });
        }
        Ok(TunnelStream::new(sender, response.into_body(), Box::new(place)))
    }
}

/// Moves the bytes of one connection until it ends: retired and without streams, dead, or closed by the peer.
async fn drive<IO>(mut connection: Connection<IO, Bytes>, tunnel: Arc<Tunnel>, timing: Timing)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let dead = keepalive::until_dead(connection.ping_pong(), timing);
    tokio::pin!(dead);
    let mut idle_check = tokio::time::interval(timing.idle);
    idle_check.tick().await;
    let mut window = limits::CONNECTION_WINDOW_BYTES;
    loop {
        tokio::select! {
            end = &mut connection => {
                if let Err(error) = end {
                    tracing::debug!(peer = %tunnel.peer.id(), %error, "tunnel ended");
                }
                break;
            }
            () = &mut dead => {
                tracing::debug!(peer = %tunnel.peer.id(), "tunnel gave no answer to PING");
                break;
            }
            () = tunnel.changed.notified() => {
                let wanted = limits::connection_window(tunnel.streams());
                if wanted != window {
                    window = wanted;
                    connection.set_target_window_size(wanted);
                }
            }
            _ = idle_check.tick() => { tunnel.retire_if_idle(&timing); }
        }
    }
    tunnel.retire();
    tunnel.state.lock()._counted = None;
    // Dropping the connection fails what streams are left.
}
