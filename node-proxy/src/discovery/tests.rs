//! The stream against a control plane of the test's own, over TLS: what is acknowledged, refused and kept.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use weft_proto::identity::PodUid;
use weft_proto::model::{Mesh, Revision, Service};
use weft_proto::v1::certificates_server::{Certificates, CertificatesServer};
use weft_proto::v1::discovery_server::{Discovery, DiscoveryServer};
use weft_proto::v1::node_message::Message;

use super::credentials::Files;
use super::*;
use crate::identity::{SignError, Signer};

/// One opened stream, as the test drives it.
struct Opened {
    /// Certificates in the chain that the node showed.
    shown: usize,
    from_node: Streaming<v1::NodeMessage>,
    to_node: mpsc::Sender<Result<v1::Delta, Status>>,
}

impl Opened {
    async fn next(&mut self) -> Message {
        self.from_node.message().await.unwrap().unwrap().message.unwrap()
    }
    async fn send(&self, delta: v1::Delta) {
        self.to_node.send(Ok(delta)).await.unwrap();
    }
}

/// The authority of the tests, and what it answers to nodes.
struct Ca {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
    /// Of the next certificates.
    lifetime: Mutex<Duration>,
    down: AtomicBool,
    /// The token of each request.
    asked: Mutex<Vec<String>>,
}

impl Ca {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: rcgen::Issuer::new(params, key),
            pem,
            lifetime: Mutex::new(Duration::from_secs(3600)),
            down: AtomicBool::new(false),
            asked: Mutex::default(),
        }
    }
}

struct TestControl(mpsc::Sender<Opened>);

struct TestSigner(Arc<Ca>);

#[tonic::async_trait]
impl Certificates for TestSigner {
    async fn sign_node(
        &self,
        request: Request<v1::SignNodeRequest>,
    ) -> Result<Response<v1::SignResponse>, Status> {
        let Ca { issuer, lifetime, down, asked, .. } = &*self.0;
        asked.lock().push(request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned());
        if down.load(Ordering::Relaxed) {
            return Err(Status::unavailable("nobody can judge tokens now"));
        }
        let csr = request.into_inner().csr_der.into();
        let mut csr = rcgen::CertificateSigningRequestParams::from_der(&csr).unwrap();
        csr.params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = csr.signed_by(issuer).unwrap();
        let now = time::OffsetDateTime::now_utc();
        Ok(Response::new(v1::SignResponse {
            chain_der: vec![leaf.der().to_vec()],
            not_before_unix_s: now.unix_timestamp(),
            not_after_unix_s: (now + *lifetime.lock()).unix_timestamp(),
        }))
    }

    async fn sign(&self, _: Request<v1::SignRequest>) -> Result<Response<v1::SignResponse>, Status> {
        Err(Status::permission_denied("nobody signs here"))
    }
}

#[tonic::async_trait]
impl Discovery for TestControl {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<v1::Delta, Status>> + Send>>;
    async fn subscribe(
        &self,
        request: Request<Streaming<v1::NodeMessage>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        assert!(request.metadata().get("authorization").is_none(), "the token is only for the certificate");
        let shown = request.peer_certs().map_or(0, |chain| chain.len());
        let (to_node, deltas) = mpsc::channel(4);
        let opened = Opened { shown, from_node: request.into_inner(), to_node };
        assert!(self.0.send(opened).await.is_ok());
        Ok(Response::new(Box::pin(ReceiverStream::new(deltas))))
    }
}

struct NoSigner;

impl Signer for NoSigner {
    fn sign(
        &self,
        _: PodUid,
        _: Vec<u8>,
    ) -> BoxFuture<'static, Result<Vec<CertificateDer<'static>>, SignError>> {
        async { Err(SignError("nobody signs here".into())) }.boxed()
    }
}

/// Writes down which revision was current whenever it was told to follow.
struct Followed {
    snapshot: Arc<SnapshotHandle>,
    revisions: mpsc::UnboundedSender<Revision>,
}

impl Follow for Followed {
    async fn follow(&self) {
        self.revisions.send(self.snapshot.load().revision()).unwrap();
    }
}

/// A node's client that runs against a control plane's server.
struct Bed {
    streams: mpsc::Receiver<Opened>,
    snapshot: Arc<SnapshotHandle>,
    status: Arc<watch::Sender<ControlStatus>>,
    followed: mpsc::UnboundedReceiver<Revision>,
    node: tokio::task::JoinHandle<()>,
    server: tokio::task::JoinHandle<()>,
    ca: Arc<Ca>,
    files: tempfile::TempDir,
}

impl Bed {
    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }
    fn tokens(&self) -> Vec<String> {
        self.ca.asked.lock().clone()
    }
    /// The next stream, its Hello taken.
    async fn opened(&mut self) -> Opened {
        let mut stream = self.streams.recv().await.unwrap();
        assert!(matches!(stream.next().await, Message::Hello(_)));
        stream
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.node.abort();
        self.server.abort();
    }
}

async fn bed() -> Bed {
    bed_of(Ca::new()).await
}

async fn bed_of(ca: Ca) -> Bed {
    let files = tempfile::tempdir().unwrap();
    let authority = Arc::new(ca);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["weft-control".into()])
        .unwrap()
        .signed_by(&key, &authority.issuer)
        .unwrap();
    let (ca, token) = (files.path().join("ca.pem"), files.path().join("token"));
    std::fs::write(&ca, &authority.pem).unwrap();
    std::fs::write(&token, "secret-1\n").unwrap();

    let (opened, streams) = mpsc::channel(4);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(certificate.pem(), key.serialize_pem()))
        .client_ca_root(Certificate::from_pem(&authority.pem))
        .client_auth_optional(true);
    let server = Server::builder()
        .tls_config(tls)
        .unwrap()
        .add_service(DiscoveryServer::new(TestControl(opened)))
        .add_service(CertificatesServer::new(TestSigner(Arc::clone(&authority))));
    let server = tokio::spawn(async move {
        server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });

    let (revisions, followed) = mpsc::unbounded_channel();
    let snapshot = Arc::new(SnapshotHandle::default());
    let status = Arc::new(watch::Sender::new(ControlStatus::default()));
    let sink = Sink {
        node_name: "n1".into(),
        snapshot: Arc::clone(&snapshot),
        identities: Arc::new(Identities::new(Arc::new(NoSigner))),
        status: Arc::clone(&status),
        follow: Followed { snapshot: Arc::clone(&snapshot), revisions },
    };
    let control = ControlPlane::at(address, Files::new(ca, token), Arc::clone(&snapshot));
    let node = tokio::spawn(run(Arc::new(control), sink));
    Bed { streams, snapshot, status, followed, node, server, ca: authority, files }
}

fn mesh() -> Resource {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().der().to_vec();
    Resource::Mesh(Arc::new(Mesh {
        trust_domain: "cluster.local".parse().unwrap(),
        roots: vec![root],
        enrolled_namespaces: Vec::new(),
    }))
}

fn service(name: &str) -> Resource {
    let id = format!("shop/{name}").parse().unwrap();
    Resource::Service(Arc::new(Service { id, vips: Vec::new(), ports: Vec::new(), node_local: false }))
}

fn delta(nonce: u64, upserts: &[Resource]) -> v1::Delta {
    v1::Delta {
        nonce,
        revision: nonce * 10,
        upserts: upserts.iter().map(convert::resource_to_wire).collect(),
        ..v1::Delta::default()
    }
}

#[tokio::test]
async fn a_delta_in_parts_is_applied_as_one_and_acknowledged_once_all_followed() {
    let mut bed = bed().await;
    let mut stream = bed.streams.recv().await.unwrap();
    assert_eq!((stream.shown, bed.tokens()), (1, vec!["Bearer secret-1".to_owned()]));
    let Message::Hello(hello) = stream.next().await else { panic!("hello comes first") };
    assert_eq!((hello.node.as_str(), hello.known.len()), ("n1", 0));
    stream.send(v1::Delta { more: true, ..delta(1, &[mesh(), service("a")]) }).await;
    stream.send(delta(2, &[service("b")])).await;
    assert_eq!(stream.next().await, Message::Ack(v1::Ack { nonce: 2, revision: 20 }));
    assert_eq!(
        bed.followed.recv().await,
        Some(Revision(20)),
        "followed after the snapshot, before the answer"
    );
    assert_eq!((bed.snapshot.load().services().count(), bed.snapshot.load().resources()), (2, 3));
    let status = bed.status.subscribe().wait_for(|status| status.synced).await.unwrap().clone();
    assert_eq!((status.connected, status.revision, status.deltas_applied), (true, 20, 1));
}

#[tokio::test]
async fn nonsense_is_refused_by_name_and_the_last_good_state_stays_whole() {
    let mut bed = bed().await;
    let mut stream = bed.streams.recv().await.unwrap();
    stream.next().await;
    stream.send(delta(1, &[mesh(), service("a")])).await;
    assert!(matches!(stream.next().await, Message::Ack(_)));
    let good = bed.snapshot.load();

    let with = |change: fn(&mut v1::Resource)| {
        let mut bad = delta(2, &[service("b"), service("bad")]);
        change(&mut bad.upserts[1]);
        bad
    };
    let root_of_nothing = Resource::Mesh(Arc::new(Mesh {
        trust_domain: "cluster.local".parse().unwrap(),
        roots: vec![vec![1, 2, 3]],
        enrolled_namespaces: Vec::new(),
    }));
    let no_mesh = v1::Delta {
        removals: vec![convert::resource_key_to_wire(&ResourceKey::Mesh)],
        ..delta(2, &[service("b")])
    };
    for (bad, named) in [
        (with(|resource| resource.body = None), "shop/bad"),
        (with(|resource| resource.key = None), ""),
        // As of a newer control plane.
        (
            with(|resource| {
                resource.body = None;
                resource.key.as_mut().unwrap().kind = 99;
            }),
            "shop/bad",
        ),
        (with(|resource| resource.key.as_mut().unwrap().name = "shop/other".into()), "shop/other"),
        (delta(2, &[service("b"), root_of_nothing]), "mesh"),
        (no_mesh, "mesh"),
    ] {
        stream.send(bad).await;
        let Message::Nack(nack) = stream.next().await else { panic!("{named:?} was not refused") };
        let names: Vec<_> =
            nack.refusals.iter().map(|it| it.key.as_ref().map_or("", |key| &key.name)).collect();
        assert_eq!((nack.nonce, names), (2, vec![named]));
        assert!(!nack.refusals[0].reason.is_empty());
        assert!(Arc::ptr_eq(&good, &bed.snapshot.load()), "nothing of it is used");
        assert!(!bed.status.borrow().refused.is_empty());
    }
    stream.send(delta(3, &[service("b")])).await;
    assert!(matches!(stream.next().await, Message::Ack(v1::Ack { nonce: 3, .. })));
    assert_eq!(bed.snapshot.load().services().count(), 2);
}

#[tokio::test]
async fn after_a_lost_stream_the_node_says_what_it_holds() {
    let mut bed = bed().await;
    let mut stream = bed.streams.recv().await.unwrap();
    stream.next().await;
    stream.send(delta(1, &[mesh(), service("a")])).await;
    assert!(matches!(stream.next().await, Message::Ack(_)));
    drop(stream);

    let mut stream = bed.streams.recv().await.unwrap();
    let Message::Hello(hello) = stream.next().await else { panic!("hello comes first") };
    let mut names: Vec<_> =
        hello.known.iter().map(|known| known.key.as_ref().unwrap().name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["mesh", "shop/a"]);
    let version = convert::version_of(&service("a")).0;
    assert!(hello.known.iter().any(|known| known.version == version));
    assert_eq!(bed.snapshot.load().services().count(), 1, "the last good state stayed");
    // A restarted control plane counts its revisions anew.
    let removal = convert::resource_key_to_wire(&ResourceKey::Service("shop/a".parse().unwrap()));
    stream.send(v1::Delta { nonce: 1, revision: 1, removals: vec![removal], ..v1::Delta::default() }).await;
    assert_eq!(stream.next().await, Message::Ack(v1::Ack { nonce: 1, revision: 1 }));
    assert_eq!(bed.snapshot.load().services().count(), 0);
}

#[tokio::test]
async fn the_certificate_is_renewed_beside_the_stream_with_the_token_as_it_is_then() {
    let ca = Ca::new();
    *ca.lifetime.lock() = Duration::from_secs(3);
    let mut bed = bed_of(ca).await;
    // Asked for, and not answered yet: the renewal is all to come.
    while bed.tokens().is_empty() {
        tokio::task::yield_now().await;
    }
    std::fs::write(bed.file("token"), "secret-2\n").unwrap();
    let mut stream = bed.opened().await;
    let mut status = bed.status.subscribe();
    let first = status.borrow().certificate.clone().unwrap();
    let renewed = |status: &ControlStatus| status.certificate.as_ref().is_some_and(|it| *it != first);
    status.wait_for(renewed).await.unwrap();
    assert_eq!(bed.tokens()[..2], ["Bearer secret-1", "Bearer secret-2"]);
    // A failure is told, and made good.
    bed.ca.down.store(true, Ordering::Relaxed);
    let failed = |status: &ControlStatus| status.certificate.as_ref().unwrap().last_error.is_some();
    status.wait_for(failed).await.unwrap();
    bed.ca.down.store(false, Ordering::Relaxed);
    status.wait_for(|status| !failed(status)).await.unwrap();
    stream.send(delta(1, &[mesh()])).await;
    assert!(matches!(stream.next().await, Message::Ack(_)), "it is still the first stream");
    assert_eq!(bed.status.borrow().connects, 1);
}

#[tokio::test]
async fn a_refused_certificate_is_replaced_and_a_good_one_is_used_while_tokens_cannot_be_judged() {
    let mut bed = bed().await;
    let mut stream = bed.opened().await;
    stream.send(delta(1, &[mesh()])).await;
    assert!(matches!(stream.next().await, Message::Ack(_)));
    drop(stream);
    let stream = bed.opened().await;
    assert_eq!(bed.tokens().len(), 1, "a certificate that was believed is used again");
    stream.to_node.send(Err(Status::unauthenticated("not believed"))).await.unwrap();
    drop(stream);
    let stream = bed.opened().await;
    assert_eq!(bed.tokens().len(), 2);
    bed.ca.down.store(true, Ordering::Relaxed);
    // No delta came: it may be for the certificate's sake.
    drop(stream);
    let stream = bed.opened().await;
    assert_eq!((stream.shown, bed.tokens().len()), (1, 3), "asked in vain, and came with what it had");
}

#[tokio::test]
async fn the_connection_follows_the_authority_and_a_broken_file_changes_nothing() {
    let mut bed = bed().await;
    let _first = bed.opened().await;
    let both = Ca::new().pem + &bed.ca.pem;
    std::fs::write(bed.file("ca.pem"), both).unwrap();
    let stream = bed.opened().await;
    std::fs::write(bed.file("ca.pem"), "no certificate").unwrap();
    drop(stream);
    bed.opened().await;
    std::fs::write(bed.file("ca.pem"), Ca::new().pem).unwrap();
    let mut status = bed.status.subscribe();
    let told = |status: &ControlStatus| status.last_error.as_ref().is_some_and(|e| e.contains("certificate"));
    status.wait_for(told).await.unwrap();
    assert!(bed.streams.is_empty(), "another authority's control plane is not believed");
}

#[tokio::test]
async fn a_root_that_was_pushed_is_believed_before_the_file_has_it_and_not_after_the_file_has_lost_it() {
    let pushed = |roots: &[&str]| {
        let der = |pem: &&str| pem::parse(pem).unwrap().into_contents();
        let mesh = Resource::Mesh(Arc::new(Mesh {
            trust_domain: "cluster.local".parse().unwrap(),
            roots: roots.iter().map(der).collect(),
            enrolled_namespaces: Vec::new(),
        }));
        let change = Change::Upsert(convert::key_of(&mesh), convert::version_of(&mesh), mesh);
        Snapshot::default().apply(Revision(1), [change])
    };
    let told = |status: &ControlStatus| status.last_error.as_ref().is_some_and(|e| e.contains("certificate"));
    // The control plane shows a certificate of its new authority, and the file has only the old one.
    let mut bed = bed().await;
    drop(bed.opened().await);
    let (old, new) = (Ca::new().pem, bed.ca.pem.clone());
    bed.snapshot.replace(pushed(&[&old]));
    std::fs::write(bed.file("ca.pem"), &old).unwrap();
    let mut status = bed.status.subscribe();
    status.wait_for(told).await.unwrap();
    while bed.streams.try_recv().is_ok() {}
    bed.snapshot.replace(pushed(&[&old, &new]));
    let _stream = bed.opened().await;
    // Another file: what was pushed before counts no more.
    std::fs::write(bed.file("ca.pem"), Ca::new().pem).unwrap();
    status.wait_for(|status| !status.connected && told(status)).await.unwrap();
    assert!(bed.streams.is_empty());
}

#[test]
fn pauses_between_attempts_grow_and_stay_bounded() {
    for failures in [0, 1, 5, 50, u32::MAX] {
        for random in [0, u32::MAX] {
            let pause = reconnect_pause(failures, random).as_millis();
            assert!((50..=u128::from(RECONNECT_MS_MAX)).contains(&pause), "{failures} {random}: {pause}");
        }
    }
    assert!(reconnect_pause(4, 0) > reconnect_pause(1, 0));
}

#[tokio::test]
async fn an_authority_that_is_half_written_replaces_none() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    let (first, second, third) = (Ca::new().pem, Ca::new().pem, Ca::new().pem);
    let both = first.clone() + &second;
    std::fs::write(&file, &both).unwrap();
    let files = Files::new(file.clone(), directory.path().join("token"));
    assert_eq!(*files.authority().await.unwrap(), both);
    for half in ["", &first[..first.len() / 2], "nonsense"] {
        std::fs::write(&file, half).unwrap();
        assert_eq!(*files.authority().await.unwrap(), both, "{half:?}");
    }
    // Cut between two of them; the rest comes before the second look, which is later than this write however slow all is.
    let whole = both.clone() + &third;
    std::fs::write(&file, &first).unwrap();
    let rest = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        std::fs::write(&file, &whole).unwrap();
    };
    let (_, seen) = tokio::join!(rest, files.authority());
    assert!([&both, &whole].contains(&&*seen.unwrap()));
    assert_eq!(*files.authority().await.unwrap(), whole);
    std::fs::write(&file, &first).unwrap();
    assert_eq!(*files.authority().await.unwrap(), first);
}
