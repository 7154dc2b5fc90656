//! The lab ([`lab`]: a Weft mesh on one machine), the echo application for tests ([`echo`]) and what both share.

pub mod echo;
pub mod lab;
