//! `cgroup/sock_release`: forgets what is known of a socket when it is closed, also if its connect failed before TCP
//! began, where no state callback runs.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use weft_ebpf_common::abi::Share;

use crate::maps::{ACCEPTED_PEERS, CLOSED_PEERS, ORIGINAL_BY_COOKIE, PEER_BY_COOKIE};
use crate::sock_ops::TCP_CLOSE;
use crate::{probe, quota};

#[cgroup_sock(sock_release)]
pub fn weft_release(ctx: SockContext) -> i32 {
    // SAFETY: the helper takes the program's context.
    let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: as above.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // Most sockets have no entry.
    quota::remove(&ORIGINAL_BY_COOKIE, &socket, netns, Share::Original);
    quota::remove(&ACCEPTED_PEERS, &socket, netns, Share::Accepted);
    // SAFETY: the context of a running program is valid.
    if unsafe { (*ctx.sock).state } == TCP_CLOSE {
        let _ = CLOSED_PEERS.remove(&socket);
        // Otherwise the connection lives on, and the state callback removes this together with the name.
        forget_peer(socket, netns);
        probe::released(socket);
    }
    1
}

/// Removes the client's name of a socket of the proxy. True if it had one.
#[inline(always)]
pub fn forget_peer(socket: u64, netns: u64) -> bool {
    let Some(peer) = PEER_BY_COOKIE.get_ptr(&socket) else { return false };
    // SAFETY: a map value stays valid while the program runs.
    let counted = unsafe { (*peer).counted } != 0;
    if PEER_BY_COOKIE.remove(&socket).is_ok() && counted {
        quota::give_back(netns, Share::Peer);
    }
    true
}
