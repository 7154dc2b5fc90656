//! Weft's kernel programs, one file per hook: [`connect`], [`peer_name`], [`release`], [`sock_ops`], [`sk_msg`],
//! [`sk_lookup`]; their maps in [`maps`].
//!
//! A hook parses its context, calls one decision of `weft_ebpf_common::decide`, and writes. It never loops and never
//! sees more than one connection.
#![no_std]
#![no_main]

mod connect;
mod maps;
mod peer_name;
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
