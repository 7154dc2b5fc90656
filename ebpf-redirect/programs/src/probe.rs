//! Probes: connections of the node's own processes (the kubelet) to the probed ports of enrolled pods. They are known by
//! who makes them, never by an address that a packet claims: the connect hook sees the process, `sock_ops` files the
//! 4-tuple before the SYN leaves, `sk_lookup` lets exactly that one through to the application.
//! Fails closed: what is not filed goes to the proxy like any other connection.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_current_ancestor_cgroup_id, bpf_get_socket_cookie};
use aya_ebpf::programs::SockAddrContext;
use weft_ebpf_common::abi::{Address, CGROUP_LEVELS_MAX, SocketAddress, SocketKey};
use weft_ebpf_common::count::Outcome;
use weft_ebpf_common::decide;

use crate::maps::{CONFIG, PROBE_PORTS, PROBES, PROBES_BY_COOKIE, by_proxy, count};

/// A `connect()` outside of enrolled pods: remembers the socket if it is a probe.
#[inline(always)]
pub fn connecting(ctx: &SockAddrContext, netns_cookie: u64, address: Address) {
    let Some(config) = CONFIG.get(0) else { return };
    if config.node_netns_cookie != netns_cookie {
        return;
    }
    // SAFETY: the context of a running program is valid.
    let (port_be, protocol) = unsafe { ((*ctx.sock_addr).user_port, (*ctx.sock_addr).protocol) };
    if protocol != decide::IPPROTO_TCP {
        return;
    }
    let target = SocketAddress::new(address, u16::from_be(port_be as u16));
    // SAFETY: a map value stays valid while the program runs.
    let Some(pod) = (unsafe { PROBE_PORTS.get(&target) }) else { return };
    if by_proxy() || below(config.pods_cgroup_id) {
        count(Outcome::ProbeNotNode);
        return;
    }
    // SAFETY: the helper takes the program's context.
    let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if PROBES_BY_COOKIE.insert(&socket, pod, 0).is_err() {
        count(Outcome::ProbeRefusedFull);
    }
}

/// Is the current process in this cgroup or below it? Levels differ between nodes, so all ancestors are compared.
#[inline(always)]
fn below(cgroup_id: u64) -> bool {
    if cgroup_id == 0 {
        return false;
    }
    for level in 0..CGROUP_LEVELS_MAX {
        // SAFETY: a helper without pointers.
        let ancestor = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
        if ancestor == cgroup_id {
            return true;
        }
        if ancestor == 0 {
            return false;
        }
    }
    // Deeper than anything known: nobody that is to be let through.
    true
}

/// The SYN of a probe is about to leave. True if it was one and its close must be watched.
#[inline(always)]
pub fn file(socket: u64, key: &SocketKey) -> bool {
    // SAFETY: a map value stays valid while the program runs.
    let Some(pod) = (unsafe { PROBES_BY_COOKIE.get(&socket) }) else { return false };
    let filed = PROBES.insert(&as_the_pod_sees_it(key, *pod), &1, 0).is_ok();
    count(if filed { Outcome::ProbeFiled } else { Outcome::ProbeRefusedFull });
    true
}

/// True if it was a probe.
#[inline(always)]
pub fn forget(socket: u64, key: &SocketKey) -> bool {
    // SAFETY: a map value stays valid while the program runs.
    let Some(pod) = (unsafe { PROBES_BY_COOKIE.get(&socket) }) else { return false };
    let _ = PROBES.remove(&as_the_pod_sees_it(key, *pod));
    let _ = PROBES_BY_COOKIE.remove(&socket);
    true
}

/// A socket that is closed without ever having had a connection.
#[inline(always)]
pub fn released(socket: u64) {
    let _ = PROBES_BY_COOKIE.remove(&socket);
}

#[inline(always)]
fn as_the_pod_sees_it(prober: &SocketKey, pod: u64) -> SocketKey {
    SocketKey { netns_cookie: pod, local: prober.remote, remote: prober.local }
}

/// A new connection as the pod sees it: a probe that was filed?
#[inline(always)]
pub fn is_filed(seen: &SocketKey) -> bool {
    // SAFETY: only the presence of the entry is used.
    unsafe { PROBES.get(seen).is_some() }
}
