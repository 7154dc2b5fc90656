//! Weft's kernel programs, one file per hook: [`connect`], [`peer_name`], [`release`], [`sock_ops`], [`sk_msg`],
//! [`sk_lookup`]; their maps in [`maps`], what one pod may hold of them in [`quota`], probes of the node in [`probe`].
//!
//! A hook parses its context, calls one decision of `weft_ebpf_common::decide`, and writes. It never sees more than one
//! connection, and loops only over the ancestors of a cgroup.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    internal_features,
    reason = "atomic addition, which this target has and `core::sync` does not offer for it"
)]

mod connect;
mod maps;
mod peer_name;
mod probe;
mod quota;
mod release;
mod sk_lookup;
mod sk_msg;
mod sock_ops;

/// The verifier proves that nothing panics; the compiler wants to know all the same.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
