//! What the authority promises while the one in its store changes: last good, bundle before signature, no outage.

use clap::Parser;
use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};

use super::*;

/// An authority of files that a test replaces.
struct Bed {
    directory: tempfile::TempDir,
    authority: Authority,
}

impl Bed {
    async fn new(settle: Duration) -> Self {
        Self::with(settle, None).await
    }

    /// `further`: what the file of further roots holds.
    async fn with(settle: Duration, further: Option<&str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().display().to_string();
        let mut settings = Settings::parse_from([
            "weft-control",
            "--manifests",
            &text,
            "--state-dir",
            &text,
            "--cert-lifetime",
            "1h",
        ]);
        settings.extra_roots = further.map(|text| {
            let file = directory.path().join("further.pem");
            std::fs::write(&file, text).unwrap();
            file
        });
        let lifetimes = Lifetimes { issuer_settle: settle, ..Lifetimes::default() };
        let domain = "cluster.local".parse().unwrap();
        let authority = Authority::open(&settings, None, domain, lifetimes).await.unwrap();
        Self { directory, authority }
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(file)).unwrap()
    }
    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.directory.path().join(file), text).unwrap();
    }
    fn put(&self, (certificate, key): &(String, String)) {
        self.write("ca.pem", certificate);
        self.write("ca.key", key);
    }

    /// The chain of a certificate that is signed now.
    fn signed(&self) -> Vec<CertificateDer<'static>> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let id = "spiffe://cluster.local/weft/node/n".parse().unwrap();
        let signed = self.authority.sign_node(csr.der(), &id).unwrap();
        signed.chain_der.into_iter().map(CertificateDer::from).collect()
    }

    fn believed(&self, chain: &[CertificateDer<'_>]) -> bool {
        self.authority.node_of(chain, UnixTime::now(), &self.authority.current_bundle()).is_ok()
    }
}

fn ca(change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, format!("root {:?}", serial().unwrap()));
    change(&mut params);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[tokio::test]
async fn what_cannot_sign_is_refused_by_name_and_the_last_good_authority_stays() {
    let bed = Bed::new(Duration::ZERO).await;
    let (certificate, key) = (bed.read("ca.pem"), bed.read("ca.key"));
    let over = |params: &mut CertificateParams| {
        params.not_before = OffsetDateTime::now_utc() - time::Duration::days(2);
        params.not_after = OffsetDateTime::now_utc() - time::Duration::days(1);
    };
    let no_path =
        |params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    for (what, pair, file, told) in [
        ("another's key", (certificate.clone(), ca(|_| ()).1), "ca.pem", "does not belong to the key"),
        ("expired", ca(over), "ca.pem", "is not valid now"),
        ("not an authority", ca(|params| params.is_ca = IsCa::ExplicitNoCa), "ca.pem", "CA:FALSE"),
        ("no certificate", (String::new(), key.clone()), "ca.pem", "is missing"),
        ("no key", (certificate.clone(), String::new()), "ca.key", "is missing"),
        ("no PEM", ("nonsense".into(), key.clone()), "ca.pem", "holds no certificate"),
        ("a key that is none", (certificate.clone(), "nonsense".into()), "ca.key", "is not a private key"),
        ("may not sign", ca(no_path), "ca.pem", "keyCertSign"),
    ] {
        bed.put(&pair);
        let found = bed.authority.follow().await;
        let error = found.unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(told), "{what}: {error}");
        assert!(!error.contains("PRIVATE"), "{what}");
        assert_eq!(bed.authority.status().problem, Some(error));
        assert!(!bed.authority.advance(true) && bed.believed(&bed.signed()), "{what}");
    }
    bed.put(&(certificate, key));
    assert_eq!(bed.authority.follow().await.unwrap(), None);
    assert_eq!(bed.authority.status().problem, None);
}

#[tokio::test]
async fn a_new_authority_signs_only_when_its_root_is_trusted_and_old_certificates_stay_good() {
    let bed = Bed::new(Duration::ZERO).await;
    let old = bed.signed();
    bed.put(&ca(|_| ()));
    let bundle = bed.authority.follow().await.unwrap().unwrap();
    assert_eq!(bundle.len(), 2, "the old root and the new");
    let between = bed.signed();
    assert!(
        bed.authority.status().rotating && !bed.authority.advance(false),
        "not every node has the bundle"
    );
    assert!(bed.authority.advance(true) && !bed.authority.status().rotating);
    let new = bed.signed();
    // Everything that was ever signed is believed, until the old root is taken out.
    assert!([&old, &between, &new].into_iter().all(|chain| bed.believed(chain)));
    assert_eq!(bed.authority.follow().await.unwrap(), None, "the old root stays by itself");
    bed.write("previous.pem", "");
    assert_eq!(bed.authority.follow().await.unwrap().unwrap().len(), 1);
    assert_eq!([&old, &between, &new].map(|chain| bed.believed(chain)), [false, false, true]);
}

#[tokio::test]
async fn roots_of_earlier_authorities_outlast_a_clock_that_is_wrong() {
    let bed = Bed::new(Duration::ZERO).await;
    let root = |from_days, to_days| {
        let days = |days| OffsetDateTime::now_utc() + time::Duration::days(days);
        ca(|params| (params.not_before, params.not_after) = (days(from_days), days(to_days))).0
    };
    // As seen by a clock that is behind, by one that is ahead, and by any.
    bed.write("previous.pem", &[root(2, 100), root(-100, -2), root(-100, -31)].concat());
    assert_eq!(
        bed.authority.follow().await.unwrap().unwrap().len(),
        2,
        "its own root, and the one of the future"
    );
    assert_eq!(
        bed.read("previous.pem").matches("BEGIN CERTIFICATE").count(),
        2,
        "what may be good by another clock"
    );
    assert_eq!(bed.authority.follow().await.unwrap(), None);
}

#[tokio::test]
async fn a_new_root_settles_before_it_signs_and_can_be_taken_back() {
    let bed = Bed::new(Duration::from_secs(3600)).await;
    let first = (bed.read("ca.pem"), bed.read("ca.key"));
    bed.put(&ca(|_| ()));
    bed.authority.follow().await.unwrap().unwrap();
    assert!(!bed.authority.advance(true), "too soon, whoever has it");
    bed.put(&first);
    bed.authority.follow().await.unwrap();
    assert!(!bed.authority.status().rotating && !bed.authority.advance(true));
    assert!(bed.believed(&bed.signed()));
}

#[tokio::test]
async fn an_intermediate_of_a_trusted_root_takes_over_at_once() {
    let bed = Bed::new(Duration::from_secs(3600)).await;
    let root_key = KeyPair::from_pem(&bed.read("ca.key")).unwrap();
    let root = bed.read("ca.pem");
    let issuer = Issuer::from_ca_cert_pem(&root, root_key).unwrap();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, "intermediate");
    let intermediate = params.signed_by(&key, &issuer).unwrap().pem();
    bed.put(&(intermediate + &root, key.serialize_pem()));
    assert_eq!(bed.authority.follow().await.unwrap(), None, "nothing new to trust");
    assert!(bed.authority.advance(true));
    let chain = bed.signed();
    assert!(chain.len() == 2 && bed.believed(&chain));
}

#[tokio::test]
async fn roots_stay_while_their_file_is_half_written_and_go_only_by_name() {
    let (first, second) = (ca(|_| ()).0, ca(|_| ()).0);
    let bed = Bed::with(Duration::ZERO, Some(&(first.clone() + &second))).await;
    let whole = bed.authority.bundle();
    assert_eq!(whole.len(), 3);
    // Wherever a copy stops: whatever it has is either refused, or has all that was there.
    let middle = first.len() + second.len() / 2;
    for (text, told) in [
        ("", "holds no certificate"),
        ("\n", "holds no certificate"),
        ("# the roots of ex", "holds no certificate"),
        (&first[..first.len() / 2], "is not PEM"),
        (&(first.clone() + &second)[..middle], "is not PEM"),
        (&(first.clone() + "-----BEG"), "ends in the middle of a line"),
        (&(first.clone() + "-----BEGIN CERTIFICATE-----\n"), "is not PEM"),
    ] {
        bed.write("further.pem", text);
        let error = bed.authority.follow().await.unwrap_err().to_string();
        assert!(error.contains("further.pem") && error.contains(told), "{text:?}: {error}");
        assert_eq!(bed.authority.status().problem, Some(error));
        assert_eq!(bed.authority.bundle(), whole, "{text:?}");
    }
    bed.write("further.pem", &first);
    assert_eq!(bed.authority.follow().await.unwrap().unwrap(), whole[..2]);
    bed.write("further.pem", "# none\n");
    assert_eq!(bed.authority.follow().await.unwrap().unwrap(), whole[..1]);
    assert_eq!(bed.authority.status().problem, None);
}
