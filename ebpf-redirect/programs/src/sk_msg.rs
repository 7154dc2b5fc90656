//! `sk_msg`: puts what one end of a local leg sends straight into the receive queue of the other. Decided for each
//! direction by its first message; after `REDIRECT_BYTES_QUIET` the direction goes on through the stack. Fails open into the stack
//! before that decision and closed (an error to the sender) after it.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::bpf_get_netns_cookie;
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::SkMsgContext;
use weft_ebpf_common::abi::{LEG_REDIRECT, SocketAddress, SocketKey};
use weft_ebpf_common::count::Outcome;
use weft_ebpf_common::decide;

use crate::maps::{LEGS, SOCKETS, add, count};

const SK_PASS: u32 = 1;

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
    let peers = LEGS.get_ptr_mut(&peer);
    leg.path = decide::path(leg, || peers.is_some());
    leg.answered = 0;
    if let Some(peers) = peers {
        // SAFETY: a map value stays valid while the program runs; a lone word, so that a race costs a quiet point at most.
        unsafe { (*peers).answered = 1 };
    }
    if leg.path != LEG_REDIRECT {
        return stack(bytes);
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
