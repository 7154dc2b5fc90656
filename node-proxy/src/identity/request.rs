//! A key made on this node, and the request for its certificate: of a workload, or of the node itself.

/// The key stays in this process.
pub(crate) struct Request {
    pub(crate) key: rcgen::KeyPair,
    pub(crate) csr_der: Vec<u8>,
}

impl Request {
    /// Empty but for the key: the control plane decides whom the certificate names.
    pub(crate) fn new() -> Result<Self, rcgen::Error> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let csr_der = params.serialize_request(&key)?.der().to_vec();
        Ok(Self { key, csr_der })
    }
}
