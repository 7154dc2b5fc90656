//! `cgroup/connect4` and `connect6`: sends TCP connects of enrolled pods to the proxy and remembers where they wanted to
//! go. Fails closed: if the flow map is full, the connect is refused (EPERM).

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::SockAddrContext;
use weft_ebpf_common::abi::{
    Address, DIRECTION_OUTBOUND, ExcludedPort, FAMILY_V4, FAMILY_V6, PodConfig, SocketAddress,
};
use weft_ebpf_common::count::Outcome;
use weft_ebpf_common::decide::{self, Connect};

use crate::maps::{EXCLUDED_CIDRS, EXCLUDED_PORTS, ORIGINAL_BY_COOKIE, PODS, by_proxy, count};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn weft_connect4(ctx: SockAddrContext) -> i32 {
    let Some((cookie, pod)) = enrolled(&ctx) else { return ALLOW };
    // SAFETY: the context of a running program is valid; the verifier checks each access.
    let address = unsafe { decide::normalise(FAMILY_V4, (*ctx.sock_addr).user_ip4, [0; 4]) };
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
    let Some((cookie, pod)) = enrolled(&ctx) else { return ALLOW };
    let address = crate::peer_name::user_ip6(&ctx);
    match intercept(&ctx, cookie, pod, decide::normalise(FAMILY_V6, 0, address)) {
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
fn enrolled(ctx: &SockAddrContext) -> Option<(u64, &'static PodConfig)> {
    // SAFETY: the helper takes the program's context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: a map value stays valid while the program runs.
    let pod = unsafe { PODS.get(&cookie) };
    if pod.is_none() {
        count(Outcome::ConnectNotEnrolled);
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
            Err(ALLOW)
        }
        Connect::Redirect(to) => {
            // SAFETY: the helper takes the program's context.
            let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
            if ORIGINAL_BY_COOKIE.insert(&socket, &destination, 0).is_err() {
                count(Outcome::ConnectRefusedFull);
                return Err(REFUSE);
            }
            count(Outcome::ConnectRedirected);
            Ok(to)
        }
    }
}
