//! What the authority promises: the profile of identity.md, kept files, and no panic on foreign bytes.

use std::os::unix::fs::PermissionsExt;

use clap::Parser;
use proptest::prelude::*;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;

fn settings(directory: &std::path::Path) -> Settings {
    let text = directory.display().to_string();
    Settings::parse_from([
        "weft-control",
        "--manifests",
        &text,
        "--state-dir",
        &text,
        "--cert-lifetime",
        "1h",
    ])
}

/// By a runtime of its own: property tests have none.
fn open(settings: &Settings) -> Result<Authority, AuthorityError> {
    now(Authority::open(settings, None, "cluster.local".parse().unwrap(), Lifetimes::default()))
}

fn now<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn part(text: &str) -> material::Part {
    material::Part { of: "the test".into(), text: text.to_owned() }
}

fn request(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
    let key = KeyPair::generate_for(algorithm).unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

#[test]
fn a_workload_certificate_has_the_profile() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(&settings(directory.path())).unwrap();
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/backend".parse().unwrap();
    let signed = authority.sign(&request(&rcgen::PKCS_ECDSA_P256_SHA256), &id).unwrap();
    assert_eq!(signed.chain_der.len(), 1, "a root is not sent");
    let (_, leaf) = X509Certificate::from_der(&signed.chain_der[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/backend")]);
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && usage.value.flags == 1);
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    let root_der = authority.bundle().remove(0);
    let (_, root) = X509Certificate::from_der(&root_der).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    let seconds = (signed.not_after - signed.not_before).whole_seconds();
    assert_eq!(seconds, 3600 + 60);
}

#[test]
fn a_nodes_certificate_is_a_clients_and_short() {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = settings(directory.path());
    settings.cert_lifetime = Duration::from_secs(86400);
    let authority = open(&settings).unwrap();
    let id: NodeId = "spiffe://cluster.local/weft/node/node-1".parse().unwrap();
    let signed = authority.sign_node(&request(&rcgen::PKCS_ECDSA_P256_SHA256), &id).unwrap();
    let (_, leaf) = X509Certificate::from_der(&signed.chain_der[0]).unwrap();
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && !extended.server_auth && !leaf.is_ca());
    assert_eq!((signed.not_after - signed.not_before).whole_seconds(), 3600 + 60);
    let chain = [CertificateDer::from(signed.chain_der[0].clone())];
    let of = |seconds| {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(
            u64::try_from(signed.not_after.unix_timestamp() + seconds).unwrap(),
        ));
        authority.node_of(&chain, now, &authority.current_bundle())
    };
    assert_eq!(of(-1).unwrap(), (id, signed.not_after.unix_timestamp()));
    assert!(of(1).is_err());
    // A workload's certificate is as good as a chain, and is no node's.
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/backend".parse().unwrap();
    let signed = authority.sign(&request(&rcgen::PKCS_ECDSA_P256_SHA256), &id).unwrap();
    let chain = [CertificateDer::from(signed.chain_der[0].clone())];
    let error = authority.node_of(&chain, UnixTime::now(), &authority.current_bundle()).unwrap_err();
    assert!(format!("{error:?}").contains("Name("), "{error:?}");
}

#[test]
fn the_root_is_made_once_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(&settings(directory.path())).unwrap().bundle();
    let second = open(&settings(directory.path())).unwrap().bundle();
    assert_eq!(first, second);
    let mode =
        |file: &str| std::fs::metadata(directory.path().join(file)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca.key"), mode("root.pem")), (0o600, 0o644));
    let published = std::fs::read_to_string(directory.path().join("root.pem")).unwrap();
    assert_eq!(material::certificates(&part(&published)).unwrap(), first);
}

/// A root that is made in this directory, and an intermediate of this key. PEM.
fn root_and_intermediate(directory: &std::path::Path, key: &KeyPair) -> (String, String) {
    open(&settings(directory)).unwrap();
    let read = |file: &str| std::fs::read_to_string(directory.join(file)).unwrap();
    let root = read("ca.pem");
    let root_key = KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&root, root_key).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, "intermediate");
    let intermediate = params.signed_by(key, &issuer).unwrap().pem();
    (root, intermediate)
}

#[test]
fn an_intermediate_is_sent_and_extra_roots_are_trusted() {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let key = KeyPair::generate().unwrap();
    let (root_pem, intermediate) = root_and_intermediate(other.path(), &key);
    let mut settings = settings(directory.path());
    settings.ca_cert = Some(directory.path().join("i.pem"));
    settings.ca_key = Some(directory.path().join("i.key"));
    std::fs::write(directory.path().join("i.pem"), intermediate).unwrap();
    std::fs::write(directory.path().join("i.key"), key.serialize_pem()).unwrap();
    assert!(open(&settings).is_err(), "an intermediate without its root is refused");
    settings.extra_roots = Some(other.path().join("root.pem"));
    let authority = open(&settings).unwrap();
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/backend".parse().unwrap();
    let signed = authority.sign(&request(&rcgen::PKCS_ECDSA_P256_SHA256), &id).unwrap();
    assert_eq!(signed.chain_der.len(), 2);
    assert_eq!(authority.bundle().len(), 1);
    // A second root appears: the bundle follows.
    let third = tempfile::tempdir().unwrap();
    open(&self::settings(third.path())).unwrap();
    let both = root_pem + &std::fs::read_to_string(third.path().join("root.pem")).unwrap();
    std::fs::write(other.path().join("root.pem"), both).unwrap();
    assert_eq!(now(authority.follow()).unwrap().unwrap().len(), 2);
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    let length = if length < 0x80 { vec![length] } else { vec![0x81, length] };
    [&[tag][..], &length, content].concat()
}

/// A key as cert-manager writes it by default, and Go and openssl do: PKCS#1 for RSA; SEC1 for ECDSA, with the name of the curve (DER).
fn unwrapped(key: &KeyPair, curve: Option<&[u8]>) -> Vec<u8> {
    let pkcs8 = key.serialize_der();
    let (_, whole) = x509_parser::der_parser::parse_der(&pkcs8).unwrap();
    let within = whole[2].as_slice().unwrap().to_vec();
    let Some(curve) = curve else { return within };
    let (_, sec1) = x509_parser::der_parser::parse_der(&within).unwrap();
    let public = [&[0][..], key.public_key_raw()].concat();
    let parts = [
        der(0x02, &[1]),
        der(0x04, sec1[1].as_slice().unwrap()),
        der(0xa0, curve),
        der(0xa1, &der(0x03, &public)),
    ];
    der(0x30, &parts.concat())
}

/// In a file, for whoever signs with it; in a Secret it is the same text.
#[test]
fn the_authoritys_key_may_be_in_each_encoding_that_cert_manager_and_openssl_write() {
    const P256: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    const P384: &[u8] = &[6, 5, 0x2b, 0x81, 4, 0, 0x22];
    const P521: &[u8] = &[6, 5, 0x2b, 0x81, 4, 0, 0x23];
    // As `openssl ecparam -genkey` has it.
    let parameters = pem::encode(&pem::Pem::new("EC PARAMETERS", P256));
    for (algorithm, before, label, curve) in [
        (&rcgen::PKCS_ECDSA_P256_SHA256, "", "PRIVATE KEY", None),
        (&rcgen::PKCS_ECDSA_P256_SHA256, "", "EC PRIVATE KEY", Some(P256)),
        (&rcgen::PKCS_ECDSA_P256_SHA256, parameters.as_str(), "EC PRIVATE KEY", Some(P256)),
        (&rcgen::PKCS_ECDSA_P384_SHA384, "", "PRIVATE KEY", None),
        (&rcgen::PKCS_ECDSA_P384_SHA384, "", "EC PRIVATE KEY", Some(P384)),
        (&rcgen::PKCS_ECDSA_P521_SHA512, "", "EC PRIVATE KEY", Some(P521)),
        (&rcgen::PKCS_RSA_SHA256, "", "PRIVATE KEY", None),
        (&rcgen::PKCS_RSA_SHA256, "", "RSA PRIVATE KEY", None),
        (&rcgen::PKCS_ED25519, "", "PRIVATE KEY", None),
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let bytes = if label == "PRIVATE KEY" { key.serialize_der() } else { unwrapped(&key, curve) };
        let directory = tempfile::tempdir().unwrap();
        let at = |file: &str| directory.path().join(file);
        std::fs::create_dir(at("root")).unwrap();
        let (_, intermediate) = root_and_intermediate(&at("root"), &key);
        std::fs::write(at("i.pem"), intermediate).unwrap();
        let text = before.to_owned() + &pem::encode(&pem::Pem::new(label, bytes));
        std::fs::write(at("i.key"), text).unwrap();
        let mut settings = settings(directory.path());
        (settings.ca_cert, settings.ca_key) = (Some(at("i.pem")), Some(at("i.key")));
        settings.extra_roots = Some(at("root/root.pem"));
        // What it signs is proven to be believed before it counts.
        let authority = open(&settings).unwrap_or_else(|error| panic!("{algorithm:?} {label}: {error}"));
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/backend".parse().unwrap();
        let signed = authority.sign(&request(&rcgen::PKCS_ECDSA_P256_SHA256), &id).unwrap();
        assert_eq!(signed.chain_der.len(), 2, "{algorithm:?} {label}");
    }
}

#[test]
fn a_key_that_cannot_be_used_is_named_with_those_that_can() {
    let directory = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let (root, intermediate) = root_and_intermediate(directory.path(), &key);
    let of = |label: &str, bytes: Vec<u8>| pem::encode(&pem::Pem::new(label, bytes));
    let cut = key.serialize_der()[..20].to_vec();
    for (text, problem) in [
        (of("ENCRYPTED PRIVATE KEY", key.serialize_der()), "is encrypted"),
        (
            "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n".into(),
            "is encrypted",
        ),
        (of("PRIVATE KEY", cut), "PEM (PKCS#8, SEC1 or PKCS#1) of ECDSA (P-256, P-384, P-521), RSA"),
        (key.public_key_pem(), "is not a private key that can be used"),
        (intermediate.clone(), "is not a private key that can be used"),
        (" \n".into(), "is missing"),
    ] {
        let key = material::Part { of: "tls.key of Secret weft-system/weft-ca".into(), text };
        let stored = material::Material { certificate: part(&intermediate), key, roots: part(&root) };
        let told = Issuing::new(&stored).map(drop).unwrap_err().to_string();
        let named = told.strip_prefix("tls.key of Secret weft-system/weft-ca: ");
        assert!(named.is_some_and(|told| told.contains(problem)), "{problem:?} is not in {told:?}");
    }
}

#[test]
fn a_foreign_key_or_a_broken_signature_is_refused() {
    assert!(csr::public_key(&request(&rcgen::PKCS_ECDSA_P256_SHA256)).is_ok());
    for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
        let error = csr::public_key(&request(algorithm)).unwrap_err();
        assert!(error.to_string().contains("P-256"), "{error}");
    }
    let mut broken = request(&rcgen::PKCS_ECDSA_P256_SHA256);
    *broken.last_mut().unwrap() ^= 1;
    assert!(csr::public_key(&broken).is_err());
    assert!(csr::public_key(&vec![0x30; CSR_BYTES_MAX + 1]).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(csr::public_key(&bytes).is_err());
    }

    #[test]
    fn arbitrary_certificates_and_bundles_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(bundle::node_id(&bytes).is_err());
        prop_assert!(material::certificates(&part(&String::from_utf8_lossy(&bytes))).is_err());
        let block = pem::encode(&pem::Pem::new("CERTIFICATE", bytes));
        prop_assert!(material::certificates(&part(&block)).is_err());
        let material = material::Material { certificate: part(&block), key: part(&block), roots: part(&block) };
        prop_assert!(Issuing::new(&material).is_err());
    }

    #[test]
    fn a_changed_certificate_never_panics(at in 0usize..400, with in any::<u8>()) {
        let directory = tempfile::tempdir().unwrap();
        let authority = open(&settings(directory.path())).unwrap();
        let id: NodeId = "spiffe://cluster.local/weft/node/node-1".parse().unwrap();
        let mut leaf = authority.sign_node(&request(&rcgen::PKCS_ECDSA_P256_SHA256), &id).unwrap().chain_der.remove(0);
        let at = at % leaf.len();
        leaf[at] = with;
        let _ = bundle::node_id(&leaf);
        let _ = authority.node_of(&[CertificateDer::from(leaf)], UnixTime::now(), &authority.current_bundle());
    }

    #[test]
    fn a_changed_request_never_panics(at in 0usize..400, with in any::<u8>()) {
        let mut bytes = request(&rcgen::PKCS_ECDSA_P256_SHA256);
        let at = at % bytes.len();
        bytes[at] = with;
        let _ = csr::public_key(&bytes);
    }
}
