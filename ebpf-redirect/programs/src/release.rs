//! `cgroup/sock_release`: forgets a socket's original destination when it is closed, also if its connect failed before
//! TCP began, where no state callback runs.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;

use crate::maps::ORIGINAL_BY_COOKIE;

#[cgroup_sock(sock_release)]
pub fn weft_release(ctx: SockContext) -> i32 {
    // SAFETY: the helper takes the program's context.
    let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // Most sockets have no entry.
    let _ = ORIGINAL_BY_COOKIE.remove(&socket);
    1
}
