//! The certificate authority: its own key and chain, the trust bundle, certificates of workloads, nodes and the listener.
//!
//! Names come from the pod or from the token, never from the request. Start at [`Authority::sign`]; who may ask is in `service`,
//! which node asks in `authenticate`, whom the listener believes in `bundle`.

mod authenticate;
mod bundle;
mod csr;
mod join_tokens;
mod service;
mod store;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use time::OffsetDateTime;
use weft_proto::identity::{NodeId, SpiffeId, TrustDomain};
use x509_parser::prelude::{FromDer, X509Certificate};

pub use self::authenticate::{Authenticate, NotVouched};
pub(crate) use self::bundle::{Bundle, NodeVerifier};
pub use self::csr::CSR_BYTES_MAX;
pub(crate) use self::join_tokens::JoinTokens;
pub use self::service::CertificateService;
use crate::settings::Settings;

/// Clocks of nodes may be behind by this much.
const BACKDATE: Duration = Duration::from_secs(60);

/// Lifetimes that are not settings.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    /// Of the listener's certificate, which is renewed at half of it.
    pub server: Duration,
    /// Of a node's, at most (never above that of workloads): within this, a node that can no longer show a good token is out. Half of
    /// it is how long whoever judges tokens may be away.
    pub node_max: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { server: Duration::from_secs(7 * 24 * 3600), node_max: Duration::from_secs(3600) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("{file}: {source}")]
    File { file: String, source: std::io::Error },
    #[error("{file}: {problem}")]
    Unusable { file: String, problem: String },
    #[error("{0}")]
    Bundle(String),
    #[error("certificate request: {0}")]
    Csr(&'static str),
    #[error("signing: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("no random numbers")]
    Random,
}

/// A signed certificate of a workload or a node.
#[derive(Debug)]
pub struct Signed {
    pub chain_der: Vec<Vec<u8>>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The issuer's own certificate and what is between it and the root.
    intermediates: Vec<Vec<u8>>,
    own_roots: Vec<Vec<u8>>,
    /// The issuer's end: nothing may outlive it.
    not_after: OffsetDateTime,
    lifetime: Duration,
    lifetimes: Lifetimes,
    domain: TrustDomain,
    server_names: Vec<String>,
    extra_roots: Option<std::path::PathBuf>,
    published: std::path::PathBuf,
    bundle: Arc<ArcSwap<Bundle>>,
    provider: Arc<CryptoProvider>,
}

impl Authority {
    /// Reads (or makes) the authority's key and certificate, and publishes the bundle.
    pub fn open(
        settings: &Settings,
        domain: TrustDomain,
        lifetimes: Lifetimes,
    ) -> Result<Self, AuthorityError> {
        let store::Loaded { issuer, chain, not_after, roots } = store::load(settings)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let bundle = usable_bundle(all_roots(&roots, settings.extra_roots.as_deref())?, &provider)?;
        let authority = Self {
            issuer,
            intermediates: chain,
            own_roots: roots,
            not_after,
            lifetime: settings.cert_lifetime,
            lifetimes,
            domain,
            server_names: settings.server_names.clone(),
            extra_roots: settings.extra_roots.clone(),
            published: store::directory(settings)?.join(store::ROOT_FILE),
            bundle: Arc::new(ArcSwap::from_pointee(bundle)),
            provider,
        };
        store::publish(&authority.published, &authority.bundle())?;
        Ok(authority)
    }

    /// Every root that nodes shall trust. DER.
    pub fn bundle(&self) -> Vec<Vec<u8>> {
        self.bundle.load().roots.clone()
    }

    pub(crate) fn current_bundle(&self) -> Arc<Bundle> {
        self.bundle.load_full()
    }

    /// Whom the listener believes.
    pub(crate) fn node_verifier(&self) -> NodeVerifier {
        NodeVerifier::new(self.domain.clone(), Arc::clone(&self.bundle))
    }

    /// The node of a client's chain, believed at a time under a bundle, and the end of its certificate.
    pub(crate) fn node_of(
        &self,
        chain: &[CertificateDer<'_>],
        at: UnixTime,
        bundle: &Bundle,
    ) -> Result<(NodeId, i64), rustls::Error> {
        let id = bundle.node(&self.domain, chain, at)?;
        let (_, leaf) = X509Certificate::from_der(&chain[0])
            .map_err(|_| rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
        Ok((id, leaf.validity().not_after.timestamp()))
    }

    /// Reads the extra roots again; the new bundle, if it changed. On failure the last good bundle stays.
    pub fn refresh_bundle(&self) -> Result<Option<Vec<Vec<u8>>>, AuthorityError> {
        let roots = all_roots(&self.own_roots, self.extra_roots.as_deref())?;
        if self.bundle.load().roots == roots {
            return Ok(None);
        }
        self.take_bundle(roots.clone())?;
        Ok(Some(roots))
    }

    fn take_bundle(&self, roots: Vec<Vec<u8>>) -> Result<(), AuthorityError> {
        let bundle = usable_bundle(roots, &self.provider)?;
        store::publish(&self.published, &bundle.roots)?;
        self.bundle.store(Arc::new(bundle));
        Ok(())
    }

    /// Signs a certificate for a workload: only the public key is taken from the request.
    pub fn sign(&self, csr_der: &[u8], identity: &SpiffeId) -> Result<Signed, AuthorityError> {
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(csr_der, &identity.to_string(), usages, self.lifetime)
    }

    /// Signs a node's certificate for its connections to the control plane: a client's only.
    pub fn sign_node(&self, csr_der: &[u8], node: &NodeId) -> Result<Signed, AuthorityError> {
        let lifetime = self.lifetime.min(self.lifetimes.node_max);
        self.issue(csr_der, &node.to_string(), vec![ExtendedKeyUsagePurpose::ClientAuth], lifetime)
    }

    fn issue(
        &self,
        csr_der: &[u8],
        uri: &str,
        usages: Vec<ExtendedKeyUsagePurpose>,
        lifetime: Duration,
    ) -> Result<Signed, AuthorityError> {
        let public_key = csr::public_key(csr_der)?;
        let mut params = self.leaf(vec![SanType::URI(uri.to_owned().try_into()?)], lifetime)?;
        params.extended_key_usages = usages;
        let (not_before, not_after) = (params.not_before, params.not_after);
        let leaf = params.signed_by(&public_key, &self.issuer)?;
        let mut chain_der = vec![leaf.der().to_vec()];
        chain_der.extend(self.intermediates.iter().cloned());
        Ok(Signed { chain_der, not_before, not_after })
    }

    /// Key and chain for the listener that nodes connect to.
    pub fn server_certificate(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), AuthorityError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut names = vec![SanType::DnsName("weft-control".to_owned().try_into()?)];
        for name in &self.server_names {
            names.push(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.clone().try_into()?),
            });
        }
        let mut params = self.leaf(names, self.lifetimes.server)?;
        params.distinguished_name.push(DnType::CommonName, "weft-control");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.intermediates.iter().cloned().map(CertificateDer::from));
        Ok((chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }

    fn leaf(&self, names: Vec<SanType>, lifetime: Duration) -> Result<CertificateParams, AuthorityError> {
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = now - BACKDATE;
        params.not_after = (now + lifetime).min(self.not_after);
        params.serial_number = Some(serial()?);
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name = DistinguishedName::new();
        Ok(params)
    }
}

/// The authority's own, and what the file adds.
fn all_roots(own: &[Vec<u8>], extra: Option<&std::path::Path>) -> Result<Vec<Vec<u8>>, AuthorityError> {
    let mut roots = own.to_vec();
    if let Some(file) = extra {
        for root in store::read_certificates(file)? {
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
    }
    Ok(roots)
}

fn usable_bundle(roots: Vec<Vec<u8>>, provider: &Arc<CryptoProvider>) -> Result<Bundle, AuthorityError> {
    Bundle::new(roots, provider).map_err(AuthorityError::Bundle)
}

/// 127 random bits: positive, and never used twice.
fn serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0u8; 16];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| AuthorityError::Random)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
