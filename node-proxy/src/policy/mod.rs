//! AuthorizationPolicy: who may do what. Pure: no I/O, no clock. Deny wins; any ALLOW makes the rest denied.
//!
//! A rule is asked with what is known. On a connection, a rule whose operation names methods, paths or headers can
//! only answer "perhaps"; [`Verdict::NeedsHttp`] says that the answer hangs on such a rule. Start at
//! [`authorize_connection`]; one rule's matching is in `rule.rs`.

mod path;
mod rule;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use weft_proto::identity::{NamespacedName, SpiffeId};
use weft_proto::model::{AuthorizationPolicy, PolicyAction};

use rule::{Answer, Asked};

/// What is known about a connection.
#[derive(Debug, Clone)]
pub struct ConnectionFacts<'a> {
    /// None: no verified identity.
    pub principal: Option<&'a SpiffeId>,
    pub source_ip: IpAddr,
    pub destination_port: u16,
}

/// What is known about a request, on top.
#[derive(Debug, Clone)]
pub struct RequestFacts<'a> {
    pub method: &'a http::Method,
    /// With or without the query, which is not looked at.
    pub path: &'a str,
    pub headers: &'a http::HeaderMap,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// `by`: the ALLOW policy that matched, if any policy was needed.
    Allow { by: Option<NamespacedName>, audited: Vec<NamespacedName> },
    /// `by`: the DENY policy that matched; None: ALLOW policies exist and none matched.
    Deny { by: Option<NamespacedName> },
    /// The connection alone cannot decide: each request must be asked about, and what is not HTTP is refused.
    NeedsHttp,
}

/// Decides about a connection.
///
/// A DENY that could match some request gives `NeedsHttp` even when an ALLOW already matches: bytes that are not HTTP
/// are then refused by the caller, so such a DENY fails closed.
pub fn authorize_connection(
    policies: &[Arc<AuthorizationPolicy>],
    connection: &ConnectionFacts<'_>,
) -> Verdict {
    decide(policies, &mut Asked::connection(connection))
}

/// Decides about a request; never `NeedsHttp`.
pub fn authorize_request(
    policies: &[Arc<AuthorizationPolicy>],
    connection: &ConnectionFacts<'_>,
    request: &RequestFacts<'_>,
) -> Verdict {
    if policies.is_empty() {
        return Verdict::Allow { by: None, audited: Vec::new() };
    }
    decide(policies, &mut Asked::request(connection, request))
}

fn decide(policies: &[Arc<AuthorizationPolicy>], asked: &mut Asked<'_>) -> Verdict {
    let with = |action: PolicyAction| policies.iter().filter(move |policy| policy.action == action);

    let mut deny_perhaps = false;
    for policy in with(PolicyAction::Deny) {
        match asked.policy(policy) {
            Answer::Yes => return Verdict::Deny { by: Some(policy.id.clone()) },
            Answer::Perhaps => deny_perhaps = true,
            Answer::No => {}
        }
    }

    let mut allow_present = false;
    let mut allow_perhaps = false;
    let mut allowed_by = None;
    for policy in with(PolicyAction::Allow) {
        allow_present = true;
        match asked.policy(policy) {
            Answer::Yes => {
                allowed_by = Some(policy.id.clone());
                break;
            }
            Answer::Perhaps => allow_perhaps = true,
            Answer::No => {}
        }
    }

    if allow_present && allowed_by.is_none() && !allow_perhaps {
        return Verdict::Deny { by: None };
    }
    if deny_perhaps || (allow_present && allowed_by.is_none()) {
        return Verdict::NeedsHttp;
    }
    let audited = with(PolicyAction::Audit)
        .filter(|policy| asked.policy(policy) == Answer::Yes)
        .map(|policy| policy.id.clone())
        .collect();
    Verdict::Allow { by: allowed_by, audited }
}
