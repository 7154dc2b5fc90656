//! What every stage of a connection may reach: the node's shared state, made once at start-up.

use std::sync::Arc;

use tokio::sync::watch;

use crate::balance::Balancers;
use crate::cni::CniStatus;
use crate::discovery::ControlStatus;
use crate::drain::Drain;
use crate::enrol::Pods;
use crate::identity::Identities;
use crate::l7::Upstreams;
use crate::settings::Settings;
use crate::snapshot::SnapshotHandle;
use crate::socket::places::Places;
use crate::telemetry::Telemetry;
use crate::tunnel::Pool;

/// Shared by reference; everything in it is safe to use from any task.
pub struct Node {
    pub settings: Settings,
    pub snapshot: Arc<SnapshotHandle>,
    pub identities: Arc<Identities>,
    pub pods: Pods,
    pub tunnels: Pool,
    pub balancers: Balancers,
    pub upstreams: Upstreams,
    /// Each pod's share of the connections.
    pub places: Places,
    pub telemetry: Telemetry,
    pub kernel: Arc<weft_ebpf::Kernel>,
    pub drain: Drain,
    /// How things stand with the control plane.
    pub control: Arc<watch::Sender<ControlStatus>>,
    /// How things stand with the CNI plugin.
    pub cni: watch::Sender<CniStatus>,
}
