//! The HTTP side: answers with what it saw as JSON, or fails, waits, fills as the request's headers ask.
//!
//! Request headers: `x-echo-status: N`, `x-echo-delay-ms: N`, `x-echo-bytes: N` (a body of N bytes instead of JSON),
//! `x-echo-body: 1` (the request's own body back), `x-echo-abort: 1` (the connection ends without an answer).
//! `GET /counts` tells the requests served so far, by method and by path.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::graceful::Watcher;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::codegen::Service as _;

use super::{Server, grpc, health, plain, websocket};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, BoxError>;

/// One chunk of a filled body.
const FILL_CHUNK_BYTES: usize = 64 << 10;

pub(super) async fn serve(
    server: Arc<Server>,
    open: Watcher,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    from: SocketAddr,
) {
    let peer = plain(from);
    let service = hyper::service::service_fn(move |request| answer(server.clone(), peer, request));
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    // A client that goes away mid-request is the test's business, not an error of the server.
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    let _ = open.watch(connection).await;
}

async fn answer(
    server: Arc<Server>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>, BoxError> {
    let is_grpc =
        request.headers().get("content-type").is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    if is_grpc && request.uri().path().starts_with(health::PATH) {
        let response = health::service().call(request).await.unwrap_or_else(|e: Infallible| match e {});
        return Ok(response.map(|b| b.map_err(Into::into).boxed_unsync()));
    }
    if is_grpc {
        let mut service = grpc::service(server, peer);
        let response = service.call(request).await.unwrap_or_else(|e: Infallible| match e {});
        return Ok(response.map(|b| b.map_err(Into::into).boxed_unsync()));
    }
    if request.headers().contains_key("sec-websocket-key") {
        server.count("websocket", 1);
        return Ok(websocket::accept(request).map(|()| full(Bytes::new())));
    }
    if request.method() == Method::GET && request.uri().path() == "/counts" {
        return Ok(json(StatusCode::OK, &server.counts()));
    }
    plain_answer(&server, peer, request).await
}

async fn plain_answer(
    server: &Server,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>, BoxError> {
    let requests = server.count(request.method().as_str(), 1);
    server.count(request.uri().path(), 1);
    let (head, body) = request.into_parts();
    let asked = |name| number(&head.headers, name);
    let delay_ms = asked("x-echo-delay-ms").unwrap_or(server.settings.delay_ms);
    if delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
    }
    if asked("x-echo-abort").is_some() {
        return Err("the request asked for it".into());
    }
    let failing = server.fails_now().then_some(u64::from(server.settings.fail_status));
    let status = asked("x-echo-status").or(failing);
    let status = status.and_then(|s| StatusCode::from_u16(s.try_into().ok()?).ok()).unwrap_or(StatusCode::OK);
    if asked("x-echo-body").is_some() {
        return respond(status, body.map_err(Into::into).boxed_unsync());
    }
    if let Some(bytes) = asked("x-echo-bytes") {
        return respond(status, filled(bytes));
    }
    let body_bytes = drain(body).await?;
    Ok(json(
        status,
        &serde_json::json!({
            "version": server.settings.version,
            "pod": server.pod,
            "node": server.node,
            "peer": peer,
            "method": head.method.as_str(),
            "path": head.uri.path(),
            "query": head.uri.query(),
            "host": host(&head),
            "protocol": format!("{:?}", head.version),
            "headers": texts(&head.headers),
            "requests": requests,
            "body_bytes": body_bytes,
        }),
    ))
}

fn host(head: &http::request::Parts) -> Option<String> {
    let header = head.headers.get("host").and_then(|h| h.to_str().ok());
    head.uri.authority().map(ToString::to_string).or(header.map(ToOwned::to_owned))
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

fn texts(headers: &HeaderMap) -> BTreeMap<&str, String> {
    headers.iter().map(|(k, v)| (k.as_str(), String::from_utf8_lossy(v.as_bytes()).into_owned())).collect()
}

async fn drain(mut body: Incoming) -> Result<u64, BoxError> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, |d| d.len() as u64);
    }
    Ok(bytes)
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|e: Infallible| match e {}).boxed_unsync()
}

/// A body of so many bytes, made chunk by chunk.
fn filled(bytes: u64) -> Body {
    let chunk = Bytes::from(vec![b'x'; FILL_CHUNK_BYTES]);
    let chunks = futures_util::stream::try_unfold(bytes, move |left| {
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(FILL_CHUNK_BYTES);
        let piece = chunk.slice(..size);
        async move { Ok::<_, BoxError>((size > 0).then(|| (piece, left - size as u64))) }
    });
    StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync()
}

fn respond(status: StatusCode, body: Body) -> Result<Response<Body>, BoxError> {
    Ok(Response::builder().status(status).body(body)?)
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Body> {
    let text = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(full(text.into()));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}
