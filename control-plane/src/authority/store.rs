//! The authority's files: key (0600) and certificate, made on first start; the published bundle (0644).
//!
//! Every file is written whole: next to its place, synced, renamed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::AuthorityError;
use crate::settings::Settings;

pub(super) const ROOT_FILE: &str = "root.pem";
const KEY_FILE: &str = "ca.key";
const CERT_FILE: &str = "ca.pem";
/// Of a root that is made here; replacing it is a rotation with --extra-roots.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const PEM_BYTES_MAX: u64 = 1024 * 1024;

pub(super) struct Loaded {
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// Sent after the leaf: intermediates, without the root.
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) not_after: OffsetDateTime,
    pub(super) roots: Vec<Vec<u8>>,
}

fn file_error(file: &Path) -> impl FnOnce(std::io::Error) -> AuthorityError + '_ {
    move |source| AuthorityError::File { file: file.display().to_string(), source }
}

fn unusable(file: &Path, problem: impl Into<String>) -> AuthorityError {
    AuthorityError::Unusable { file: file.display().to_string(), problem: problem.into() }
}

pub(super) fn directory(settings: &Settings) -> Result<&Path, AuthorityError> {
    let directory = settings.state_dir.as_deref();
    directory.ok_or_else(|| unusable(Path::new("--state-dir"), "is not given"))
}

pub(super) fn load(settings: &Settings) -> Result<Loaded, AuthorityError> {
    let directory = directory(settings)?;
    fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(file_error(directory))?;
    let (cert, key) = match (&settings.ca_cert, &settings.ca_key) {
        (Some(cert), Some(key)) => (cert.clone(), key.clone()),
        _ => {
            let (cert, key) = (directory.join(CERT_FILE), directory.join(KEY_FILE));
            if !cert.exists() {
                make_root(&cert, &key, settings)?;
            }
            (cert, key)
        }
    };
    let chain = read_certificates(&cert)?;
    let key_pem = read_key(&key)?;
    let key_pair =
        KeyPair::from_pem(&key_pem).map_err(|e| unusable(&key, format!("is not a usable key: {e}")))?;
    let first = chain.first().ok_or_else(|| unusable(&cert, "holds no certificate"))?;
    let not_after = check_issuer(&cert, first, &key_pair)?;
    let mut roots = Vec::new();
    let mut intermediates = Vec::new();
    for der in &chain {
        if self_signed(der) { roots.push(der.clone()) } else { intermediates.push(der.clone()) }
    }
    if roots.is_empty() && settings.extra_roots.is_none() {
        return Err(unusable(
            &cert,
            "is an intermediate without its root; append the root or give it by --extra-roots",
        ));
    }
    let issuer = Issuer::from_ca_cert_der(&first.as_slice().into(), key_pair)
        .map_err(|e| unusable(&cert, e.to_string()))?;
    Ok(Loaded { issuer, chain: intermediates, not_after, roots })
}

/// The key is an operator's too, so a mode that shows it to others is told and not refused (a mounted Secret has one).
fn read_key(file: &Path) -> Result<String, AuthorityError> {
    let found = fs::metadata(file).map_err(file_error(file))?;
    if found.len() > PEM_BYTES_MAX {
        return Err(unusable(file, "is too large"));
    }
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(file = %file.display(), mode = format!("{mode:o}"), "the authority's key is open to others");
    }
    fs::read_to_string(file).map_err(file_error(file))
}

/// A certificate authority, in time, that belongs to this key. Its end.
fn check_issuer(file: &Path, der: &[u8], key: &KeyPair) -> Result<OffsetDateTime, AuthorityError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|_| unusable(file, "is not an X.509 certificate"))?;
    if !certificate.is_ca() {
        return Err(unusable(file, "is not a certificate authority's"));
    }
    if *certificate.public_key().subject_public_key.data != *key.public_key_raw() {
        return Err(unusable(file, "does not belong to the key"));
    }
    let not_after = certificate.validity().not_after.to_datetime();
    if !certificate.validity().is_valid() {
        return Err(unusable(file, format!("is not valid now (it ends at {not_after})")));
    }
    Ok(not_after)
}

fn self_signed(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| certificate.subject() == certificate.issuer())
}

fn make_root(cert: &Path, key: &Path, settings: &Settings) -> Result<(), AuthorityError> {
    // A key without a certificate is left from a start that was cut short: it has signed nothing yet.
    let key_pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, settings.trust_domain.clone());
    params.distinguished_name.push(DnType::CommonName, format!("Weft root {}", now.unix_timestamp()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - super::BACKDATE;
    params.not_after = now + ROOT_LIFETIME;
    params.serial_number = Some(super::serial()?);
    let root = params.self_signed(&key_pair)?;
    write_whole(key, key_pair.serialize_pem().as_bytes(), 0o600)?;
    write_whole(cert, root.pem().as_bytes(), 0o644)
}

pub(super) fn read_certificates(file: &Path) -> Result<Vec<Vec<u8>>, AuthorityError> {
    let bytes = fs::metadata(file).map_err(file_error(file))?.len();
    if bytes > PEM_BYTES_MAX {
        return Err(unusable(file, "is too large"));
    }
    let text = fs::read(file).map_err(file_error(file))?;
    let certificates: Vec<Vec<u8>> = rustls_pemfile::certs(&mut text.as_slice())
        .map(|der| der.map(|der| der.to_vec()))
        .collect::<Result<_, _>>()
        .map_err(file_error(file))?;
    for der in &certificates {
        X509Certificate::from_der(der)
            .map_err(|_| unusable(file, "holds something that is not a certificate"))?;
    }
    if certificates.is_empty() {
        return Err(unusable(file, "holds no certificate"));
    }
    Ok(certificates)
}

pub(super) fn publish(file: &Path, roots: &[Vec<u8>]) -> Result<(), AuthorityError> {
    let blocks: Vec<_> = roots.iter().map(|der| pem::Pem::new("CERTIFICATE", der.clone())).collect();
    write_whole(file, pem::encode_many(&blocks).as_bytes(), 0o644)
}

fn write_whole(file: &Path, bytes: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let next = file.with_extension("next");
    let write = || -> std::io::Result<()> {
        let _ = fs::remove_file(&next);
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&next)?;
        out.write_all(bytes)?;
        out.sync_all()?;
        fs::rename(&next, file)?;
        fs::File::open(file.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(file_error(file))
}
