//! The control plane against a real Kubernetes API server. Needs the binaries of the test cluster; `make test-cluster` runs it, or
//! `cargo test -p weft-control --test kubernetes`.
#![expect(clippy::unwrap_used, reason = "all of this file is test code")]

mod api_server;
mod authorizer;
mod clock;
mod cluster;
mod control;
mod events;
mod identity;
mod lease;
mod node;
mod outages;
mod proxy;
mod rights;
mod routes;
mod schema;
mod users;
