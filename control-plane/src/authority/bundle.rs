//! The trust bundle, and who is believed under it: the verifier of nodes' client certificates.
//!
//! The bundle is looked up at each handshake, so a new one holds at once.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use weft_proto::identity::{NodeId, TrustDomain};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a certificate is not a node's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotANode {
    #[error("the certificate cannot be read")]
    Unreadable,
    #[error("the certificate has {0} URI names instead of exactly one")]
    UriNames(usize),
    #[error("the certificate is not a node's: {0}")]
    Name(#[from] weft_proto::identity::IdentityError),
    #[error("the node {0} is not of this trust domain")]
    TrustDomain(NodeId),
}

impl From<NotANode> for TlsError {
    fn from(error: NotANode) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// Roots, ready for use.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub(super) roots: Vec<Vec<u8>>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Bundle {
    /// The error says which root cannot be used.
    pub(super) fn new(roots: Vec<Vec<u8>>, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        for (i, root) in roots.iter().enumerate() {
            let added = store.add(CertificateDer::from(root.clone()));
            added.map_err(|error| format!("root {} of the trust bundle cannot be used: {error}", i + 1))?;
        }
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
            .build()
            .map_err(|error| format!("the trust bundle cannot be used: {error}"))?;
        Ok(Self { roots, clients })
    }

    /// Chain, times and usage of a node's certificate, and which node it names.
    pub(super) fn node(
        &self,
        domain: &TrustDomain,
        chain: &[CertificateDer<'_>],
        at: UnixTime,
    ) -> Result<NodeId, TlsError> {
        let (leaf, intermediates) = chain.split_first().ok_or(TlsError::NoCertificatesPresented)?;
        self.clients.verify_client_cert(leaf, intermediates, at)?;
        let id = node_id(leaf)?;
        if id.trust_domain() != domain {
            return Err(NotANode::TrustDomain(id).into());
        }
        Ok(id)
    }
}

/// The only URI name of a certificate, which must be a node's.
pub(super) fn node_id(leaf: &[u8]) -> Result<NodeId, NotANode> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| NotANode::Unreadable)?;
    let names = certificate.subject_alternative_name().map_err(|_| NotANode::Unreadable)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    let [uri] = uris[..] else { return Err(NotANode::UriNames(uris.len())) };
    Ok(uri.parse()?)
}

/// Takes nodes' certificates, and connections that show none: those may ask for a node's certificate with a token.
#[derive(Debug)]
pub(crate) struct NodeVerifier {
    domain: TrustDomain,
    bundle: Arc<ArcSwap<Bundle>>,
    provider: Arc<CryptoProvider>,
}

impl NodeVerifier {
    pub(super) fn new(domain: TrustDomain, bundle: Arc<ArcSwap<Bundle>>) -> Self {
        Self { domain, bundle, provider: Arc::new(aws_lc_rs::default_provider()) }
    }
}

impl ClientCertVerifier for NodeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

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
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        self.bundle.load().node(&self.domain, &chain, now)?;
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
