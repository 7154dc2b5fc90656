//! The lab ([`lab`]: a Weft mesh on one machine), the echo application for tests ([`echo`]), and the story that the demo tells and
//! the tests prove ([`story`]).

pub mod echo;
pub mod lab;
pub mod story;
