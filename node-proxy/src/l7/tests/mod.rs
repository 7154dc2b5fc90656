//! The HTTP data plane over in-memory connections: applications and the mesh are played, everything between is real.

mod bodies;
mod failures;
mod hostile;
mod inbound;
mod informational;
mod passing;
mod routes;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use weft_proto::identity::{NamespacedName, PodUid};
use weft_proto::model::{
    AppProtocol, Endpoint, HttpRoute, HttpRule, InboundMode, ParentRef, RouteKind, Service, ServicePort,
    Timeouts, TrafficPolicy, Workload,
};

use super::outbound::{Mesh, Protocol, Reached, Remote, serve_on};
use super::outgoing::BoxError;
use crate::balance::Balancers;
use crate::connect::{ConnectError, Destination, Source};
use crate::drain::Drain;
use crate::enrol::{LocalPod, Netns};
use crate::l7::Upstreams;
use crate::outbound::Target;
use crate::route::RouteTable;
use crate::snapshot::ServiceEntry;
use crate::telemetry::metrics::TextFormat;
use crate::telemetry::{Security, Telemetry, TelemetrySettings};

pub(super) const PORT: u16 = 80;
/// Connections that the client's pod may have open towards endpoints.
pub(super) const UPSTREAMS_MAX: u32 = 100;
/// Longer than any step takes on a busy machine.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(20);

pub(super) type TestBody = UnsyncBoxBody<Bytes, BoxError>;
type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An endpoint's behaviour on a new connection, which is its n-th (from 0).
#[derive(Clone)]
pub(super) enum App {
    Refuses,
    /// Never answers the SYN.
    Silent,
    Takes(Arc<dyn Fn(DuplexStream, usize) -> Serving + Send + Sync>),
}

impl App {
    pub(super) fn raw<F>(play: impl Fn(DuplexStream, usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::Takes(Arc::new(move |io, n| Box::pin(play(io, n))))
    }

    /// Tells of each request when it has come, and answers 200 "done" when it may go.
    pub(super) fn held() -> (Self, mpsc::Receiver<()>, watch::Sender<bool>) {
        let (tell, told) = mpsc::channel(1);
        let (go, wait) = watch::channel(false);
        let app = Self::http(move |_| {
            let (tell, mut wait) = (tell.clone(), wait.clone());
            async move {
                tell.send(()).await.unwrap();
                wait.wait_for(|go| *go).await.unwrap();
                answer(200, "done")
            }
        });
        (app, told, go)
    }

    /// Serves HTTP of either version.
    pub(super) fn http<F>(handle: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<TestBody>> + Send + 'static,
    {
        Self::raw(move |io, _| {
            let handle = handle.clone();
            async move {
                let service = service_fn(move |request| {
                    let answer = handle(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection_with_upgrades(TokioIo::new(io), service).await;
            }
        })
    }

    /// Answers everything with a status and its own name.
    pub(super) fn says(status: u16, name: &'static str) -> Self {
        Self::http(move |request| async move {
            let _ = request.into_body().collect().await;
            answer(status, name)
        })
    }
}

pub(super) fn answer(status: u16, text: impl Into<Bytes>) -> Response<TestBody> {
    let mut response = Response::new(body(text));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

pub(super) fn body(text: impl Into<Bytes>) -> TestBody {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Frames sent by the test, one by one.
pub(super) fn channel() -> (mpsc::Sender<Frame<Bytes>>, TestBody) {
    let (sender, receiver) = mpsc::channel(4);
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let frame = receiver.recv().await?;
        Some((Ok::<_, BoxError>(frame), receiver))
    });
    (sender, BodyExt::boxed_unsync(http_body_util::StreamBody::new(stream)))
}

/// The mesh, played.
pub(super) struct Fake {
    services: Mutex<HashMap<NamespacedName, Arc<ServiceEntry>>>,
    apps: Mutex<HashMap<SocketAddr, App>>,
    connects: Mutex<Vec<Destination>>,
    balancers: Balancers,
    upstreams: Upstreams,
    telemetry: Telemetry,
    pub(super) drain: Drain,
    pod: Arc<LocalPod>,
    /// Most connections to one address at a time are as many as these.
    pub(super) live: Arc<()>,
}

impl Mesh for Arc<Fake> {
    type Io = DuplexStream;
    fn service(&self, id: &NamespacedName) -> Option<Arc<ServiceEntry>> {
        self.services.lock().get(id).cloned()
    }
    fn workload(&self, _: Option<&PodUid>, _: IpAddr) -> Option<Arc<Workload>> {
        None
    }
    fn balancers(&self) -> &Balancers {
        &self.balancers
    }
    fn upstreams(&self) -> &Upstreams {
        &self.upstreams
    }
    fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }
    fn drain(&self) -> &Drain {
        &self.drain
    }
    async fn connect(&self, _: &Source, to: &Destination) -> Result<Reached<DuplexStream>, ConnectError> {
        let n = self.connects_to(to.address);
        self.connects.lock().push(to.clone());
        let app = self.apps.lock().get(&to.address).cloned();
        match app {
            None | Some(App::Refuses) => Err(ConnectError::Refused(to.address)),
            Some(App::Silent) => std::future::pending().await,
            Some(App::Takes(play)) => {
                let (io, theirs) = tokio::io::duplex(64 << 10);
                let live = Arc::clone(&self.live);
                let playing = play(theirs, n);
                tokio::spawn(async move {
                    playing.await;
                    drop(live);
                });
                Ok(Reached { io, remote: Remote { principal: None, security: Security::Local } })
            }
        }
    }
}

pub(super) fn id(text: &str) -> NamespacedName {
    text.parse().unwrap()
}

pub(super) fn workload(name: &str, ip: IpAddr) -> Workload {
    Workload {
        uid: format!("uid-{name}").parse().unwrap(),
        namespace: "shop".into(),
        name: name.into(),
        service_account: name.into(),
        node: "n1".into(),
        ips: vec![ip],
        enrolled: true,
        inbound_mode: InboundMode::Strict,
        workload_name: name.into(),
        workload_kind: "Deployment".into(),
        canonical_service: name.into(),
        canonical_revision: "v1".into(),
        app: name.into(),
        app_version: "v1".into(),
        zone: "".into(),
        authorization_policies: Vec::new(),
        excluded_inbound_ports: Vec::new(),
        excluded_outbound_ports: Vec::new(),
        excluded_outbound_cidrs: Vec::new(),
        redirect: false,
        ready: true,
        terminating: false,
        port_protocols: std::collections::BTreeMap::new(),
        probe_ports: Vec::new(),
    }
}

pub(super) fn pod(workload: Workload) -> Arc<LocalPod> {
    // Never entered here: these connections are in memory.
    let netns = Netns { fd: std::fs::File::open("/proc/self/ns/net").unwrap().into(), cookie: 1 };
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{}", workload.service_account).parse().unwrap();
    Arc::new(LocalPod::new(identity, netns, Arc::new(workload)))
}

pub(super) fn address(n: u8) -> SocketAddr {
    SocketAddr::new([10, 0, 0, n].into(), 8080)
}

pub(super) fn rule() -> HttpRule {
    HttpRule {
        name: "".into(),
        matches: vec![],
        filters: vec![],
        backends: vec![backend("shop/backend", 1)],
        timeouts: Timeouts::default(),
        retry: None,
    }
}

pub(super) fn backend(service: &str, weight: u32) -> weft_proto::model::Backend {
    weft_proto::model::Backend { service: id(service), port: PORT, weight, filters: vec![], invalid: false }
}

pub(super) fn traffic() -> TrafficPolicy {
    TrafficPolicy {
        id: id("shop/policy"),
        created_unix_s: 0,
        services: vec![],
        retry: None,
        connect_timeout: None,
        ejection: None,
        max_connections: None,
        max_pending_requests: None,
    }
}

impl Fake {
    /// Service `shop/backend` with these endpoints: 10.0.0.1, ...
    pub(super) fn new(apps: Vec<App>) -> Arc<Self> {
        let fake = Arc::new(Self {
            services: Mutex::default(),
            apps: Mutex::default(),
            connects: Mutex::default(),
            balancers: Balancers::default(),
            upstreams: Upstreams::new(UPSTREAMS_MAX),
            telemetry: Telemetry::start(&TelemetrySettings::default()).unwrap(),
            drain: Drain::default(),
            pod: pod(workload("frontend", [10, 0, 1, 1].into())),
            live: Arc::new(()),
        });
        fake.add("shop/backend", 1, apps);
        fake
    }

    /// A Service whose endpoints' addresses start at 10.0.0.`first`.
    pub(super) fn add(&self, name: &str, first: u8, apps: Vec<App>) {
        let mut endpoints = Vec::new();
        for (n, app) in (first..).zip(apps) {
            self.apps.lock().insert(address(n), app);
            endpoints.push(Arc::new(Endpoint {
                service: id(name),
                ip: address(n).ip(),
                workload: None,
                ports: [(PORT, 8080)].into(),
                ready: true,
                serving: true,
                terminating: false,
                node: "".into(),
                zone: "".into(),
            }));
        }
        let port = ServicePort { name: "http".into(), port: PORT, app_protocol: AppProtocol::Http };
        let entry = ServiceEntry {
            service: Arc::new(Service { id: id(name), vips: vec![], ports: vec![port], node_local: false }),
            endpoints,
            traffic_policy: None,
            routes: Arc::default(),
        };
        self.services.lock().insert(id(name), Arc::new(entry));
    }

    fn change(&self, change: impl FnOnce(&mut ServiceEntry)) {
        let mut services = self.services.lock();
        let entry = services.get_mut(&id("shop/backend")).unwrap();
        let mut changed = ServiceEntry::clone(entry);
        change(&mut changed);
        *entry = Arc::new(changed);
    }

    /// The rules of one route of `shop/backend`.
    pub(super) fn rules(self: Arc<Self>, rules: Vec<HttpRule>) -> Arc<Self> {
        let parents = vec![ParentRef { service: id("shop/backend"), port: None }];
        let rules = rules.into_iter().map(Arc::new).collect();
        let (kind, id_of_route) = (RouteKind::Http, id("shop/route"));
        let route = Arc::new(HttpRoute { kind, id: id_of_route, created_unix_s: 0, parents, rules });
        let table = RouteTable::compile(&id("shop/backend"), &[route]);
        self.change(|entry| entry.routes = Arc::new(table));
        self
    }

    pub(super) fn policy(self: Arc<Self>, policy: TrafficPolicy) -> Arc<Self> {
        self.change(|entry| entry.traffic_policy = Some(Arc::new(policy)));
        self
    }

    pub(super) fn connects_to(&self, address: SocketAddr) -> usize {
        self.connects.lock().iter().filter(|to| to.address == address).count()
    }

    /// How often requests of clients ended so.
    pub(super) fn finished(&self, reason: &str) -> u64 {
        counted(
            &self.telemetry,
            &format!("weft_requests_finished_total{{reporter=\"source\",reason=\"{reason}\"}}"),
        )
    }

    /// A connection of the client's application; the task that serves it.
    pub(super) fn client(self: &Arc<Self>, protocol: Protocol) -> (DuplexStream, JoinHandle<()>) {
        let (client, io) = tokio::io::duplex(64 << 10);
        let entry = self.services.lock()[&id("shop/backend")].clone();
        let target = Target::Service { port: entry.service.ports[0].clone(), entry };
        let source = Source { pod: Arc::clone(&self.pod), client: "10.0.1.1:40000".parse().unwrap() };
        let serving = tokio::spawn(serve_on(Arc::clone(self), source, target, protocol, io));
        (client, serving)
    }

    pub(super) async fn h1(self: &Arc<Self>) -> http1::SendRequest<TestBody> {
        let (io, _) = self.client(Protocol::Http1);
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    pub(super) async fn h2(self: &Arc<Self>) -> http2::SendRequest<TestBody> {
        let (io, _) = self.client(Protocol::Http2);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// One request over a new connection; status, headers, text.
    pub(super) async fn ask(self: &Arc<Self>, request: Request<TestBody>) -> (u16, HeaderMap, String) {
        let response = within(self.h1().await.send_request(request)).await.unwrap();
        read(response).await
    }
}

pub(super) async fn read(response: Response<Incoming>) -> (u16, HeaderMap, String) {
    let (head, body) = response.into_parts();
    let bytes = within(body.collect()).await.unwrap().to_bytes();
    (head.status.as_u16(), head.headers, String::from_utf8(bytes.to_vec()).unwrap())
}

pub(super) fn counted(telemetry: &Telemetry, series: &str) -> u64 {
    let text = telemetry.metrics(TextFormat::Prometheus);
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

pub(super) fn request(method: &str, path: &str, text: impl Into<Bytes>) -> Request<TestBody> {
    Request::builder().method(method).uri(path).header("host", "backend").body(body(text)).unwrap()
}

pub(super) fn get(path: &str) -> Request<TestBody> {
    request("GET", path, "")
}

pub(super) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT_MAX, what).await.expect("in time")
}

/// Waits until something has become so.
pub(super) async fn until(mut is_so: impl FnMut() -> bool) {
    within(async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Reads a message's head.
pub(super) async fn head_of(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut seen = Vec::new();
    within(async {
        while !seen.ends_with(b"\r\n\r\n") {
            seen.push(io.read_u8().await.expect("the rest of a head"));
        }
    })
    .await;
    String::from_utf8(seen).unwrap()
}
