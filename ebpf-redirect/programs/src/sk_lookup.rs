//! `sk_lookup`, one instance for each enrolled namespace: hands new inbound connections to the proxy's listener. Fails
//! closed: without a listener the connection is refused.
//!
//! The hook has no helper that tells the namespace's cookie, so the loader writes it into each instance.

use aya_ebpf::Global;
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use weft_ebpf_common::abi::{DIRECTION_INBOUND, ExcludedPort, InboundKey, SocketAddress, SocketKey};
use weft_ebpf_common::count::Outcome;
use weft_ebpf_common::decide::{self, Lookup};

use crate::maps::{EXCLUDED_PORTS, INBOUND_LISTENERS, PODS, count};
use crate::probe;

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;

#[unsafe(no_mangle)]
static NETNS_COOKIE: Global<u64> = Global::new(0);

#[sk_lookup]
pub fn weft_sk_lookup(ctx: SkLookupContext) -> u32 {
    let cookie = NETNS_COOKIE.load();
    // SAFETY: the context of a running program is valid; words are read one by one as the verifier wants.
    let (family, protocol, port, remote_port, local, remote) = unsafe {
        let lookup = ctx.lookup;
        let family = (&raw const (*lookup).family).read_volatile();
        // Both families are read always: the verifier refuses a context pointer that a branch has moved.
        let local_v4 = (&raw const (*lookup).local_ip4).read_volatile();
        let remote_v4 = (&raw const (*lookup).remote_ip4).read_volatile();
        let local_v6 = crate::sock_ops::words(&raw const (*lookup).local_ip6);
        let remote_v6 = crate::sock_ops::words(&raw const (*lookup).remote_ip6);
        let local = decide::normalise(family, local_v4, local_v6);
        let remote = decide::normalise(family, remote_v4, remote_v6);
        // Local port in host order, remote port in network order.
        let (port, remote_port) = ((*lookup).local_port as u16, u16::from_be((*lookup).remote_port));
        (family, (*lookup).protocol, port, remote_port, local, remote)
    };
    let seen = SocketKey {
        netns_cookie: cookie,
        local: SocketAddress::new(local, port),
        remote: SocketAddress::new(remote, remote_port),
    };
    let key = ExcludedPort { netns_cookie: cookie, port, direction: DIRECTION_INBOUND, pad: [0; 4] };
    let decision = decide::lookup(
        protocol,
        &local,
        &remote,
        // SAFETY: a map value stays valid while the program runs.
        || unsafe { PODS.get(&cookie) }.is_some_and(|pod| decide::in_pod(pod, &remote)),
        // SAFETY: only the presence of the entry is used.
        || unsafe { EXCLUDED_PORTS.get(&key).is_some() },
        || probe::is_filed(&seen),
    );
    match decision {
        Lookup::Pass(outcome) => {
            count(outcome);
            SK_PASS
        }
        Lookup::Drop(outcome) => {
            count(outcome);
            SK_DROP
        }
        Lookup::Steer => {
            let key = InboundKey { netns_cookie: cookie, family, pad: [0; 4] };
            if INBOUND_LISTENERS.redirect_sk_lookup(&ctx, key, 0).is_ok() {
                count(Outcome::LookupSteered);
                SK_PASS
            } else {
                count(Outcome::LookupDropped);
                SK_DROP
            }
        }
    }
}
