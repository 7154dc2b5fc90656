//! The edge between the control plane and the nodes.
//!
//! [`v1`] is the generated gRPC API. It stops here: [`model`] holds the validated types that both sides work with,
//! and [`convert`] is the only way from one to the other. What is invalid does not get past this crate. [`dump`] shows values to people.
//! Start reading at [`model`].

pub mod convert;
pub mod dump;
pub mod identity;
pub mod model;

/// Generated from `weft/v1/*.proto`. Never used outside the edge modules of node and control plane.
#[allow(clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("weft.v1");
}
