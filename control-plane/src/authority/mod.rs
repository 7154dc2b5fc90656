//! The certificate authority: its own key and chain, the trust bundle, workload certificates, the listener's certificate.
//!
//! The SPIFFE ID comes from the pod, never from the request. Start at [`Authority::sign`]; who may ask is in `service`.

mod csr;
mod service;
mod store;
#[cfg(test)]
mod tests;
mod tokens;

use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use weft_proto::identity::SpiffeId;

pub use self::csr::CSR_BYTES_MAX;
pub use self::service::CertificateService;
pub use self::tokens::authenticate;
use crate::settings::Settings;

/// Clocks of nodes may be behind by this much.
const BACKDATE: Duration = Duration::from_secs(60);
/// Of the listener's certificate, which is renewed at half of it.
const SERVER_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
pub const SERVER_RENEWAL: Duration = Duration::from_secs(84 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("{file}: {source}")]
    File { file: String, source: std::io::Error },
    #[error("{file}: {problem}")]
    Unusable { file: String, problem: String },
    #[error("certificate request: {0}")]
    Csr(&'static str),
    #[error("signing: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("no random numbers")]
    Random,
}

/// A signed workload certificate.
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
    server_names: Vec<String>,
    extra_roots: Option<std::path::PathBuf>,
    published: std::path::PathBuf,
    bundle: Mutex<Vec<Vec<u8>>>,
}

impl Authority {
    /// Reads (or makes) the authority's key and certificate, and publishes the bundle.
    pub fn open(settings: &Settings) -> Result<Self, AuthorityError> {
        let store::Loaded { issuer, chain, not_after, roots } = store::load(settings)?;
        let authority = Self {
            issuer,
            intermediates: chain,
            own_roots: roots,
            not_after,
            lifetime: settings.cert_lifetime,
            server_names: settings.server_names.clone(),
            extra_roots: settings.extra_roots.clone(),
            published: store::directory(settings)?.join(store::ROOT_FILE),
            bundle: Mutex::default(),
        };
        authority.refresh_bundle()?;
        Ok(authority)
    }

    /// Every root that nodes shall trust. DER.
    pub fn bundle(&self) -> Vec<Vec<u8>> {
        self.bundle.lock().clone()
    }

    /// Reads the extra roots again; the new bundle, if it changed. On failure the last good bundle stays.
    pub fn refresh_bundle(&self) -> Result<Option<Vec<Vec<u8>>>, AuthorityError> {
        let mut roots = self.own_roots.clone();
        if let Some(file) = &self.extra_roots {
            for root in store::read_certificates(file)? {
                if !roots.contains(&root) {
                    roots.push(root);
                }
            }
        }
        if *self.bundle.lock() == roots {
            return Ok(None);
        }
        store::publish(&self.published, &roots)?;
        *self.bundle.lock() = roots.clone();
        Ok(Some(roots))
    }

    /// Signs a certificate for a workload: only the public key is taken from the request.
    pub fn sign(&self, csr_der: &[u8], identity: &SpiffeId) -> Result<Signed, AuthorityError> {
        let public_key = csr::public_key(csr_der)?;
        let uri = identity.to_string().try_into()?;
        let mut params = self.leaf(vec![SanType::URI(uri)], self.lifetime)?;
        params.distinguished_name = DistinguishedName::new();
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
        let mut params = self.leaf(names, SERVER_LIFETIME)?;
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
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = now - BACKDATE;
        params.not_after = (now + lifetime).min(self.not_after);
        params.serial_number = Some(serial()?);
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name = DistinguishedName::new();
        Ok(params)
    }
}

/// 127 random bits: positive, and never used twice.
fn serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0u8; 16];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| AuthorityError::Random)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
