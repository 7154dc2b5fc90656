//! Connections that come into an enrolled pod: authenticated → permit → forward.
//!
//! Three ways in: `tunnels` (mutual TLS from other nodes), `plaintext` (PERMISSIVE, from outside the mesh), `local`
//! (a pod of the same node). All end in [`forward`], which wants a [`permit::Permit`]; only policy makes one.

mod application;
mod forward;
mod local;
mod permit;
mod plaintext;
mod tunnels;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use weft_proto::identity::{NamespacedName, SpiffeId};

use crate::connect::Source;
use crate::enrol::LocalPod;
use crate::identity::VerifiedPeer;
use crate::node::Node;
use crate::snapshot::Snapshot;
use crate::socket::places::Place;
use crate::telemetry::metrics::names;
use crate::telemetry::{CloseReason, Flow, Party, Reporter, Security};

pub use local::{HandOver, Session, hand_over, hand_over_opaque};

/// How the client is known.
#[derive(Debug, Clone)]
pub enum Peer {
    /// By its certificate.
    Verified(VerifiedPeer),
    /// A pod of this node, by its network namespace.
    Local(SpiffeId),
    /// Plaintext from outside the mesh (PERMISSIVE, probes).
    Anonymous,
}

impl Peer {
    /// None: anonymous.
    pub fn identity(&self) -> Option<&SpiffeId> {
        match self {
            Self::Verified(peer) => Some(peer.id()),
            Self::Local(identity) => Some(identity),
            Self::Anonymous => None,
        }
    }
    pub fn security(&self) -> Security {
        match self {
            Self::Verified(_) => Security::MutualTls,
            Self::Local(_) => Security::Local,
            Self::Anonymous => Security::None,
        }
    }
}

/// A connection towards an application of this node, before policy.
#[derive(Clone)]
pub struct Incoming {
    pub pod: Arc<LocalPod>,
    /// The pod's own address and the port that the client wants.
    pub address: SocketAddr,
    /// The port of `address`.
    pub port: u16,
    pub peer: Peer,
    /// The client pod's own address, which the application will see.
    pub client: SocketAddr,
    /// The local pod that connects, when it is one.
    pub local_source: Option<Source>,
}

impl Incoming {
    fn new(
        pod: Arc<LocalPod>,
        address: SocketAddr,
        peer: Peer,
        client: SocketAddr,
        local_source: Option<Source>,
    ) -> Self {
        Self { pod, port: address.port(), address, peer, client, local_source }
    }

    /// Who speaks to whom, as the server's proxy reports it.
    pub fn flow(&self, node: &Node) -> Flow {
        self.flow_in(&node.snapshot.load())
    }

    /// ... as a snapshot knows them.
    pub(crate) fn flow_in(&self, snapshot: &Snapshot) -> Flow {
        let identity = self.peer.identity();
        let source = match &self.local_source {
            Some(source) => Some(source.pod.workload.load_full()),
            // By address, but only if the verified identity is that pod's: an address alone proves nothing.
            None => snapshot.workload_by_ip(self.client.ip()).cloned().filter(|workload| {
                identity.is_none_or(|id| {
                    id.namespace() == &*workload.namespace
                        && id.service_account() == &*workload.service_account
                })
            }),
        };
        Flow {
            reporter: Reporter::Destination,
            source: Party { workload: source, principal: identity.cloned(), address: Some(self.client) },
            destination: Party {
                workload: Some(self.pod.workload.load_full()),
                principal: Some(self.pod.identity.clone()),
                address: Some(self.address),
            },
            service: None,
            security: self.peer.security(),
        }
    }

    /// A place of the pod's share, where nobody can wait for one: each stream of a tunnel is a connection to the
    /// application.
    fn place(&self, node: &Node, listener: &str) -> Result<Place, Refusal> {
        let places = node.places.of(&self.pod.uid);
        places.inbound.place_now(&self.pod).ok_or_else(|| {
            node.telemetry.counter(&names::ACCEPT_LIMITED, &[("listener", listener)]).increment();
            let most = places.inbound.most();
            Refusal::new(
                CloseReason::Overloaded,
                format!("the pod has {most} connections, as many as it may"),
            )
        })
    }

    /// The one record of a connection that got no further.
    fn refused(&self, node: &Node, refusal: &Refusal) {
        let mut record = node.telemetry.connection(self.flow(node));
        if let Some(policy) = &refusal.by {
            record.policy(policy.clone());
        }
        record.finish(refusal.reason, Some(refusal.detail.clone()));
    }
}

/// Why a connection was not let in.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub reason: CloseReason,
    /// The policy that denied.
    pub by: Option<NamespacedName>,
    pub detail: String,
}

impl Refusal {
    fn new(reason: CloseReason, detail: impl Into<String>) -> Self {
        Self { reason, by: None, detail: detail.into() }
    }
}

/// Accepts tunnels at `:15008`, until `pod.released` or `node.drain.draining`.
pub async fn run_tunnel(node: Arc<Node>, pod: Arc<LocalPod>, listener: TcpListener) {
    tunnels::run(node, pod, listener).await;
}

/// Accepts the steered connections of `:15006`, until `pod.released` or `node.drain.draining`.
pub async fn run_plaintext(node: Arc<Node>, pod: Arc<LocalPod>, listener: TcpListener) {
    plaintext::run(node, pod, listener).await;
}
