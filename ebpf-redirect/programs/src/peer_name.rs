//! `cgroup/getpeername4` and `getpeername6`: what `getpeername()` and `accept()` of an enrolled pod answer. The client
//! sees the destination it asked for, the server sees the client. Fails open: without an entry the real peer is shown,
//! but never the proxy's loopback address.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use weft_ebpf_common::abi::{Address, End, FAMILY_V4, FAMILY_V6, SocketAddress};
use weft_ebpf_common::count::Outcome;
use weft_ebpf_common::decide;

use crate::maps::{
    ACCEPTED_PEERS, CLOSED_PEERS, ORIGINAL_BY_COOKIE, ORIGINAL_DESTINATIONS, PODS, by_proxy, count,
};

/// The only verdict that the verifier accepts here.
const PROCEED: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn weft_peer_name4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context of a running program is valid.
    let address = unsafe { decide::normalise(FAMILY_V4, (*ctx.sock_addr).user_ip4, [0; 4]) };
    if let Some(name) = name(&ctx, FAMILY_V4, address) {
        // SAFETY: as above.
        unsafe {
            (*ctx.sock_addr).user_ip4 = name.address[3];
            (*ctx.sock_addr).user_port = u32::from(name.port.to_be());
        }
    }
    PROCEED
}

#[cgroup_sock_addr(getpeername6)]
pub fn weft_peer_name6(ctx: SockAddrContext) -> i32 {
    let address = user_ip6(&ctx);
    if let Some(name) = name(&ctx, FAMILY_V6, address) {
        set_user_ip6(&ctx, name.address);
        // SAFETY: the context of a running program is valid.
        unsafe { (*ctx.sock_addr).user_port = u32::from(name.port.to_be()) };
    }
    PROCEED
}

#[inline(always)]
fn name(ctx: &SockAddrContext, family: u32, peer: Address) -> Option<SocketAddress> {
    let local = local(ctx, family);
    // SAFETY: the context of a running program is valid.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    // SAFETY: the helpers take the program's context; map values stay valid while the program runs.
    unsafe {
        let netns_cookie = bpf_get_netns_cookie(ctx.as_ptr());
        let enrolled = PODS.get(&netns_cookie).is_some();
        // A pod that has just been released still has connections with names.
        if !enrolled && !decide::looks_accepted_from_proxy(&local, &peer) || by_proxy() {
            return None;
        }
        let socket = bpf_get_socket_cookie(ctx.as_ptr());
        let found = match ORIGINAL_BY_COOKIE.get(&socket) {
            Some(original) => Some(*original),
            None => match ACCEPTED_PEERS.get(&socket) {
                Some(client) => Some(*client),
                None => CLOSED_PEERS.get(&socket).copied(),
            },
        };
        // What an application holds of MPTCP is not the socket that connected, but has its addresses.
        let found = match found {
            None if enrolled && protocol == decide::IPPROTO_MPTCP => {
                let end = End { netns_cookie, socket: SocketAddress::new(local, local_port(ctx)) };
                ORIGINAL_DESTINATIONS.get(&end).map(|flow| flow.original)
            }
            found => found,
        };
        if found.is_none() && (!enrolled || protocol != decide::IPPROTO_TCP) {
            return None;
        }
        let port = u16::from_be((*ctx.sock_addr).user_port as u16);
        let name = decide::peer_name(family, found, &local, &SocketAddress::new(peer, port));
        count(if name.is_some() { Outcome::PeerNamed } else { Outcome::PeerUnchanged });
        name
    }
}

/// The socket's own address.
#[inline(always)]
fn local(ctx: &SockAddrContext, family: u32) -> Address {
    // SAFETY: the hook always has a socket; words are read one by one as the verifier wants.
    unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if family == FAMILY_V4 {
            decide::normalise(FAMILY_V4, (&raw const (*socket).src_ip4).read_volatile(), [0; 4])
        } else {
            crate::sock_ops::words(&raw const (*socket).src_ip6)
        }
    }
}

/// Its port.
#[inline(always)]
fn local_port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: the hook always has a socket. In host order.
    unsafe { (&raw const (*(*ctx.sock_addr).__bindgen_anon_1.sk).src_port).read_volatile() as u16 }
}

/// Word by word and volatile: the verifier refuses the wide accesses into which the compiler would merge these.
#[inline(always)]
pub fn user_ip6(ctx: &SockAddrContext) -> [u32; 4] {
    // SAFETY: the context of a running program is valid.
    unsafe {
        let words = &raw const (*ctx.sock_addr).user_ip6 as *const u32;
        [
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ]
    }
}

#[inline(always)]
pub fn set_user_ip6(ctx: &SockAddrContext, value: [u32; 4]) {
    // SAFETY: the context of a running program is valid.
    unsafe {
        let words = &raw mut (*ctx.sock_addr).user_ip6 as *mut u32;
        words.write_volatile(value[0]);
        words.add(1).write_volatile(value[1]);
        words.add(2).write_volatile(value[2]);
        words.add(3).write_volatile(value[3]);
    }
}
