//! `sock_ops`: follows the legs between applications and the proxy. Before the SYN it publishes what is known by socket
//! (original destination, client's name) under the addresses that the other end will see, at ESTABLISHED it offers both
//! ends of a local leg to sk_msg, at CLOSE it removes what it wrote. Fails closed: a destination that could not be
//! published makes the proxy close the connection.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::Global;
use aya_ebpf::bindings::{
    BPF_ANY, BPF_NOEXIST, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_HDR_OPT_LEN_CB,
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG,
};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_skc_to_mptcp_sock};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use weft_ebpf_common::abi::{
    End, Flow, LEG_STACK, Leg, NODE_REDIRECT, NODE_REDIRECT_ACCEPTED, POD_NO_REDIRECT, PodConfig, Share,
    SocketAddress, SocketKey,
};
use weft_ebpf_common::count::Outcome;
use weft_ebpf_common::decide;

use crate::maps::{
    ACCEPTED_PEERS, CLOSED_PEERS, LEGS, ORIGINAL_BY_COOKIE, ORIGINAL_DESTINATIONS, PEER_BY_COOKIE,
    PEER_NAMES, PODS, SOCKETS, count, node_flags,
};
use crate::quota::{self, Refused};
use crate::{probe, release};

pub const TCP_CLOSE: u32 = 7;
/// Argument of `HDR_OPT_LEN_CB`: nothing is sent yet, the stack asks because it is about to take data.
const TAKING_DATA: u32 = 1;
const EBUSY: i32 = -16;

/// 1 where the kernel has `bpf_skc_to_mptcp_sock` (5.19); else the verifier never sees the call.
#[unsafe(no_mangle)]
static HAS_MPTCP_HELPER: Global<u32> = Global::new(0);

#[sock_ops]
pub fn weft_sock_ops(ctx: SockOpsContext) -> u32 {
    let op = ctx.op();
    if op != BPF_SOCK_OPS_TCP_CONNECT_CB
        && op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
        && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
        && op != BPF_SOCK_OPS_STATE_CB
        && op != BPF_SOCK_OPS_HDR_OPT_LEN_CB
    {
        return 0;
    }
    // SAFETY: the helper takes the program's context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if op == BPF_SOCK_OPS_STATE_CB {
        // Also for a pod released meanwhile: only sockets that asked for it get here.
        if ctx.arg(1) == TCP_CLOSE {
            closed(&ctx, &key(&ctx, cookie));
        }
        return 0;
    }
    if op == BPF_SOCK_OPS_HDR_OPT_LEN_CB {
        if ctx.arg(0) == TAKING_DATA {
            leave_to_stack(&ctx, &key(&ctx, cookie));
        }
        return 0;
    }
    if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
        // Also for a pod released meanwhile: what was stored for the socket must be removed when it closes.
        connecting(&ctx, &key(&ctx, cookie));
        return 0;
    }
    // SAFETY: a map value stays valid while the program runs.
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else { return 0 };
    let key = key(&ctx, cookie);
    if op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
        match leg_to(&key) {
            Some(Far::Proxy) => offer(&ctx, pod, key, NODE_REDIRECT, Far::Proxy),
            // Its other end is one that an application accepts.
            Some(Far::Application) => offer(&ctx, pod, key, NODE_REDIRECT_ACCEPTED, Far::Application),
            None => {}
        }
    } else {
        accepted(&ctx, pod, key);
    }
    0
}

/// The stack takes data for a leg. If sk_msg has let it through, its path is this one already. If not (a send that had
/// waited for the connect, or entered just before the socket was inserted), it must become so: what sk_msg redirected
/// later would overtake.
#[inline(always)]
fn leave_to_stack(ctx: &SockOpsContext, key: &SocketKey) {
    if let Some(leg) = LEGS.get_ptr_mut(key) {
        // SAFETY: a map value stays valid while the program runs; the socket's lock is held, as for its messages.
        unsafe { (*leg).path = LEG_STACK };
    }
    let _ = ctx.set_cb_flags((ctx.cb_flags() & !BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG) as i32);
}

/// The SYN is about to leave: the local port is known now.
#[inline(always)]
fn connecting(ctx: &SockOpsContext, key: &SocketKey) {
    // SAFETY: the helper takes the program's context; map values stay valid while the program runs.
    unsafe {
        let socket = bpf_get_socket_cookie(ctx.as_ptr());
        if let Some(original) = ORIGINAL_BY_COOKIE.get(&socket) {
            let end = End { netns_cookie: key.netns_cookie, socket: key.local };
            let flow = Flow { original: *original, accepted: 0, pad: [0; 4] };
            let share = Share::Destination;
            let stored = quota::insert(&ORIGINAL_DESTINATIONS, &end, &flow, key.netns_cookie, share);
            count(match stored {
                Ok(()) => Outcome::FlowStored,
                Err(Refused::Full) => Outcome::FlowRefusedFull,
                Err(Refused::Share) => Outcome::FlowRefusedShare,
            });
            watch_close(ctx);
        } else if let Some(peer) = PEER_BY_COOKIE.get(&socket) {
            if PEER_NAMES.insert(key, &peer.client, 0).is_err() {
                count(Outcome::AcceptedUnnamed);
            }
            watch_close(ctx);
        } else if probe::file(socket, key) {
            watch_close(ctx);
        }
    }
}

/// The passive end of a leg exists: the proxy's of an intercepted connection, or the application's of one that the
/// proxy made.
#[inline(always)]
fn accepted(ctx: &SockOpsContext, pod: &PodConfig, key: SocketKey) {
    let end = End { netns_cookie: key.netns_cookie, socket: key.remote };
    if key.local.port == pod.outbound_port
        && let Some(flow) = ORIGINAL_DESTINATIONS.get_ptr_mut(&end)
    {
        // SAFETY: a map value stays valid while the program runs.
        unsafe { (*flow).accepted = 1 };
        watch_close(ctx);
        offer(ctx, pod, key, NODE_REDIRECT, Far::Application);
        return;
    }
    // SAFETY: a map value stays valid while the program runs.
    if let Some(client) = unsafe { PEER_NAMES.get(&opposite(&key)) } {
        // SAFETY: the helper takes the program's context.
        let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        match quota::insert(&ACCEPTED_PEERS, &socket, client, key.netns_cookie, Share::Accepted) {
            Ok(()) => {}
            Err(Refused::Full) => count(Outcome::AcceptedUnnamed),
            Err(Refused::Share) => count(Outcome::AcceptedRefusedShare),
        }
        watch_close(ctx);
        offer(ctx, pod, key, NODE_REDIRECT_ACCEPTED, Far::Proxy);
    }
}

/// Who is at the other end of a leg.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Far {
    Proxy,
    Application,
}

/// Is this the active end of a leg: an intercepted client, or the proxy towards an application?
#[inline(always)]
fn leg_to(key: &SocketKey) -> Option<Far> {
    let end = End { netns_cookie: key.netns_cookie, socket: key.local };
    // SAFETY: only the presence of the entries is used.
    unsafe {
        if ORIGINAL_DESTINATIONS.get(&end).is_some() {
            return Some(Far::Proxy);
        }
        PEER_NAMES.get(key).map(|_| Far::Application)
    }
}

/// The key of a leg's other end.
#[inline(always)]
fn opposite(key: &SocketKey) -> SocketKey {
    SocketKey { netns_cookie: key.netns_cookie, local: key.remote, remote: key.local }
}

/// Inserts a socket of a local leg. `LEGS` last: an entry there promises one in `SOCKETS`.
#[inline(always)]
fn offer(ctx: &SockOpsContext, pod: &PodConfig, mut key: SocketKey, needed: u32, far: Far) {
    let flags = node_flags();
    if flags & NODE_REDIRECT == 0
        || flags & needed == 0
        || pod.flags & POD_NO_REDIRECT != 0
        || !decide::in_pod(pod, &key.local.address)
        || !decide::in_pod(pod, &key.remote.address)
    {
        return;
    }
    if is_mptcp(ctx) {
        count(Outcome::SocketSkippedMptcp);
        return;
    }
    // SAFETY: the context of a running program is valid.
    if unsafe { (*ctx.ops).data_segs_out } != 0 {
        count(Outcome::SocketSkippedSent);
        return;
    }
    if peer_began_in_stack(&key) {
        return;
    }
    // Counted before the socket goes into `SOCKETS`, where it stays until it closes.
    if !quota::take(key.netns_cookie, Share::Leg) {
        count(Outcome::SocketRefusedShare);
        return;
    }
    watch(ctx, BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
    // SAFETY: the context of a running program is valid.
    let result = unsafe { SOCKETS.update(&mut key, &mut *ctx.ops, u64::from(BPF_ANY)) };
    let outcome = match result {
        Err(EBUSY) => Outcome::SocketRefusedBusy,
        Err(_) => Outcome::SocketRefusedFull,
        Ok(()) => {
            match LEGS.insert(&key, &Leg::new(far == Far::Proxy, socket_address(ctx)), u64::from(BPF_NOEXIST))
            {
                Ok(()) => Outcome::SocketInserted,
                Err(_) => Outcome::SocketRefusedFull,
            }
        }
    };
    if outcome != Outcome::SocketInserted {
        quota::give_back(key.netns_cookie, Share::Leg);
    }
    count(outcome);
}

#[inline(always)]
fn socket_address(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the context of a running program is valid.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk as u64 }
}

/// A peer that has sent through the stack already goes on doing so, and some kernels answer FIONREAD wrongly for a
/// socket that is in the map and is not redirected to: better not to insert this one.
#[inline(always)]
fn peer_began_in_stack(key: &SocketKey) -> bool {
    // SAFETY: a map value stays valid while the program runs.
    unsafe { LEGS.get(&opposite(key)).is_some_and(|leg| leg.path == LEG_STACK) }
}

#[inline(always)]
fn closed(ctx: &SockOpsContext, key: &SocketKey) {
    // SAFETY: the helper takes the program's context.
    let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let netns = key.netns_cookie;
    quota::remove(&ORIGINAL_BY_COOKIE, &socket, netns, Share::Original);
    // SAFETY: a map value stays valid while the program runs.
    if let Some(client) = unsafe { ACCEPTED_PEERS.get(&socket) } {
        // Closed by its peer and not by the application, which may not even have accepted it.
        let _ = CLOSED_PEERS.insert(&socket, client, 0);
        quota::remove(&ACCEPTED_PEERS, &socket, netns, Share::Accepted);
    }
    quota::remove(&LEGS, key, netns, Share::Leg);
    if release::forget_peer(socket, netns) {
        let _ = PEER_NAMES.remove(key);
        return;
    }
    if probe::forget(socket, key) {
        return;
    }
    let mine = End { netns_cookie: key.netns_cookie, socket: key.local };
    if let Some(flow) = ORIGINAL_DESTINATIONS.get_ptr(&mine) {
        // The client's end. Once the proxy's end exists, the entry is that one's to remove.
        // SAFETY: a map value stays valid while the program runs.
        if unsafe { (*flow).accepted } == 0 {
            forget_flow(&mine);
        }
        return;
    }
    forget_flow(&End { netns_cookie: key.netns_cookie, socket: key.remote });
}

#[inline(always)]
fn forget_flow(end: &End) {
    if quota::remove(&ORIGINAL_DESTINATIONS, end, end.netns_cookie, Share::Destination) {
        count(Outcome::FlowRemoved);
    }
}

#[inline(always)]
fn watch_close(ctx: &SockOpsContext) {
    watch(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
}

#[inline(always)]
fn watch(ctx: &SockOpsContext, flags: u32) {
    let _ = ctx.set_cb_flags((ctx.cb_flags() | flags) as i32);
}

#[inline(always)]
fn is_mptcp(ctx: &SockOpsContext) -> bool {
    if HAS_MPTCP_HELPER.load() == 0 {
        return false;
    }
    // SAFETY: the helper accepts the context's socket, which is checked for null.
    unsafe {
        let socket = (*ctx.ops).__bindgen_anon_2.sk;
        !socket.is_null() && !bpf_skc_to_mptcp_sock(socket.cast()).is_null()
    }
}

#[inline(always)]
fn key(ctx: &SockOpsContext, netns_cookie: u64) -> SocketKey {
    // SAFETY: the context of a running program is valid; words are read one by one as the verifier wants.
    unsafe {
        let ops = ctx.ops;
        let family = (&raw const (*ops).family).read_volatile();
        // Both families are read always: the verifier refuses a context pointer that a branch has moved.
        let local_v4 = (&raw const (*ops).local_ip4).read_volatile();
        let remote_v4 = (&raw const (*ops).remote_ip4).read_volatile();
        let local_v6 = words(&raw const (*ops).local_ip6);
        let remote_v6 = words(&raw const (*ops).remote_ip6);
        let local = decide::normalise(family, local_v4, local_v6);
        let remote = decide::normalise(family, remote_v4, remote_v6);
        // Local port in host order; remote port in network order, in the high half of the word.
        let local_port = (&raw const (*ops).local_port).read_volatile() as u16;
        let remote_port = u32::from_be((&raw const (*ops).remote_port).read_volatile()) as u16;
        SocketKey {
            netns_cookie,
            local: SocketAddress::new(local, local_port),
            remote: SocketAddress::new(remote, remote_port),
        }
    }
}

/// Four words of a context, read one by one.
///
/// # Safety
/// `from` points into the program's context.
#[inline(always)]
pub unsafe fn words(from: *const [u32; 4]) -> [u32; 4] {
    let from = from as *const u32;
    // SAFETY: promised by the caller.
    unsafe {
        [
            from.read_volatile(),
            from.add(1).read_volatile(),
            from.add(2).read_volatile(),
            from.add(3).read_volatile(),
        ]
    }
}
