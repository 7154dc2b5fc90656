//! The typed objects that a source delivers: what the index needs of Kubernetes objects, and nothing of their encoding.
//!
//! A value that exists is valid; a source refuses or reports the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use weft_proto::identity::{NamespacedName, PodUid};
use weft_proto::model::{AppProtocol, AuthorizationPolicy, HttpRoute, InboundMode, RouteKind, TrafficPolicy};

pub type Labels = BTreeMap<String, String>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    Node,
    ServiceAccount,
    Pod,
    Service,
    EndpointSlice,
    HttpRoute,
    GrpcRoute,
    ReferenceGrant,
    AuthorizationPolicy,
    TrafficPolicy,
    JoinToken,
}

impl Kind {
    pub const ALL: [Self; 12] = [
        Self::Namespace,
        Self::Node,
        Self::ServiceAccount,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::ReferenceGrant,
        Self::AuthorizationPolicy,
        Self::TrafficPolicy,
        Self::JoinToken,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::HttpRoute => RouteKind::Http.name(),
            Self::GrpcRoute => RouteKind::Grpc.name(),
            Self::ReferenceGrant => "ReferenceGrant",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::JoinToken => "Secret",
        }
    }

    pub fn of_route(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Http => Self::HttpRoute,
            RouteKind::Grpc => Self::GrpcRoute,
        }
    }

    /// None: no route.
    pub fn route(self) -> Option<RouteKind> {
        match self {
            Self::HttpRoute => Some(RouteKind::Http),
            Self::GrpcRoute => Some(RouteKind::Grpc),
            _ => None,
        }
    }
}

/// Names one object. The namespace of a Namespace, and of a Node, is its own name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub kind: Kind,
    pub id: NamespacedName,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Namespace | Kind::Node => write!(f, "{} {}", self.kind.name(), self.id.name),
            kind => write!(f, "{} {}", kind.name(), self.id),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
    ServiceAccount(NamespacedName),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    /// Of either kind.
    HttpRoute(Arc<RouteObject>),
    ReferenceGrant(Arc<ReferenceGrant>),
    AuthorizationPolicy(Arc<AuthorizationPolicyObject>),
    TrafficPolicy(Arc<TrafficPolicyObject>),
    JoinToken(Arc<JoinToken>),
}

impl Object {
    pub fn key(&self) -> ObjectKey {
        let (kind, id) = match self {
            Self::Namespace(o) => (Kind::Namespace, &o.id),
            Self::Node(o) => (Kind::Node, &o.id),
            Self::ServiceAccount(id) => (Kind::ServiceAccount, id),
            Self::Pod(o) => (Kind::Pod, &o.id),
            Self::Service(o) => (Kind::Service, &o.id),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, &o.id),
            Self::HttpRoute(o) => (Kind::of_route(o.route.kind), &o.route.id),
            Self::ReferenceGrant(o) => (Kind::ReferenceGrant, &o.id),
            Self::AuthorizationPolicy(o) => (Kind::AuthorizationPolicy, &o.policy.id),
            Self::TrafficPolicy(o) => (Kind::TrafficPolicy, &o.policy.id),
            Self::JoinToken(o) => (Kind::JoinToken, &o.id),
        };
        ObjectKey { kind, id: id.clone() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    pub id: NamespacedName,
    /// `weft.dev/mesh=enabled`.
    pub enrolled: bool,
    /// `weft.dev/mtls`, label or annotation.
    pub inbound_mode: Option<InboundMode>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub id: NamespacedName,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub id: NamespacedName,
    /// As its kubelet has it: in the cgroup tree and for CNI plugins.
    pub uid: PodUid,
    /// The UID of the mirror that the API shows of a static pod. None: the same.
    pub mirror_uid: Option<PodUid>,
    pub labels: Labels,
    /// Pod label `weft.dev/mesh`.
    pub mesh: Option<bool>,
    pub service_account: Arc<str>,
    pub node: Option<Arc<str>>,
    pub ips: Vec<IpAddr>,
    pub host_network: bool,
    /// Succeeded or Failed: never runs again.
    pub terminal: bool,
    pub terminating: bool,
    pub ready: bool,
    pub workload_name: Arc<str>,
    pub workload_kind: Arc<str>,
    pub zone: Arc<str>,
    /// TCP ports by name.
    pub named_ports: BTreeMap<String, u16>,
    /// Ports that the kubelet connects to, for probes and lifecycle hooks. Sorted.
    pub probe_ports: Vec<u16>,
    pub excluded_inbound_ports: Vec<u16>,
    pub excluded_outbound_ports: Vec<u16>,
    pub excluded_outbound_cidrs: Vec<IpNet>,
    pub redirect: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub id: NamespacedName,
    pub vips: Vec<IpAddr>,
    /// None: endpoints come from EndpointSlices alone.
    pub selector: Option<Labels>,
    pub ports: Vec<ServicePort>,
    pub publish_not_ready: bool,
    /// `internalTrafficPolicy: Local`.
    pub node_local: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    pub name: Arc<str>,
    pub port: u16,
    pub target: TargetPort,
    pub app_protocol: AppProtocol,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    Named(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    pub id: NamespacedName,
    pub service: NamespacedName,
    /// Target ports by the Service port's name.
    pub ports: BTreeMap<String, u16>,
    pub endpoints: Vec<SliceEndpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    pub ips: Vec<IpAddr>,
    pub pod: Option<PodReference>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Arc<str>,
    pub zone: Arc<str>,
}

/// The pod behind an address. A name may have been another pod's: the UID tells, where it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodReference {
    pub id: NamespacedName,
    pub uid: Option<PodUid>,
}

impl PodReference {
    pub fn is(&self, pod: &Pod) -> bool {
        self.id == pod.id
            && self.uid.as_ref().is_none_or(|uid| uid == pod.mirror_uid.as_ref().unwrap_or(&pod.uid))
    }
}

/// Lets routes of other namespaces send requests to Services of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferenceGrant {
    pub id: NamespacedName,
    /// Kinds of routes and their namespaces.
    pub from: BTreeSet<(RouteKind, Arc<str>)>,
    /// None: every Service of the namespace.
    pub services: Option<BTreeSet<Arc<str>>>,
}

impl ReferenceGrant {
    /// Whether a route of this kind and namespace may send requests to a Service of the grant's namespace.
    pub fn permits(&self, kind: RouteKind, from: &Arc<str>, service: &Arc<str>) -> bool {
        self.from.contains(&(kind, from.clone()))
            && self.services.as_ref().is_none_or(|services| services.contains(service))
    }
}

/// A route of either kind, with its parents as they were written.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteObject {
    /// Without parents: nodes know ports by their number, which the Service has to say.
    pub route: HttpRoute,
    pub parents: Vec<Parent>,
}

impl RouteObject {
    /// Whether it is attached to a port of a Service.
    pub fn attaches(&self, service: &NamespacedName, port: &ServicePort) -> bool {
        self.parents.iter().any(|parent| parent.service == *service && parent.takes(port))
    }
}

/// What a route is attached to: a Service, or one port of it; with number and name, that which has both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    pub service: NamespacedName,
    pub port: Option<u16>,
    /// `sectionName`.
    pub port_name: Option<Arc<str>>,
}

impl Parent {
    /// `section_name` as it is written: empty is the same as absent.
    pub fn new(service: NamespacedName, port: Option<u16>, section_name: Option<&str>) -> Self {
        Self { service, port, port_name: section_name.filter(|name| !name.is_empty()).map(Arc::from) }
    }

    /// Whether this port of its Service is meant.
    pub fn takes(&self, port: &ServicePort) -> bool {
        self.port.is_none_or(|wanted| wanted == port.port)
            && self.port_name.as_ref().is_none_or(|wanted| *wanted == port.name)
    }
}

impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        self.port.iter().try_for_each(|port| write!(f, ":{port}"))?;
        self.port_name.iter().try_for_each(|name| write!(f, ":{name}"))
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct AuthorizationPolicyObject {
    pub policy: Arc<AuthorizationPolicy>,
    /// None: every pod of the namespace.
    pub selector: Option<Labels>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TrafficPolicyObject {
    pub policy: Arc<TrafficPolicy>,
    /// Whether it says anything to clients; a policy of inbound mode alone does not.
    pub for_clients: bool,
    pub inbound: Option<Inbound>,
}

/// The mode that pods of the policy's namespace take connections in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// None: every pod of the namespace.
    pub selector: Option<Labels>,
    pub mode: InboundMode,
}

/// A node's secret. Its text never reaches a log: `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub id: NamespacedName,
    pub node: Arc<str>,
    pub token: Arc<str>,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({} for {})", self.id, self.node)
    }
}

/// Whether every label that is wanted is there.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}
