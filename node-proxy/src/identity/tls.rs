//! The rustls configurations: TLS 1.3, the two AES-GCM suites, ALPN `h2`, no SNI, no resumption.

use std::sync::Arc;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::{ClientConfig, Error as TlsError, ServerConfig};
use weft_proto::identity::SpiffeId;

use super::peer::{ClientVerifier, ServerVerifier, TrustCell};

/// The only protocol inside: HTTP/2, whose CONNECT carries the streams.
const ALPN: &[u8] = b"h2";

/// aws-lc with the suites that every node of the mesh speaks (docs: wire). The key exchanges are rustls' own
/// choice: X25519MLKEM768 first, X25519 with it, so that a peer without the former costs no round trip.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
    ];
    Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
}

pub(super) fn client(
    provider: &Arc<CryptoProvider>,
    trust: &TrustCell,
    certificate: Arc<dyn ResolvesClientCert>,
    expected: &[SpiffeId],
) -> Result<ClientConfig, TlsError> {
    let verifier = ServerVerifier {
        trust: Arc::clone(trust),
        expected: expected.into(),
        provider: Arc::clone(provider),
    };
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(certificate);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    // Each connection proves the identity anew: a resumed one would outlive a withdrawn root.
    config.resumption = Resumption::disabled();
    Ok(config)
}

pub(super) fn server(
    provider: &Arc<CryptoProvider>,
    trust: &TrustCell,
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, TlsError> {
    let verifier = ClientVerifier { trust: Arc::clone(trust), provider: Arc::clone(provider) };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
