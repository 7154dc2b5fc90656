//! Weft on a real Kubernetes cluster: two nodes with kubelets and containerd, in namespaces of this machine.
//!
//! `make test-cluster` runs it. All tests share one cluster; those that take something away from it run alone
//! ([`fixture::alone`]). Start reading at `fixture`.

mod addresses;
mod answers;
mod burst;
mod chart;
mod closed;
mod commands;
mod deletion;
mod enrolment;
mod fixture;
mod identity;
mod leftovers;
mod lifecycle;
mod newcomers;
mod outages;
mod policy;
mod probes;
mod restarts;
mod rollout;
mod sidecars;
mod traces;
mod upgrade;
