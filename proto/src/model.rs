//! The validated resources that the control plane pushes and a node holds.
//!
//! These are plain, immutable values: no generated type, no Kubernetes type. A value that exists is valid.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use regex::Regex;

use crate::identity::{NamespacedName, PodUid, TrustDomain};

/// A control plane's revision; grows within its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

/// Hash of a resource's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(pub u64);

/// Names one resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKey {
    Mesh,
    Workload(PodUid),
    Service(NamespacedName),
    Endpoint { service: NamespacedName, ip: IpAddr },
    HttpRoute(NamespacedName),
    GrpcRoute(NamespacedName),
    AuthorizationPolicy(NamespacedName),
    TrafficPolicy(NamespacedName),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Resource {
    Mesh(Arc<Mesh>),
    Workload(Arc<Workload>),
    Service(Arc<Service>),
    Endpoint(Arc<Endpoint>),
    /// An HTTPRoute or a GRPCRoute: its `kind` says which.
    HttpRoute(Arc<HttpRoute>),
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    TrafficPolicy(Arc<TrafficPolicy>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    pub trust_domain: TrustDomain,
    /// DER. At least one.
    pub roots: Vec<Vec<u8>>,
    /// Namespaces whose pods are enrolled unless they opt out. Sorted.
    pub enrolled_namespaces: Vec<Arc<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum InboundMode {
    /// Only mutual TLS gets in.
    #[default]
    Strict,
    /// Plaintext gets in too, without an identity.
    Permissive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum AppProtocol {
    /// The first bytes decide.
    #[default]
    Detect,
    Tcp,
    Http,
    H2c,
    Grpc,
    WebSocket,
}

impl AppProtocol {
    /// Declared HTTP of some version.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::H2c | Self::Grpc | Self::WebSocket)
    }
}

/// Exclusions of one kind that one pod may have. A node's kernel tables have room for so many of each of its pods.
pub const EXCLUSIONS_MAX: usize = 32;

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    pub uid: PodUid,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub service_account: Arc<str>,
    pub node: Arc<str>,
    /// The first is the primary one. Empty: scheduled, and without a sandbox yet.
    pub ips: Vec<IpAddr>,
    pub enrolled: bool,
    pub inbound_mode: InboundMode,
    pub workload_name: Arc<str>,
    pub workload_kind: Arc<str>,
    pub canonical_service: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub app: Arc<str>,
    pub app_version: Arc<str>,
    pub zone: Arc<str>,
    /// Policies that select this pod; present only for the receiving node's own pods.
    pub authorization_policies: Vec<NamespacedName>,
    /// Each of the three at most [`EXCLUSIONS_MAX`], or the pod's node shuts it.
    pub excluded_inbound_ports: Vec<u16>,
    pub excluded_outbound_ports: Vec<u16>,
    pub excluded_outbound_cidrs: Vec<IpNet>,
    pub redirect: bool,
    pub ready: bool,
    pub terminating: bool,
    /// By container port.
    pub port_protocols: BTreeMap<u16, AppProtocol>,
    /// Ports that the kubelet probes over TCP.
    pub probe_ports: Vec<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub id: NamespacedName,
    pub vips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy: Local`: clients reach the endpoints of their own node, and no others.
    pub node_local: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    pub name: Arc<str>,
    pub port: u16,
    pub app_protocol: AppProtocol,
}

/// One address behind a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub service: NamespacedName,
    pub ip: IpAddr,
    pub workload: Option<PodUid>,
    /// Service port to target port.
    pub ports: BTreeMap<u16, u16>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Arc<str>,
    pub zone: Arc<str>,
}

/// Which kind of route. For the same clients, Service and port the first counts and the other is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    Grpc,
    Http,
}

impl RouteKind {
    /// As Kubernetes names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Grpc => "GRPCRoute",
            Self::Http => "HTTPRoute",
        }
    }

    pub fn key(self, id: NamespacedName) -> ResourceKey {
        match self {
            Self::Grpc => ResourceKey::GrpcRoute(id),
            Self::Http => ResourceKey::HttpRoute(id),
        }
    }
}

/// An HTTPRoute, or a GRPCRoute in its terms: gRPC is HTTP with paths of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpRoute {
    pub kind: RouteKind,
    pub id: NamespacedName,
    pub created_unix_s: i64,
    pub parents: Vec<ParentRef>,
    pub rules: Vec<Arc<HttpRule>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentRef {
    pub service: NamespacedName,
    /// None: every port.
    pub port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HttpRule {
    pub name: Arc<str>,
    /// Empty: matches everything.
    pub matches: Vec<HttpMatch>,
    pub filters: Vec<HttpFilter>,
    pub backends: Vec<Backend>,
    pub timeouts: Timeouts,
    pub retry: Option<Retry>,
}

/// A regular expression that compares by its text.
#[derive(Debug, Clone)]
pub struct Pattern(pub Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// How a path of a route matches.
#[derive(Debug, Clone, PartialEq)]
pub enum PathMatch {
    Exact(Arc<str>),
    /// By element: `/a` matches `/a` and `/a/b`, not `/ab`. Without a trailing slash, except for `/` itself.
    Prefix(Arc<str>),
    /// Of the whole path.
    Regex(Pattern),
    /// Of a gRPC call: `/service/method`.
    Grpc(GrpcMethodMatch),
}

/// None: any.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GrpcMethodMatch {
    pub service: Option<ValueMatch>,
    pub method: Option<ValueMatch>,
}

/// How a header or a query parameter of a route matches.
#[derive(Debug, Clone, PartialEq)]
pub enum ValueMatch {
    Exact(Arc<str>),
    /// Of the whole value.
    Regex(Pattern),
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct HttpMatch {
    pub path: Option<PathMatch>,
    pub method: Option<Method>,
    pub headers: Vec<(HeaderName, ValueMatch)>,
    pub query: Vec<(Arc<str>, ValueMatch)>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeaderModifier {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathModifier {
    ReplaceFull(Arc<str>),
    ReplacePrefix(Arc<str>),
}

#[derive(Debug, Clone, PartialEq)]
pub enum HttpFilter {
    RequestHeaders(HeaderModifier),
    ResponseHeaders(HeaderModifier),
    Redirect {
        scheme: Option<Arc<str>>,
        hostname: Option<Arc<str>>,
        port: Option<u16>,
        path: Option<PathModifier>,
        status: StatusCode,
    },
    Rewrite {
        hostname: Option<Arc<str>>,
        path: Option<PathModifier>,
    },
    Mirror {
        service: NamespacedName,
        port: u16,
        /// Share of the requests, numerator of denominator.
        fraction: (u32, u32),
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    pub service: NamespacedName,
    pub port: u16,
    pub weight: u32,
    pub filters: Vec<HttpFilter>,
    /// The reference cannot be resolved: its share answers 500.
    pub invalid: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// From the request's first byte to the response's last.
    pub request: Option<Duration>,
    /// Of one attempt.
    pub backend_request: Option<Duration>,
}

/// HTTPRoute `retry`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    pub codes: Vec<StatusCode>,
    /// Retries after the first attempt.
    pub attempts: u32,
    pub backoff: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PolicyAction {
    Allow,
    Deny,
    Audit,
}

#[derive(Debug, Clone, PartialEq)]
pub struct AuthorizationPolicy {
    pub id: NamespacedName,
    pub action: PolicyAction,
    /// Any matches. None: matches nothing, so an ALLOW without rules denies everything.
    pub rules: Vec<PolicyRule>,
}

/// `from` and `to` must both match; an empty list matches everything.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PolicyRule {
    pub from: Vec<PolicySource>,
    pub to: Vec<PolicyOperation>,
}

/// How a principal, path or header of a policy matches: `*`, `a*`, `*a` or exactly, by character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    /// Any value, but there must be one.
    Present,
}

impl TextMatch {
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(want) => text == &**want,
            Self::Prefix(want) => text.starts_with(&**want),
            Self::Suffix(want) => text.ends_with(&**want),
            Self::Present => !text.is_empty(),
        }
    }
}

/// Every non-empty list must match; within a list any. Principals are compared without `spiffe://`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PolicySource {
    pub principals: Vec<TextMatch>,
    pub not_principals: Vec<TextMatch>,
    pub namespaces: Vec<Arc<str>>,
    pub not_namespaces: Vec<Arc<str>>,
    pub cidrs: Vec<IpNet>,
    pub not_cidrs: Vec<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct PolicyOperation {
    pub ports: Vec<u16>,
    pub not_ports: Vec<u16>,
    pub methods: Vec<Method>,
    pub not_methods: Vec<Method>,
    pub paths: Vec<TextMatch>,
    pub not_paths: Vec<TextMatch>,
    pub headers: Vec<(HeaderName, TextMatch)>,
}

impl PolicyOperation {
    /// Whether a request, and not just a connection, is needed to decide.
    pub fn needs_http(&self) -> bool {
        !(self.methods.is_empty()
            && self.not_methods.is_empty()
            && self.paths.is_empty()
            && self.not_paths.is_empty()
            && self.headers.is_empty())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficPolicy {
    pub id: NamespacedName,
    /// 0: not known.
    pub created_unix_s: i64,
    /// Names in the policy's namespace; empty: all of it.
    pub services: Vec<Arc<str>>,
    pub retry: Option<RetryPolicy>,
    pub connect_timeout: Option<Duration>,
    pub ejection: Option<Ejection>,
    pub max_connections: Option<u32>,
    pub max_pending_requests: Option<u32>,
}

impl TrafficPolicy {
    /// Of policies for the same Service the one with the smallest counts: the oldest, then the first by name.
    pub fn precedence(&self) -> (i64, &NamespacedName) {
        (self.created_unix_s, &self.id)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    pub codes: Vec<StatusCode>,
    pub attempts: u32,
    pub backoff: Option<Duration>,
    /// Methods that may be repeated; empty: GET, HEAD, OPTIONS.
    pub methods: Vec<Method>,
    /// Retries may be this share of live requests.
    pub budget_percent: u32,
    /// ... and at least this many per second.
    pub budget_min_per_s: u32,
    pub per_try_timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    pub consecutive_failures: u32,
    pub base_ejection: Duration,
    pub max_ejected_percent: u32,
}
