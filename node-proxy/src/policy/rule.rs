//! Whether one policy's rules match what is known.
//!
//! Where a value can be read in two ways (a path that spells the same thing otherwise, a header sent twice), a DENY
//! matches if any reading does and an ALLOW only if all do: doubt never widens access.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use weft_proto::identity::SpiffeId;
use weft_proto::model::{
    AuthorizationPolicy, PolicyAction, PolicyOperation, PolicyRule, PolicySource, TextMatch,
};

use super::path;
use super::{ConnectionFacts, RequestFacts};

/// Ordered: the larger wins among rules of which any may match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Answer {
    No,
    /// Hangs on the request, which is not known.
    Perhaps,
    Yes,
}

/// A question to many policies; what is costly is worked out once, when first needed.
pub(super) struct Asked<'a> {
    connection: &'a ConnectionFacts<'a>,
    request: Option<Request<'a>>,
    /// The principal's text without `spiffe://`.
    principal: Option<String>,
}

struct Request<'a> {
    facts: &'a RequestFacts<'a>,
    path: &'a str,
    normal: Cow<'a, str>,
}

impl<'a> Asked<'a> {
    pub(super) fn connection(connection: &'a ConnectionFacts<'a>) -> Self {
        Self { connection, request: None, principal: None }
    }

    pub(super) fn request(connection: &'a ConnectionFacts<'a>, facts: &'a RequestFacts<'a>) -> Self {
        let path = path::without_query(facts.path);
        let request = Request { facts, path, normal: path::normal(path) };
        Self { connection, request: Some(request), principal: None }
    }

    pub(super) fn policy(&mut self, policy: &AuthorizationPolicy) -> Answer {
        let mut best = Answer::No;
        for rule in &policy.rules {
            best = best.max(self.rule(rule, policy.action));
            if best == Answer::Yes {
                break;
            }
        }
        best
    }

    fn rule(&mut self, rule: &PolicyRule, action: PolicyAction) -> Answer {
        let from = rule.from.is_empty() || rule.from.iter().any(|source| self.source(source));
        if !from {
            return Answer::No;
        }
        if rule.to.is_empty() {
            return Answer::Yes;
        }
        rule.to.iter().map(|operation| self.operation(operation, action)).max().unwrap_or(Answer::No)
    }

    fn source(&mut self, source: &PolicySource) -> bool {
        let connection = self.connection;
        let namespace = connection.principal.map(SpiffeId::namespace);
        let in_namespaces =
            |names: &[Arc<str>]| namespace.is_some_and(|have| names.iter().any(|n| **n == *have));
        if !(source.namespaces.is_empty() || in_namespaces(&source.namespaces)) {
            return false;
        }
        if in_namespaces(&source.not_namespaces) {
            return false;
        }
        let ip = connection.source_ip.to_canonical();
        let in_cidrs = |cidrs: &[ipnet::IpNet]| cidrs.iter().any(|cidr| cidr.contains(&ip));
        if !(source.cidrs.is_empty() || in_cidrs(&source.cidrs)) || in_cidrs(&source.not_cidrs) {
            return false;
        }
        if source.principals.is_empty() && source.not_principals.is_empty() {
            return true;
        }
        let text = self.principal_text();
        let any = |wants: &[TextMatch]| text.is_some_and(|text| wants.iter().any(|want| want.matches(text)));
        (source.principals.is_empty() || any(&source.principals)) && !any(&source.not_principals)
    }

    fn principal_text(&mut self) -> Option<&str> {
        let id = self.connection.principal?;
        Some(self.principal.get_or_insert_with(|| {
            format!("{}/ns/{}/sa/{}", id.trust_domain(), id.namespace(), id.service_account())
        }))
    }

    fn operation(&self, operation: &PolicyOperation, action: PolicyAction) -> Answer {
        let port = self.connection.destination_port;
        if !(operation.ports.is_empty() || operation.ports.contains(&port))
            || operation.not_ports.contains(&port)
        {
            return Answer::No;
        }
        if !operation.needs_http() {
            return Answer::Yes;
        }
        let Some(request) = &self.request else { return Answer::Perhaps };
        let method = request.facts.method;
        if !(operation.methods.is_empty() || operation.methods.contains(method))
            || operation.not_methods.contains(method)
        {
            return Answer::No;
        }
        let path_matches = |path: &str| {
            let any = |wants: &[TextMatch]| wants.iter().any(|want| want.matches(path));
            (operation.paths.is_empty() || any(&operation.paths)) && !any(&operation.not_paths)
        };
        let (as_sent, as_meant) = (path_matches(request.path), path_matches(&request.normal));
        let paths = match action {
            PolicyAction::Allow => as_sent && as_meant,
            PolicyAction::Deny | PolicyAction::Audit => as_sent || as_meant,
        };
        if paths && headers_match(&operation.headers, request.facts.headers, action) {
            Answer::Yes
        } else {
            Answer::No
        }
    }
}

/// Every named header must match; where a name is given several times, any of its conditions will do.
fn headers_match(wants: &[(HeaderName, TextMatch)], headers: &HeaderMap, action: PolicyAction) -> bool {
    wants.iter().all(|(name, _)| {
        let conditions = || wants.iter().filter(|(other, _)| other == name).map(|(_, want)| want);
        let one = |value: &http::HeaderValue| {
            // A value that is not text cannot be compared: it counts as empty.
            let text = std::str::from_utf8(value.as_bytes()).unwrap_or("");
            conditions().any(|want| want.matches(text))
        };
        let mut values = headers.get_all(name).iter().peekable();
        match action {
            PolicyAction::Allow => values.peek().is_some() && values.all(one),
            PolicyAction::Deny | PolicyAction::Audit => values.any(one),
        }
    })
}
