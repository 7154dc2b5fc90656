//! What every stage of a connection may reach: the node's shared state, made once at start-up.

use std::sync::Arc;

use crate::balance::Balancers;
use crate::drain::Drain;
use crate::enrol::Pods;
use crate::identity::Identities;
use crate::settings::Settings;
use crate::snapshot::SnapshotHandle;
use crate::telemetry::Telemetry;
use crate::tunnel::Pool;

/// Shared by reference; everything in it is safe to use from any task.
pub struct Node {
    pub settings: Settings,
    pub snapshot: SnapshotHandle,
    pub identities: Identities,
    pub pods: Pods,
    pub tunnels: Pool,
    pub balancers: Balancers,
    pub telemetry: Telemetry,
    pub kernel: Arc<weft_ebpf::Kernel>,
    pub drain: Drain,
}
