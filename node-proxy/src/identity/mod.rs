//! The workload identities of this node: keys, certificates, rotation, and the rustls configurations made of them.
//!
//! Keys are made here and never leave. rustls set-up lives in this module only.

use std::sync::Arc;

use weft_proto::identity::SpiffeId;

/// Why no TLS configuration can be had for an identity.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityError {
    #[error("no certificate for {identity} yet: {reason}")]
    NotReady { identity: SpiffeId, reason: String },
}

/// A peer whose certificate was verified: chain, times, usages, exactly one URI SAN, trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VerifiedPeer(SpiffeId);

impl VerifiedPeer {
    pub fn id(&self) -> &SpiffeId {
        &self.0
    }
}

/// The certificates of this node's pods.
pub struct Identities {
    _private: (),
}

impl Identities {
    /// TLS client side of `source`, accepting only servers whose SPIFFE ID is one of `expected`.
    pub async fn client_config(
        &self,
        _source: &SpiffeId,
        _expected: &[SpiffeId],
    ) -> Result<Arc<rustls::ClientConfig>, IdentityError> {
        todo!()
    }
    /// TLS server side of `identity`: any client of the same trust domain.
    pub async fn server_config(
        &self,
        _identity: &SpiffeId,
    ) -> Result<Arc<rustls::ServerConfig>, IdentityError> {
        todo!()
    }
    /// The verified identity behind a finished handshake.
    pub fn peer(
        _certificates: Option<&[rustls_pki_types::CertificateDer<'_>]>,
    ) -> Result<VerifiedPeer, IdentityError> {
        todo!()
    }
}
