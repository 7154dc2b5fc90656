//! One certificate with its key, and the configurations made of it: once per rotation, then shared.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use weft_proto::identity::SpiffeId;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use super::peer::{Trust, TrustCell, spiffe_id};
use super::request::Request;
use super::tls;

/// Longest chain that the control plane may answer with: leaf and intermediates.
const CHAIN_MAX: usize = 8;
/// Client configurations kept per certificate. One is needed per set of expected identities, so a pod that talks to
/// more Services than this only pays for building some again.
const CLIENT_CONFIGS_MAX: usize = 1024;

/// Why what the control plane signed cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SvidError {
    #[error("the chain has {0} certificates instead of 1 to {CHAIN_MAX}")]
    ChainLength(usize),
    #[error("the leaf cannot be read: {0}")]
    Unreadable(String),
    #[error("the leaf is for {got}")]
    OtherIdentity { got: SpiffeId },
    #[error(
        "what the control plane signed just now is valid from {from} to {to}, and here it is {now}: the clocks of this node and the control \
         plane differ"
    )]
    Clocks { from: ASN1Time, to: ASN1Time, now: ASN1Time },
    #[error("the chain does not hold: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why a certificate that was made a moment ago is not in time.
fn clocks_differ(leaf: &CertificateDer<'_>, now: UnixTime) -> Option<SvidError> {
    let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
    let now = ASN1Time::from_timestamp(i64::try_from(now.as_secs()).ok()?).ok()?;
    let (from, to) = (leaf.validity().not_before, leaf.validity().not_after);
    (now < from || now >= to).then_some(SvidError::Clocks { from, to, now })
}

/// A workload's certificate.
#[derive(Debug)]
pub(super) struct Svid {
    resolver: Arc<Resolver>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    pub(super) serial: String,
    pub(super) server: Arc<ServerConfig>,
    clients: Mutex<HashMap<Box<[SpiffeId]>, Arc<ClientConfig>>>,
    trust: TrustCell,
    provider: Arc<CryptoProvider>,
}

impl Svid {
    /// Takes a signed chain if it is what was asked for and what peers will believe.
    pub(super) fn new(
        identity: &SpiffeId,
        request: &Request,
        chain: Vec<CertificateDer<'static>>,
        cell: &TrustCell,
        trust: &Trust,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, SvidError> {
        if chain.is_empty() || chain.len() > CHAIN_MAX {
            return Err(SvidError::ChainLength(chain.len()));
        }
        let (leaf, intermediates) = (&chain[0], &chain[1..]);
        let now = UnixTime::now();
        let verified = trust
            .verify_client(leaf, intermediates, now)
            .and_then(|_| trust.verify_server(leaf, intermediates, now, provider));
        verified.map_err(|error| clocks_differ(leaf, now).unwrap_or(SvidError::Tls(error)))?;
        let got = spiffe_id(leaf).map_err(rustls::Error::from)?;
        if got != *identity {
            return Err(SvidError::OtherIdentity { got });
        }
        let unreadable = |error: &dyn std::fmt::Display| SvidError::Unreadable(error.to_string());
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| unreadable(&error))?;
        let at = |time: ASN1Time| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
        };
        let (not_before, not_after) = (at(parsed.validity().not_before), at(parsed.validity().not_after));
        let serial = parsed.raw_serial_as_string();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(request.key.serialize_der()));
        // Fails when the leaf's key is not ours.
        let certified = CertifiedKey::from_der(chain, key, provider)?;
        let resolver = Arc::new(Resolver { certified: Arc::new(certified), not_after });
        let server = Arc::new(tls::server(provider, cell, Arc::clone(&resolver) as _)?);
        let (trust, provider) = (Arc::clone(cell), Arc::clone(provider));
        Ok(Self {
            resolver,
            not_before,
            not_after,
            serial,
            server,
            clients: Mutex::default(),
            trust,
            provider,
        })
    }

    pub(super) fn client(&self, expected: &[SpiffeId]) -> Result<Arc<ClientConfig>, rustls::Error> {
        if let Some(config) = self.clients.lock().get(expected) {
            return Ok(Arc::clone(config));
        }
        let config =
            Arc::new(tls::client(&self.provider, &self.trust, Arc::clone(&self.resolver) as _, expected)?);
        let mut clients = self.clients.lock();
        if clients.len() >= CLIENT_CONFIGS_MAX {
            clients.clear();
        }
        clients.insert(expected.into(), Arc::clone(&config));
        Ok(config)
    }

    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.resolver.certified.cert
    }

    pub(super) fn expired(&self, now: SystemTime) -> bool {
        now >= self.not_after
    }
}

/// Shows the certificate while it is valid: a configuration may be held for longer.
#[derive(Debug)]
struct Resolver {
    certified: Arc<CertifiedKey>,
    not_after: SystemTime,
}

impl Resolver {
    fn valid(&self) -> Option<Arc<CertifiedKey>> {
        (SystemTime::now() < self.not_after).then(|| Arc::clone(&self.certified))
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.valid()
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.valid()
    }
    fn has_certs(&self) -> bool {
        true
    }
}
