//! Who is believed, proven with real handshakes in memory; and how certificates come and go.

use std::io;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use time::OffsetDateTime;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_proto::identity::TrustDomain;

use super::*;

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/frontend";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/backend";

/// An authority with what it says about itself.
struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl Authority {
    fn root(name: &str) -> Self {
        let (params, key) = (ca_params(name), KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn intermediate(&self, name: &str) -> Self {
        let (params, key) = (ca_params(name), KeyPair::generate().unwrap());
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, leaf: &CertificateParams) -> (CertificateDer<'static>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        (leaf.signed_by(&key, &self.issuer).unwrap().der().clone(), key)
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// A good leaf; tests spoil one thing of it.
fn leaf(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = OffsetDateTime::now_utc() - time::Duration::minutes(1);
    params.not_after = OffsetDateTime::now_utc() + time::Duration::hours(1);
    params
}

fn mesh(roots: &[&Authority]) -> Mesh {
    let trust_domain = "cluster.local".parse::<TrustDomain>().unwrap();
    Mesh {
        trust_domain,
        roots: roots.iter().map(|root| root.certificate.to_vec()).collect(),
        enrolled_namespaces: Vec::new(),
    }
}

fn bundle(roots: &[&Authority]) -> TrustCell {
    let trust = Trust::new(&mesh(roots), &tls::provider()).unwrap();
    Arc::new(arc_swap::ArcSwapOption::from_pointee(trust))
}

fn shown(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<SingleCertAndKey> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Arc::new(CertifiedKey::from_der(chain, key, &tls::provider()).unwrap().into())
}

/// Handshakes and exchanges a byte; both sides' results, as the peer's identity or the error's text.
async fn handshake(
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
) -> (Result<SpiffeId, String>, Result<SpiffeId, String>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (near, far) = tokio::io::duplex(64 << 10);
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let ours = async {
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        stream.write_all(b"x").await?;
        // With TLS 1.3 the client learns only here that the server refused it.
        stream.read_exact(&mut [0]).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        Ok(Identities::peer(stream.get_ref().1.peer_certificates()).unwrap().id().clone())
    };
    let theirs = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        assert_eq!(stream.get_ref().1.server_name(), None, "no SNI");
        stream.read_exact(&mut [0]).await?;
        stream.write_all(b"y").await?;
        Ok(Identities::peer(stream.get_ref().1.peer_certificates()).unwrap().id().clone())
    };
    let text = |error: io::Error| handshake_detail(&error);
    let (ours, theirs): (io::Result<_>, io::Result<_>) = tokio::join!(ours, theirs);
    (ours.map_err(text), theirs.map_err(text))
}

/// A leaf, what signed it, and its key.
type Shown = (Vec<CertificateDer<'static>>, KeyPair);

async fn meet(
    trust: &TrustCell,
    client: Shown,
    server: Shown,
    expected: &[&str],
) -> (Result<SpiffeId, String>, Result<SpiffeId, String>) {
    let provider = tls::provider();
    let expected: Vec<SpiffeId> = expected.iter().map(|id| id.parse().unwrap()).collect();
    let client = tls::client(&provider, trust, shown(client.0, &client.1), &expected).unwrap();
    let server = tls::server(&provider, trust, shown(server.0, &server.1)).unwrap();
    handshake(Arc::new(client), Arc::new(server)).await
}

fn good(root: &Authority, id: &str) -> Shown {
    spoiled(root, id, |_| {})
}

fn spoiled(root: &Authority, id: &str, spoil: impl FnOnce(&mut CertificateParams)) -> Shown {
    let mut params = leaf(id);
    spoil(&mut params);
    let (certificate, key) = root.sign(&params);
    (vec![certificate], key)
}

#[tokio::test]
async fn both_ends_learn_who_the_other_is() {
    let root = Authority::root("root");
    let (ours, theirs) = meet(
        &bundle(&[&root]),
        good(&root, CLIENT),
        good(&root, SERVER),
        &["spiffe://cluster.local/ns/a/sa/b", SERVER],
    )
    .await;
    assert_eq!((ours.unwrap().to_string(), theirs.unwrap().to_string()), (SERVER.into(), CLIENT.into()));
}

#[tokio::test]
async fn a_certificate_with_anything_wrong_is_refused_on_both_sides() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let trust = bundle(&[&root]);
    let now = OffsetDateTime::now_utc();
    let hour = time::Duration::hours(1);
    let self_signed = |id: &str| {
        let key = KeyPair::generate().unwrap();
        (vec![leaf(id).self_signed(&key).unwrap().der().clone()], key)
    };
    type Make<'a> = Box<dyn Fn(&str) -> Shown + 'a>;
    let cases: Vec<(&str, &str, Make<'_>)> = vec![
        ("expired", "expired", Box::new(|id| spoiled(&root, id, |leaf| leaf.not_after = now - hour / 60))),
        (
            "not yet valid",
            "not valid yet",
            Box::new(|id| spoiled(&root, id, |leaf| leaf.not_before = now + hour / 2)),
        ),
        ("self-signed", "UnknownIssuer", Box::new(|id| self_signed(id))),
        ("of another root", "UnknownIssuer", Box::new(|id| good(&other, id))),
        (
            "two URI names",
            "2 URI names",
            Box::new(|id| {
                spoiled(&root, id, |leaf| {
                    leaf.subject_alt_names.push(uri("spiffe://cluster.local/ns/x/sa/y"));
                })
            }),
        ),
        ("no name", "0 URI names", Box::new(|id| spoiled(&root, id, |leaf| leaf.subject_alt_names.clear()))),
        (
            "a DNS name only",
            "0 URI names",
            Box::new(|id| {
                spoiled(&root, id, |leaf| {
                    leaf.subject_alt_names = vec![SanType::DnsName("a.b".try_into().unwrap())];
                })
            }),
        ),
        (
            "not a workload's name",
            "names no workload",
            Box::new(|id| {
                spoiled(&root, id, |leaf| leaf.subject_alt_names = vec![uri("spiffe://cluster.local/node/x")])
            }),
        ),
        (
            "for signing code",
            "extended key usage",
            Box::new(|id| {
                spoiled(&root, id, |leaf| {
                    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
                })
            }),
        ),
    ];
    for (what, told, make) in cases {
        let (ours, theirs) = meet(&trust, good(&root, CLIENT), make(SERVER), &[SERVER]).await;
        let error = ours.expect_err(what);
        assert!(error.to_lowercase().contains(&told.to_lowercase()), "server {what}: {error}");
        assert!(theirs.is_err(), "server {what}");
        let (ours, theirs) = meet(&trust, make(CLIENT), good(&root, SERVER), &[SERVER]).await;
        let error = theirs.expect_err(what);
        assert!(error.to_lowercase().contains(&told.to_lowercase()), "client {what}: {error}");
        assert!(ours.is_err(), "client {what}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_expected_is_refused_by_name() {
    let root = Authority::root("root");
    let other = "spiffe://cluster.local/ns/shop/sa/other";
    let (ours, theirs) = meet(&bundle(&[&root]), good(&root, CLIENT), good(&root, other), &[SERVER]).await;
    let error = ours.unwrap_err();
    assert!(error.contains(other) && error.contains(SERVER), "{error}");
    assert!(theirs.is_err());
    assert_eq!(
        handshake_close_reason(&io::Error::new(
            io::ErrorKind::InvalidData,
            rustls::Error::from(PeerError::NoCertificate),
        )),
        CloseReason::PeerIdentity
    );
}

#[tokio::test]
async fn a_client_of_another_trust_domain_is_refused() {
    let root = Authority::root("root");
    let foreign = "spiffe://elsewhere.example/ns/shop/sa/frontend";
    let (ours, theirs) = meet(&bundle(&[&root]), good(&root, foreign), good(&root, SERVER), &[SERVER]).await;
    let error = theirs.unwrap_err();
    assert!(error.contains("not of the trust domain cluster.local"), "{error}");
    assert!(ours.is_err());
}

#[tokio::test]
async fn an_intermediate_is_believed_through_its_root_and_not_alone() {
    let root = Authority::root("root");
    let middle = root.intermediate("middle");
    let with = |id| {
        let (mut chain, key) = good(&middle, id);
        chain.push(middle.certificate.clone());
        (chain, key)
    };
    let trust = bundle(&[&root]);
    let (ours, theirs) = meet(&trust, with(CLIENT), with(SERVER), &[SERVER]).await;
    assert!(ours.is_ok() && theirs.is_ok(), "{ours:?} {theirs:?}");
    let (ours, _) = meet(&trust, with(CLIENT), good(&middle, SERVER), &[SERVER]).await;
    assert!(ours.unwrap_err().contains("UnknownIssuer"));
}

#[tokio::test]
async fn roots_change_under_configurations_that_live() {
    let (old, new) = (Authority::root("old"), Authority::root("new"));
    let trust = bundle(&[&old]);
    let provider = tls::provider();
    let (chain, key) = good(&old, CLIENT);
    let client =
        Arc::new(tls::client(&provider, &trust, shown(chain, &key), &[SERVER.parse().unwrap()]).unwrap());
    let serve = |root: &Authority| {
        let (chain, key) = good(root, SERVER);
        Arc::new(tls::server(&provider, &trust, shown(chain, &key)).unwrap())
    };
    let (from_old, from_new) = (serve(&old), serve(&new));
    let now = |roots: &[&Authority]| {
        trust.store(Some(Arc::new(Trust::new(&mesh(roots), &provider).unwrap())));
    };
    let meets = async |server: &Arc<rustls::ServerConfig>| {
        let (ours, theirs) = handshake(Arc::clone(&client), Arc::clone(server)).await;
        ours.is_ok() && theirs.is_ok()
    };
    assert!(meets(&from_old).await && !meets(&from_new).await, "the old root alone");
    now(&[&old, &new]);
    assert!(meets(&from_old).await && meets(&from_new).await, "both");
    now(&[&new]);
    assert!(!meets(&from_old).await && !meets(&from_new).await, "the client's own is of the old root");
}

/// Signs for whoever asks, or refuses; counts.
struct TestSigner {
    root: Authority,
    id: String,
    lifetime: Mutex<Option<time::Duration>>,
    asked: watch::Sender<Vec<PodUid>>,
}

impl Signer for TestSigner {
    fn sign(
        &self,
        pod: PodUid,
        csr_der: Vec<u8>,
    ) -> BoxFuture<'static, Result<Vec<CertificateDer<'static>>, SignError>> {
        self.asked.send_modify(|asked| asked.push(pod));
        let signed = self.lifetime.lock().ok_or_else(|| SignError("refused".into())).map(|lifetime| {
            let csr = CertificateSigningRequestParams::from_der(&csr_der.into()).unwrap();
            let mut params = leaf(&self.id);
            params.not_before = OffsetDateTime::now_utc();
            params.not_after = params.not_before + lifetime;
            let certificate = params.signed_by(&csr.public_key, &self.root.issuer).unwrap();
            vec![certificate.der().clone()]
        });
        async move { signed }.boxed()
    }
}

fn signing(lifetime: Option<time::Duration>) -> (Arc<TestSigner>, Identities) {
    let signer = Arc::new(TestSigner {
        root: Authority::root("root"),
        id: CLIENT.into(),
        lifetime: Mutex::new(lifetime),
        asked: watch::Sender::default(),
    });
    let identities = Identities::new(Arc::clone(&signer) as _);
    identities.trust(&mesh(&[&signer.root])).unwrap();
    (signer, identities)
}

fn wanted(id: &str, pods: &[&str]) -> HashMap<SpiffeId, BTreeSet<PodUid>> {
    HashMap::from([(id.parse().unwrap(), pods.iter().map(|uid| uid.parse().unwrap()).collect())])
}

#[tokio::test]
async fn one_certificate_serves_all_pods_of_an_identity_until_the_last_is_gone() {
    let (signer, identities) = signing(Some(time::Duration::hours(1)));
    let id: SpiffeId = CLIENT.parse().unwrap();
    identities.want(&wanted(CLIENT, &["u1", "u2"]));
    let first = identities.server_config(&id).await.unwrap();
    identities.want(&wanted(CLIENT, &["u2"]));
    let second = identities.server_config(&id).await.unwrap();
    assert!(Arc::ptr_eq(&first, &second), "made once per rotation");
    let expected = [SERVER.parse().unwrap()];
    let (one, two) = (
        identities.client_config(&id, &expected).await.unwrap(),
        identities.client_config(&id, &expected).await.unwrap(),
    );
    assert!(Arc::ptr_eq(&one, &two));
    assert_eq!(signer.asked.borrow().len(), 1);
    let mut changes = identities.subscribe();
    identities.want(&HashMap::new());
    assert!(changes.has_changed().unwrap(), "live connections are told");
    changes.mark_unchanged();
    assert!(!identities.holds(&id));
    assert!(matches!(identities.server_config(&id).await, Err(IdentityError::NotHere { .. })));
}

#[tokio::test]
async fn a_refused_request_is_retried_with_another_pod_and_told_meanwhile() {
    let (signer, identities) = signing(None);
    identities.want(&wanted(CLIENT, &["u1", "u2"]));
    signer.asked.subscribe().wait_for(|asked| asked.len() >= 2).await.unwrap();
    let pods: BTreeSet<_> = signer.asked.borrow().iter().cloned().collect();
    assert_eq!(pods.len(), 2, "not the same pod again");
    assert_eq!(identities.status()[0].last_error.as_deref(), Some("refused"));
    *signer.lifetime.lock() = Some(time::Duration::hours(1));
    identities.client_config(&CLIENT.parse().unwrap(), &[SERVER.parse().unwrap()]).await.unwrap();
    assert!(identities.status()[0].last_error.is_none());
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_expires_and_never_used_after() {
    let (signer, identities) = signing(Some(time::Duration::seconds(3)));
    let id: SpiffeId = CLIENT.parse().unwrap();
    identities.want(&wanted(CLIENT, &["u1"]));
    let first = identities.server_config(&id).await.unwrap();
    signer.asked.subscribe().wait_for(|asked| asked.len() >= 2).await.unwrap();
    let mut state = identities.entries.lock()[&id].state.subscribe();
    let serial = identities.status()[0].serial.clone();
    if Arc::ptr_eq(&first, &state.borrow().svid.as_ref().unwrap().server) {
        state.changed().await.unwrap();
    }
    assert!(!Arc::ptr_eq(&first, &identities.server_config(&id).await.unwrap()), "{serial:?} was renewed");
    *signer.lifetime.lock() = None;
    let expired = async {
        loop {
            match identities.server_config(&id).await {
                Err(error) => return error,
                Ok(_) => state.changed().await.unwrap(),
            }
        }
    };
    let error = expired.await;
    assert!(matches!(error, IdentityError::Expired { .. }), "{error}");
    assert_eq!(error.close_reason(), CloseReason::NoCertificate);
}

#[tokio::test]
async fn a_wall_clock_that_jumps_brings_the_renewal_forward() {
    let (signer, _) = signing(Some(time::Duration::seconds(30)));
    let ahead_s = Arc::new(AtomicU64::new(0));
    let wall = Arc::clone(&ahead_s);
    let clock = move || SystemTime::now() + Duration::from_secs(wall.load(Relaxed));
    let identities = Identities::by_clock(Arc::clone(&signer) as _, clock);
    identities.trust(&mesh(&[&signer.root])).unwrap();
    identities.want(&wanted(CLIENT, &["u1"]));
    identities.server_config(&CLIENT.parse().unwrap()).await.unwrap();
    let started = tokio::time::Instant::now();
    // As after a sleep of the machine: the timer that was set for the half-life knows nothing of it.
    ahead_s.store(25, Relaxed);
    signer.asked.subscribe().wait_for(|asked| asked.len() >= 2).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
}

#[tokio::test]
async fn what_the_control_plane_signs_must_be_what_was_asked_for() {
    let (_signer, identities) = signing(Some(time::Duration::hours(1)));
    identities.want(&wanted(SERVER, &["u1"]));
    let mut state = identities.entries.lock()[&SERVER.parse().unwrap()].state.subscribe();
    state.wait_for(|state| state.last_error.is_some()).await.unwrap();
    let reason = identities.status()[0].last_error.clone().unwrap();
    assert!(reason.contains(CLIENT), "{reason}");
}

#[tokio::test]
async fn live_connections_are_judged_by_the_present_roots_and_the_time_of_their_handshake() {
    let (signer, identities) = signing(None);
    let (chain, _) = spoiled(&signer.root, CLIENT, |leaf| {
        leaf.not_before = OffsetDateTime::now_utc() - time::Duration::hours(2);
        leaf.not_after = OffsetDateTime::now_utc() - time::Duration::hours(1);
    });
    let then = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() - 90 * 60));
    assert!(identities.still_trusted(&chain, PeerSide::Client, then));
    assert!(identities.still_trusted(&chain, PeerSide::Server, then));
    assert!(!identities.still_trusted(&chain, PeerSide::Client, UnixTime::now()));
    identities.trust(&mesh(&[&Authority::root("new")])).unwrap();
    assert!(!identities.still_trusted(&chain, PeerSide::Client, then));
    let broken = Mesh { roots: vec![vec![1, 2, 3]], ..mesh(&[]) };
    assert!(identities.trust(&broken).is_err() && identities.check_trust(&broken).is_err());
}

proptest! {
    /// What peers show and what the control plane sends as roots is foreign bytes.
    #[test]
    fn arbitrary_certificates_and_roots_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let leaf = CertificateDer::from(bytes.clone());
        prop_assert!(peer::spiffe_id(&leaf).is_err());
        let mesh = Mesh { trust_domain: "cluster.local".parse().unwrap(), roots: vec![bytes], enrolled_namespaces: Vec::new() };
        prop_assert!(Trust::new(&mesh, &tls::provider()).is_err());
    }

    #[test]
    fn a_changed_certificate_never_panics(at in 0_usize..600, with in any::<u8>()) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(CLIENT.try_into().unwrap())];
        let mut leaf = params.self_signed(&key).unwrap().der().to_vec();
        let at = at % leaf.len();
        leaf[at] = with;
        let _ = peer::spiffe_id(&CertificateDer::from(leaf.clone()));
        let mesh = Mesh { trust_domain: "cluster.local".parse().unwrap(), roots: vec![leaf], enrolled_namespaces: Vec::new() };
        let _ = Trust::new(&mesh, &tls::provider());
    }
}
