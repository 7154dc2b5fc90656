//! `cgroup/sock_release`: forgets what is known of a socket when it is closed, also if its connect failed before TCP
//! began, where no state callback runs.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;

use crate::maps::{ACCEPTED_PEERS, ORIGINAL_BY_COOKIE, PEER_BY_COOKIE};
use crate::sock_ops::TCP_CLOSE;

#[cgroup_sock(sock_release)]
pub fn weft_release(ctx: SockContext) -> i32 {
    // SAFETY: the helper takes the program's context.
    let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // Most sockets have no entry.
    let _ = ORIGINAL_BY_COOKIE.remove(&socket);
    let _ = ACCEPTED_PEERS.remove(&socket);
    // SAFETY: the context of a running program is valid.
    if unsafe { (*ctx.sock).state } == TCP_CLOSE {
        // Otherwise the connection lives on, and the state callback removes this together with the name.
        let _ = PEER_BY_COOKIE.remove(&socket);
    }
    1
}
