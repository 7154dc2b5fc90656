//! The server's side: policy per request, and an application that goes its own ways.

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use weft_proto::model::{
    AuthorizationPolicy, PolicyAction, PolicyOperation, PolicyRule, PolicySource, Resource, ResourceKey,
    Revision, TextMatch, Version,
};

use super::*;
use crate::inbound::{Incoming as Connection, Peer};
use crate::l7::inbound::{Host, serve_on as serve_in};
use crate::snapshot::{Change, SnapshotHandle};

/// Short, so that a test need not wait; nothing but the slow head takes as long, also on a busy machine.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Server {
    pub(super) client: DuplexStream,
    pub(super) app: TcpStream,
    snapshot: Arc<SnapshotHandle>,
    pub(super) telemetry: Telemetry,
    pub(super) serving: JoinHandle<()>,
}

fn allow(paths: &str, action: PolicyAction) -> AuthorizationPolicy {
    let to = PolicyOperation { paths: vec![TextMatch::Prefix(paths.into())], ..PolicyOperation::default() };
    let from = PolicySource {
        principals: vec![TextMatch::Exact("cluster.local/ns/shop/sa/frontend".into())],
        ..PolicySource::default()
    };
    let rules = vec![PolicyRule { from: vec![from], to: vec![to] }];
    AuthorizationPolicy { id: id(&format!("shop/p{}-0", paths.replace('/', "-"))), action, rules }
}

impl Server {
    pub(super) async fn start(protocol: Protocol, policies: Vec<AuthorizationPolicy>) -> Self {
        let snapshot = Arc::new(SnapshotHandle::default());
        let mut workload = workload("backend", [10, 0, 0, 1].into());
        workload.authorization_policies = policies.iter().map(|policy| policy.id.clone()).collect();
        let policies = policies.into_iter().map(|policy| {
            let key = ResourceKey::AuthorizationPolicy(policy.id.clone());
            Change::Upsert(key, Version(1), Resource::AuthorizationPolicy(Arc::new(policy)))
        });
        snapshot.replace(snapshot.load().apply(Revision(1), policies));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ours, accepted) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (client, io) = tokio::io::duplex(64 << 10);
        let telemetry = Telemetry::start(&TelemetrySettings::default()).unwrap();
        let connection = Connection {
            pod: pod(workload),
            address: address(1),
            port: 8080,
            peer: Peer::Local("spiffe://cluster.local/ns/shop/sa/frontend".parse().unwrap()),
            client: "10.0.1.1:40000".parse().unwrap(),
            local_source: None,
        };
        let host = Host {
            snapshot: Arc::clone(&snapshot),
            telemetry: telemetry.clone(),
            drain: Drain::default(),
            head_timeout: HEAD_TIMEOUT,
        };
        let serving = tokio::spawn(serve_in(host, connection, protocol, io, ours.unwrap()));
        Self { client, app: accepted.unwrap().0, snapshot, telemetry, serving }
    }

    fn finished(&self, reason: &str) -> u64 {
        let series = format!("weft_requests_finished_total{{reporter=\"destination\",reason=\"{reason}\"}}");
        counted(&self.telemetry, &series)
    }

    async fn ask(&mut self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: b\r\n\r\n");
        self.client.write_all(request.as_bytes()).await.unwrap();
        head_of(&mut self.client).await
    }
}

async fn serve(app: TcpStream) {
    let service = service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(answer(200, format!("{}", request.uri())))
    });
    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(app), service).await;
}

#[tokio::test]
async fn policy_is_asked_for_each_request_and_follows_changes() {
    let policies = vec![allow("/public", PolicyAction::Allow), allow("/public/secret", PolicyAction::Deny)];
    let Server { client, app, snapshot, telemetry, .. } = Server::start(Protocol::Http1, policies).await;
    tokio::spawn(serve(app));
    let (mut sender, connection) = http1::handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    let mut ask = async |path: &str| {
        within(sender.ready()).await.unwrap();
        read(within(sender.send_request(get(path))).await.unwrap()).await
    };
    assert_eq!(ask("/public/a").await.0, 200);
    let (status, headers, text) = ask("/private").await;
    assert_eq!((status, &headers["x-weft-reason"]), (403, &http::HeaderValue::from_static("policy_denied")));
    assert!(text.contains("no ALLOW"), "{text}");
    let (status, _, text) = ask("/public/secret/x").await;
    assert_eq!(status, 403);
    assert!(text.contains("shop/p-public-secret-0"), "{text}");
    // The connection goes on, and the next request meets the changed policy.
    let gone = Change::Remove(ResourceKey::AuthorizationPolicy(id("shop/p-public-0")));
    snapshot.replace(snapshot.load().apply(Revision(2), [gone]));
    let (status, _, text) = ask("/public/a").await;
    assert_eq!(status, 403, "{text}");
    let denied = "weft_requests_finished_total{reporter=\"destination\",reason=\"policy_denied\"}";
    assert_eq!(counted(&telemetry, denied), 3);
}

/// The close travels to the client's proxy, so that it does not keep a dead connection in its pool.
#[tokio::test]
async fn an_application_that_closes_while_idle_closes_the_connection() {
    let mut server = Server::start(Protocol::Http1, vec![]).await;
    drop(std::mem::replace(&mut server.app, unconnected().await));
    let mut rest = Vec::new();
    within(server.client.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty());
    within(server.serving).await.unwrap();
}

pub(super) async fn unconnected() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    TcpStream::connect(listener.local_addr().unwrap()).await.unwrap()
}

/// Without an answer of the application's there is none: the client's proxy decides what that means.
#[tokio::test]
async fn an_application_that_closes_on_a_request_gives_no_answer() {
    let mut server = Server::start(Protocol::Http1, vec![]).await;
    server.client.write_all(b"GET / HTTP/1.1\r\nhost: b\r\n\r\n").await.unwrap();
    head_of(&mut server.app).await;
    drop(std::mem::replace(&mut server.app, unconnected().await));
    let mut rest = Vec::new();
    within(server.client.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    until(|| server.finished("server_reset") == 1).await;
}

#[tokio::test]
async fn http2_passes_with_many_requests_at_a_time() {
    let Server { client, app, telemetry, .. } = Server::start(Protocol::Http2, vec![]).await;
    tokio::spawn(serve(app));
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    let asked: Vec<_> = (0..50)
        .map(|n| {
            let mut sender = sender.clone();
            tokio::spawn(async move {
                let path = format!("http://backend/{n}");
                let (status, _, text) = read(sender.send_request(get(&path)).await.unwrap()).await;
                assert_eq!((status, text), (200, path));
            })
        })
        .collect();
    for one in asked {
        within(one).await.unwrap();
    }
    let ok = "weft_requests_finished_total{reporter=\"destination\",reason=\"ok\"}";
    until(|| counted(&telemetry, ok) == 50).await;
}

/// A WebSocket lives on after HTTP has ended, and ends when the connection is withdrawn.
#[tokio::test]
async fn an_upgraded_stream_ends_when_the_permit_does() {
    let mut server = Server::start(Protocol::Http1, vec![]).await;
    server
        .client
        .write_all(b"GET / HTTP/1.1\r\nhost: b\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    head_of(&mut server.app).await;
    server
        .app
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi")
        .await
        .unwrap();
    assert!(head_of(&mut server.client).await.starts_with("HTTP/1.1 101"));
    let mut hi = [0; 2];
    within(server.client.read_exact(&mut hi)).await.unwrap();
    server.client.write_all(b"yo").await.unwrap();
    within(server.app.read_exact(&mut hi)).await.unwrap();
    assert_eq!(&hi, b"yo");
    assert!(!server.serving.is_finished(), "served as long as the stream lives");
    server.serving.abort();
    let mut rest = Vec::new();
    let _ = within(server.app.read_to_end(&mut rest)).await;
    until(|| server.finished("policy_denied") == 1).await;
}

/// What `Connection` names stays on this connection: policy must not let somebody in for a header that the application
/// never gets.
#[tokio::test]
async fn a_header_named_in_connection_counts_for_nothing() {
    let mut policy = allow("/", PolicyAction::Allow);
    let role: (http::HeaderName, TextMatch) = ("x-role".parse().unwrap(), TextMatch::Exact("admin".into()));
    policy.rules[0].to[0].headers = vec![role];
    let mut server = Server::start(Protocol::Http1, vec![policy]).await;
    let app = std::mem::replace(&mut server.app, unconnected().await);
    tokio::spawn(serve(app));
    for (connection, status) in [("keep-alive", "200"), ("keep-alive, X-Role", "403")] {
        let request =
            format!("GET /a HTTP/1.1\r\nhost: b\r\nconnection: {connection}\r\nx-role: admin\r\n\r\n");
        server.client.write_all(request.as_bytes()).await.unwrap();
        let head = head_of(&mut server.client).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{connection}: {head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut text = vec![0; length.parse().unwrap()];
        within(server.client.read_exact(&mut text)).await.unwrap();
    }
}

#[tokio::test]
async fn early_hints_pass_on_the_servers_side() {
    let mut server = Server::start(Protocol::Http1, vec![]).await;
    server.client.write_all(b"GET / HTTP/1.1\r\nhost: b\r\n\r\n").await.unwrap();
    head_of(&mut server.app).await;
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    server.app.write_all(hints.as_bytes()).await.unwrap();
    assert_eq!(head_of(&mut server.client).await, hints);
    server.app.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert!(head_of(&mut server.client).await.starts_with("HTTP/1.1 200"));
}

/// ... and a connection between two requests may be silent for as long as it likes.
#[tokio::test]
async fn a_head_that_trickles_in_is_given_up_and_recorded() {
    let mut server = Server::start(Protocol::Http1, vec![]).await;
    let app = std::mem::replace(&mut server.app, unconnected().await);
    tokio::spawn(serve(app));
    assert!(server.ask("/a").await.starts_with("HTTP/1.1 200"));
    let mut text = [0; 2];
    within(server.client.read_exact(&mut text)).await.unwrap();
    tokio::time::sleep(HEAD_TIMEOUT * 2).await;
    assert!(server.ask("/b").await.starts_with("HTTP/1.1 200"), "silence is no slow head");
    within(server.client.read_exact(&mut text)).await.unwrap();
    let began = std::time::Instant::now();
    let trickle = async {
        for byte in b"GET /c HTTP/1.1\r\nx-slow: ".iter().chain(std::iter::repeat(&b'x')) {
            if server.client.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(HEAD_TIMEOUT / 20).await;
        }
    };
    within(trickle).await;
    assert!(began.elapsed() >= HEAD_TIMEOUT, "{:?}", began.elapsed());
    let late = "weft_connections_closed_total{reporter=\"destination\",reason=\"request_timeout\"}";
    until(|| counted(&server.telemetry, late) == 1).await;
}

#[tokio::test]
async fn plain_requests_pass_with_their_answers() {
    let mut server = Server::start(Protocol::Http1, vec![allow("/", PolicyAction::Audit)]).await;
    let app = std::mem::replace(&mut server.app, unconnected().await);
    tokio::spawn(serve(app));
    let head = server.ask("/a").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}
