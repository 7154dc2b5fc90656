//! Pure decisions of the hooks: what to do with a connection, from what the hook has parsed and looked up.
//!
//! No I/O and no map access: look-ups that are only sometimes needed come in as closures. The programs parse, call one
//! function of this file, and write. Start with [`connect`].

use crate::abi::{
    Address, ExcludedCidr, FAMILY_V4, FAMILY_V6, LEG_STACK, LEG_UNDECIDED, Leg, PodConfig, SocketAddress,
    UNREAD_BYTES_BREAK, UNREAD_BYTES_MAX, v4_mapped,
};
use crate::count::Outcome;

pub const IPPROTO_TCP: u32 = 6;
pub const IPPROTO_MPTCP: u32 = 262;

/// Bits of an LPM key in front of the address.
pub const CIDR_COOKIE_BITS: u32 = 64;

/// What becomes of a `connect()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connect {
    /// Left alone, for this reason.
    Pass(Outcome),
    /// To be sent to this address of the proxy instead.
    Redirect(SocketAddress),
}

/// A `connect()` of an enrolled pod. `destination` is normalised: IPv4 is v4-mapped.
#[inline(always)]
pub fn connect(
    pod: &PodConfig,
    protocol: u32,
    by_proxy: bool,
    destination: &SocketAddress,
    port_excluded: impl FnOnce() -> bool,
    cidr_excluded: impl FnOnce() -> bool,
) -> Connect {
    if by_proxy {
        return Connect::Pass(Outcome::ConnectProxy);
    }
    if protocol != IPPROTO_TCP {
        return Connect::Pass(Outcome::ConnectNotTcp);
    }
    if stays_in_pod(pod, &destination.address) {
        return Connect::Pass(Outcome::ConnectLocal);
    }
    if port_excluded() {
        return Connect::Pass(Outcome::ConnectExcludedPort);
    }
    if cidr_excluded() {
        return Connect::Pass(Outcome::ConnectExcludedCidr);
    }
    let address = if is_v4(&destination.address) { pod.outbound_v4 } else { pod.outbound_v6 };
    Connect::Redirect(SocketAddress::new(address, pod.outbound_port))
}

#[inline(always)]
fn stays_in_pod(pod: &PodConfig, address: &Address) -> bool {
    is_loopback(address)
        || is_unspecified(address)
        || is_v6_link_local(address)
        || same(address, &pod.outbound_v4)
        || same(address, &pod.outbound_v6)
}

#[inline(always)]
pub fn same(a: &Address, b: &Address) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}

#[inline(always)]
pub fn is_v4(address: &Address) -> bool {
    address[0] == 0 && address[1] == 0 && address[2] == 0xffff_u32.to_be()
}

/// An address at which the pod talks to itself: both ends of a leg have one.
#[inline(always)]
pub fn in_pod(pod: &PodConfig, address: &Address) -> bool {
    is_loopback(address) || same(address, &pod.outbound_v4) || same(address, &pod.outbound_v6)
}

#[inline(always)]
pub fn is_loopback(address: &Address) -> bool {
    if is_v4(address) {
        u32::from_be(address[3]) >> 24 == 127
    } else {
        address[0] == 0 && address[1] == 0 && address[2] == 0 && address[3] == 1_u32.to_be()
    }
}

/// Does a connection with these ends come from where the proxy connects to applications from? Exactly 127.0.0.1 and not
/// its whole network: the kernel refuses a packet from outside that claims an address which is configured here even
/// where `route_localnet` lets the rest of 127/8 in.
#[inline(always)]
pub fn from_proxy(local: &Address, remote: &Address) -> bool {
    if is_v4(local) {
        is_v4(remote) && remote[3] == 0x7f00_0001_u32.to_be()
    } else {
        !is_v4(remote) && is_loopback(remote)
    }
}

/// Connecting to the unspecified address means loopback.
#[inline(always)]
fn is_unspecified(address: &Address) -> bool {
    address[0] == 0
        && address[1] == 0
        && (address[2] == 0 || address[2] == 0xffff_u32.to_be())
        && address[3] == 0
}

#[inline(always)]
fn is_v6_link_local(address: &Address) -> bool {
    u32::from_be(address[0]) & 0xffc0_0000 == 0xfe80_0000
}

/// Key for a look-up in `EXCLUDED_CIDRS`.
#[inline(always)]
pub const fn cidr_key(netns_cookie: u64, address: Address) -> ExcludedCidr {
    let halves = [((netns_cookie >> 32) as u32).to_be(), (netns_cookie as u32).to_be()];
    ExcludedCidr { netns_cookie_be: halves, address }
}

/// An address as the kernel's contexts hold it: family, the IPv4 word and the IPv6 words, all in network order.
#[inline(always)]
pub fn normalise(family: u32, v4: u32, v6: [u32; 4]) -> Address {
    if family == FAMILY_V6 { v6 } else { v4_mapped(v4) }
}

/// What an sk_lookup program does with a new inbound connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    Pass(Outcome),
    Steer,
    Drop(Outcome),
}

/// A new inbound connection of an enrolled pod. A connection from the pod to its own address comes with the pod's
/// device as ingress, so the addresses are compared and not the device. The proxy's own connection to the application
/// comes from loopback and would otherwise come back for ever.
#[inline(always)]
pub fn lookup(
    protocol: u32,
    local: &Address,
    remote: &Address,
    remote_is_own: impl FnOnce() -> bool,
    port_excluded: impl FnOnce() -> bool,
    probe_filed: impl FnOnce() -> bool,
) -> Lookup {
    if protocol != IPPROTO_TCP {
        return Lookup::Pass(Outcome::LookupNotTcp);
    }
    if same(local, remote) || from_proxy(local, remote) {
        return Lookup::Pass(Outcome::LookupLocal);
    }
    if is_loopback(local) {
        return if is_loopback(remote) || remote_is_own() {
            Lookup::Pass(Outcome::LookupLocal)
        } else {
            Lookup::Drop(Outcome::LookupForeignLoopback)
        };
    }
    if port_excluded() {
        return Lookup::Pass(Outcome::LookupExcluded);
    }
    if probe_filed() {
        return Lookup::Pass(Outcome::LookupProbe);
    }
    Lookup::Steer
}

/// Do these ends look like an application's of a connection that the proxy made?
#[inline(always)]
pub fn looks_accepted_from_proxy(local: &Address, peer: &Address) -> bool {
    is_loopback(peer) && !is_loopback(local)
}

/// The name to show instead of a socket's real peer, if it fits the family that the application asked in. Applications
/// trust loopback: where the name is lost, the proxy's connection shows the pod's own address instead.
#[inline(always)]
pub fn peer_name(
    family: u32,
    name: Option<SocketAddress>,
    local: &Address,
    peer: &SocketAddress,
) -> Option<SocketAddress> {
    match name {
        Some(name) if family != FAMILY_V4 || is_v4(&name.address) => Some(name),
        _ if looks_accepted_from_proxy(local, &peer.address) => Some(SocketAddress::new(*local, peer.port)),
        _ => None,
    }
}

/// What becomes of a socket's next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Redirect,
    Stack,
    /// Refused, and all that follow.
    Break,
}

/// The way of a message of this many bytes. `unread`: the redirected bytes that its receiver has not read yet; None where the kernel
/// does not tell.
///
/// Towards an application the path never changes. It reads one queue from its first byte to its last, so no event of
/// another queue can be lost, and FIONREAD never counts the wrong one. The proxy bounds the queue: it asks and waits.
/// Towards the proxy the path may change from redirected to the stack: a receiver empties the redirected queue first, so
/// nothing overtakes; and the proxy knows to read until the kernel would block.
#[inline(always)]
pub fn way(leg: &Leg, peer_inserted: impl FnOnce() -> bool, unread: impl FnOnce() -> Option<u64>) -> Way {
    if leg.path == LEG_STACK || leg.path == LEG_UNDECIDED && !peer_inserted() {
        return Way::Stack;
    }
    let unread = unread();
    if leg.to_proxy == 0 {
        return match unread {
            Some(unread) if unread < UNREAD_BYTES_BREAK => Way::Redirect,
            Some(_) => Way::Break,
            // Where nobody could hold the sender back it is not begun. (Once begun, the receiver has just gone: the
            // redirection itself will say so.)
            None if leg.path == LEG_UNDECIDED => Way::Stack,
            None => Way::Redirect,
        };
    }
    if unread.unwrap_or(leg.redirected_bytes) >= UNREAD_BYTES_MAX { Way::Stack } else { Way::Redirect }
}

#[cfg(test)]
mod tests;
