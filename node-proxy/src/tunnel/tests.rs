//! Both ends of a tunnel in one process, over memory or loopback. What the wire promises, and what it survives.

mod abuse;
mod lifetime;
mod relayed;
mod streams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use weft_proto::identity::SpiffeId;

use super::limits::Timing;
use super::*;
use crate::identity::VerifiedPeer;

/// A certificate authority and the configurations that it makes. Plain rustls: the mesh's own verification is tested
/// where it lives, in `identity`.
pub(super) struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: rcgen::Issuer::new(params, key), root }
    }

    fn leaf(&self, identity: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI(identity.try_into().unwrap()));
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        (vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    fn roots(&self) -> Arc<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        Arc::new(roots)
    }

    pub(super) fn client(&self, identity: &str) -> Arc<rustls::ClientConfig> {
        let (chain, key) = self.leaf(identity);
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots())
            .with_client_auth_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    pub(super) fn server(&self, identity: &str) -> Arc<rustls::ServerConfig> {
        let (chain, key) = self.leaf(identity);
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), provider()).build().unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(super) const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/frontend";
pub(super) const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/backend";

/// A server on loopback and what is needed to reach it.
pub(super) struct Lab {
    pub(super) pool: Arc<Pool>,
    pub(super) address: SocketAddr,
    pub(super) ending: CancellationToken,
    pub(super) client: Arc<rustls::ClientConfig>,
    pub(super) timing: Timing,
    /// Connections that the server has accepted.
    pub(super) accepted: Arc<std::sync::atomic::AtomicUsize>,
}

impl Lab {
    /// `on_connect` answers every CONNECT.
    pub(super) async fn new<F>(
        timing: Timing,
        on_connect: impl Fn(Connect) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let authority = Authority::new();
        let (server, client) = (authority.server(SERVER), authority.client(CLIENT));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ending = CancellationToken::new();
        let accepted = Arc::<std::sync::atomic::AtomicUsize>::default();
        let (token, count) = (ending.clone(), Arc::clone(&accepted));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let (server, token, on_connect) = (Arc::clone(&server), token.clone(), on_connect.clone());
                tokio::spawn(async move {
                    let Ok(TlsPeer { io, peer, .. }) = accept_tls(tcp, server).await else { return };
                    assert_eq!(peer.id().to_string(), CLIENT);
                    let _ = serve(io, timing, &token, |connect| {
                        tokio::spawn(on_connect(connect));
                    })
                    .await;
                });
            }
        });
        Self { pool: Arc::default(), address, ending, client, timing, accepted }
    }

    pub(super) fn key(&self, source: &str) -> PoolKey {
        PoolKey {
            source: source.parse().unwrap(),
            expected: vec![SERVER.parse::<SpiffeId>().unwrap()],
            to: self.address,
            from: "127.0.0.1".parse().unwrap(),
            netns_cookie: 1,
        }
    }

    pub(super) async fn open(&self) -> Result<TunnelStream, TunnelError> {
        self.open_as(&self.key(CLIENT), &request("10.0.0.9:80")).await.map(|(stream, _)| stream)
    }

    pub(super) async fn open_as(
        &self,
        key: &PoolKey,
        request: &Request<()>,
    ) -> Result<(TunnelStream, VerifiedPeer), TunnelError> {
        self.pool.open(key, request, PATIENCE, || self.dial()).await
    }

    pub(super) fn dial(&self) -> impl Future<Output = Result<Arc<Tunnel>, TunnelError>> + Send + 'static {
        let (address, config, timing) = (self.address, Arc::clone(&self.client), self.timing);
        async move {
            let tcp =
                TcpStream::connect(address).await.map_err(|error| TunnelError::Connect(Arc::new(error)))?;
            let (io, peer) = connect_tls(tcp, address.ip(), config).await?;
            Tunnel::start(io, peer, timing).await
        }
    }

    pub(super) fn connections(&self) -> usize {
        self.accepted.load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// No test waits longer for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn request(authority: &str) -> Request<()> {
    head(authority).request()
}

pub(super) fn head(authority: &str) -> ConnectHead {
    ConnectHead {
        authority: authority.parse().unwrap(),
        client: "10.0.0.1:40000".parse().unwrap(),
        service: None,
        baggage: String::new(),
        traceparent: None,
        opaque: false,
    }
}

/// Sends back what comes, and the end.
pub(super) async fn echo(connect: Connect) {
    let mut stream = connect.accept().unwrap();
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
}

/// Waits for a level.
pub(super) async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what} did not happen in time");
}
