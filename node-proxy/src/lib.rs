//! The node proxy. One process serves every enrolled pod of a node.
//!
//! How a connection walks: `enrol` opens the sockets in a pod's namespace → `outbound` (accepted → original
//! destination → source → target) → `l7::outbound` or plain TCP → `balance` picks an endpoint → `connect` reaches it
//! through a `tunnel` → `inbound` on the other node (authenticated → permit → forward).
//! A new pod: `cni` holds its start up until `enrol` has it in hand.
//! How configuration walks: `discovery` → `snapshot` → `enrol` and the kernel's maps.
//! `route`, `balance`, `policy` decide; they do no I/O and read no clock.

pub mod admin;
pub mod balance;
pub mod cgroup_root;
pub mod cni;
mod config_dump;
pub mod connect;
pub mod detect;
pub mod discovery;
pub mod drain;
pub mod enrol;
mod forward_writes;
pub mod identity;
pub mod inbound;
pub mod kernel_metrics;
pub mod l7;
pub mod node;
pub mod node_metrics;
pub mod outbound;
mod pod_config;
pub mod policy;
pub mod relay;
pub mod route;
pub mod settings;
pub mod snapshot;
pub mod socket;
pub mod status;
pub mod telemetry;
pub mod tunnel;
pub mod uninstall;
