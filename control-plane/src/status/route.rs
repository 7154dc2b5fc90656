//! `status.parents` of a route, with the Gateway API's conditions and reasons. Pure.

use serde_json::{Value, json};
use weft_proto::identity::NamespacedName;
use weft_proto::model::RouteKind;

use super::conditions::{ACCEPTED, Condition, RESOLVED_REFS, onto, programmed};
use super::nodes::Nodes;
use crate::index::{Index, NotAccepted, Referrer};
use crate::source::object::Parent;
use crate::source::subjects::Subject;

pub(super) const CONTROLLER: &str = "weft.dev/mesh-controller";
const PROGRAMMED: &str = "weft.dev/Programmed";

fn field<'a>(reference: &'a Value, name: &str) -> Option<&'a str> {
    reference.get(name).and_then(Value::as_str)
}

fn port(reference: &Value) -> Option<u16> {
    reference.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok())
}

fn is_service_parent(reference: &Value) -> bool {
    is_service(reference, "gateway.networking.k8s.io", "Gateway")
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
fn accepted(
    index: &Index,
    kind: RouteKind,
    id: &NamespacedName,
    subject: &Subject,
    parent: &Value,
) -> Option<Condition> {
    if !is_service_parent(parent) {
        return None;
    }
    if let Some(refused) = &subject.refused {
        return Some(Condition::new(ACCEPTED, false, "UnsupportedValue", refused.clone()));
    }
    let service = target(parent, &id.namespace)?;
    let parent = Parent::new(service, port(parent), field(parent, "sectionName"));
    Some(match index.attached(kind, &id.namespace, &parent) {
        Err(NotAccepted { reason, message }) => Condition::new(ACCEPTED, false, reason, message),
        Ok(but) => {
            let told = [but, index.outdone(kind, id, &parent)].into_iter().filter(|told| !told.is_empty());
            let said = subject.warnings.iter().cloned().chain(told);
            Condition::new(ACCEPTED, true, "Accepted", said.collect::<Vec<_>>().join("; "))
        }
    })
}

fn resolved(index: &Index, kind: RouteKind, id: &NamespacedName, subject: &Subject) -> Condition {
    if subject.refused.is_some() {
        return Condition::new(RESOLVED_REFS, None, "Pending", "the route is not accepted");
    }
    let parents = subject.parents.iter().filter(|parent| is_service_parent(parent));
    let of_parents = parents.filter_map(|parent| Some(target(parent, &id.namespace)?.namespace)).collect();
    let from = Referrer { kind, namespace: id.namespace.clone(), of_parents };
    for backend in &subject.backends {
        let name = field(backend, "name").unwrap_or_default();
        let no = |reason, message| Condition::new(RESOLVED_REFS, false, reason, message);
        if !is_service(backend, "", "Service") {
            return no("InvalidKind", format!("backend {name} is not a Service"));
        }
        let Some(service) = target(backend, &id.namespace) else {
            return no("BackendNotFound", format!("{name:?} is not a name of a Service"));
        };
        let port = port(backend).unwrap_or(0);
        if let Err(unresolved) = index.resolve(&from, &service, port) {
            return no(unresolved.reason(), unresolved.message(&service, port));
        }
    }
    Condition::new(RESOLVED_REFS, true, "ResolvedRefs", "")
}

/// The whole of `status.parents`: other controllers' as they are, in their places, then ours.
pub(super) fn parents(
    index: &Index,
    kind: RouteKind,
    id: &NamespacedName,
    subject: &Subject,
    nodes: &Nodes,
    now: &str,
) -> Value {
    let existing = subject.status.get("parents").and_then(Value::as_array).cloned().unwrap_or_default();
    let ours = |entry: &Value| field(entry, "controllerName") == Some(CONTROLLER);
    let mut written: Vec<Value> = existing.iter().filter(|entry| !ours(entry)).cloned().collect();
    for parent in &subject.parents {
        let Some(accepted) = accepted(index, kind, id, subject, parent) else { continue };
        let programmed = if accepted.holds == Some(true) {
            programmed(PROGRAMMED, false, nodes)
        } else if subject.refused.is_some() {
            programmed(PROGRAMMED, true, nodes)
        } else {
            Condition::new(PROGRAMMED, false, "NotAccepted", "")
        };
        let old = existing.iter().find(|entry| ours(entry) && entry.get("parentRef") == Some(parent));
        let old = old.and_then(|entry| entry.get("conditions")).unwrap_or(&Value::Null);
        let wanted = [accepted, resolved(index, kind, id, subject), programmed];
        written.push(json!({
            "parentRef": parent,
            "controllerName": CONTROLLER,
            "conditions": onto(old, &wanted, subject.generation, now),
        }));
    }
    written.into()
}
