//! The right to forward one connection: made by policy only, and withdrawn by policy.

use std::sync::Arc;

use weft_proto::identity::NamespacedName;
use weft_proto::model::AuthorizationPolicy;

use super::{Incoming, Refusal};
use crate::node::Node;
use crate::policy::{self, ConnectionFacts, Verdict};
use crate::snapshot::Snapshot;
use crate::telemetry::{CloseReason, ConnectionRecord};

/// Policy said yes to this connection, or yes if it is HTTP. Private fields: nothing else makes one.
#[derive(Debug)]
pub(super) struct Permit {
    by: Option<NamespacedName>,
    audited: Vec<NamespacedName>,
    needs_http: bool,
    /// What it was decided by.
    policies: Vec<Arc<AuthorizationPolicy>>,
}

impl Permit {
    /// Asks policy about a connection.
    pub(super) fn decide(node: &Node, incoming: &Incoming) -> Result<Self, Refusal> {
        let policies = policies(&node.snapshot.load(), incoming);
        let Answer { by, audited, needs_http } = ask(&policies, incoming)?;
        Ok(Self { by, audited, needs_http, policies })
    }

    /// Writes down which policies it comes from.
    pub(super) fn note(&self, record: &mut ConnectionRecord) {
        if let Some(by) = &self.by {
            record.policy(by.clone());
        }
        if !self.audited.is_empty() {
            record.audited(self.audited.clone());
        }
    }
    /// Each request must be asked about; what is not HTTP is refused.
    pub(super) fn needs_http(&self) -> bool {
        self.needs_http
    }

    /// Returns when policy, as it is by then, forbids the live connection. `is_http`: requests are asked about one by one.
    pub(super) async fn revoked(&mut self, node: &Node, incoming: &Incoming, is_http: bool) -> Refusal {
        let mut changed = node.snapshot.subscribe();
        loop {
            // Looked at before waiting: it may have changed since the permit was given.
            let now = policies(&node.snapshot.load(), incoming);
            if now != self.policies {
                match ask(&now, incoming) {
                    Ok(answer) if answer.needs_http && !is_http => return needs_http_refusal(),
                    Ok(answer) => self.needs_http = answer.needs_http,
                    Err(refusal) => return refusal,
                }
                self.policies = now;
            }
            if changed.changed().await.is_err() {
                // The snapshot's owner is gone: the process is ending.
                return Refusal::new(CloseReason::Draining, "shutting down");
            }
        }
    }
}

/// Policy wants to see requests and this is no HTTP.
pub(super) fn needs_http_refusal() -> Refusal {
    Refusal::new(CloseReason::ProtocolError, "a policy needs HTTP here, and this is not")
}

fn policies(snapshot: &Snapshot, incoming: &Incoming) -> Vec<Arc<AuthorizationPolicy>> {
    // The snapshot's own view is newer than the pod's by a moment; a pod that is gone from it keeps its last one.
    let fallback = incoming.pod.workload.load();
    snapshot.policies(snapshot.workload(&incoming.pod.uid).unwrap_or(&fallback))
}

/// What policy says to a connection that it does not deny.
struct Answer {
    /// The ALLOW policy that matched.
    by: Option<NamespacedName>,
    /// The AUDIT policies that did.
    audited: Vec<NamespacedName>,
    needs_http: bool,
}

fn ask(policies: &[Arc<AuthorizationPolicy>], incoming: &Incoming) -> Result<Answer, Refusal> {
    let facts = ConnectionFacts {
        principal: incoming.peer.identity(),
        source_ip: incoming.client.ip().to_canonical(),
        destination_port: incoming.port,
    };
    match policy::authorize_connection(policies, &facts) {
        Verdict::Allow { by, audited } => Ok(Answer { by, audited, needs_http: false }),
        Verdict::NeedsHttp => Ok(Answer { by: None, audited: Vec::new(), needs_http: true }),
        Verdict::Deny { by } => {
            let detail = match &by {
                Some(policy) => format!("denied by {policy}"),
                None => "no ALLOW policy matches".into(),
            };
            Err(Refusal { reason: CloseReason::PolicyDenied, by, detail })
        }
    }
}
