//! All maps of the kernel programs. Layouts and sizes are in `weft_ebpf_common::abi`; the loader may override the sizes
//! of the flow maps. Only `CLOSED_PEERS` evicts: a full map refuses.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SockHash};
use weft_ebpf_common::abi::*;
use weft_ebpf_common::count::{OUTCOMES, Outcome};

#[map]
pub static CONFIG: Array<NodeConfig> = Array::with_max_entries(1, 0);
#[map]
pub static PODS: HashMap<u64, PodConfig> = HashMap::with_max_entries(PODS_MAX, 0);
#[map]
pub static POD_USE: HashMap<u64, PodUse> = HashMap::with_max_entries(POD_USE_MAX, 0);
#[map]
pub static EXCLUDED_PORTS: HashMap<ExcludedPort, u8> =
    HashMap::with_max_entries(EXCLUDED_PORTS_MAX, BPF_F_NO_PREALLOC);
#[map]
pub static EXCLUDED_CIDRS: LpmTrie<ExcludedCidr, u8> =
    LpmTrie::with_max_entries(EXCLUDED_CIDRS_MAX, BPF_F_NO_PREALLOC);
/// The application's socket → where it wanted to go. Removed when the socket closes.
#[map]
pub static ORIGINAL_BY_COOKIE: HashMap<u64, SocketAddress> =
    HashMap::with_max_entries(FLOWS_MAX, BPF_F_NO_PREALLOC);
/// The same by the end that the proxy sees as its peer.
#[map]
pub static ORIGINAL_DESTINATIONS: HashMap<End, Flow> =
    HashMap::with_max_entries(ENDS_PER_FLOW * FLOWS_MAX, BPF_F_NO_PREALLOC);
/// The proxy's socket towards an application → the client's address. Written by the proxy before it connects; removed
/// when the socket has closed.
#[map]
pub static PEER_BY_COOKIE: HashMap<u64, Peer> = HashMap::with_max_entries(FLOWS_MAX, BPF_F_NO_PREALLOC);
/// The same by the proxy's 4-tuple, for the application's socket to find. Each has an entry in `PEER_BY_COOKIE`, which
/// is filled first: this one is never full before.
#[map]
pub static PEER_NAMES: HashMap<SocketKey, SocketAddress> =
    HashMap::with_max_entries(FLOWS_MAX, BPF_F_NO_PREALLOC);
/// The application's socket → the client's address. Its own entry, because the proxy's socket may be gone before the
/// application accepts.
#[map]
pub static ACCEPTED_PEERS: HashMap<u64, SocketAddress> =
    HashMap::with_max_entries(ENDS_PER_FLOW * FLOWS_MAX, BPF_F_NO_PREALLOC);
/// The same for a socket that was reset while it waited to be accepted: `accept()` still hands it out. Evicts, because
/// nothing tells of one that never is.
#[map]
pub static CLOSED_PEERS: LruHashMap<u64, SocketAddress> = LruHashMap::with_max_entries(CLOSED_PEERS_MAX, 0);
/// Address and port that the kubelet probes → the pod's namespace.
#[map]
pub static PROBE_PORTS: HashMap<SocketAddress, u64> =
    HashMap::with_max_entries(PROBE_PORTS_MAX, BPF_F_NO_PREALLOC);
/// The probing process's socket → the pod's namespace.
#[map]
pub static PROBES_BY_COOKIE: HashMap<u64, u64> =
    HashMap::with_max_entries(FLOWS_MAX / FLOWS_PER_PROBE, BPF_F_NO_PREALLOC);
/// The same as the pod's namespace will see it.
#[map]
pub static PROBES: HashMap<SocketKey, u8> =
    HashMap::with_max_entries(FLOWS_MAX / FLOWS_PER_PROBE, BPF_F_NO_PREALLOC);
#[map]
pub static INBOUND_LISTENERS: SockHash<InboundKey> = SockHash::with_max_entries(INBOUND_LISTENERS_MAX, 0);
#[map]
pub static SOCKETS: SockHash<SocketKey> = SockHash::with_max_entries(SOCKETS_PER_FLOW * FLOWS_MAX, 0);
#[map]
pub static LEGS: HashMap<SocketKey, Leg> =
    HashMap::with_max_entries(SOCKETS_PER_FLOW * FLOWS_MAX, BPF_F_NO_PREALLOC);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(OUTCOMES, 0);

#[inline(always)]
pub fn add(outcome: Outcome, amount: u64) {
    if let Some(value) = COUNTERS.get_ptr_mut(outcome as u32) {
        // SAFETY: the pointer is this CPU's own slot; a program is not interrupted by another one that writes it
        // except across hooks of different context, where a lost increment is accepted.
        unsafe { *value += amount };
    }
}

#[inline(always)]
pub fn count(outcome: Outcome) {
    add(outcome, 1);
}

#[inline(always)]
pub fn node_flags() -> u32 {
    CONFIG.get(0).map_or(0, |config| config.flags)
}

#[inline(always)]
pub fn pod_flows_max() -> u32 {
    CONFIG.get(0).map_or(0, |config| config.pod_flows_max)
}

/// Is the current task the proxy?
#[inline(always)]
pub fn by_proxy() -> bool {
    // SAFETY: a helper without arguments.
    let current = unsafe { aya_ebpf::helpers::bpf_get_current_cgroup_id() };
    CONFIG.get(0).is_some_and(|config| config.proxy_cgroup_id == current)
}
