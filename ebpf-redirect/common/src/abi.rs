//! Map layouts. `repr(C)`, explicit padding, integers only; sizes are asserted below and again by the loader.
//!
//! Addresses are 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`. Ports are host order unless named `_be`.

/// Changes with every change of a layout or of a map's meaning. Pinned maps of another version are not reused.
pub const ABI_VERSION: u32 = 1;

/// An address and port of either family.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketAddress {
    pub address: [u8; 16],
    pub port: u16,
    pub pad: [u8; 6],
}

impl SocketAddress {
    pub const fn new(address: [u8; 16], port: u16) -> Self {
        Self { address, port, pad: [0; 6] }
    }
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
}

/// sk_msg acceleration may be used.
pub const NODE_REDIRECT: u32 = 1 << 0;

/// `PODS[netns cookie]`: an enrolled pod.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodConfig {
    /// Where an IPv4 connect is sent instead: the pod's own address, or 127.0.0.1 if it has none.
    pub outbound_v4: [u8; 16],
    /// Where an IPv6 connect is sent instead.
    pub outbound_v6: [u8; 16],
    pub outbound_port: u16,
    /// `POD_*` flags.
    pub flags: u16,
    pub pad: [u8; 4],
}

/// sk_msg acceleration is off for this pod.
pub const POD_NO_REDIRECT: u16 = 1 << 0;

/// `EXCLUDED_PORTS[..]`: outbound destinations of a pod that bypass the mesh, by port.
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
/// Inbound keys have the cookie 0 and are joined with the pod's address in `EXCLUDED_INBOUND`.
pub const DIRECTION_INBOUND: u16 = 1;

/// `EXCLUDED_CIDRS` is an LPM trie: 64 bits of netns cookie in network order, then the address.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExcludedCidr {
    pub netns_cookie_be: [u8; 8],
    pub address: [u8; 16],
}

/// One end of a connection, seen from its namespace: key of `ORIGINAL_DESTINATIONS` (client side, as the proxy sees
/// its peer) and of `PEER_NAMES` (the proxy's own end, as the application sees its peer).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct End {
    pub netns_cookie: u64,
    pub socket: SocketAddress,
}

/// Key of `SOCKETS`, the SockHash of local connections: a socket by its own 4-tuple.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketKey {
    pub netns_cookie: u64,
    pub local: SocketAddress,
    pub remote: SocketAddress,
}

/// Key of `INBOUND_LISTENERS` (SockHash) and, with the port, of `EXCLUDED_INBOUND`: the pod's address.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InboundKey {
    pub address: [u8; 16],
}

const _: () = assert!(size_of::<SocketAddress>() == 24);
const _: () = assert!(size_of::<NodeConfig>() == 16);
const _: () = assert!(size_of::<PodConfig>() == 40);
const _: () = assert!(size_of::<ExcludedPort>() == 16);
const _: () = assert!(size_of::<ExcludedCidr>() == 24);
const _: () = assert!(size_of::<End>() == 32);
const _: () = assert!(size_of::<SocketKey>() == 56);
