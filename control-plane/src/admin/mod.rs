//! The admin endpoint: /healthz /readyz /metrics /status /config_dump, on a Unix socket or loopback only; and where it is asked for, the
//! first three at an address that a scraper reaches.
//!
//! Reads, never changes. No join token and no key is in any answer.

mod dump;
mod metrics;

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use weft_admin::{Address, open_unix};

use crate::source::Read;
use crate::world::World;

/// Enough for a scraper and a few people.
const CONNECTIONS_MAX: usize = 32;
const HEADER_WAIT_MAX: Duration = Duration::from_secs(10);
/// Of a connection, whatever it does: a client that reads slowly gives its place back.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(60);
/// Errors that /readyz shows; /status has more.
const REASONS_MAX: usize = 20;
/// Waiting for a place; a scraper's retry takes longer than these take.
const BACKLOG: i32 = 16;

/// The socket of the Kubernetes deployment, and the default of `--admin`.
const SOCKET: &str = "/run/weft/admin.sock";
const PORT: u16 = 15014;

/// What is served at a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    All,
    /// Only what anybody may see.
    Metrics,
}

pub enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Where the endpoint is found without being told: the socket of Kubernetes, or the default port.
pub fn default_address() -> Address {
    match Path::new(SOCKET).exists() {
        true => Address::Unix(SOCKET.into()),
        false => Address::Tcp(([127, 0, 0, 1], PORT).into()),
    }
}

pub async fn bind(address: &Address) -> io::Result<Listener> {
    match address {
        Address::Unix(path) => open_unix(path, BACKLOG).map(Listener::Unix),
        Address::Tcp(address) => TcpListener::bind(address).await.map(Listener::Tcp),
    }
}

pub async fn serve(world: Arc<World>, listener: Listener, pages: Pages, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let world = world.clone();
        tokio::select! {
            () = stop.cancelled() => return,
            accepted = accept(&listener) => match accepted {
                Ok(stream) => drop(tokio::spawn(async move {
                    connection(world, pages, stream).await;
                    drop(permit);
                })),
                Err(error) => {
                    tracing::warn!(%error, "admin: accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn accept(listener: &Listener) -> io::Result<Box<dyn Stream>> {
    Ok(match listener {
        Listener::Unix(listener) => Box::new(listener.accept().await?.0),
        Listener::Tcp(listener) => Box::new(listener.accept().await?.0),
    })
}

async fn connection(world: Arc<World>, pages: Pages, stream: Box<dyn Stream>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&world, pages, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_WAIT_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_TIME_MAX, connection).await {
        tracing::debug!(%error, "admin connection");
    }
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

fn answer<B>(world: &World, pages: Pages, request: &Request<B>) -> Response<Full<Bytes>> {
    let text = |status, body: &str| response(status, "text/plain; charset=utf-8", body.to_owned());
    let json =
        |value: serde_json::Value| response(StatusCode::OK, "application/json", format!("{value:#}\n"));
    if request.method() != http::Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" if world.synced.load(Ordering::Acquire) => text(StatusCode::OK, "ok\n"),
        // Names of files are not for whoever reaches that listener.
        "/readyz" if pages == Pages::Metrics => text(StatusCode::SERVICE_UNAVAILABLE, not_read(world)),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, &waited_for(world)),
        "/metrics" => response(StatusCode::OK, "text/plain; version=0.0.4", metrics::render(world)),
        _ if pages == Pages::Metrics => text(StatusCode::NOT_FOUND, "/healthz /readyz /metrics\n"),
        "/status" => json(status(world)),
        "/config_dump" => {
            let node = request
                .uri()
                .query()
                .and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("node=")));
            match node {
                Some(node) => match dump::render(world, node) {
                    Some(dump) => json(dump),
                    None => text(
                        StatusCode::NOT_FOUND,
                        "no such node: no pod, Node, join token or connection names it\n",
                    ),
                },
                None => text(StatusCode::BAD_REQUEST, "say which: /config_dump?node=<node>\n"),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "/healthz /readyz /metrics /status /config_dump?node=<node>\n"),
    }
}

fn not_read(world: &World) -> &'static str {
    match world.report.borrow().read {
        Read::Files(_) => "the manifests are not read yet\n",
        Read::Objects(_) => "the objects of the API server are not listed yet\n",
    }
}

/// Why nodes are not served, a reason per line.
fn waited_for(world: &World) -> String {
    let report = world.report.borrow().clone();
    if report.errors.is_empty() {
        return not_read(world).to_owned();
    }
    report.errors.iter().take(REASONS_MAX).map(|error| format!("{error}\n")).collect()
}

fn status(world: &World) -> serde_json::Value {
    let (revision, routes, policies, trust_domain) = {
        let index = world.index.read();
        (
            index.revision().0,
            index.route_statuses(),
            index.policy_statuses(),
            index.trust_domain().to_string(),
        )
    };
    let nodes: serde_json::Map<String, serde_json::Value> = world
        .hub
        .statuses()
        .into_iter()
        .map(|(node, status)| {
            let in_sync = status.connected
                && status.acked_revision == status.sent_revision
                && status.acks > 0
                && status.last_nack.is_none();
            let lag = revision.saturating_sub(status.acked_revision);
            let mut value = serde_json::json!(status);
            // Revisions that do not concern a node are not sent to it: `in_sync` is what matters.
            value["revisions_behind"] = lag.into();
            value["in_sync"] = in_sync.into();
            (node.to_string(), value)
        })
        .collect();
    let report = world.report.borrow().clone();
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "clock_unix_s": weft_admin::clock::unix_s(),
        "ready": world.synced.load(Ordering::Acquire),
        "trust_domain": trust_domain,
        "revision": revision,
        "nodes": nodes,
        "authority": world.authority.status(),
        "source": &*report,
        "routes": routes,
        "policies": policies,
    })
}
