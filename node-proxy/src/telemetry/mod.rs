//! One record per connection or request, from which metrics, spans and access log all come.

mod reason;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use weft_proto::identity::{NamespacedName, SpiffeId};
use weft_proto::model::Workload;

pub use reason::CloseReason;

/// Which side of the mesh reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's proxy.
    Source,
    /// The server's proxy.
    Destination,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Security {
    MutualTls,
    /// Both ends on this node, known by their namespaces: no wire, no TLS.
    Local,
    None,
}

/// One end of a flow, as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Party {
    pub workload: Option<Arc<Workload>>,
    pub principal: Option<SpiffeId>,
    pub address: Option<SocketAddr>,
}

/// Who speaks to whom.
#[derive(Debug, Clone)]
pub struct Flow {
    pub reporter: Reporter,
    pub source: Party,
    pub destination: Party,
    /// The Service that was addressed, if known.
    pub service: Option<NamespacedName>,
    pub security: Security,
}

/// Bytes of a flow, counted while it lives.
#[derive(Debug, Default)]
pub struct ByteCounts {
    /// From the client towards the server.
    pub sent: AtomicU64,
    /// From the server towards the client.
    pub received: AtomicU64,
}

/// The sinks: metrics, spans, access log. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    _private: (),
}

impl Telemetry {
    /// Opens the record of an L4 connection. Listed under `/connections` while it lives.
    pub fn connection(&self, _flow: Flow) -> ConnectionRecord {
        todo!()
    }
    /// Opens the record of a request. `headers` are the client's: the parent of the spans comes from them.
    pub fn request(&self, _flow: Flow, _start: &RequestStart<'_>) -> RequestRecord {
        todo!()
    }
}

/// An L4 connection. Finished exactly once; dropped unfinished it reports `Cancelled`.
pub struct ConnectionRecord {
    _private: (),
}

impl ConnectionRecord {
    pub fn bytes(&self) -> Arc<ByteCounts> {
        todo!()
    }
    /// The destination is known only after picking an endpoint.
    pub fn destination(&mut self, _destination: Party, _security: Security) {
        todo!()
    }
    /// The policy that allowed or denied.
    pub fn policy(&mut self, _by: NamespacedName) {
        todo!()
    }
    /// `detail`: words for the log; never a metric label.
    pub fn finish(self, _reason: CloseReason, _detail: Option<String>) {
        todo!()
    }
}

/// What is known when a request begins.
pub struct RequestStart<'a> {
    pub method: &'a http::Method,
    pub path: &'a str,
    pub authority: Option<&'a str>,
    pub version: http::Version,
    pub headers: &'a http::HeaderMap,
}

/// A request as one proxy sees it.
pub struct RequestRecord {
    _private: (),
}

impl RequestRecord {
    /// The matched route, for span names: never the raw path.
    pub fn route(&mut self, _route: &str) {
        todo!()
    }
    pub fn destination(
        &mut self,
        _destination: Party,
        _service: Option<NamespacedName>,
        _security: Security,
    ) {
        todo!()
    }
    pub fn policy(&mut self, _by: NamespacedName) {
        todo!()
    }
    /// Bodies' bytes: `sent` is the request's.
    pub fn bytes(&self) -> Arc<ByteCounts> {
        todo!()
    }
    /// Opens the client span of an attempt (client side). `number` starts at 1.
    pub fn attempt(&mut self, _number: u32, _to: &Party) -> Attempt {
        todo!()
    }
    /// Sets `traceparent`/`tracestate` for what is forwarded by the server side.
    pub fn propagate(&self, _headers: &mut http::HeaderMap) {
        todo!()
    }
    /// `status` None: no response was sent. `grpc_status` from trailers or trailers-only.
    pub fn finish(self, _status: Option<http::StatusCode>, _grpc_status: Option<u32>, _reason: CloseReason) {
        todo!()
    }
}

/// One attempt of a request: a client span.
pub struct Attempt {
    _private: (),
}

impl Attempt {
    /// Sets `traceparent`/`tracestate` to this attempt's span.
    pub fn propagate(&self, _headers: &mut http::HeaderMap) {
        todo!()
    }
    pub fn finish(self, _status: Option<http::StatusCode>, _grpc_status: Option<u32>, _reason: CloseReason) {
        todo!()
    }
}
