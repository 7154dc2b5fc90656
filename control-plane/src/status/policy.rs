//! Status of AuthorizationPolicy and TrafficPolicy. Pure.

use serde_json::{Value, json};

use super::conditions::{ACCEPTED, Condition, onto, programmed};
use super::nodes::Nodes;
use crate::index::Index;
use crate::source::ObjectKey;
use crate::source::subjects::Subject;

const PROGRAMMED: &str = "Programmed";

pub(super) fn status(index: &Index, key: &ObjectKey, subject: &Subject, nodes: &Nodes, now: &str) -> Value {
    let said = index.not_in_force(key).unwrap_or_default();
    let accepted = if let Some(refused) = &subject.refused {
        Condition::new(ACCEPTED, false, "Invalid", refused.clone())
    } else if index.yields(key).is_some_and(|yields| yields.everywhere) {
        Condition::new(ACCEPTED, false, "Conflicted", said)
    } else if index.missing_targets(key).1 {
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
