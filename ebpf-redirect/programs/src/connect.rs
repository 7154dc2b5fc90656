//! `cgroup/connect4` and `connect6`: sends TCP connects of enrolled pods to the proxy and remembers where they wanted to
//! go. Fails closed: if the flow map is full, or the pod's share of it, the connect is refused (EPERM). Connects of the
//! node's own processes may be probes: see [`probe`].

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::SockAddrContext;
use weft_ebpf_common::abi::{
    Address, DIRECTION_OUTBOUND, ExcludedPort, FAMILY_V4, FAMILY_V6, PodConfig, Share, SocketAddress,
};
use weft_ebpf_common::count::Outcome;
use weft_ebpf_common::decide::{self, Connect};

use crate::maps::{
    EXCLUDED_CIDRS, EXCLUDED_PORTS, ORIGINAL_BY_COOKIE, PEER_BY_COOKIE, PODS, by_proxy, count,
};
use crate::probe;
use crate::quota::{self, Refused};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn weft_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context of a running program is valid; the verifier checks each access.
    let address = unsafe { decide::normalise(FAMILY_V4, (*ctx.sock_addr).user_ip4, [0; 4]) };
    let Some((cookie, pod)) = enrolled(&ctx, address) else { return ALLOW };
    match intercept(&ctx, cookie, pod, address) {
        Err(verdict) => verdict,
        Ok(to) => {
            // SAFETY: as above.
            unsafe {
                (*ctx.sock_addr).user_ip4 = to.address[3];
                (*ctx.sock_addr).user_port = u32::from(to.port.to_be());
            }
            ALLOW
        }
    }
}

#[cgroup_sock_addr(connect6)]
pub fn weft_connect6(ctx: SockAddrContext) -> i32 {
    let address = decide::normalise(FAMILY_V6, 0, crate::peer_name::user_ip6(&ctx));
    let Some((cookie, pod)) = enrolled(&ctx, address) else { return ALLOW };
    match intercept(&ctx, cookie, pod, address) {
        Err(verdict) => verdict,
        Ok(to) => {
            crate::peer_name::set_user_ip6(&ctx, to.address);
            // SAFETY: the context of a running program is valid.
            unsafe { (*ctx.sock_addr).user_port = u32::from(to.port.to_be()) };
            ALLOW
        }
    }
}

#[inline(always)]
fn enrolled(ctx: &SockAddrContext, address: Address) -> Option<(u64, &'static PodConfig)> {
    // SAFETY: the helper takes the program's context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: a map value stays valid while the program runs.
    let pod = unsafe { PODS.get(&cookie) };
    if pod.is_none() {
        count(Outcome::ConnectNotEnrolled);
        probe::connecting(ctx, cookie, address);
    }
    pod.map(|pod| (cookie, pod))
}

/// The proxy's address to connect to instead, or the verdict that ends the hook.
#[inline(always)]
fn intercept(
    ctx: &SockAddrContext,
    cookie: u64,
    pod: &PodConfig,
    address: Address,
) -> Result<SocketAddress, i32> {
    // SAFETY: the context of a running program is valid.
    let (port_be, protocol) = unsafe { ((*ctx.sock_addr).user_port, (*ctx.sock_addr).protocol) };
    let destination = SocketAddress::new(address, u16::from_be(port_be as u16));
    let key = ExcludedPort {
        netns_cookie: cookie,
        port: destination.port,
        direction: DIRECTION_OUTBOUND,
        pad: [0; 4],
    };
    let decision = decide::connect(
        pod,
        protocol,
        by_proxy(),
        &destination,
        // SAFETY: only the presence of the entry is used.
        || unsafe { EXCLUDED_PORTS.get(&key).is_some() },
        || EXCLUDED_CIDRS.get(Key::new(192, decide::cidr_key(cookie, address))).is_some(),
    );
    match decision {
        Connect::Pass(outcome) => {
            count(outcome);
            Err(if outcome == Outcome::ConnectProxy { by_proxy_to_application(ctx, cookie) } else { ALLOW })
        }
        Connect::Redirect(to) => {
            // SAFETY: the helper takes the program's context.
            let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
            let stored = quota::insert(&ORIGINAL_BY_COOKIE, &socket, &destination, cookie, Share::Original);
            if let Err(refused) = stored {
                count(match refused {
                    Refused::Share => Outcome::ConnectRefusedShare,
                    Refused::Full => Outcome::ConnectRefusedFull,
                });
                return Err(REFUSE);
            }
            count(Outcome::ConnectRedirected);
            Ok(to)
        }
    }
}

/// The proxy connects from inside a pod. Where it has named its socket (towards the pod's application), the name counts
/// for the pod from here on; user space has no way to count it.
#[inline(always)]
fn by_proxy_to_application(ctx: &SockAddrContext, cookie: u64) -> i32 {
    // SAFETY: the helper takes the program's context.
    let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let Some(peer) = PEER_BY_COOKIE.get_ptr_mut(&socket) else { return ALLOW };
    // SAFETY: a map value stays valid while the program runs; only this socket's own hooks use the entry.
    let peer = unsafe { &mut *peer };
    if peer.counted != 0 {
        return ALLOW;
    }
    if !quota::take(cookie, Share::Peer) {
        count(Outcome::PeerRefusedShare);
        return REFUSE;
    }
    peer.counted = 1;
    ALLOW
}
