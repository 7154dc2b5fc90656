//! What the kernel is told about a pod: first that nothing gets through, then where the proxy listens.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use weft_ebpf::{KernelError, PodState};
use weft_proto::model::{EXCLUSIONS_MAX, Workload};

use super::Netns;
use crate::socket;

/// Nobody can listen there: connections of a pod that is shut are refused, whatever its application has taken.
const NO_PORT: u16 = 0;

// Whatever weft-control lets pass is had.
const _: () = assert!(2 * EXCLUSIONS_MAX < weft_ebpf::EXCLUDED_PORTS_PER_POD_MAX as usize);
const _: () = assert!(EXCLUSIONS_MAX <= weft_ebpf::EXCLUDED_CIDRS_PER_POD_MAX as usize);

/// Where the kernel learns about pods: `weft_ebpf::Kernel`, or a test's list.
pub trait Steering: Send + Sync {
    fn enrol(&self, pod: &PodState<'_>) -> Result<(), KernelError>;
    fn release(&self, netns_cookie: u64) -> Result<(), KernelError>;
    fn enrolled(&self) -> Result<Vec<u64>, KernelError>;
}

impl Steering for weft_ebpf::Kernel {
    fn enrol(&self, pod: &PodState<'_>) -> Result<(), KernelError> {
        Self::enrol(self, pod)
    }
    fn release(&self, netns_cookie: u64) -> Result<(), KernelError> {
        Self::release(self, netns_cookie)
    }
    fn enrolled(&self) -> Result<Vec<u64>, KernelError> {
        Self::enrolled(self)
    }
}

/// Second descriptors of the inbound listeners, for telling the kernel again when an exclusion changes.
#[derive(Default)]
pub(super) struct Inbound {
    pub(super) v4: Option<OwnedFd>,
    pub(super) v6: Option<OwnedFd>,
}

/// The pod is in the mesh, but the proxy does not listen in it yet: whatever is not excluded is refused.
pub(super) fn shut(steering: &dyn Steering, netns: &Netns, workload: &Workload) -> Result<(), KernelError> {
    enrol(steering, netns, workload, NO_PORT, &Inbound::default(), &workload.excluded_inbound_ports)
}

/// Sends the pod's connections to the proxy's listeners.
pub(super) fn open(
    steering: &dyn Steering,
    netns: &Netns,
    workload: &Workload,
    inbound: &Inbound,
) -> Result<(), KernelError> {
    let mut excluded = workload.excluded_inbound_ports.clone();
    // A tunnel arrives at the listener that is bound to its port.
    if !excluded.contains(&socket::TUNNEL_PORT) {
        excluded.push(socket::TUNNEL_PORT);
    }
    enrol(steering, netns, workload, socket::OUTBOUND_PORT, inbound, &excluded)
}

fn enrol(
    steering: &dyn Steering,
    netns: &Netns,
    workload: &Workload,
    outbound_port: u16,
    inbound: &Inbound,
    excluded_inbound_ports: &[u16],
) -> Result<(), KernelError> {
    let cidrs: Vec<(IpAddr, u8)> =
        workload.excluded_outbound_cidrs.iter().map(|net| (net.addr(), net.prefix_len())).collect();
    steering.enrol(&PodState {
        netns: netns.fd.as_fd(),
        netns_cookie: netns.cookie,
        addresses: &workload.ips,
        outbound_port,
        inbound_v4: inbound.v4.as_ref().map(AsFd::as_fd),
        inbound_v6: inbound.v6.as_ref().map(AsFd::as_fd),
        excluded_inbound_ports,
        probe_ports: &workload.probe_ports,
        excluded_outbound_ports: &workload.excluded_outbound_ports,
        excluded_outbound_cidrs: &cidrs,
        redirect: workload.redirect,
    })
}

/// What of a workload the kernel needs to know.
pub(super) fn kernel_facts(workload: &Workload) -> impl PartialEq + '_ {
    (
        &workload.ips,
        &workload.excluded_inbound_ports,
        &workload.probe_ports,
        &workload.excluded_outbound_ports,
        &workload.excluded_outbound_cidrs,
        workload.redirect,
    )
}
