//! What `/status` answers: the state of the node in one serializable value. Reads, never changes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use tokio::runtime::Handle;
use weft_ebpf::{Feature, ProbeReport};

use crate::cni::CniStatus;
use crate::discovery::ControlStatus;
use crate::enrol::Event;
use crate::identity::CertificateStatus;
use crate::node::Node;
use crate::telemetry::TraceStatus;
use weft_proto::model::Workload;

/// The node as `weft status` shows it.
#[derive(Debug, Serialize)]
pub struct Status {
    pub node: String,
    pub version: &'static str,
    pub kernel_release: String,
    /// By this node's wall clock, when it answered: certificates are judged by that.
    pub clock_unix_s: u64,
    /// Able to serve: in sync, and every enrolled pod is set up or reported below.
    pub ready: bool,
    /// Why it is not.
    pub unready: Vec<String>,
    pub draining: bool,
    pub kernel: KernelStatus,
    pub traces: TraceStatus,
    pub control: ControlStatus,
    /// None: new pods do not wait for this agent.
    pub cni: Option<CniStatus>,
    pub pods: Vec<PodStatus>,
    pub certificates: Vec<CertificateStatus>,
    pub connections_live: usize,
    /// Of the whole process, connections' and others; 0 where there is no runtime.
    pub tasks_live: usize,
    pub resources: usize,
}

/// What the hooks do and have counted.
#[derive(Debug, Serialize)]
pub struct KernelStatus {
    /// sk_msg is used for new connections.
    pub redirect: bool,
    /// Why it is not.
    pub redirect_reason: Option<String>,
    /// Why not towards applications; None: there too.
    pub redirect_to_applications_reason: Option<String>,
    /// Why not for sockets that applications accept; None: for them too.
    pub redirect_accepted_reason: Option<String>,
    /// What this kernel was found to do at the start.
    pub probes: Vec<ProbeStatus>,
    /// What is wrong with it and tolerated.
    pub caveat: Option<String>,
    /// The hooks that are attached to the node's cgroup.
    pub programs: Vec<String>,
    /// Pods in whose namespaces `sk_lookup` is attached.
    pub lookups: usize,
    /// Those that are not zero.
    pub events: BTreeMap<&'static str, u64>,
    pub maps: Vec<MapStatus>,
    pub error: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ProbeStatus {
    pub probe: &'static str,
    pub passed: bool,
    /// Why it did not.
    pub reason: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct MapStatus {
    pub map: &'static str,
    pub entries: usize,
    pub entries_max: u32,
}

#[derive(Debug, Serialize)]
pub struct PodStatus {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub ips: Vec<IpAddr>,
    pub state: PodState,
    pub identity: Option<String>,
    pub netns_cookie: Option<u64>,
    /// Why it is not set up.
    pub reason: Option<String>,
    /// What happened to it, the latest last.
    pub events: Vec<Event>,
    /// Through the proxy now, of at most `connections_max` each way; an inbound tunnel and each of its streams is one.
    pub connections_outbound: usize,
    pub connections_inbound: usize,
    pub connections_max: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PodState {
    Enrolled,
    Ending,
    /// Should be enrolled, and is not yet: see the reason. The kernel refuses its connections.
    Shut,
    /// The same, before its sandbox is there: no process of it runs.
    Starting,
    /// The same, but where its processes are is not known: if it runs, its connections bypass the mesh.
    Failed,
    /// On this node, outside the mesh.
    NotEnrolled,
}

fn why(feature: &Feature) -> Option<String> {
    match feature {
        Feature::Available => None,
        Feature::Off(reason) => Some(reason.clone()),
    }
}

/// By the names that `docs/kernel.md` has for them.
fn probes(report: &ProbeReport) -> Vec<ProbeStatus> {
    let features = [
        ("redirect", &report.redirect),
        ("redirect_to_applications", &report.redirect_to_applications),
        ("redirect_accepted", &report.redirect_accepted),
    ];
    let told = features.map(|(probe, feature)| ProbeStatus {
        probe,
        passed: feature.available(),
        reason: why(feature),
    });
    told.into()
}

impl Node {
    /// Ready to serve: a configuration was applied, new pods wait for this agent where that was asked for, and the node is not ending.
    /// A pod that cannot be set up is that pod's trouble, and no reason here.
    pub fn ready(&self) -> bool {
        self.unready().is_empty()
    }

    /// Why it is not ready; empty: it is.
    pub fn unready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.drain.draining.is_cancelled() {
            reasons.push("draining".to_owned());
        }
        let control = self.control.borrow();
        if !control.synced {
            let why = control.last_error.as_deref().unwrap_or("waiting for the first configuration");
            reasons.push(format!("no configuration yet: {why}"));
        } else if self.settings.cni.as_ref().is_some_and(|cni| cni.host.is_some()) {
            reasons.extend(self.cni.borrow().unready());
        }
        reasons
    }

    pub fn status(&self) -> Status {
        let snapshot = self.snapshot.load();
        let node = &self.settings.node_name;
        Status {
            node: node.clone(),
            version: env!("CARGO_PKG_VERSION"),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            clock_unix_s: weft_admin::clock::unix_s(),
            ready: self.ready(),
            unready: self.unready(),
            kernel: self.kernel_status(),
            traces: self.telemetry.traces(),
            draining: self.drain.draining.is_cancelled(),
            control: self.control.borrow().clone(),
            cni: self.settings.cni.as_ref().map(|_| self.cni.borrow().clone()),
            pods: snapshot.workloads_of_node(node).map(|workload| self.pod_status(workload)).collect(),
            certificates: self.identities.status(),
            connections_live: self.drain.connections.len(),
            tasks_live: Handle::try_current().map_or(0, |runtime| runtime.metrics().num_alive_tasks()),
            resources: snapshot.resources(),
        }
    }

    fn kernel_status(&self) -> KernelStatus {
        let report = self.kernel.probe_report();
        let redirect = self.kernel.redirect_on();
        let off = || why(&report.redirect).unwrap_or_else(|| "switched off by --redirect=off".into());
        let (counters, fill, attached) =
            (self.kernel.counters(), self.kernel.map_fill(), self.kernel.attached());
        let error = counters.as_ref().err().or(fill.as_ref().err()).or(attached.as_ref().err());
        let error = error.map(ToString::to_string);
        let (programs, lookups) = attached.unwrap_or_default();
        let maps = fill.unwrap_or_default();
        KernelStatus {
            redirect,
            redirect_reason: (!redirect).then(off),
            redirect_to_applications_reason: why(&report.redirect_to_applications),
            redirect_accepted_reason: why(&report.redirect_accepted),
            probes: probes(report),
            caveat: report.caveat.clone(),
            programs,
            lookups,
            events: counters
                .iter()
                .flat_map(weft_ebpf::Counters::iter)
                .filter(|(_, count)| *count > 0)
                .map(|(outcome, count)| (outcome.name(), count))
                .collect(),
            maps: maps
                .into_iter()
                .map(|(map, entries, entries_max)| MapStatus { map, entries, entries_max })
                .collect(),
            error,
        }
    }

    pub(crate) fn pod_status(&self, workload: &Workload) -> PodStatus {
        let local = self.pods.by_uid(&workload.uid);
        let failure = self.pods.failures().get(&workload.uid).cloned();
        let state = match &local {
            Some(_) if workload.terminating => PodState::Ending,
            Some(_) => PodState::Enrolled,
            None if workload.enrolled && failure.as_ref().is_some_and(|failure| failure.shut) => {
                PodState::Shut
            }
            None if workload.enrolled && workload.ips.is_empty() => PodState::Starting,
            None if workload.enrolled => PodState::Failed,
            None => PodState::NotEnrolled,
        };
        let (connections_outbound, connections_inbound) = self.places.taken(&workload.uid);
        PodStatus {
            uid: workload.uid.to_string(),
            namespace: workload.namespace.to_string(),
            name: workload.name.to_string(),
            ips: workload.ips.clone(),
            state,
            identity: local.as_ref().map(|pod| pod.identity.to_string()),
            netns_cookie: local.as_ref().map(|pod| pod.netns.cookie),
            reason: failure.map(|failure| failure.reason),
            events: self.pods.events().get(&workload.uid).into_iter().flatten().cloned().collect(),
            connections_outbound,
            connections_inbound,
            connections_max: self.places.per_pod(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_probe_of_the_kernel_is_told_with_its_result() {
        let report = ProbeReport {
            kernel: "6.1".into(),
            redirect: Feature::Available,
            redirect_to_applications: Feature::Available,
            redirect_accepted: Feature::Off("kernels before 6.18 confuse them".into()),
            caveat: None,
        };
        let told = serde_json::to_value(probes(&report)).unwrap();
        assert_eq!(
            told,
            serde_json::json!([
                {"probe": "redirect", "passed": true, "reason": null},
                {"probe": "redirect_to_applications", "passed": true, "reason": null},
                {"probe": "redirect_accepted", "passed": false, "reason": "kernels before 6.18 confuse them"},
            ])
        );
    }
}
