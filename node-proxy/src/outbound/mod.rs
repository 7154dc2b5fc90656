//! Connections that leave an enrolled pod: accepted → original destination → source → target → L4 or L7.
//!
//! `stages` holds the typed steps; `opaque` the L4 half. Each connection of an application leaves exactly one record
//! here, or one per request at L7.

mod opaque;
mod stages;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use weft_proto::identity::NamespacedName;
use weft_proto::model::{AppProtocol, ServicePort, Workload};

use crate::balance::Balancer;
use crate::connect::Source;
use crate::detect::{self, Prefixed, first_bytes};
use crate::enrol::LocalPod;
use crate::l7;
use crate::l7::outbound::Protocol;
use crate::node::Node;
use crate::relay::Leg;
use crate::snapshot::{ServiceEntry, port_protocol};
use crate::socket::accept;
use crate::socket::leg::LegIo;
use crate::telemetry::metrics::names;
use crate::telemetry::{CloseReason, Flow, Party, Reporter, Security};
use stages::{Accepted, Stop, Targeted};

/// What an original destination is in the mesh.
#[derive(Clone)]
pub enum Target {
    /// A Service's address and port.
    Service { entry: Arc<ServiceEntry>, port: ServicePort },
    /// A pod's own address.
    Workload { workload: Arc<Workload>, address: SocketAddr },
    /// Nothing that the mesh knows.
    External { address: SocketAddr },
}

/// Accepts what a pod's application connects to, until `pod.released` or `node.drain.draining`.
pub async fn run(node: Arc<Node>, pod: Arc<LocalPod>, listener: TcpListener) {
    let until = accept::while_enrolled(&pod.released, &node.drain.draining);
    let limited = node.telemetry.counter(&names::ACCEPT_LIMITED, &[("listener", "outbound")]);
    let places = node.places.of(&pod.uid);
    accept::each(listener, until, &pod, &places.outbound, limited, |tcp, client, place| {
        let (node, pod) = (Arc::clone(&node), Arc::clone(&pod));
        node.drain.connections.clone().spawn(async move {
            connection(&node, Accepted::new(pod, tcp, client)).await;
            drop(place);
        });
    })
    .await;
}

async fn connection(node: &Arc<Node>, accepted: Accepted) {
    let source = accepted.source();
    let targeted =
        accepted.redirected(&node.kernel).and_then(|redirected| redirected.targeted(&node.snapshot.load()));
    let mut targeted = match targeted {
        Ok(targeted) => targeted,
        Err(Stop { tcp, wanted, reason, detail }) => {
            node.telemetry.connection(flow(&source, None, wanted)).finish(reason, Some(detail.into()));
            return Leg::Tcp(tcp).reset();
        }
    };
    let (protocol, first) = match detected(&mut targeted).await {
        Ok(detected) => detected,
        Err(error) => {
            let flow = flow(&source, Some(&targeted.target), Some(targeted.wanted));
            node.telemetry.connection(flow).finish(CloseReason::ClientReset, Some(error.to_string()));
            return;
        }
    };
    let Some(protocol) = protocol else { return opaque::run(node, targeted, first).await };
    let Targeted { tcp, source, target, .. } = targeted;
    let pod = Arc::clone(&source.pod);
    let serving = l7::outbound::serve(
        Arc::clone(node),
        source,
        target,
        protocol,
        Prefixed::new(first, LegIo::new(tcp)),
    );
    tokio::select! {
        () = serving => {}
        // Requests that are cut off report for themselves when the service is dropped.
        () = pod.gone.cancelled() => {}
        () = node.drain.deadline.cancelled() => {}
    }
}

/// HTTP of which version, and the bytes that were read to know it.
async fn detected(targeted: &mut Targeted) -> std::io::Result<(Option<Protocol>, Bytes)> {
    let (declared, port) = match &targeted.target {
        Target::Service { port, .. } => (port.app_protocol, port.port),
        Target::Workload { workload, address } => (port_protocol(workload, address.port()), address.port()),
        Target::External { .. } => return Ok((None, Bytes::new())),
    };
    let silence_max = match declared {
        AppProtocol::Tcp => return Ok((None, Bytes::new())),
        AppProtocol::Detect if detect::server_speaks_first(port) => return Ok((None, Bytes::new())),
        AppProtocol::Detect => detect::SILENCE_MAX,
        _ => detect::DECLARED_SILENCE_MAX,
    };
    let (protocol, first) = first_bytes(&mut targeted.tcp, silence_max).await?;
    // Declared HTTP and something else: let HTTP/1 say 400, rather than wave it through.
    let protocol = protocol.or((declared.is_http() && !first.is_empty()).then_some(Protocol::Http1));
    Ok((protocol, first))
}

/// Who speaks to whom, as the client's proxy reports it.
fn flow(source: &Source, target: Option<&Target>, wanted: Option<SocketAddr>) -> Flow {
    let workload = match target {
        Some(Target::Workload { workload, .. }) => Some(Arc::clone(workload)),
        _ => None,
    };
    let service = match target {
        Some(Target::Service { entry, .. }) => Some(entry.service.id.clone()),
        _ => None,
    };
    Flow {
        reporter: Reporter::Source,
        source: Party {
            workload: Some(source.pod.workload.load_full()),
            principal: Some(source.pod.identity.clone()),
            address: Some(source.client),
        },
        destination: Party { workload, principal: None, address: wanted },
        service,
        security: Security::None,
    }
}

impl Targeted {
    fn flow(&self) -> Flow {
        flow(&self.source, Some(&self.target), Some(self.wanted))
    }
}

/// Says in the log, now and then, that a pod asks for a Service that has no endpoint.
pub fn report_nobody(balancer: &Balancer, service: &NamespacedName, port: u16, client: &LocalPod) {
    if balancer.nobody_is_news(Instant::now()) {
        let client = client.workload.load();
        tracing::warn!(
            %service,
            port,
            namespace = %client.namespace,
            pod = %client.name,
            "the Service has no endpoint that is ready: whoever asks for it is refused"
        );
    }
}

/// The stream itself, for stages that end it.
fn reset(tcp: TcpStream) {
    Leg::Tcp(tcp).reset();
}
