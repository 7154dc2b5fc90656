//! Certificate requests of nodes: foreign bytes. Bounded, signature checked, and nothing but an ECDSA P-256 key taken.

use rcgen::CertificateSigningRequestParams;
use rustls_pki_types::CertificateSigningRequestDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::AuthorityError;

/// A request with a P-256 key is well under 1 KiB.
pub const CSR_BYTES_MAX: usize = 8 * 1024;
const OID_EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const OID_P256: &str = "1.2.840.10045.3.1.7";
/// 0x04 and two coordinates of 32 bytes.
const P256_POINT_BYTES: usize = 65;

/// The request's key, once its signature proves that the requester holds the private one.
pub(super) fn public_key(der: &[u8]) -> Result<rcgen::PublicKey, AuthorityError> {
    if der.is_empty() || der.len() > CSR_BYTES_MAX {
        return Err(AuthorityError::Csr("is empty or too large"));
    }
    let (rest, request) =
        X509CertificationRequest::from_der(der).map_err(|_| AuthorityError::Csr("is not PKCS#10 in DER"))?;
    if !rest.is_empty() {
        return Err(AuthorityError::Csr("has bytes after its end"));
    }
    let key = &request.certification_request_info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let point = &key.subject_public_key.data;
    if key.algorithm.algorithm.to_id_string() != OID_EC_PUBLIC_KEY
        || curve.is_none_or(|curve| curve.to_id_string() != OID_P256)
        || point.len() != P256_POINT_BYTES
        || point.first() != Some(&4)
    {
        return Err(AuthorityError::Csr("has a key that is not ECDSA P-256"));
    }
    let der = CertificateSigningRequestDer::from(der);
    let params = CertificateSigningRequestParams::from_der(&der)
        .map_err(|_| AuthorityError::Csr("has a signature or an extension that is not valid"))?;
    if params.public_key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(AuthorityError::Csr("is not signed with ECDSA P-256 and SHA-256"));
    }
    Ok(params.public_key)
}
