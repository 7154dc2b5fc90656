//! Status of AuthorizationPolicy and TrafficPolicy. Pure.

use serde_json::{Value, json};

use super::conditions::{ACCEPTED, Condition, onto, programmed};
use super::nodes::Nodes;
use crate::index::Index;
use crate::source::ObjectKey;
use crate::source::subjects::Subject;

const PROGRAMMED: &str = "Programmed";

pub(super) fn status(index: &Index, key: &ObjectKey, subject: &Subject, nodes: &Nodes, now: &str) -> Value {
    let standing = index.standing(key);
    let said = standing.but.unwrap_or_default();
    let accepted = if let Some(refused) = &subject.refused {
        Condition::new(ACCEPTED, false, "Invalid", refused.clone())
    } else if standing.yields_everywhere {
        Condition::new(ACCEPTED, false, "Conflicted", said)
    } else if standing.without_target {
        Condition::new(ACCEPTED, false, "TargetNotFound", said)
    } else {
        Condition::new(ACCEPTED, true, "Accepted", said)
    };
    let programmed = if accepted.holds == Some(true) || subject.refused.is_some() {
        programmed(PROGRAMMED, subject.refused.is_some(), nodes)
    } else {
        Condition::new(PROGRAMMED, false, "NotAccepted", "")
    };
    let wanted = [accepted, programmed];
    let old = subject.status.get("conditions").unwrap_or(&Value::Null);
    json!({
        "observedGeneration": subject.generation,
        "conditions": onto(old, &wanted, subject.generation, now),
    })
}
