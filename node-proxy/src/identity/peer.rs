//! Who is at the other end: the certificate verifiers of both sides, and the reading of SPIFFE IDs.
//!
//! Names in DNS play no part. The bundle is looked up at each handshake, so a new one holds at once.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore};
use rustls::{Error as TlsError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use weft_proto::identity::{SpiffeId, TrustDomain};
use weft_proto::model::Mesh;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What is wrong with a peer's certificate, beyond what X.509 says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("the trust bundle is not known yet")]
    NoTrustBundle,
    #[error("a root of the trust bundle cannot be used: {0}")]
    BadRoot(String),
    #[error("the peer showed no certificate")]
    NoCertificate,
    #[error("the peer's certificate cannot be read: {0}")]
    Unreadable(String),
    #[error("the peer's certificate has {0} URI names instead of exactly one")]
    UriNames(usize),
    #[error("the peer's certificate names no workload: {0}")]
    NotAWorkload(weft_proto::identity::IdentityError),
    #[error("the peer {peer} is not of the trust domain {ours}")]
    TrustDomain { peer: SpiffeId, ours: TrustDomain },
    #[error("the peer is {peer}, expected was {expected}")]
    Unexpected { peer: SpiffeId, expected: String },
}

impl From<PeerError> for TlsError {
    fn from(error: PeerError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// The trust bundle, ready for use.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) domain: TrustDomain,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

/// Shared by all verifiers; changes while connections live.
pub(super) type TrustCell = Arc<ArcSwapOption<Trust>>;

impl Trust {
    pub(super) fn new(mesh: &Mesh, provider: &Arc<CryptoProvider>) -> Result<Self, PeerError> {
        let mut roots = RootCertStore::empty();
        for root in &mesh.roots {
            let root = CertificateDer::from(root.clone());
            roots.add(root).map_err(|error| PeerError::BadRoot(error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
            .build()
            .map_err(|error| PeerError::BadRoot(error.to_string()))?;
        Ok(Self { domain: mesh.trust_domain.clone(), roots, clients })
    }

    /// Chain, times and usage of a server's certificate, and whom it names.
    pub(super) fn verify_server(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        provider: &CryptoProvider,
    ) -> Result<SpiffeId, TlsError> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        Ok(spiffe_id(leaf)?)
    }

    /// The same of a client's, which must be of our trust domain.
    pub(super) fn verify_client(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<SpiffeId, TlsError> {
        self.clients.verify_client_cert(leaf, intermediates, now)?;
        let peer = spiffe_id(leaf)?;
        if *peer.trust_domain() != self.domain {
            return Err(PeerError::TrustDomain { peer, ours: self.domain.clone() }.into());
        }
        Ok(peer)
    }
}

/// The SPIFFE ID of a certificate: its only URI name. Says nothing about whether the certificate is to be believed.
pub(super) fn spiffe_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerError> {
    let unreadable = |error: &dyn std::fmt::Display| PeerError::Unreadable(error.to_string());
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|error| unreadable(&error))?;
    let names = certificate.subject_alternative_name().map_err(|error| unreadable(&error))?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    let [uri] = uris[..] else { return Err(PeerError::UriNames(uris.len())) };
    uri.parse().map_err(PeerError::NotAWorkload)
}

/// Client side: any root of the bundle, and one of the expected identities.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) trust: TrustCell,
    pub(super) expected: Box<[SpiffeId]>,
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let trust = self.trust.load_full().ok_or(PeerError::NoTrustBundle)?;
        let peer = trust.verify_server(end_entity, intermediates, now, &self.provider)?;
        if !self.expected.contains(&peer) {
            let expected = self.expected.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
            return Err(PeerError::Unexpected { peer, expected }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Server side: any root of the bundle, and our own trust domain. What the client may do is policy.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) trust: TrustCell,
    pub(super) provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for ClientVerifier {
    /// None: the hints are fixed for the life of a configuration, and the bundle is not.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let trust = self.trust.load_full().ok_or(PeerError::NoTrustBundle)?;
        trust.verify_client(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
