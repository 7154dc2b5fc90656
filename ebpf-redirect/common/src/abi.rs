//! Map layouts. `repr(C)`, explicit padding, integers only; sizes are asserted below and again by the loader.
//!
//! Addresses are four words in network order, as the kernel's contexts hold them, IPv4 as `::ffff:a.b.c.d`. Ports are host order unless named `_be`.

/// Changes with every change of a layout or of a map's meaning. Pinned maps of another version are not reused.
pub const ABI_VERSION: u32 = 5;

/// An address of either family: words, because the kernel's programs would have to assemble bytes one by one.
pub type Address = [u32; 4];

/// An address and port of either family.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketAddress {
    pub address: Address,
    pub port: u16,
    pub pad: [u8; 6],
}

impl SocketAddress {
    pub const fn new(address: Address, port: u16) -> Self {
        Self { address, port, pad: [0; 6] }
    }
}

/// `::ffff:a.b.c.d` of an IPv4 address in network order.
#[inline(always)]
pub const fn v4_mapped(v4_be: u32) -> Address {
    [0, 0, 0xffff_u32.to_be(), v4_be]
}

/// An address from its bytes in the order of the wire.
pub const fn address_from_bytes(b: [u8; 16]) -> Address {
    [
        u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
        u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
        u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
    ]
}

/// The bytes of an address in the order of the wire.
pub const fn address_bytes(address: Address) -> [u8; 16] {
    let (a, b) = (address[0].to_ne_bytes(), address[1].to_ne_bytes());
    let (c, d) = (address[2].to_ne_bytes(), address[3].to_ne_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

/// `CONFIG[0]`: what holds for the whole node.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeConfig {
    pub abi_version: u32,
    /// `NODE_*` flags.
    pub flags: u32,
    /// cgroup v2 id of the proxy itself: its own connections are left alone.
    pub proxy_cgroup_id: u64,
    /// The node's own network namespace, from which its processes probe pods.
    pub node_netns_cookie: u64,
    /// cgroup v2 id of the directory that all pods of the node are below; 0 where it is not known.
    pub pods_cgroup_id: u64,
    /// One pod's share of the flow maps, in connections: see [`Share`].
    pub pod_flows_max: u32,
    pub pad: [u8; 4],
}

/// sk_msg acceleration may be used.
pub const NODE_REDIRECT: u32 = 1 << 0;
/// It may also be used for sockets that an application accepts (not on kernels where an accepted child of an MPTCP
/// listener cannot be told from one of MPTCP).
pub const NODE_REDIRECT_ACCEPTED: u32 = 1 << 1;

/// What a pod has a share of: the entries in a flow map that are there because of its sockets. Index of
/// [`PodUse::entries`].
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// `ORIGINAL_BY_COOKIE`
    Original = 0,
    /// `ORIGINAL_DESTINATIONS`
    Destination = 1,
    /// `PEER_BY_COOKIE` and `PEER_NAMES`, which belong together
    Peer = 2,
    /// `ACCEPTED_PEERS`
    Accepted = 3,
    /// `LEGS` and `SOCKETS`
    Leg = 4,
}

pub const SHARES: usize = 5;

impl Share {
    /// Entries for each connection: as many as the map itself has for each flow of the node.
    #[inline(always)]
    pub const fn entries_per_flow(self) -> u32 {
        match self {
            Self::Original | Self::Peer => 1,
            Self::Destination | Self::Accepted => ENDS_PER_FLOW,
            Self::Leg => SOCKETS_PER_FLOW,
        }
    }
}

/// `POD_USE[netns cookie]`: how many entries each [`Share`] of a pod has now. Each is incremented by the insert that made
/// an entry and decremented by the removal that took it out, so the maps and these figures agree at all times.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodUse {
    pub entries: [u64; SHARES],
}

/// `PODS[netns cookie]`: an enrolled pod.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodConfig {
    /// Where an IPv4 connect is sent instead: the pod's own address, or 127.0.0.1 if it has none.
    pub outbound_v4: Address,
    /// Where an IPv6 connect is sent instead: the pod's own address, or ::1.
    pub outbound_v6: Address,
    pub outbound_port: u16,
    /// `POD_*` flags.
    pub flags: u16,
    pub pad: [u8; 4],
}

/// sk_msg acceleration is off for this pod.
pub const POD_NO_REDIRECT: u16 = 1 << 0;

/// `EXCLUDED_PORTS[..]`: ports of a pod that bypass the mesh, in either direction.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExcludedPort {
    pub netns_cookie: u64,
    pub port: u16,
    /// `DIRECTION_*`.
    pub direction: u16,
    pub pad: [u8; 4],
}

pub const DIRECTION_OUTBOUND: u16 = 0;
pub const DIRECTION_INBOUND: u16 = 1;

/// `EXCLUDED_CIDRS` is an LPM trie: 64 bits of netns cookie (its two halves in network order), then the address.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExcludedCidr {
    pub netns_cookie_be: [u32; 2],
    pub address: Address,
}

/// One end of a connection, seen from its namespace: key of `ORIGINAL_DESTINATIONS` (client side, as the proxy sees
/// its peer). The far end is always the proxy's listener, so this end alone is unique.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct End {
    pub netns_cookie: u64,
    pub socket: SocketAddress,
}

/// Value of `ORIGINAL_DESTINATIONS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub original: SocketAddress,
    /// 1 once the proxy's end exists: from then on that end's close removes the entry, so that a client which sends
    /// and closes before the proxy accepts is still known.
    pub accepted: u32,
    pub pad: [u8; 4],
}

/// Value of `PEER_BY_COOKIE`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub client: SocketAddress,
    /// 1 once it counts for the pod's [`Share::Peer`]: user space writes the entry, the connect hook counts it.
    pub counted: u32,
    pub pad: [u8; 4],
}

/// A socket by its own 4-tuple. Key of `SOCKETS` (SockHash), `LEGS`, and `PEER_NAMES` (the proxy's socket: its port is
/// chosen at connect, so it is unique only together with the destination).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketKey {
    pub netns_cookie: u64,
    pub local: SocketAddress,
    pub remote: SocketAddress,
}

/// Value of `LEGS`: which way the bytes go that this socket sends. Decided by its first message. Towards an application
/// it then never changes; towards the proxy it may change from redirected to the stack, once.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// `LEG_*`.
    pub path: u32,
    /// 1: this is the application's end, so that what it sends goes to the proxy.
    pub to_proxy: u32,
    /// Bytes redirected so far.
    pub redirected_bytes: u64,
    /// The kernel's socket, for what sk_msg must know of a message's receiver. 0: not known.
    pub socket: u64,
}

impl Leg {
    /// An end of which nothing is known yet; `socket` as in the field.
    pub const fn new(to_proxy: bool, socket: u64) -> Self {
        Self { path: LEG_UNDECIDED, to_proxy: to_proxy as u32, redirected_bytes: 0, socket }
    }
}

pub const LEG_UNDECIDED: u32 = 0;
pub const LEG_REDIRECT: u32 = 1;
pub const LEG_STACK: u32 = 2;

/// Unread bytes at which a redirected direction is held back; the kernel itself does not (256 MiB were queued for a reader
/// that did not read). Towards an application the proxy waits, having asked `weft_unread`; towards the proxy the direction
/// goes on through the stack, whose window holds the sender back, and not before so many bytes were redirected at all. About
/// what a TCP socket buffers by default (`tcp_rmem`: 6 MiB).
pub const UNREAD_BYTES_MAX: u64 = 4 << 20;
/// Unread bytes at which a message towards an application is refused, which breaks the connection (the kernel refuses all
/// that follow too). Only a proxy that does not ask gets there.
pub const UNREAD_BYTES_BREAK: u64 = 16 << 20;
/// Answer of `weft_unread` for a connection whose bytes towards the application are not redirected.
pub const NOT_REDIRECTED: u32 = u32::MAX;
/// Key of `INBOUND_LISTENERS` (SockHash). Each pod's sk_lookup program carries its own namespace's cookie, so two pods
/// with one address do not meet.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InboundKey {
    pub netns_cookie: u64,
    /// `FAMILY_V4` or `FAMILY_V6`, of the packet.
    pub family: u32,
    pub pad: [u8; 4],
}

pub const FAMILY_V4: u32 = 2;
pub const FAMILY_V6: u32 = 10;

/// Enrolled pods of one node: twice what the largest kubelet set-ups run.
pub const PODS_MAX: u32 = 1024;
/// Excluded ports of one pod: 32 in each direction, and the tunnel's. A pod's own annotations say them, so each has room
/// for its own in the node's table, and none can take another's.
pub const EXCLUDED_PORTS_PER_POD_MAX: u32 = 2 * 32 + 1;
/// Excluded ports of all pods; its buckets take 2 MiB.
pub const EXCLUDED_PORTS_MAX: u32 = EXCLUDED_PORTS_PER_POD_MAX * PODS_MAX;
/// Excluded prefixes of one pod.
pub const EXCLUDED_CIDRS_PER_POD_MAX: u32 = 32;
/// Excluded prefixes of all pods.
pub const EXCLUDED_CIDRS_MAX: u32 = EXCLUDED_CIDRS_PER_POD_MAX * PODS_MAX;
/// Intercepted connections of one node at a time, unless the loader is told another figure. An entry takes memory only
/// while it is used.
pub const FLOWS_MAX: u32 = 65_536;
/// Names of connections that were closed before they were accepted: as many as one accept queue holds by default
/// (`somaxconn`). The oldest go first.
pub const CLOSED_PEERS_MAX: u32 = 4_096;
/// No pod has more than one part in so many of any flow map, so that three greedy pods together leave room for the others.
pub const PODS_TO_FILL_FLOWS: u32 = 4;
/// Live probes of the node: one for each so many connections of `flows_max`; 8 for each of `PODS_MAX` pods by default.
pub const FLOWS_PER_PROBE: u32 = 8;
/// Probed ports of one pod: 32 in each family.
pub const PROBE_PORTS_PER_POD_MAX: u32 = 2 * 32;
/// Probed ports of all pods.
pub const PROBE_PORTS_MAX: u32 = PROBE_PORTS_PER_POD_MAX * PODS_MAX;
/// Namespaces in `POD_USE`: the enrolled ones, and released ones whose connections still live.
pub const POD_USE_MAX: u32 = 2 * PODS_MAX;
/// How deep below the root a process may be for its ancestors to be looked through. systemd, a nested container and the
/// kubelet's own levels together make about ten.
pub const CGROUP_LEVELS_MAX: u32 = 32;
/// Entries of `ORIGINAL_DESTINATIONS` and `ACCEPTED_PEERS` for each flow: the far end may outlive the one that counts.
pub const ENDS_PER_FLOW: u32 = 2;
/// Sockets of each accelerated flow: both ends of the client's leg and of the application's.
pub const SOCKETS_PER_FLOW: u32 = 4;
/// One v4 and one v6 listener for each pod.
pub const INBOUND_LISTENERS_MAX: u32 = 2 * PODS_MAX;

const _: () = assert!(size_of::<SocketAddress>() == 24);
const _: () = assert!(size_of::<NodeConfig>() == 40);
const _: () = assert!(size_of::<PodConfig>() == 40);
const _: () = assert!(size_of::<PodUse>() == 40);
const _: () = assert!(size_of::<Peer>() == 32);
const _: () = assert!(size_of::<ExcludedPort>() == 16);
const _: () = assert!(size_of::<ExcludedCidr>() == 24);
const _: () = assert!(size_of::<End>() == 32);
const _: () = assert!(size_of::<Flow>() == 32);
const _: () = assert!(size_of::<SocketKey>() == 56);
const _: () = assert!(size_of::<Leg>() == 24);
const _: () = assert!(size_of::<InboundKey>() == 16);
