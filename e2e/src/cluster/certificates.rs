//! The cluster's keys and certificates, and the kubeconfigs that use them. All are made anew with each cluster.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

/// Certificates outlive every cluster and every clock that a test sets.
const FIRST_YEAR: i32 = 2020;
const LAST_YEAR: i32 = 2090;

/// An authority whose certificate and signed ones are written to one directory.
pub(crate) struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// Whom a certificate is for.
#[derive(Debug, Default)]
pub(crate) struct Subject<'a> {
    /// The user, for clients.
    pub(crate) name: &'a str,
    /// The group, for clients.
    pub(crate) group: Option<&'a str>,
    /// What a server is reached by.
    pub(crate) dns: &'a [&'a str],
    pub(crate) ips: &'a [IpAddr],
}

impl Authority {
    /// Writes `<name>.pem`.
    pub(crate) fn new(directory: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        write(&directory.join(format!("{name}.pem")), &certificate.pem())?;
        Ok(Self { directory: directory.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// Writes `<file>.pem` and `<file>.key`.
    pub(crate) fn sign(&self, file: &str, subject: &Subject<'_>) -> Result<()> {
        let mut params = params(subject.name);
        if let Some(group) = subject.group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        for dns in subject.dns {
            params.subject_alt_names.push(SanType::DnsName((*dns).try_into()?));
        }
        params.subject_alt_names.extend(subject.ips.iter().map(|ip| SanType::IpAddress(*ip)));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write(&self.directory.join(format!("{file}.pem")), &certificate.pem())?;
        write(&self.directory.join(format!("{file}.key")), &key.serialize_pem())
    }

    /// The key that signs ServiceAccount tokens: `<file>.key`, and `<file>.pub` to verify them.
    pub(crate) fn signing_key(&self, file: &str) -> Result<()> {
        let key = KeyPair::generate()?;
        write(&self.directory.join(format!("{file}.pub")), &key.public_key_pem())?;
        write(&self.directory.join(format!("{file}.key")), &key.serialize_pem())
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(FIRST_YEAR, 1, 1);
    params.not_after = date_time_ymd(LAST_YEAR, 1, 1);
    params
}

/// A kubeconfig of `<user>.pem` and `<user>.key`, which lie with `ca.pem` in `pki`, seen from the kubeconfig's place.
pub(crate) fn kubeconfig(file: &Path, server: &str, pki: &str, user: &str) -> Result<()> {
    write(
        file,
        &format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: weft\n\
             clusters:\n- name: weft\n  cluster: {{server: \"{server}\", certificate-authority: \"{pki}/ca.pem\"}}\n\
             users:\n- name: {user}\n  user: {{client-certificate: \"{pki}/{user}.pem\", client-key: \"{pki}/{user}.key\"}}\n\
             contexts:\n- name: weft\n  context: {{cluster: weft, user: {user}}}\n"
        ),
    )
}

pub(crate) fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| file.display().to_string())?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
    Ok(())
}
