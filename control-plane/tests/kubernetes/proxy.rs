//! Between weft-control and the API server: passes everything on, except what a test tells it to spoil.
//!
//! A request is named as RBAC would: `list pods`, `watch services`, `patch httproutes/status`. `event services` is a change within a
//! living watch.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use kube::Client;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// The end of a watch whose changes the API server no longer has, as it sends it.
const EXPIRED: &str = concat!(
    r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
    r#""message":"too old resource version: 1 (2)","reason":"Expired","code":410}}"#
);

#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// This answer instead of the API server's, with `Retry-After` if seconds are given.
    Answer { code: u16, retry_after_s: Option<u32>, body: &'static str },
    /// This line in the place of the change; the watch goes on.
    Line(&'static str),
    /// Half of the change, then the connection breaks.
    Cut,
    /// 410 in the place of the change, then the end.
    Expired,
    /// Neither the change nor anything after it, and no end either.
    Silence,
}

pub(crate) const ERROR_500: Fault =
    Fault::Answer { code: 500, retry_after_s: None, body: "etcdserver: no leader" };

#[derive(Default)]
struct State {
    /// What is spoiled, and how often still.
    faults: Vec<(String, usize, Fault)>,
    /// What was asked, and when.
    calls: VecDeque<(String, Instant)>,
}

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

/// Enough for a test; the oldest go.
const CALLS_MAX: usize = 10_000;

impl Proxy {
    /// `client`: reaches the API server.
    pub(crate) async fn start(client: Client) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (client, shared) = (client.clone(), Arc::clone(&shared));
                let service = hyper::service::service_fn(move |request| {
                    let (client, shared) = (client.clone(), Arc::clone(&shared));
                    async move { Ok::<_, Infallible>(pass(&client, &shared, request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        Self { address, state }
    }

    /// Spoils the next `times` of these calls.
    pub(crate) fn spoil(&self, call: &str, times: usize, fault: Fault) {
        self.state.lock().faults.push((call.to_owned(), times, fault));
    }

    /// No fault any more.
    pub(crate) fn heal(&self) {
        self.state.lock().faults.clear();
    }

    /// When a call was made, each time.
    pub(crate) fn calls(&self, call: &str) -> Vec<Instant> {
        self.state.lock().calls.iter().filter(|(made, _)| made == call).map(|(_, at)| *at).collect()
    }
}

impl State {
    fn fault(&mut self, call: &str) -> Option<Fault> {
        let (_, times, fault) = self.faults.iter_mut().find(|(of, times, _)| of == call && *times > 0)?;
        *times -= 1;
        Some(fault.clone())
    }

    fn note(&mut self, call: &str) {
        if self.calls.len() == CALLS_MAX {
            self.calls.pop_front();
        }
        self.calls.push_back((call.to_owned(), Instant::now()));
    }
}

/// `list pods` and the like, and the resource.
fn named(method: &Method, path: &str, query: &str) -> (String, String) {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let group = if parts.first() == Some(&"apis") { 3 } else { 2 };
    parts.drain(..group.min(parts.len()));
    if parts.first() == Some(&"namespaces") && parts.len() > 2 {
        parts.drain(..2);
    }
    let resource = match parts[..] {
        [resource, _, sub] => format!("{resource}/{sub}"),
        [resource, ..] => resource.to_owned(),
        [] => String::new(),
    };
    let of_one = parts.len() > 1;
    let verb = match *method {
        Method::GET if of_one => "get",
        Method::GET if query.contains("watch=true") => "watch",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        _ => "delete",
    };
    (format!("{verb} {resource}"), resource)
}

fn whole(code: u16, kind: &str, text: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(text.into()).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(code).header("content-type", kind).body(body).unwrap()
}

async fn pass(client: &Client, state: &Arc<Mutex<State>>, request: Request<Incoming>) -> Response<Body> {
    let uri = request.uri().clone();
    let (call, resource) = named(request.method(), uri.path(), uri.query().unwrap_or_default());
    let fault = {
        let mut state = state.lock();
        state.note(&call);
        state.fault(&call)
    };
    if let Some(Fault::Answer { code, retry_after_s, body }) = fault {
        let kind = if body.starts_with('{') { "application/json" } else { "text/plain" };
        let mut answer = whole(code, kind, body);
        if let Some(seconds) = retry_after_s {
            answer.headers_mut().insert("retry-after", seconds.into());
        }
        return answer;
    }
    let mut asked = Request::builder().method(request.method()).uri(uri.path_and_query().unwrap().as_str());
    for name in ["content-type", "accept"] {
        if let Some(value) = request.headers().get(name) {
            asked = asked.header(name, value);
        }
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let answer = match client.send(asked.body(kube::client::Body::from(body)).unwrap()).await {
        Ok(answer) => answer,
        Err(error) => return whole(502, "text/plain", error.to_string()),
    };
    let code = answer.status().as_u16();
    let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
    let kind = kind.unwrap_or_default();
    if !call.starts_with("watch ") || code != 200 {
        return match answer.into_body().collect().await {
            Ok(body) => whole(code, &kind, body.to_bytes()),
            Err(error) => whole(502, "text/plain", error.to_string()),
        };
    }
    let (out, lines) = mpsc::channel(16);
    tokio::spawn(follow(answer.into_body(), format!("event {resource}"), Arc::clone(state), out));
    let body = StreamBody::new(ReceiverStream::new(lines)).boxed_unsync();
    Response::builder().status(code).header("content-type", kind).body(body).unwrap()
}

type Out = mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>;

/// A watch, line by line.
async fn follow(body: kube::client::Body, event: String, state: Arc<Mutex<State>>, out: Out) {
    let broken = || std::io::Error::other("cut");
    let mut chunks = body.into_data_stream();
    let mut held = Vec::new();
    loop {
        let chunk = tokio::select! {
            // A watch that was given up takes no fault that is meant for the next one.
            biased;
            () = out.closed() => return,
            chunk = chunks.next() => chunk,
        };
        let Some(Ok(chunk)) = chunk else { return };
        held.extend_from_slice(&chunk);
        while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = held.drain(..=end).collect();
            let told = line.starts_with(br#"{"type":"BOOKMARK""#);
            let fault = if told { None } else { state.lock().fault(&event) };
            let sent = match fault {
                None => out.send(Ok(Frame::data(line.into()))).await,
                Some(Fault::Line(text)) => out.send(Ok(Frame::data(format!("{text}\n").into()))).await,
                Some(Fault::Expired) => {
                    let _ = out.send(Ok(Frame::data(format!("{EXPIRED}\n").into()))).await;
                    return;
                }
                Some(Fault::Cut | Fault::Answer { .. }) => {
                    let half = line[..line.len() / 2].to_vec();
                    let _ = out.send(Ok(Frame::data(half.into()))).await;
                    let _ = out.send(Err(broken())).await;
                    return;
                }
                // Until the other side gives up.
                Some(Fault::Silence) => return out.closed().await,
            };
            if sent.is_err() {
                return;
            }
        }
    }
}
