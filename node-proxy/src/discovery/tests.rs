//! The stream against a control plane of the test's own, over TLS: what is acknowledged, refused and kept.

use std::pin::Pin;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use weft_proto::identity::PodUid;
use weft_proto::model::{Mesh, Revision, Service};
use weft_proto::v1::discovery_server::{Discovery, DiscoveryServer};
use weft_proto::v1::node_message::Message;

use super::*;
use crate::identity::{SignError, Signer};

/// One opened stream, as the test drives it.
struct Opened {
    token: String,
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

struct TestControl(mpsc::Sender<Opened>);

#[tonic::async_trait]
impl Discovery for TestControl {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<v1::Delta, Status>> + Send>>;
    async fn subscribe(
        &self,
        request: Request<Streaming<v1::NodeMessage>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let token = request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
        let (to_node, deltas) = mpsc::channel(4);
        let opened = Opened { token, from_node: request.into_inner(), to_node };
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
    _files: tempfile::TempDir,
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.node.abort();
        self.server.abort();
    }
}

async fn bed() -> Bed {
    let files = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(["weft-control".into()]).unwrap().self_signed(&key).unwrap();
    let (ca, token) = (files.path().join("ca.pem"), files.path().join("token"));
    std::fs::write(&ca, certificate.pem()).unwrap();
    std::fs::write(&token, "secret-1\n").unwrap();

    let (opened, streams) = mpsc::channel(4);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate.pem(), key.serialize_pem()));
    let server =
        Server::builder().tls_config(tls).unwrap().add_service(DiscoveryServer::new(TestControl(opened)));
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
    let control = Arc::new(ControlPlane::at(address, ca, token));
    let node = tokio::spawn(run(control, sink));
    Bed { streams, snapshot, status, followed, node, server, _files: files }
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
    Resource::Service(Arc::new(Service { id, vips: Vec::new(), ports: Vec::new() }))
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
    assert_eq!(stream.token, "Bearer secret-1");
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
