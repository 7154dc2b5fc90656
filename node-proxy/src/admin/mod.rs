//! The admin endpoint: health, readiness, metrics, configuration dump, connections, status. Unix socket or loopback only.
//!
//! HTTP/1.1, GET only, read only. Bounded so that it cannot starve the data path: connections, time per connection, and
//! everything that walks tables runs on the blocking pool. Start at [`open`], then [`serve`].

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tracing::warn;
use weft_admin::{Address, open_unix};

use crate::drain::Drain;
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::TextFormat;

/// Served at once; a scraper and a few people need no more, and the rest waits in the listener's queue.
const CONNECTIONS_MAX: usize = 16;
/// For a request's head. Scrapers send it at once.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a connection, whatever it does: a client that reads slowly gives its place back.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Waiting for a place; a scraper's retry takes longer than these take.
const BACKLOG: i32 = 16;

/// Between two looks at whether a predecessor has ended.
const OPEN_PAUSE: Duration = Duration::from_millis(100);

const ENDPOINTS: &str = "/healthz /readyz /metrics /config_dump /connections /status /pod/<namespace>/<name>[/service/<namespace>/<name>]";

/// Makes a JSON document; called on the blocking pool.
pub type JsonSource = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// Namespace and name.
type Named<'a> = (&'a str, &'a str);

/// The same for one pod, and one Service if it is about that; None: the pod is not on this node.
pub type PodSource = Arc<dyn Fn(Named<'_>, Option<Named<'_>>) -> Option<serde_json::Value> + Send + Sync>;

/// What the endpoint shows besides telemetry.
#[derive(Clone)]
pub struct AdminSources {
    /// Why the node is not ready; empty: it is.
    pub unready: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    pub config_dump: JsonSource,
    pub status: JsonSource,
    /// What the node holds for a pod of its own.
    pub pod: PodSource,
}

/// Why the endpoint does not open.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("the admin endpoint cannot listen at {address}")]
    Listen { address: String, source: io::Error },
    #[error("the admin endpoint listens on loopback addresses only, and {0} is none")]
    NotLoopback(SocketAddr),
}

/// The open endpoint, not served yet. Who has it is the node's only weft-node.
#[derive(Debug)]
pub struct Listener(Socket);

#[derive(Debug)]
enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Serves until the drain's deadline.
pub fn serve(
    listener: Listener,
    sources: AdminSources,
    telemetry: Telemetry,
    drain: Drain,
) -> impl Future<Output = ()> + Send + 'static + use<> {
    let shared = Arc::new(Shared { sources, telemetry, pages: Pages::All });
    accept_all(listener, shared, drain)
}

/// The same for a scraper: metrics and health, and no page else, at any address.
pub async fn serve_metrics(
    address: SocketAddr,
    sources: AdminSources,
    telemetry: Telemetry,
    drain: Drain,
) -> Result<(SocketAddr, impl Future<Output = ()> + Send + 'static + use<>), AdminError> {
    let failed = |source| AdminError::Listen { address: address.to_string(), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let shared = Arc::new(Shared { sources, telemetry, pages: Pages::Metrics });
    Ok((bound, accept_all(Listener(Socket::Tcp(listener)), shared, drain)))
}

/// Opens the endpoint. A predecessor that still serves there has `wait` to end: its pod may be gone from the API before its process is.
pub async fn open(listen: &Address, wait: Duration) -> Result<Listener, AdminError> {
    let until = tokio::time::Instant::now() + wait;
    let mut told = false;
    loop {
        match open_once(listen).await {
            Err(AdminError::Listen { address, source })
                if source.kind() == io::ErrorKind::AddrInUse && tokio::time::Instant::now() < until =>
            {
                if !told {
                    let seconds_max = wait.as_secs();
                    warn!(
                        address,
                        seconds_max,
                        "waits for another process that serves there, likely the weft-node before this one, to end"
                    );
                    told = true;
                }
                tokio::time::sleep(OPEN_PAUSE).await;
            }
            opened => return opened.map(Listener),
        }
    }
}

async fn open_once(listen: &Address) -> Result<Socket, AdminError> {
    let failed = |address: String| move |source| AdminError::Listen { address, source };
    match listen {
        Address::Tcp(address) if !address.ip().is_loopback() => Err(AdminError::NotLoopback(*address)),
        Address::Tcp(address) => {
            TcpListener::bind(address).await.map(Socket::Tcp).map_err(failed(address.to_string()))
        }
        Address::Unix(path) => {
            open_unix(path, BACKLOG).map(Socket::Unix).map_err(failed(format!("unix:{}", path.display())))
        }
    }
}

struct Shared {
    sources: AdminSources,
    telemetry: Telemetry,
    pages: Pages,
}

/// What is served at a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pages {
    All,
    /// Only what a scraper needs.
    Metrics,
}

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

async fn accept_all(listener: Listener, shared: Arc<Shared>, drain: Drain) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            let io: io::Result<Pin<Box<dyn Io>>> = match &listener.0 {
                Socket::Unix(unix) => unix.accept().await.map(|(io, _)| Box::pin(io) as Pin<Box<dyn Io>>),
                Socket::Tcp(tcp) => tcp.accept().await.map(|(io, _)| Box::pin(io) as Pin<Box<dyn Io>>),
            };
            (place, io)
        };
        let (place, io) = tokio::select! {
            next = next => next,
            () = drain.deadline.cancelled() => return,
        };
        let Ok(io) = io else {
            // Out of descriptors: the data path needs the next ones more.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (shared, deadline) = (Arc::clone(&shared), drain.deadline.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(&request, shared).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(io), service);
            tokio::select! {
                ended = tokio::time::timeout(CONNECTION_TIMEOUT, connection) => {
                    if let Ok(Err(error)) = ended {
                        tracing::debug!(%error, "an admin connection failed");
                    }
                }
                () = deadline.cancelled() => {}
            }
            drop(place);
        });
    }
}

async fn answer(request: &Request<Incoming>, shared: Arc<Shared>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
    }
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = TextFormat::of_accept(accept);
    let path = request.uri().path().to_owned();
    let made = tokio::task::spawn_blocking(move || shared.page(&path, format)).await;
    made.unwrap_or_else(|_panicked| {
        text(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made; see the log\n".into())
    })
}

impl Shared {
    fn pod(&self, which: &str) -> Response<Full<Bytes>> {
        let segments: Vec<&str> = which.split('/').collect();
        let (pod, service) = match segments.as_slice() {
            [namespace, name] => ((*namespace, *name), None),
            [namespace, name, "service", of, service] => ((*namespace, *name), Some((*of, *service))),
            _ => return text(StatusCode::NOT_FOUND, format!("no pod {which} is on this node\n")),
        };
        match (self.sources.pod)(pod, service) {
            Some(found) => json(&found),
            None => text(StatusCode::NOT_FOUND, format!("no pod {}/{} is on this node\n", pod.0, pod.1)),
        }
    }

    fn page(&self, path: &str, format: TextFormat) -> Response<Full<Bytes>> {
        match path {
            "/healthz" => text(StatusCode::OK, "ok\n".into()),
            "/readyz" => match (self.sources.unready)() {
                reasons if reasons.is_empty() => text(StatusCode::OK, "ok\n".into()),
                reasons => text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    reasons.iter().map(|reason| format!("{reason}\n")).collect(),
                ),
            },
            "/metrics" => {
                response(StatusCode::OK, format.content_type(), self.telemetry.metrics(format).into())
            }
            _ if self.pages == Pages::Metrics => {
                text(StatusCode::NOT_FOUND, "no such page; there are /healthz, /readyz, /metrics\n".into())
            }
            "/config_dump" => json(&(self.sources.config_dump)()),
            "/status" => json(&(self.sources.status)()),
            "/connections" => json(&self.telemetry.connections()),
            path if path.starts_with("/pod/") => self.pod(&path["/pod/".len()..]),
            _ => text(
                StatusCode::NOT_FOUND,
                format!("no such page; there are {}\n", ENDPOINTS.replace(' ', ", ")),
            ),
        }
    }
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", body.into())
}

fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => response(StatusCode::OK, "application/json", body.into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

#[cfg(test)]
mod tests;
