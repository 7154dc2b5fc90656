//! What became of each route: accepted or not, references resolved or not, with the Gateway API's reasons.

use serde::Serialize;

use super::Index;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteStatus {
    pub route: String,
    pub parent: String,
    pub accepted: bool,
    pub resolved_refs: bool,
    /// `Accepted`, `NoMatchingParent`, `BackendNotFound`.
    pub reason: &'static str,
    pub message: String,
}

impl Index {
    pub fn route_statuses(&self) -> Vec<RouteStatus> {
        let mut statuses = Vec::new();
        for route in self.objects.routes.values() {
            let missing = route
                .rules
                .iter()
                .flat_map(|rule| &rule.backends)
                .find(|b| b.invalid || !self.has_port(&b.service, b.port))
                .map(|b| format!("backend {}:{} cannot be resolved", b.service, b.port));
            for parent in &route.parents {
                let accepted = match parent.port {
                    Some(port) => self.has_port(&parent.service, port),
                    None => self.objects.services.contains_key(&parent.service),
                };
                let (reason, message) = match &missing {
                    _ if !accepted => {
                        ("NoMatchingParent", format!("no Service {} with this port", parent.service))
                    }
                    Some(message) => ("BackendNotFound", message.clone()),
                    None => ("Accepted", String::new()),
                };
                let port = parent.port.map(|port| format!(":{port}")).unwrap_or_default();
                statuses.push(RouteStatus {
                    route: route.id.to_string(),
                    parent: format!("{}{port}", parent.service),
                    accepted,
                    resolved_refs: missing.is_none(),
                    reason,
                    message,
                });
            }
        }
        statuses
    }
}
