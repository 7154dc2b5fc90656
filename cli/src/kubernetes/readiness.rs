//! Whether Weft's workloads are rolled out, and if not, what they wait for.
//!
//! The judgement is pure (`standing` has that of one pod): objects in, words out. [`follow`] asks and prints until all is ready.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::ListParams;

use super::standing::{Passing, is_ready, passing, why_not_ready};
use super::words::Words as _;
use super::{CONTROL, Cluster, NAME_LABEL, NAMESPACE, NODE};

/// How often the API server is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// A controller that is refused a pod tries again after 16 minutes at most, and first after milliseconds.
const FAILED_CREATE_SECONDS_MAX: i64 = 20 * 60;

/// One of Weft's two workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Workload {
    Control,
    Node,
}

impl Workload {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Control => CONTROL,
            Self::Node => NODE,
        }
    }
}

/// How far a roll-out is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) wanted: i32,
    /// Of the current version, and available.
    pub(super) ready: i32,
    pub(super) done: bool,
}

/// A Deployment is rolled out when its controller has seen it, and all pods are of this version and available.
pub(super) fn deployment(object: &Deployment) -> Progress {
    let wanted = object.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = object.status.clone().unwrap_or_default();
    let seen = status.observed_generation >= object.metadata.generation;
    let (updated, available) = (status.updated_replicas.unwrap_or(0), status.available_replicas.unwrap_or(0));
    let old = status.replicas.unwrap_or(0) - updated;
    Progress {
        wanted,
        ready: updated.min(available),
        done: seen && updated >= wanted && available >= wanted && old <= 0,
    }
}

/// A cluster without a fitting node has nothing to wait for.
pub(super) fn daemon_set(object: &DaemonSet) -> Progress {
    let status = object.status.clone().unwrap_or_default();
    let seen = status.observed_generation >= object.metadata.generation;
    let wanted = status.desired_number_scheduled;
    let (updated, available) =
        (status.updated_number_scheduled.unwrap_or(0), status.number_available.unwrap_or(0));
    Progress { wanted, ready: updated.min(available), done: seen && updated >= wanted && available >= wanted }
}

/// Weft's pods of one workload.
pub(super) async fn pods(cluster: &Cluster, of: Workload) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let labels = format!("{NAME_LABEL}={}", of.name());
    let listed = pods.list(&ListParams::default().labels(&labels)).await;
    Ok(listed.doing(&format!("list pods of {NAMESPACE}"))?.items)
}

async fn progress(cluster: &Cluster, of: Workload) -> Result<Progress> {
    let doing = format!("read {}", of.name());
    match of {
        Workload::Control => {
            let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), NAMESPACE);
            api.get(CONTROL).await.doing(&doing).map(|object| deployment(&object))
        }
        Workload::Node => {
            let api: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), NAMESPACE);
            api.get(NODE).await.doing(&doing).map(|object| daemon_set(&object))
        }
    }
}

/// A pod that is not ready, or pods that are not there.
#[derive(Debug, Clone)]
pub(super) struct Unready {
    /// Which, where, and why.
    pub(super) line: String,
    /// It is on its way, as a roll-out or a new node brings about: no fault yet.
    pub(super) passing: bool,
}

/// What keeps a workload that should have `wanted` pods from being ready.
pub(super) async fn unready(cluster: &Cluster, of: Workload, wanted: i32) -> Result<Vec<Unready>> {
    let now = Timestamp::now();
    let mut all = Vec::new();
    let pods = pods(cluster, of).await?;
    for pod in pods.iter().filter(|pod| !is_ready(pod) || pod.metadata.deletion_timestamp.is_some()) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let on = node.map(|node| format!(" on {node}")).unwrap_or_default();
        let passing = passing(pod, now);
        let why = match passing {
            Some(Passing::Ends) => "ends".to_owned(),
            None if pod.metadata.deletion_timestamp.is_some() => "does not end: is its node down?".to_owned(),
            _ => why_not_ready(pod, &events(cluster, &format!("involvedObject.name={name}")).await),
        };
        // Some messages are of several lines.
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        all.push(Unready { line: format!("{name}{on}: {why}"), passing: passing.is_some() });
    }
    let missing = usize::try_from(wanted).unwrap_or(0).saturating_sub(pods.len());
    if missing > 0 {
        let events = events(cluster, "reason=FailedCreate").await;
        all.push(not_made(missing, of, &events, now));
    }
    Ok(all)
}

/// Pure. Between the end of one pod and the beginning of the next there is a moment without; where pods are refused it lasts, and the
/// controller says so, of the workload or of its ReplicaSet.
fn not_made(missing: usize, of: Workload, events: &[Event], now: Timestamp) -> Unready {
    let is_recent = |event: &&Event| {
        let name = event.involved_object.name.as_deref().unwrap_or_default();
        let at = event.last_timestamp.as_ref().map(|time| time.0);
        let age = at.map_or(i64::MAX, |at| now.duration_since(at).as_secs());
        name.starts_with(of.name()) && age < FAILED_CREATE_SECONDS_MAX
    };
    let told = events.iter().filter(is_recent).max_by_key(|event| event.last_timestamp.as_ref().map(|t| t.0));
    match told.and_then(|event| event.message.as_deref()) {
        Some(why) => Unready { line: format!("{missing} not made: {why}"), passing: false },
        None => Unready { line: format!("{missing} not made yet"), passing: true },
    }
}

/// Events help to explain; whoever may not read them is told less.
async fn events(cluster: &Cluster, fields: &str) -> Vec<Event> {
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    events.list(&ListParams::default().fields(fields)).await.map(|list| list.items).unwrap_or_default()
}

/// Waits until the workload is rolled out; prints each change of what it waits for.
pub(super) async fn follow(cluster: &Cluster, of: Workload, wait_max: Duration) -> Result<()> {
    let started = Instant::now();
    let mut shown = String::new();
    loop {
        let now = progress(cluster, of).await?;
        if now.done {
            tell!("{}: {} of {} ready", of.name(), now.ready, now.wanted);
            return Ok(());
        }
        let waiting: Vec<String> =
            unready(cluster, of, now.wanted).await?.into_iter().map(|pod| pod.line).collect();
        let mut text = format!("{}: {} of {} ready", of.name(), now.ready, now.wanted);
        waiting.iter().for_each(|line| text.push_str(&format!("\n  {line}")));
        if text != shown {
            tell!("{text}");
            shown = text;
        }
        if started.elapsed() > wait_max {
            bail!(
                "{} is not ready after {} s:\n  {}\nIt goes on without this command; `weft check` says how it stands",
                of.name(),
                wait_max.as_secs(),
                waiting.join("\n  ")
            );
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_rollout_is_done_when_every_pod_is_of_this_version_and_available() {
        for (observed, replicas, updated, available, done) in [
            (2, 2, 2, 2, true),
            (1, 2, 2, 2, false),
            (2, 3, 2, 2, false),
            (2, 2, 1, 2, false),
            (2, 2, 2, 1, false),
        ] {
            let object = of(json!({
                "metadata": {"generation": 2}, "spec": {"replicas": 2, "selector": {}, "template": {}},
                "status": {"observedGeneration": observed, "replicas": replicas, "updatedReplicas": updated,
                           "availableReplicas": available},
            }));
            assert_eq!(deployment(&object).done, done, "{object:?}");
        }
        for (observed, updated, available, done) in
            [(2, 3, 3, true), (1, 3, 3, false), (2, 2, 3, false), (2, 3, 2, false)]
        {
            let object = of(json!({
                "metadata": {"generation": 2},
                "status": {"observedGeneration": observed, "desiredNumberScheduled": 3, "currentNumberScheduled": 3,
                           "numberMisscheduled": 0, "numberReady": 3, "updatedNumberScheduled": updated,
                           "numberAvailable": available},
            }));
            assert_eq!(daemon_set(&object).done, done, "{object:?}");
        }
    }

    #[test]
    fn pods_that_are_not_there_are_on_their_way_unless_somebody_refuses_them() {
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        let event = |name: &str, at: &str| -> Event {
            of(
                json!({"metadata": {}, "involvedObject": {"name": name}, "message": "pods \"x\" is forbidden: quota",
                "lastTimestamp": at}),
            )
        };
        for (events, passing) in [
            (vec![], true),
            (vec![event("weft-control-7d9", "2026-11-23T09:59:00Z")], false),
            (vec![event("weft-node", "2026-11-23T09:59:00Z")], true),
            (vec![event("weft-control-7d9", "2026-11-23T09:00:00Z")], true),
        ] {
            let told = not_made(1, Workload::Control, &events, now);
            assert_eq!(told.passing, passing, "{told:?}");
            assert_eq!(told.line.contains("forbidden: quota"), !passing, "{told:?}");
        }
    }
}
