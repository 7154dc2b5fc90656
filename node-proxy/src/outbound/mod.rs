//! Connections that leave an enrolled pod: accepted → original destination → source → target → L4 or L7.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use weft_proto::model::{ServicePort, Workload};

use crate::enrol::LocalPod;
use crate::node::Node;
use crate::snapshot::ServiceEntry;

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
pub async fn run(_node: Arc<Node>, _pod: Arc<LocalPod>, _listener: TcpListener) {
    todo!()
}
