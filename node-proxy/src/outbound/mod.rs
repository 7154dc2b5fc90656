//! Connections that leave an enrolled pod: accepted → original destination → source → target → L4 or L7.

use std::net::SocketAddr;
use std::sync::Arc;

use weft_proto::model::{ServicePort, Workload};

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
