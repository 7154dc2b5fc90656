//! Status of AuthorizationPolicy and TrafficPolicy. Pure.

use serde_json::{Value, json};

use super::conditions::{ACCEPTED, Condition, Nodes, onto, programmed};
use crate::index::Index;
use crate::source::ObjectKey;
use crate::source::subjects::Subject;

const PROGRAMMED: &str = "Programmed";

pub(super) fn status(index: &Index, key: &ObjectKey, subject: &Subject, nodes: Nodes, now: &str) -> Value {
    let (missing, all) = index.missing_targets(key);
    let yields = index.yields(key);
    let stands_back = yields.as_ref().map(|yields| yields.message.clone());
    let mut said: Vec<String> = stands_back.into_iter().collect();
    if !missing.is_empty() {
        said.push(format!("there is no Service {}", missing.join(", ")));
    }
    let said = said.join("; ");
    let accepted = if let Some(refused) = &subject.refused {
        Condition::new(ACCEPTED, false, "Invalid", refused.clone())
    } else if yields.is_some_and(|yields| yields.everywhere) {
        Condition::new(ACCEPTED, false, "Conflicted", said)
    } else if all {
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
