//! What became of each route: accepted or not, references resolved or not, with the Gateway API's reasons.

use serde::Serialize;

use super::{Index, NotAccepted};

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

impl Index {
    pub fn route_statuses(&self) -> Vec<RouteStatus> {
        let mut statuses = Vec::new();
        for route in self.objects.routes.values() {
            let unresolved = self.unresolved(route);
            for parent in &route.parents {
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
                let port = parent.port.map(|port| format!(":{port}")).unwrap_or_default();
                statuses.push(RouteStatus {
                    kind: route.kind.name(),
                    route: route.id.to_string(),
                    parent: format!("{}{port}", parent.service),
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
