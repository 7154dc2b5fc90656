//! What became of each route: accepted or not, references resolved or not, with the Gateway API's reasons. And of policies what they
//! are not in force for.

use serde::Serialize;
use weft_proto::identity::NamespacedName;

use super::{Index, NotAccepted};
use crate::source::ObjectKey;
use crate::source::object::Kind;

/// More policies than somebody looks at.
const POLICIES_TOLD_MAX: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteStatus {
    /// `HTTPRoute`, `GRPCRoute`.
    pub kind: &'static str,
    pub route: String,
    pub parent: String,
    pub accepted: bool,
    pub resolved_refs: bool,
    /// `Accepted`, or why it is not, or why its references are not resolved.
    pub reason: &'static str,
    pub message: String,
}

/// A policy that is in force for less than it says, or for nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyStatus {
    pub kind: &'static str,
    pub policy: String,
    pub message: String,
}

/// What a policy is in force for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What it is not in force for, and why. None: in force for all that it says.
    pub but: Option<String>,
    /// Others come first for all that it is about.
    pub yields_everywhere: bool,
    /// None of the Services that it names is there, and it asks for nothing else.
    pub without_target: bool,
}

impl Index {
    /// Those of which there is something to say: what they select or name may be misspelt, and a DENY of nobody forbids nothing.
    pub fn policy_statuses(&self) -> Vec<PolicyStatus> {
        let of = |kind| move |id: &_| ObjectKey { kind, id: NamespacedName::clone(id) };
        let authorization = self.objects.authorization.keys().map(of(Kind::AuthorizationPolicy));
        let all = authorization.chain(self.objects.traffic.keys().map(of(Kind::TrafficPolicy)));
        let told = all.filter_map(|key| {
            let message = self.standing(&key).but?;
            Some(PolicyStatus { kind: key.kind.name(), policy: key.id.to_string(), message })
        });
        told.take(POLICIES_TOLD_MAX).collect()
    }

    pub fn standing(&self, key: &ObjectKey) -> Standing {
        let none = self.objects.selects_none(key);
        let yields = self.yields(key);
        let yields_everywhere = yields.as_ref().is_some_and(|yields| yields.everywhere);
        let (missing, without_target) = self.missing_targets(key);
        let said: Vec<String> = [
            none.then(|| format!("selects no pod of namespace {}", key.id.namespace)),
            yields.map(|yields| yields.message),
            (!missing.is_empty()).then(|| format!("there is no Service {}", missing.join(", "))),
        ]
        .into_iter()
        .flatten()
        .collect();
        let but = (!said.is_empty()).then(|| said.join("; "));
        Standing { but, yields_everywhere, without_target }
    }

    pub fn route_statuses(&self) -> Vec<RouteStatus> {
        let mut statuses = Vec::new();
        for object in self.objects.routes.values() {
            let route = &object.route;
            let unresolved = self.unresolved(object);
            for parent in &object.parents {
                let attached = self.attached(route.kind, &route.id.namespace, parent);
                let accepted = attached.is_ok();
                let (reason, message) = match (attached, &unresolved) {
                    (Err(NotAccepted { reason, message }), _) => (reason, message),
                    (Ok(_), Some((reason, message))) => (*reason, message.clone()),
                    (Ok(but), None) => {
                        let outdone = self.outdone(route.kind, &route.id, parent);
                        let told = [but, outdone].into_iter().filter(|told| !told.is_empty());
                        ("Accepted", told.collect::<Vec<_>>().join("; "))
                    }
                };
                statuses.push(RouteStatus {
                    kind: route.kind.name(),
                    route: route.id.to_string(),
                    parent: parent.to_string(),
                    accepted,
                    resolved_refs: unresolved.is_none(),
                    reason,
                    message,
                });
            }
        }
        statuses
    }
}
