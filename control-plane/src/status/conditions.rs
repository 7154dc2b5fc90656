//! Conditions as the Kubernetes API writes them. Pure: the time is given.

use serde_json::{Value, json};

use super::nodes::Nodes;

/// How long a message of a condition may be (32768 in the API); nobody reads more.
const MESSAGE_CHARS_MAX: usize = 1024;

pub(super) const ACCEPTED: &str = "Accepted";
pub(super) const RESOLVED_REFS: &str = "ResolvedRefs";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) kind: &'static str,
    /// None: unknown.
    pub(super) holds: Option<bool>,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Condition {
    pub(super) fn new(
        kind: &'static str,
        holds: impl Into<Option<bool>>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, holds: holds.into(), reason, message: message.into() }
    }
}

pub(super) fn programmed(kind: &'static str, refused: bool, nodes: &Nodes) -> Condition {
    if refused {
        let message = "this generation cannot be used; nodes keep the last good one, if there was any";
        Condition::new(kind, false, "Invalid", message)
    } else if nodes.need == 0 {
        Condition::new(kind, true, "Programmed", "no node needs it")
    } else {
        let all = nodes.have >= nodes.need;
        Condition::new(kind, all, if all { "Programmed" } else { "Pending" }, nodes.to_string())
    }
}

/// The conditions as they should stand: the time of a transition stays where nothing turned.
pub(super) fn onto(existing: &Value, wanted: &[Condition], generation: i64, now: &str) -> Value {
    let existing = existing.as_array().map(Vec::as_slice).unwrap_or_default();
    let written = wanted.iter().map(|condition| {
        let status = match condition.holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let same = |old: &&Value| old["type"] == condition.kind && old["status"] == status;
        let since = existing.iter().find(same).and_then(|old| old["lastTransitionTime"].as_str());
        let message: String = condition.message.chars().take(MESSAGE_CHARS_MAX).collect();
        json!({
            "type": condition.kind,
            "status": status,
            "reason": condition.reason,
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": since.unwrap_or(now),
        })
    });
    written.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transition_keeps_its_time_until_it_turns() {
        let nodes_of = |have| Nodes { have, need: 3, missing: Vec::new() };
        let nodes = |have| programmed("Programmed", false, &nodes_of(have));
        let first = onto(&Value::Null, &[nodes(1)], 1, "t1");
        assert_eq!(
            (first[0]["status"].as_str(), first[0]["message"].as_str()),
            (Some("False"), Some("1 of 3 nodes have it"))
        );
        let second = onto(&first, &[nodes(2)], 1, "t2");
        assert_eq!(
            (&second[0]["lastTransitionTime"], &second[0]["message"]),
            (&json!("t1"), &json!("2 of 3 nodes have it"))
        );
        assert_eq!(onto(&second, &[nodes(2)], 1, "t3"), second);
        let third = onto(&second, &[nodes(3)], 1, "t4");
        assert_eq!(
            (third[0]["status"].as_str(), third[0]["lastTransitionTime"].as_str()),
            (Some("True"), Some("t4"))
        );
        assert_eq!(programmed("Programmed", true, &nodes_of(3)).holds, Some(false));
    }
}
