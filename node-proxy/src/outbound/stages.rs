//! The steps of an outbound connection. Each is made by the one before and by nothing else.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use weft_ebpf::Kernel;

use super::Target;
use crate::connect::Source;
use crate::enrol::LocalPod;
use crate::snapshot::Snapshot;
use crate::socket::is_proxy_port;
use crate::telemetry::CloseReason;

/// The connection goes no further.
pub(super) struct Stop {
    pub(super) tcp: TcpStream,
    pub(super) wanted: Option<SocketAddr>,
    pub(super) reason: CloseReason,
    pub(super) detail: &'static str,
}

/// Taken from the listener in the pod's namespace: so it is that pod's.
pub(super) struct Accepted {
    tcp: TcpStream,
    source: Source,
}

/// ... and the kernel said where it wanted to go.
pub(super) struct Redirected {
    tcp: TcpStream,
    source: Source,
    wanted: SocketAddr,
}

/// ... and the snapshot said what that is.
pub(super) struct Targeted {
    pub(super) tcp: TcpStream,
    pub(super) source: Source,
    pub(super) wanted: SocketAddr,
    pub(super) target: Target,
}

impl Accepted {
    pub(super) fn new(pod: Arc<LocalPod>, tcp: TcpStream, client: SocketAddr) -> Self {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        Self { tcp, source: Source { pod, client } }
    }
    pub(super) fn source(&self) -> Source {
        self.source.clone()
    }
    pub(super) fn redirected(self, kernel: &Kernel) -> Result<Redirected, Stop> {
        let Self { tcp, source } = self;
        match kernel.original_destination(source.pod.netns.cookie, source.client) {
            Some(wanted) => {
                let wanted = SocketAddr::new(wanted.ip().to_canonical(), wanted.port());
                Ok(Redirected { tcp, source, wanted })
            }
            None => Err(Stop {
                tcp,
                wanted: None,
                reason: CloseReason::BadTarget,
                detail: "connected to the proxy's own port",
            }),
        }
    }
}

impl Redirected {
    pub(super) fn targeted(self, snapshot: &Snapshot) -> Result<Targeted, Stop> {
        let Self { tcp, source, wanted } = self;
        match target(snapshot, wanted) {
            Ok(target) => Ok(Targeted { tcp, source, wanted, target }),
            Err((reason, detail)) => Err(Stop { tcp, wanted: Some(wanted), reason, detail }),
        }
    }
}

/// What an address is in the mesh.
pub(super) fn target(snapshot: &Snapshot, wanted: SocketAddr) -> Result<Target, (CloseReason, &'static str)> {
    if let Some(entry) = snapshot.service_by_vip(wanted.ip()) {
        return match entry.port(wanted.port()) {
            Some(port) => Ok(Target::Service { entry: Arc::clone(entry), port: port.clone() }),
            None => Err((CloseReason::UnknownDestination, "the Service has no such port")),
        };
    }
    if let Some(workload) = snapshot.workload_by_ip(wanted.ip()) {
        if workload.enrolled && is_proxy_port(wanted.port()) {
            return Err((CloseReason::BadTarget, "a port of the proxy of a mesh pod"));
        }
        return Ok(Target::Workload { workload: Arc::clone(workload), address: wanted });
    }
    Ok(Target::External { address: wanted })
}
