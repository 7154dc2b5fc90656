//! What the admin endpoints of weft-control and weft-node share: where they listen ([`Address`]), who may connect ([`open_unix`]),
//! how a page is asked for ([`ask`]), and the wall clock as both tell it ([`clock`]).
//!
//! The pages are each one's own: nothing here knows what they show.

mod address;
mod ask;
pub mod clock;
mod socket;

pub use address::{Address, listen_address};
pub use ask::{AskError, ask};
pub use socket::open_unix;
