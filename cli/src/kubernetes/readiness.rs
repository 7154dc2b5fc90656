//! Whether Weft's workloads are rolled out, and if not, what they wait for.
//!
//! The judgement is pure: objects in, words out. [`follow`] asks and prints until all is ready.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Event, Pod};
use kube::Api;
use kube::api::ListParams;

use super::words::Words as _;
use super::{CONTROL, Cluster, NAME_LABEL, NAMESPACE, NODE};

/// How often the API server is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Of a log that does not end with its program's own word, as after a panic, so many lines are shown.
const LAST_LINES: usize = 4;

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

pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// What a pod that is not ready waits for: the scheduler's, the runtime's or the last event's words.
pub(super) fn why_not_ready(pod: &Pod, events: &[Event]) -> String {
    let Some(status) = &pod.status else { return "the kubelet has not seen it yet".into() };
    let conditions = || status.conditions.iter().flatten();
    if let Some(condition) = conditions().find(|c| c.type_ == "PodScheduled" && c.status == "False") {
        return format!("is not scheduled: {}", condition.message.as_deref().unwrap_or("no reason given"));
    }
    let containers = status.container_statuses.iter().flatten();
    let trouble = containers.clone().find_map(stopped);
    let warning =
        events.iter().filter(|event| event.type_.as_deref() == Some("Warning")).max_by_key(|event| {
            event.last_timestamp.as_ref().map(|time| time.0).or(event
                .metadata
                .creation_timestamp
                .as_ref()
                .map(|t| t.0))
        });
    let warned = warning.and_then(|event| event.message.clone());
    match (trouble, warned) {
        (Some(trouble), Some(warned)) => format!("{trouble}; {warned}"),
        (Some(trouble), None) => trouble,
        (None, Some(warned)) => warned,
        (None, None) => "started, not ready yet".into(),
    }
}

/// A container that waits, has ended, or was started again and is not ready, in the runtime's words and its own.
fn stopped(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    if let Some(ended) = &state.terminated {
        return Some(format!("ended {}", how(&container.name, ended)));
    }
    let before = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let before = before.map(|ended| format!("ended before {}", how(&container.name, ended)));
    let Some(waiting) = &state.waiting else {
        return before.filter(|_| !container.ready).map(|before| format!("started again ({before})"));
    };
    let reason = waiting.reason.as_deref().unwrap_or("waiting");
    let told = match waiting.message.as_deref() {
        Some(message) => format!("{reason}: {message}"),
        None => reason.to_owned(),
    };
    Some(match before {
        Some(before) => format!("{told} ({before})"),
        None => told,
    })
}

/// Its exit code, the runtime's word for it if that says more, and the container's last words.
fn how(container: &str, ended: &ContainerStateTerminated) -> String {
    let mut told = format!("with code {}", ended.exit_code);
    if let Some(reason) = ended.reason.as_deref().filter(|reason| *reason != "Error") {
        told.push_str(&format!(", {reason}"));
    }
    if let Some(words) = ended.message.as_deref().and_then(|message| last_words(container, message)) {
        told.push_str(&format!(": {words}"));
    }
    told
}

/// The message of a container that failed is the end of its log (`terminationMessagePolicy`). The reason is what the program said last
/// in its own name, the container's.
fn last_words(container: &str, message: &str) -> Option<String> {
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let own = format!("{container}: ");
    let last = lines.len().saturating_sub(LAST_LINES);
    let from = lines.iter().rposition(|line| line.starts_with(&own)).unwrap_or(last);
    Some(lines[from..].join(" ")).filter(|words| !words.is_empty())
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

/// A line for each pod that is not ready.
pub(super) async fn unready(cluster: &Cluster, of: Workload) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for pod in pods(cluster, of).await?.iter().filter(|pod| !is_ready(pod)) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let on = node.map(|node| format!(" on {node}")).unwrap_or_default();
        if pod.metadata.deletion_timestamp.is_some() {
            lines.push(format!("{name}{on}: ends"));
            continue;
        }
        let why = why_not_ready(pod, &events(cluster, name).await);
        // Some messages are of several lines.
        lines.push(format!("{name}{on}: {}", why.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    Ok(lines)
}

/// Events help to explain; whoever may not read them is told less.
async fn events(cluster: &Cluster, pod: &str) -> Vec<Event> {
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let of_pod = ListParams::default().fields(&format!("involvedObject.name={pod}"));
    events.list(&of_pod).await.map(|list| list.items).unwrap_or_default()
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
        let waiting = unready(cluster, of).await?;
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
    fn what_a_pod_waits_for_is_told_in_the_words_of_who_knows() {
        let scheduling = json!({"status": {"conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}]}});
        let pulling = json!({"status": {"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]}});
        let crashing = json!({"status": {"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
            "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 2, "message": "the settings cannot be used\n"}}}]}});
        let log = "{\"level\":\"INFO\"}\nweft-node: an older one\n{\"level\":\"ERROR\"}\nweft-node: no cgroup v2:\n  mount it\n";
        let container = |state: Value, last: Value| {
            json!({"status": {"containerStatuses": [{"name": "weft-node", "image": "", "imageID": "", "ready": false,
                "restartCount": 3, "state": state, "lastState": last}]}})
        };
        let ended = json!({"terminated": {"exitCode": 1, "reason": "Error", "message": log}});
        let killed = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        let panicked =
            json!({"terminated": {"exitCode": 101, "message": "1\n2\n3\n\npanicked at x:\nno room\n"}});
        let back_off = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}});
        let runs = json!({"running": {"startedAt": "2026-11-23T00:00:00Z"}});
        let running = json!({"status": {}});
        let probe: Event = of(json!({"metadata": {}, "involvedObject": {}, "type": "Warning",
            "message": "Readiness probe failed: no configuration yet"}));
        for (pod, events, told) in [
            (json!({}), vec![], "the kubelet has not seen it yet"),
            (scheduling, vec![], "is not scheduled: 0/2 nodes are available"),
            (pulling, vec![], "ErrImagePull: no such image"),
            (crashing, vec![], "CrashLoopBackOff (ended before with code 2: the settings cannot be used)"),
            (
                container(back_off, ended.clone()),
                vec![],
                "CrashLoopBackOff: back-off 10s (ended before with code 1: weft-node: no cgroup v2: mount it)",
            ),
            (
                container(ended.clone(), json!({})),
                vec![],
                "ended with code 1: weft-node: no cgroup v2: mount it",
            ),
            (
                container(runs.clone(), ended),
                vec![],
                "started again (ended before with code 1: weft-node: no cgroup v2: mount it)",
            ),
            (container(killed, json!({})), vec![], "ended with code 137, OOMKilled"),
            (container(panicked, json!({})), vec![], "ended with code 101: 2 3 panicked at x: no room"),
            (container(runs, json!({})), vec![], "started, not ready yet"),
            (running.clone(), vec![probe], "Readiness probe failed: no configuration yet"),
            (running, vec![], "started, not ready yet"),
        ] {
            assert_eq!(why_not_ready(&of(pod), &events), told);
        }
    }
}
