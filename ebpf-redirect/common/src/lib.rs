//! What the kernel programs and their loader agree on: [`abi`] (map layouts), [`count`] (counters) and [`decide`]
//! (pure decisions).
//!
//! `no_std`, no dependency, integers only. Everything here is tested on the host.
#![no_std]

pub mod abi;
pub mod count;
pub mod decide;
