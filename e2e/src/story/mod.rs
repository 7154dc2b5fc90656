//! The story that `make demo` tells and that the tests prove: numbered steps, each a function on a lab that is up.
//!
//! A step checks what it claims and returns the evidence as lines; a claim that does not hold is an error. A step
//! leaves the lab as it found it. Start reading at [`STEPS`].

pub mod clients;
mod cross_node;
mod denial;
mod enrolment;
pub mod identity;
mod outage;
mod redirect;
mod retries;
mod routing;
mod trace;

use anyhow::Result;

use crate::lab::{Lab, Options};

/// One step of the story.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub number: u8,
    pub title: &'static str,
    pub run: fn(&mut Lab) -> Result<Evidence>,
}

/// What a step saw, a line each.
pub type Evidence = Vec<String>;

/// In the order in which they are told.
pub const STEPS: &[Step] = &[
    Step {
        number: 1,
        title: "A request crosses the nodes through both proxies, and the link shows nothing but TLS",
        run: cross_node::encrypted,
    },
    Step {
        number: 2,
        title: "Who spoke to whom is proven by certificates, and a node gets none for another node's pod",
        run: identity::verified,
    },
    Step {
        number: 3,
        title: "A backend that fails a third of its requests, a dead endpoint, and a client that sees no failure",
        run: retries::failures_hidden,
    },
    Step {
        number: 4,
        title: "Weights hold, and changing them takes effect within a second without a failed request",
        run: routing::weights,
    },
    Step {
        number: 5,
        title: "A DENY policy takes effect within a second and ends what it forbids; a broken one changes nothing",
        run: denial::denied,
    },
    Step {
        number: 6,
        title: "A namespace leaves the mesh and comes back; its pods never restart",
        run: enrolment::out_and_in,
    },
    Step {
        number: 7,
        title: "The trace of one request, its failed attempt included",
        run: trace::one_request,
    },
    Step {
        number: 8,
        title: "sk_msg takes local bytes past the TCP/IP stack; without it everything works the same",
        run: redirect::share,
    },
    Step {
        number: 9,
        title: "Losing weft-control changes nothing; losing weft-node fails closed, and its return mends it",
        run: outage::control_and_node,
    },
];

/// The manifests that the story is told on.
pub const SHOP: &str = include_str!("shop.yaml");

/// The lab that the story is told on.
pub fn up(name: &str) -> Result<Lab> {
    Lab::up_with(name, SHOP, Options { traces: true, ..Options::default() })
}
