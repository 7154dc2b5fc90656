//! How one pod of Weft's stands: ready, on its way in or out, or in trouble, and which. Pure: objects and the time in, words out.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Event, Pod};
use k8s_openapi::jiff::Timestamp;

/// So long a pod that nothing speaks against may take to be ready: an image of 100 MB over a slow link, a configuration. `weft install`
/// waits longer, and tells of it meanwhile.
const BEGIN_SECONDS_MAX: i64 = 120;
/// Beyond the end of its grace period, which the time of its deletion includes, a busy kubelet may take so long.
const END_SECONDS_MAX: i64 = 30;
/// What the runtime says of a container whose pod is being set up.
const BEGINNING: [&str; 2] = ["ContainerCreating", "PodInitializing"];
/// Of a log that does not end with its program's own word, as after a panic, so many lines are shown.
const LAST_LINES: usize = 4;

/// Not ready, and no fault yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passing {
    Begins,
    Ends,
}

/// None: the pod is ready, or it should be.
pub(super) fn passing(pod: &Pod, now: Timestamp) -> Option<Passing> {
    let age_s = |at: Timestamp| now.duration_since(at).as_secs();
    if let Some(deleted) = &pod.metadata.deletion_timestamp {
        return (age_s(deleted.0) <= END_SECONDS_MAX).then_some(Passing::Ends);
    }
    let created = pod.metadata.creation_timestamp.as_ref();
    let is_new = created.is_some_and(|created| age_s(created.0) <= BEGIN_SECONDS_MAX);
    (is_new && !is_ready(pod) && !is_in_trouble(pod)).then_some(Passing::Begins)
}

/// Somebody has said that this does not go well.
fn is_in_trouble(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let ended = |container: &ContainerStatus| {
        let state = container.state.as_ref();
        let waits = state.and_then(|state| state.waiting.as_ref()?.reason.as_deref());
        let is_ended = state.is_some_and(|state| state.terminated.is_some());
        container.restart_count > 0 || is_ended || waits.is_some_and(|reason| !BEGINNING.contains(&reason))
    };
    let unschedulable = status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some("Unschedulable")
    });
    let over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    unschedulable || over || status.container_statuses.iter().flatten().any(ended)
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_that_begins_or_ends_is_no_fault_until_somebody_complains_or_it_takes_too_long() {
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        let (just_now, long_ago) = ("2026-11-23T09:59:50Z", "2026-11-23T09:50:00Z");
        let pod = |created: &str, deleted: Option<&str>, status: Value| -> Pod {
            of(
                json!({"metadata": {"creationTimestamp": created, "deletionTimestamp": deleted}, "status": status}),
            )
        };
        let container = |restarts: u32, state: Value| {
            json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": restarts,
                "state": state}]})
        };
        let waits = |reason: &str| container(0, json!({"waiting": {"reason": reason}}));
        let scheduled = |reason: &str| json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": reason}]});
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        let runs = container(0, json!({"running": {}}));
        for (created, deleted, status, expected) in [
            (just_now, None, json!({}), Some(Passing::Begins)),
            (just_now, None, waits("ContainerCreating"), Some(Passing::Begins)),
            (just_now, None, waits("PodInitializing"), Some(Passing::Begins)),
            (just_now, None, runs.clone(), Some(Passing::Begins)),
            // An older one that no longer is.
            (long_ago, None, runs.clone(), None),
            (long_ago, None, waits("ContainerCreating"), None),
            (just_now, None, ready.clone(), None),
            (just_now, None, waits("ErrImagePull"), None),
            (just_now, None, waits("CreateContainerConfigError"), None),
            (just_now, None, waits("CrashLoopBackOff"), None),
            (just_now, None, container(1, json!({"running": {}})), None),
            (just_now, None, container(0, json!({"terminated": {"exitCode": 1}})), None),
            (just_now, None, scheduled("Unschedulable"), None),
            (just_now, None, json!({"phase": "Failed", "reason": "Evicted"}), None),
            // The grace period is in the time of the deletion: it may lie ahead.
            (long_ago, Some("2026-11-23T10:00:20Z"), ready, Some(Passing::Ends)),
            (long_ago, Some(just_now), runs.clone(), Some(Passing::Ends)),
            (long_ago, Some(just_now), waits("CrashLoopBackOff"), Some(Passing::Ends)),
            (long_ago, Some("2026-11-23T09:59:00Z"), runs, None),
        ] {
            let pod = pod(created, deleted, status);
            assert_eq!(passing(&pod, now), expected, "{pod:?}");
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
