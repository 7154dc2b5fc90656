//! An HTTP connection towards an application of this node: policy and span per request, then 1:1 over `app`.
//!
//! Policies are read from the current snapshot for each request, so a change holds from the next request on. When the
//! application closes, the client's side is closed too; a request on its way then gets no answer, which the client's
//! proxy sees as a connection that ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::{Body, Incoming as IncomingBody};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::body::{Ending, Relay, Upstream};
use super::frames::FramesTimed;
use super::head::{self, HeadClock, HeadTimed};
use super::informational::{Hinting, Hints};
use super::outbound::Protocol;
use super::outgoing::{Origin, Outgoing};
use super::towards::authority;
use super::upgrade::Upgrades;
use super::{conn, hop, limits, outgoing, reply};
use crate::drain::Drain;
use crate::inbound::Incoming;
use crate::node::Node;
use crate::policy::{ConnectionFacts, RequestFacts, Verdict, authorize_request};
use crate::snapshot::SnapshotHandle;
use crate::socket::leg::LegIo;
use crate::telemetry::{CloseReason, RequestRecord, RequestStart, Telemetry};

type Reply = Response<Relay<Served>>;

/// Serves one connection until it ends. The L4 part of the policy has already passed.
pub async fn serve<IO>(node: Arc<Node>, incoming: Incoming, protocol: Protocol, io: IO, app: TcpStream)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let drain = node.drain.clone();
    let (snapshot, telemetry) = (Arc::clone(&node.snapshot), node.telemetry.clone());
    let host = Host { snapshot, telemetry, drain, head_timeout: limits::HEAD_TIMEOUT };
    serve_on(host, incoming, protocol, io, app).await;
}

/// What this stage needs of the node.
pub(super) struct Host {
    pub(super) snapshot: Arc<SnapshotHandle>,
    pub(super) telemetry: Telemetry,
    pub(super) drain: Drain,
    /// [`limits::HEAD_TIMEOUT`], but for tests.
    pub(super) head_timeout: Duration,
}

pub(super) async fn serve_on<IO>(host: Host, incoming: Incoming, protocol: Protocol, io: IO, app: TcpStream)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let drain = host.drain.clone();
    let closed = CancellationToken::new();
    let leaving = Arc::new(AtomicBool::new(false));
    let app = match App::open(protocol, app, &closed, &leaving).await {
        Ok(app) => app,
        Err(error) => {
            tracing::debug!(port = incoming.port, %error, "the application took no HTTP connection");
            return;
        }
    };
    let session = Arc::new(Session { host, incoming, app, leaving, upgrades: Upgrades::default() });
    // What has left HTTP ends when this is dropped.
    let _guard = session.upgrades.guard();
    let clock = HeadClock::new(session.host.head_timeout);
    let hints = Hints::default();
    let (serving, heads, told) = (Arc::clone(&session), clock.clone(), hints.clone());
    let service = service_fn(move |mut request: Request<IncomingBody>| {
        let (session, answering, told) = (Arc::clone(&serving), heads.request(), told.clone());
        told.request(&mut request);
        async move {
            let method = request.method().clone();
            let response = session.request(request).await?;
            told.answered();
            Ok::<_, hyper::Error>(answering.until_end(&method, response))
        }
    });
    let serve = async {
        match protocol {
            Protocol::Http1 => {
                let io = TokioIo::new(HeadTimed::new(Hinting::new(io, hints), clock.clone()));
                let connection = conn::http1_server().serve_connection(io, service).with_upgrades();
                drive!(connection, drain, closed);
            }
            Protocol::Http2 => {
                let io = TokioIo::new(FramesTimed::new(io, clock.clone()));
                let connection = conn::http2_server().serve_connection(io, service);
                drive!(connection, drain, closed);
            }
        }
    };
    // Large, and one per connection: on the heap rather than in every caller's future.
    Box::pin(serve).await;
    if clock.late() {
        session.late();
    }
    session.upgrades.finished().await;
}

/// The one connection to the application.
enum App {
    /// HTTP/1 serves one request at a time, and so does the server in front of it.
    Http1(tokio::sync::Mutex<http1::SendRequest<Outgoing>>),
    Http2(http2::SendRequest<Outgoing>),
}

impl App {
    /// `closed` is cancelled when the application has ended the connection.
    async fn open(
        protocol: Protocol,
        app: TcpStream,
        closed: &CancellationToken,
        leaving: &Arc<AtomicBool>,
    ) -> Result<Self, hyper::Error> {
        let closed = closed.clone();
        let leaving = Arc::clone(leaving);
        match protocol {
            Protocol::Http1 => {
                let io = TokioIo::new(LegIo::new(app));
                let (sender, connection) = conn::http1_client().handshake(io).await?;
                tokio::spawn(async move {
                    // Its error is also the request's, where it is reported.
                    let _ = connection.with_upgrades().await;
                    // HTTP also ends here when the connection leaves it: then the bytes go on.
                    if !leaving.load(Relaxed) {
                        closed.cancel();
                    }
                });
                Ok(Self::Http1(tokio::sync::Mutex::new(sender)))
            }
            Protocol::Http2 => {
                let io = TokioIo::new(LegIo::new(app));
                let (sender, connection) = conn::http2_client().handshake(io).await?;
                tokio::spawn(async move {
                    let _ = connection.await;
                    closed.cancel();
                });
                Ok(Self::Http2(sender))
            }
        }
    }

    async fn send(&self, request: Request<Outgoing>) -> Result<Response<IncomingBody>, hyper::Error> {
        match self {
            Self::Http1(sender) => {
                let mut sender = sender.lock().await;
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                let mut sender = sender.clone();
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

struct Session {
    host: Host,
    incoming: Incoming,
    app: App,
    /// A request that may leave HTTP is on its way.
    leaving: Arc<AtomicBool>,
    upgrades: Upgrades,
}

/// What is finished when the response has ended.
struct Served {
    record: RequestRecord,
    status: StatusCode,
}

impl Ending for Served {
    fn end(self, grpc_status: Option<u32>, reason: CloseReason) {
        self.record.finish(Some(self.status), grpc_status, reason);
    }
}

impl Session {
    /// Err: the application ended the connection before an answer; the client's side is ended too.
    async fn request(&self, mut request: Request<IncomingBody>) -> Result<Reply, hyper::Error> {
        let upgrade =
            hop::wants_upgrade(request.method(), request.headers()).then(|| hyper::upgrade::on(&mut request));
        // Before anybody looks: what policy has seen is what the application gets.
        let leaves = upgrade.is_some() && request.method() != http::Method::CONNECT;
        hop::strip(request.headers_mut(), leaves);
        let mut record = self.record(&request);
        let grpc = reply::is_grpc(request.headers());
        match self.authorize(&request) {
            Verdict::Allow { by, audited } => {
                if let Some(by) = by {
                    record.policy(by);
                }
                if !audited.is_empty() {
                    record.audited(audited);
                }
            }
            refused => return Ok(deny(grpc, &refused, record)),
        }

        let (mut head, body) = request.into_parts();
        let method = head.method.clone();
        record.propagate(&mut head.headers);
        let bytes = record.bytes();
        let body = if body.is_end_stream() {
            Outgoing::empty(&bytes)
        } else {
            Outgoing::stream(Origin::new(body, Vec::new()), &bytes)
        };
        self.leaving.store(upgrade.is_some(), Relaxed);
        let mut request = Request::from_parts(head, body);
        outgoing::listen(&mut request);
        let mut response = match self.app.send(request).await {
            Ok(response) => response,
            Err(error) => {
                record.finish(None, None, CloseReason::ServerReset);
                return Err(error);
            }
        };
        let status = response.status();
        if hop::upgraded(&method, status)
            && let Some(client) = upgrade
        {
            let server = hyper::upgrade::on(&mut response);
            hop::strip(response.headers_mut(), status == StatusCode::SWITCHING_PROTOCOLS);
            let stopped = self.stopped();
            self.upgrades.start(client, server, bytes, move |reason| {
                record.finish(Some(status), None, reason.unwrap_or_else(stopped));
            });
            return Ok(response.map(|_| Relay::Local(None)));
        }
        self.leaving.store(false, Relaxed);
        hop::strip(response.headers_mut(), false);
        let grpc_status = reply::grpc_status(response.headers());
        Ok(response.map(|incoming| {
            let ending = Some(Served { record, status });
            Relay::Upstream(Box::new(Upstream { incoming, bytes, deadline: None, grpc_status, ending }))
        }))
    }

    /// The record of a request whose head never was whole.
    fn late(&self) {
        let flow = self.incoming.flow_in(&self.host.snapshot.load());
        head::report_late(&self.host.telemetry, flow);
    }

    /// Why what has left HTTP was ended.
    fn stopped(&self) -> impl FnOnce() -> CloseReason + Send + 'static {
        let (gone, deadline) = (self.incoming.pod.gone.clone(), self.host.drain.deadline.clone());
        move || match () {
            () if gone.is_cancelled() => CloseReason::PodGone,
            () if deadline.is_cancelled() => CloseReason::Draining,
            () => CloseReason::PolicyDenied,
        }
    }

    fn authorize(&self, request: &Request<IncomingBody>) -> Verdict {
        let snapshot = self.host.snapshot.load();
        // A pod that is gone from the snapshot keeps its last view.
        let fallback = self.incoming.pod.workload.load();
        let workload = snapshot.workload(&self.incoming.pod.uid).unwrap_or(&fallback);
        let policies = snapshot.policies(workload);
        let connection = ConnectionFacts {
            principal: self.incoming.peer.identity(),
            source_ip: self.incoming.client.ip().to_canonical(),
            destination_port: self.incoming.port,
        };
        let facts =
            RequestFacts { method: request.method(), path: request.uri().path(), headers: request.headers() };
        authorize_request(&policies, &connection, &facts)
    }

    fn record(&self, request: &Request<IncomingBody>) -> RequestRecord {
        let flow = self.incoming.flow_in(&self.host.snapshot.load());
        let start = RequestStart {
            method: request.method(),
            path: request.uri().path(),
            authority: authority(request.uri(), request.headers()),
            version: request.version(),
            headers: request.headers(),
        };
        self.host.telemetry.request(flow, &start)
    }
}

/// 403, naming the policy.
fn deny(grpc: bool, verdict: &Verdict, mut record: RequestRecord) -> Reply {
    let detail = match verdict {
        Verdict::Deny { by: Some(by) } => {
            record.policy(by.clone());
            format!("denied by AuthorizationPolicy {by}")
        }
        _ => "denied: no ALLOW AuthorizationPolicy of this workload matches".to_owned(),
    };
    let reason = CloseReason::PolicyDenied;
    let (response, grpc_status) = reply::local(grpc, reply::status_of(reason), reason, &detail);
    record.finish(Some(response.status()), grpc_status, reason);
    response.map(|text| Relay::Local((!text.is_empty()).then_some(text)))
}
