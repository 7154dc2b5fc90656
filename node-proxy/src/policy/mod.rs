//! AuthorizationPolicy: who may do what. Pure. Deny wins; any ALLOW makes the rest denied.

use std::net::IpAddr;
use std::sync::Arc;

use weft_proto::identity::{NamespacedName, SpiffeId};
use weft_proto::model::AuthorizationPolicy;

/// What is known about a connection.
#[derive(Debug, Clone)]
pub struct ConnectionFacts<'a> {
    /// None: no verified identity.
    pub principal: Option<&'a SpiffeId>,
    pub source_ip: IpAddr,
    pub destination_port: u16,
}

/// What is known about a request, on top.
#[derive(Debug, Clone)]
pub struct RequestFacts<'a> {
    pub method: &'a http::Method,
    pub path: &'a str,
    pub headers: &'a http::HeaderMap,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// `by`: the ALLOW policy that matched, if any policy was needed.
    Allow { by: Option<NamespacedName>, audited: Vec<NamespacedName> },
    /// `by`: the DENY policy that matched; None: ALLOW policies exist and none matched.
    Deny { by: Option<NamespacedName> },
    /// The connection alone cannot decide: each request must be asked about, and what is not HTTP is refused.
    NeedsHttp,
}

/// Decides about a connection.
pub fn authorize_connection(
    _policies: &[Arc<AuthorizationPolicy>],
    _connection: &ConnectionFacts<'_>,
) -> Verdict {
    todo!()
}

/// Decides about a request; never `NeedsHttp`.
pub fn authorize_request(
    _policies: &[Arc<AuthorizationPolicy>],
    _connection: &ConnectionFacts<'_>,
    _request: &RequestFacts<'_>,
) -> Verdict {
    todo!()
}
