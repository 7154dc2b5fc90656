//! Status of AuthorizationPolicy and TrafficPolicy. Pure.

use serde_json::{Value, json};

use super::conditions::{ACCEPTED, Condition, Nodes, onto, programmed};
use crate::index::Index;
use crate::source::ObjectKey;
use crate::source::subjects::Subject;

pub(super) fn status(index: &Index, key: &ObjectKey, subject: &Subject, nodes: Nodes, now: &str) -> Value {
    let (missing, all) = index.missing_targets(key);
    let nowhere = format!("there is no Service {}", missing.join(", "));
    let accepted = match (&subject.refused, index.shadowed_by(key)) {
        (Some(refused), _) => Condition::new(ACCEPTED, false, "Invalid", refused.clone()),
        (None, Some((by, true))) => Condition::new(
            ACCEPTED,
            false,
            "Conflicted",
            format!("TrafficPolicy {} says all of it already", by.name),
        ),
        (None, Some((by, false))) => Condition::new(
            ACCEPTED,
            true,
            "Accepted",
            format!("for some of its Services TrafficPolicy {} comes first", by.name),
        ),
        (None, None) if all => Condition::new(ACCEPTED, false, "TargetNotFound", nowhere),
        (None, None) if !missing.is_empty() => Condition::new(ACCEPTED, true, "Accepted", nowhere),
        (None, None) => Condition::new(ACCEPTED, true, "Accepted", ""),
    };
    let wanted = [accepted, programmed("Programmed", subject.refused.is_some(), nodes)];
    let old = subject.status.get("conditions").unwrap_or(&Value::Null);
    json!({
        "observedGeneration": subject.generation,
        "conditions": onto(old, &wanted, subject.generation, now),
    })
}
