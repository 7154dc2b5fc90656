//! A client application's HTTP connection: per request route → balance → attempt → retry.
//!
//! Start at [`serve`]; one request's walk is [`Session::request`] in `exchange.rs`. What this stage reaches of the
//! node goes through [`Mesh`], so that tests need neither kernel nor TLS.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use weft_proto::identity::{NamespacedName, PodUid, SpiffeId};
use weft_proto::model::Workload;

use super::exchange::Session;
use super::frames::FramesTimed;
use super::head::{self, HeadClock, HeadTimed};
use super::informational::{Hinting, Hints};
use crate::balance::Balancers;
use crate::connect::{ConnectError, Destination, Source, UpstreamIo, connect, identity_of};
use crate::drain::Drain;
use crate::node::Node;
use crate::outbound::Target;
use crate::snapshot::ServiceEntry;
use crate::telemetry::{Security, Telemetry};
use crate::tunnel::limits::CONNECT_TIMEOUT;

use super::{Upstreams, conn, limits};

/// HTTP of which version the first bytes show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub(super) principal: Option<SpiffeId>,
    pub(super) security: Security,
}

/// A connection to a destination.
pub(super) struct Reached<IO> {
    pub(super) io: IO,
    pub(super) remote: Remote,
}

/// What this stage needs of the node.
pub(super) trait Mesh: Send + Sync + 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn service(&self, id: &NamespacedName) -> Option<Arc<ServiceEntry>>;
    /// The pod behind an endpoint, by its UID or else its address.
    fn workload(&self, uid: Option<&PodUid>, ip: IpAddr) -> Option<Arc<Workload>>;
    fn balancers(&self) -> &Balancers;
    fn upstreams(&self) -> &Upstreams;
    fn telemetry(&self) -> &Telemetry;
    fn drain(&self) -> &Drain;
    fn connect(
        &self,
        source: &Source,
        to: &Destination,
    ) -> impl Future<Output = Result<Reached<Self::Io>, ConnectError>> + Send;
}

impl Mesh for Arc<Node> {
    type Io = UpstreamIo;
    fn service(&self, id: &NamespacedName) -> Option<Arc<ServiceEntry>> {
        self.snapshot.load().service(id).cloned()
    }
    fn workload(&self, uid: Option<&PodUid>, ip: IpAddr) -> Option<Arc<Workload>> {
        let snapshot = self.snapshot.load();
        uid.and_then(|uid| snapshot.workload(uid)).or_else(|| snapshot.workload_by_ip(ip)).cloned()
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
    async fn connect(&self, source: &Source, to: &Destination) -> Result<Reached<UpstreamIo>, ConnectError> {
        // The pool gives it up sooner, by `connect::time_out`.
        let upstream = connect(self, source, to, CONNECT_TIMEOUT).await?;
        let remote = match (&upstream.peer, &upstream.io) {
            (Some(peer), _) => Remote { principal: Some(peer.id().clone()), security: Security::MutualTls },
            (None, UpstreamIo::Local(_)) => {
                let principal = to.workload.as_ref().and_then(|workload| identity_of(self, workload));
                Remote { principal, security: Security::Local }
            }
            (None, _) => Remote { principal: None, security: Security::None },
        };
        Ok(Reached { io: upstream.io, remote })
    }
}

/// Serves an application's connection until it ends.
pub async fn serve<IO>(node: Arc<Node>, source: Source, target: Target, protocol: Protocol, io: IO)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    serve_on(node, source, target, protocol, io).await;
}

pub(super) async fn serve_on<M: Mesh, IO>(mesh: M, source: Source, target: Target, protocol: Protocol, io: IO)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let drain = mesh.drain().clone();
    let gone = source.pod.gone.clone();
    let session = Arc::new(Session::new(mesh, source, target, protocol));
    // What has left HTTP ends when this is dropped.
    let _guard = session.upgrades.guard();
    let clock = HeadClock::new(limits::HEAD_TIMEOUT);
    let hints = Hints::default();
    let (serving, heads, told) = (Arc::clone(&session), clock.clone(), hints.clone());
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        let (session, answering, told) = (Arc::clone(&serving), heads.request(), told.clone());
        told.request(&mut request);
        async move {
            let method = request.method().clone();
            let response = session.request(request).await;
            told.answered();
            Ok::<_, Infallible>(answering.until_end(&method, response))
        }
    });
    match protocol {
        Protocol::Http1 => {
            let io = TokioIo::new(HeadTimed::new(Hinting::new(io, hints), clock.clone()));
            let connection = conn::http1_server().serve_connection(io, service).with_upgrades();
            drive!(connection, drain, gone);
        }
        Protocol::Http2 => {
            let io = TokioIo::new(FramesTimed::new(io, clock.clone()));
            let connection = conn::http2_server().serve_connection(io, service);
            drive!(connection, drain, gone);
        }
    }
    if clock.late() {
        head::report_late(session.mesh.telemetry(), session.flow());
    }
    session.upgrades.finished().await;
}
