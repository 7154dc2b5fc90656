//! The gRPC listener: TLS with a certificate of Weft's own authority, renewed without closing a connection.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use weft_proto::v1::certificates_server::CertificatesServer;

use crate::authority::{CSR_BYTES_MAX, CertificateService};
use crate::caller::Caller;
use crate::handshakes::Handshakes;
use crate::places::{Counted, Places};
use crate::push::{DiscoveryServer, DiscoveryService};
use crate::world::World;

/// After a renewal of the listener's certificate that failed.
pub(crate) const RENEWAL_RETRY: Duration = Duration::from_secs(300);
const HANDSHAKE_WAIT_MAX: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_WAIT_MAX: Duration = Duration::from_secs(20);
/// Streams of one connection: a node has one subscription, and as many requests to sign as pods that start.
const STREAMS_OF_A_CONNECTION_MAX: u32 = 512;
/// A Hello names everything a node holds.
const HELLO_BYTES_MAX: usize = 64 * 1024 * 1024;

#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// The listener's certificate, in use and replaceable.
pub(crate) struct ServerCertificate {
    current: Arc<Current>,
    /// From its beginning to the half of its life, by the wall clock.
    good: Mutex<Range<OffsetDateTime>>,
}

impl ServerCertificate {
    pub(crate) fn issue(world: &World) -> anyhow::Result<Self> {
        let (certified, good) = certified(world)?;
        Ok(Self { current: Arc::new(Current(ArcSwap::from_pointee(certified))), good: Mutex::new(good) })
    }

    pub(crate) fn renew(&self, world: &World) -> anyhow::Result<()> {
        // What fails now is tried again later, and not at every look.
        let now = OffsetDateTime::now_utc();
        *self.good.lock() = now..now + RENEWAL_RETRY;
        let (certified, good) = certified(world)?;
        self.current.0.store(Arc::new(certified));
        *self.good.lock() = good;
        Ok(())
    }

    /// The wall clock says that half of its life is over, or that it is of the future: then the clock was ahead when it was made.
    pub(crate) fn due(&self) -> bool {
        !self.good.lock().contains(&OffsetDateTime::now_utc())
    }

    fn config(&self, world: &World) -> Result<ServerConfig, rustls::Error> {
        let verifier = Arc::new(world.authority.node_verifier());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.current.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Each connection proves the node anew: a resumed one would outlive a withdrawn root.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

fn certified(world: &World) -> anyhow::Result<(CertifiedKey, Range<OffsetDateTime>)> {
    let issued = world.authority.server_certificate()?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&issued.key)?;
    Ok((CertifiedKey::new(issued.chain, key), issued.good))
}

pub(crate) async fn serve(
    world: Arc<World>,
    listener: TcpListener,
    certificate: &ServerCertificate,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(certificate.config(&world)?));
    let (ready, connections) = mpsc::channel(1);
    tokio::spawn(accept(world.clone(), listener, acceptor, ready, stop.clone()));
    let discovery = DiscoveryServer::new(DiscoveryService::new(world.clone()), HELLO_BYTES_MAX);
    let certificates =
        CertificatesServer::new(CertificateService(world)).max_decoding_message_size(2 * CSR_BYTES_MAX);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_WAIT_MAX))
        .max_concurrent_streams(STREAMS_OF_A_CONNECTION_MAX)
        .add_service(discovery)
        .add_service(certificates)
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.cancelled_owned())
        .await?;
    Ok(())
}

async fn accept(
    world: Arc<World>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    ready: mpsc::Sender<std::io::Result<Counted<TlsStream<TcpStream>>>>,
    stop: CancellationToken,
) {
    let handshakes = Arc::new(Handshakes::default());
    let places = Arc::new(Places::default());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted.inspect_err(|error| tracing::warn!(%error, "accept failed")) else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(place) = places.take(peer.ip()) else {
            tracing::debug!(%peer, "too many connections, in all or from this address");
            continue;
        };
        let Some(handshake) = handshakes.begin(peer.ip()) else {
            tracing::debug!(%peer, "too many handshakes from this address");
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (acceptor, ready, world) = (acceptor.clone(), ready.clone(), world.clone());
        tokio::spawn(async move {
            let shaken = tokio::select! {
                shaken = tokio::time::timeout(HANDSHAKE_WAIT_MAX, acceptor.accept(stream)) => shaken,
                () = handshake.displaced.cancelled() => return,
            };
            drop(handshake);
            match shaken {
                Ok(Ok(io)) => {
                    let shown = io.get_ref().1.peer_certificates();
                    if let Some(caller) = Caller::new(peer, shown, &world.authority) {
                        drop(ready.send(Ok(Counted::new(io, caller, place))).await);
                    }
                }
                Ok(Err(error)) => refused(&world, peer, &error),
                Err(_) => tracing::debug!(%peer, "handshake took too long"),
            }
        });
    }
}

/// A certificate that is not believed is worth a line; a port scan is not.
fn refused(world: &World, peer: SocketAddr, error: &std::io::Error) {
    world.metrics.handshakes_refused.fetch_add(1, Ordering::Relaxed);
    let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(what)) = of_tls else {
        return tracing::debug!(%peer, %error, "handshake failed");
    };
    // rustls shows only the insides of what it did not find wrong itself.
    let reason = match what {
        rustls::CertificateError::Other(other) => other.0.to_string(),
        _ => error.to_string(),
    };
    if world.refusals_logged.admit() {
        tracing::warn!(%peer, reason, "client certificate refused");
    }
}
