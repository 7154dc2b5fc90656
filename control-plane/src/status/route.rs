//! `status.parents` of an HTTPRoute, with the Gateway API's conditions and reasons. Pure.

use serde_json::{Value, json};
use weft_proto::identity::NamespacedName;

use super::conditions::{ACCEPTED, Condition, Nodes, RESOLVED_REFS, onto, programmed};
use crate::index::Index;
use crate::source::subjects::Subject;

pub(super) const CONTROLLER: &str = "weft.dev/mesh-controller";
const PROGRAMMED: &str = "weft.dev/Programmed";

fn field<'a>(reference: &'a Value, name: &str) -> Option<&'a str> {
    reference.get(name).and_then(Value::as_str)
}

fn port(reference: &Value) -> Option<u16> {
    reference.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok())
}

fn is_service(reference: &Value, group: &str, kind: &str) -> bool {
    matches!(field(reference, "group").unwrap_or(group), "" | "core")
        && field(reference, "kind").unwrap_or(kind) == "Service"
}

fn target(reference: &Value, namespace: &str) -> Option<NamespacedName> {
    let namespace = field(reference, "namespace").unwrap_or(namespace);
    NamespacedName::new(namespace, field(reference, "name")?).ok()
}

/// None: a parent of another controller's.
fn accepted(index: &Index, id: &NamespacedName, subject: &Subject, parent: &Value) -> Option<Condition> {
    if !is_service(parent, "gateway.networking.k8s.io", "Gateway") {
        return None;
    }
    if let Some(refused) = &subject.refused {
        return Some(Condition::new(ACCEPTED, false, "UnsupportedValue", refused.clone()));
    }
    if field(parent, "sectionName").is_some() {
        let message = "sectionName has no meaning for a Service; use port";
        return Some(Condition::new(ACCEPTED, false, "UnsupportedValue", message));
    }
    let service = target(parent, &id.namespace)?;
    let message = if !index.has_service(&service) {
        format!("there is no Service {service}")
    } else if port(parent).is_some_and(|port| !index.has_port(&service, port)) {
        format!("Service {service} has no such port")
    } else {
        return Some(Condition::new(ACCEPTED, true, "Accepted", ""));
    };
    Some(Condition::new(ACCEPTED, false, "NoMatchingParent", message))
}

fn resolved(index: &Index, id: &NamespacedName, subject: &Subject) -> Condition {
    if subject.refused.is_some() {
        return Condition::new(RESOLVED_REFS, None, "Pending", "the route is not accepted");
    }
    for backend in &subject.backends {
        let name = field(backend, "name").unwrap_or_default();
        let no = |reason, message| Condition::new(RESOLVED_REFS, false, reason, message);
        if !is_service(backend, "", "Service") {
            return no("InvalidKind", format!("backend {name} is not a Service"));
        }
        let Some(service) = target(backend, &id.namespace) else {
            return no("BackendNotFound", format!("{name:?} is not a name of a Service"));
        };
        if service.namespace != id.namespace {
            return no("RefNotPermitted", format!("backend {service} is in another namespace"));
        }
        if !port(backend).is_some_and(|port| index.has_port(&service, port)) {
            return no("BackendNotFound", format!("there is no Service {service} with this port"));
        }
    }
    Condition::new(RESOLVED_REFS, true, "ResolvedRefs", "")
}

/// The whole of `status.parents`: other controllers' as they are, in their places, then ours.
pub(super) fn parents(
    index: &Index,
    id: &NamespacedName,
    subject: &Subject,
    nodes: Nodes,
    now: &str,
) -> Value {
    let existing = subject.status.get("parents").and_then(Value::as_array).cloned().unwrap_or_default();
    let ours = |entry: &Value| field(entry, "controllerName") == Some(CONTROLLER);
    let mut written: Vec<Value> = existing.iter().filter(|entry| !ours(entry)).cloned().collect();
    for parent in &subject.parents {
        let Some(accepted) = accepted(index, id, subject, parent) else { continue };
        let programmed = if accepted.holds == Some(true) {
            programmed(PROGRAMMED, false, nodes)
        } else if subject.refused.is_some() {
            programmed(PROGRAMMED, true, nodes)
        } else {
            Condition::new(PROGRAMMED, false, "NotAccepted", "")
        };
        let old = existing.iter().find(|entry| ours(entry) && entry.get("parentRef") == Some(parent));
        let old = old.and_then(|entry| entry.get("conditions")).unwrap_or(&Value::Null);
        let wanted = [accepted, resolved(index, id, subject), programmed];
        written.push(json!({
            "parentRef": parent,
            "controllerName": CONTROLLER,
            "conditions": onto(old, &wanted, subject.generation, now),
        }));
    }
    written.into()
}
