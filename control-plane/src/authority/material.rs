//! What an authority is made of, as text from a store, and what is wrong with it. Pure but for keys that are made.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::AuthorityError;

/// Of a root that is made here; replacing it is a rotation.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Of one text.
pub(super) const PEM_BYTES_MAX: u64 = 1024 * 1024;
/// Certificates in one text: more roots than any mesh rotates through, or more intermediates than TLS peers take.
const CERTIFICATES_MAX: usize = 64;

/// A text, and where it is from: what an error names.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) of: String,
    pub(super) text: String,
}

impl Part {
    pub(super) fn unusable(&self, problem: impl Into<String>) -> AuthorityError {
        AuthorityError::Unusable { file: self.of.clone(), problem: problem.into() }
    }
}

/// Never shown: the key is in it.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Material {
    /// The issuing certificate, then what it chains to.
    pub(super) certificate: Part,
    pub(super) key: Part,
    /// Further roots to trust; empty: none.
    pub(super) roots: Part,
}

/// An authority that can sign.
pub(super) struct Issuing {
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// The issuing certificate.
    pub(super) own: Vec<u8>,
    /// Sent after the leaf: intermediates, without the root.
    pub(super) chain: Vec<Vec<u8>>,
    /// The end of the issuing certificate: nothing may outlive it.
    pub(super) not_after: OffsetDateTime,
    /// What peers must trust to believe it, and what the store says besides.
    pub(super) roots: Vec<Vec<u8>>,
}

impl Issuing {
    pub(super) fn new(material: &Material) -> Result<Self, AuthorityError> {
        let Material { certificate, key, roots: further } = material;
        if certificate.text.trim().is_empty() {
            return Err(certificate.unusable("is missing"));
        }
        if key.text.trim().is_empty() {
            return Err(key.unusable("is missing"));
        }
        let given = certificates(certificate)?;
        let key_pair = key_pair(key)?;
        let own = given[0].clone();
        let not_after = check_issuer(certificate, &own, &key_pair)?;
        let (mut roots, chain): (Vec<_>, Vec<_>) = given.into_iter().partition(|der| self_signed(der));
        if !further.text.trim().is_empty() {
            roots.extend(certificates(further)?);
        }
        let roots = merged([roots]);
        for root in &roots {
            let ca = X509Certificate::from_der(root).is_ok_and(|(_, root)| root.is_ca());
            if !ca {
                return Err(further.unusable("holds a certificate that is not a certificate authority's"));
            }
        }
        if roots.is_empty() {
            return Err(certificate
                .unusable(format!("is an intermediate without its root; give the root in {}", further.of)));
        }
        let issuer = Issuer::from_ca_cert_der(&own.as_slice().into(), key_pair)
            .map_err(|error| certificate.unusable(error.to_string()))?;
        Ok(Self { issuer, own, chain, not_after, roots })
    }
}

/// In each of the encodings that cert-manager, Go and openssl write. What openssl puts before a key (the parameters of its curve) is passed over.
fn key_pair(part: &Part) -> Result<KeyPair, AuthorityError> {
    let key = PrivateKeyDer::from_pem_slice(part.text.as_bytes()).ok();
    key.and_then(|key| KeyPair::try_from(&key).ok()).ok_or_else(|| {
        // The label of PKCS#8, and the header of older encodings.
        let encrypted = ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"];
        part.unusable(if encrypted.iter().any(|sign| part.text.contains(sign)) {
            "is encrypted: nobody could give its passphrase here"
        } else {
            "is not a private key that can be used: PEM (PKCS#8, SEC1 or PKCS#1) of ECDSA (P-256, P-384, P-521), RSA (2048 to 8192 bits) or \
             Ed25519"
        })
    })
}

/// All of them, each once, in order.
pub(super) fn merged<const N: usize>(lists: [Vec<Vec<u8>>; N]) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for der in lists.into_iter().flatten() {
        if !all.contains(&der) {
            all.push(der);
        }
    }
    all
}

/// The certificates of a text: at least one, and nothing else.
pub(super) fn certificates(part: &Part) -> Result<Vec<Vec<u8>>, AuthorityError> {
    if part.text.len() as u64 > PEM_BYTES_MAX {
        return Err(part.unusable("is too large"));
    }
    let mut found = Vec::new();
    for block in CertificateDer::pem_slice_iter(part.text.as_bytes()) {
        let der = block.map_err(|_| part.unusable("is not PEM"))?.to_vec();
        let whole = X509Certificate::from_der(&der).is_ok_and(|(rest, _)| rest.is_empty());
        if !whole {
            return Err(part.unusable("holds something that is not a certificate"));
        }
        if found.len() == CERTIFICATES_MAX {
            return Err(part.unusable(format!("holds more than {CERTIFICATES_MAX} certificates")));
        }
        found.push(der);
    }
    if found.is_empty() {
        return Err(part.unusable("holds no certificate"));
    }
    // Else half of the next block's first line would count as text between blocks.
    let last = part.text.trim_end().rsplit('\n').next().unwrap_or_default();
    if last.starts_with('-') && !last.ends_with("-----") {
        return Err(part.unusable("ends in the middle of a line"));
    }
    Ok(found)
}

pub(super) fn to_pem(certificates: &[Vec<u8>]) -> String {
    let blocks: Vec<_> = certificates.iter().map(|der| pem::Pem::new("CERTIFICATE", der.clone())).collect();
    // As everybody else writes it: the crate's own choice is CR LF.
    pem::encode_many_config(&blocks, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}

/// A certificate authority, in time, that belongs to this key. Its end.
fn check_issuer(part: &Part, der: &[u8], key: &KeyPair) -> Result<OffsetDateTime, AuthorityError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|_| part.unusable("is not an X.509 certificate"))?;
    if !certificate.is_ca() {
        return Err(part.unusable("is not a certificate authority's (CA:FALSE)"));
    }
    // Verifiers differ in whether they look at a root's usages: one that must not sign is found here and not by some peer.
    if let Ok(Some(usage)) = certificate.key_usage()
        && !usage.value.key_cert_sign()
    {
        return Err(part.unusable("may not sign certificates (its key usage has no keyCertSign)"));
    }
    if *certificate.public_key().subject_public_key.data != *key.public_key_raw() {
        return Err(part.unusable("does not belong to the key"));
    }
    let (not_before, not_after) =
        (certificate.validity().not_before, certificate.validity().not_after.to_datetime());
    if !certificate.validity().is_valid() {
        return Err(part
            .unusable(format!("is not valid now (it is from {} to {not_after})", not_before.to_datetime())));
    }
    Ok(not_after)
}

fn self_signed(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| certificate.subject() == certificate.issuer())
}

/// Whether a root ended so long ago, or is none. Its beginning does not count: a clock that is behind is no reason against it.
pub(super) fn over(der: &[u8], since: Duration) -> bool {
    let end = X509Certificate::from_der(der).map(|(_, root)| root.validity().not_after.to_datetime());
    end.map_or(true, |end| end + since <= OffsetDateTime::now_utc())
}

/// A new root with its key.
pub(super) fn new_root(organization: &str) -> Result<Material, AuthorityError> {
    let key_pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.distinguished_name.push(DnType::CommonName, format!("Weft root {}", now.unix_timestamp()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - super::BACKDATE;
    params.not_after = now + ROOT_LIFETIME;
    params.serial_number = Some(super::serial()?);
    let root = params.self_signed(&key_pair)?.pem();
    let part = |text: String| Part { of: "a new root".into(), text };
    Ok(Material { certificate: part(root.clone()), key: part(key_pair.serialize_pem()), roots: part(root) })
}
