//! What the CNI plugin `weft-cni` and the node proxy must agree on: the messages of the socket between them ([`wire`]), what counts while
//! nobody answers there ([`notice`]), and the plugin's entry in a network configuration ([`entry`]). The plugin itself is `main.rs`, with [`conf`] for what the runtime tells it and
//! [`ask`] for the socket's client side.
//!
//! Nothing here knows the mesh: the plugin only carries what the runtime says to `weft-node`, and its answer back.

pub mod ask;
pub mod conf;
pub mod entry;
pub mod notice;
pub mod wire;
