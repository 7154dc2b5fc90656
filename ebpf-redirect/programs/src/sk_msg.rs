//! `sk_msg`: puts what one end of a local leg sends straight into the receive queue of the other. Decided for each
//! direction by its first message (`decide::way`). Fails open into the stack before that decision and closed (an error to
//! the sender) after it. `weft_unread` is no hook: the proxy runs it to learn how far behind an application is.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_probe_read_kernel};
use aya_ebpf::macros::{sk_msg, socket_filter};
use aya_ebpf::programs::{SkBuffContext, SkMsgContext};
use weft_ebpf_common::abi::{LEG_REDIRECT, LEG_STACK, NOT_REDIRECTED, SocketAddress, SocketKey};
use weft_ebpf_common::count::Outcome;
use weft_ebpf_common::decide::{self, Way};

use crate::maps::{LEGS, SOCKETS, add, count};

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
/// The kernel keeps flags in the low bits of `sk_user_data`.
const USER_DATA_FLAGS: u64 = 7;

/// Offsets of `sk_user_data` in `struct sock` and of `msg_tot_len` in `struct sk_psock`. The latter is 0 where the kernel
/// has no such member.
#[unsafe(no_mangle)]
static SOCK_USER_DATA: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static PSOCK_UNREAD: Global<u32> = Global::new(0);

#[sk_msg]
pub fn weft_sk_msg(ctx: SkMsgContext) -> u32 {
    let own = key(&ctx);
    let bytes = u64::from(ctx.size());
    let Some(leg) = LEGS.get_ptr_mut(&own) else {
        return stack(bytes);
    };
    // SAFETY: a map value stays valid while the program runs; a socket's messages are serialised by its lock.
    let leg = unsafe { &mut *leg };
    let mut peer = SocketKey { netns_cookie: own.netns_cookie, local: own.remote, remote: own.local };
    // SAFETY: a map value stays valid while the program runs.
    let receiver = unsafe { LEGS.get(&peer) }.map(|peer| peer.socket);
    match decide::way(leg, || receiver.is_some(), || receiver.and_then(unread)) {
        Way::Stack => {
            leg.path = LEG_STACK;
            return stack(bytes);
        }
        Way::Break => {
            count(Outcome::MessageBroken);
            return SK_DROP;
        }
        Way::Redirect => leg.path = LEG_REDIRECT,
    }
    leg.redirected_bytes += bytes;
    let verdict = SOCKETS.redirect_msg(&ctx, &mut peer, u64::from(BPF_F_INGRESS)) as u32;
    if verdict == SK_PASS {
        count(Outcome::MessageRedirected);
        add(Outcome::BytesRedirected, bytes);
    } else {
        count(Outcome::MessageDropped);
    }
    verdict
}

/// Run by user space, with the key of a socket of the proxy for a packet: how many bytes lie unread in the application's
/// redirected queue. A program of the one type that may answer any number.
#[socket_filter]
pub fn weft_unread(ctx: SkBuffContext) -> i64 {
    let Ok(own) = ctx.load::<SocketKey>(0) else { return i64::from(NOT_REDIRECTED) };
    let peer = SocketKey { netns_cookie: own.netns_cookie, local: own.remote, remote: own.local };
    // SAFETY: a map value stays valid while the program runs.
    let Some(leg) = (unsafe { LEGS.get(&own) }) else { return i64::from(NOT_REDIRECTED) };
    if leg.path != LEG_REDIRECT {
        return i64::from(NOT_REDIRECTED);
    }
    // SAFETY: as above.
    let Some(receiver) = (unsafe { LEGS.get(&peer) }) else { return i64::from(NOT_REDIRECTED) };
    match unread(receiver.socket) {
        Some(unread) => unread.min(u64::from(NOT_REDIRECTED) - 1) as i64,
        None => i64::from(NOT_REDIRECTED),
    }
}

/// Redirected bytes that this socket has not read. The pointers are good while the program runs: both structures are freed
/// after a grace period, and a pointer that is none reads as nothing.
#[inline(always)]
fn unread(socket: u64) -> Option<u64> {
    let (user_data, length) = (SOCK_USER_DATA.load(), PSOCK_UNREAD.load());
    if length == 0 || socket == 0 {
        return None;
    }
    // SAFETY: the helper checks what it reads.
    unsafe {
        let psock: u64 = bpf_probe_read_kernel((socket + u64::from(user_data)) as *const u64).ok()?;
        let psock = psock & !USER_DATA_FLAGS;
        if psock == 0 {
            return None;
        }
        let unread: u32 = bpf_probe_read_kernel((psock + u64::from(length)) as *const u32).ok()?;
        Some(u64::from(unread))
    }
}

#[inline(always)]
fn stack(bytes: u64) -> u32 {
    count(Outcome::MessageStack);
    add(Outcome::BytesStack, bytes);
    SK_PASS
}

#[inline(always)]
fn key(ctx: &SkMsgContext) -> SocketKey {
    // SAFETY: the context of a running program is valid; words are read one by one as the verifier wants.
    unsafe {
        let msg = ctx.msg;
        let family = (&raw const (*msg).family).read_volatile();
        // Both families are read always: the verifier refuses a context pointer that a branch has moved.
        let local_v4 = (&raw const (*msg).local_ip4).read_volatile();
        let remote_v4 = (&raw const (*msg).remote_ip4).read_volatile();
        let local_v6 = crate::sock_ops::words(&raw const (*msg).local_ip6);
        let remote_v6 = crate::sock_ops::words(&raw const (*msg).remote_ip6);
        let local = decide::normalise(family, local_v4, local_v6);
        let remote = decide::normalise(family, remote_v4, remote_v6);
        // Local port in host order; remote port in network order, in the high half of the word.
        let local_port = (&raw const (*msg).local_port).read_volatile() as u16;
        let remote_port = u32::from_be((&raw const (*msg).remote_port).read_volatile()) as u16;
        SocketKey {
            netns_cookie: bpf_get_netns_cookie(ctx.as_ptr()),
            local: SocketAddress::new(local, local_port),
            remote: SocketAddress::new(remote, remote_port),
        }
    }
}
