//! The lab ([`lab`]: a Weft mesh on one machine), the cluster ([`cluster`]: Kubernetes on one machine), the echo application for tests ([`echo`]), the story that the demo tells and
//! the tests prove ([`story`]), what the end-to-end tests share ([`fixture`]), and the benchmark against no mesh ([`bench`]).

pub mod bench;
pub mod cluster;
pub mod echo;
pub mod fixture;
pub mod lab;
pub mod story;
pub mod tools;
