//! AuthorizationPolicy.

use crate::convert::field::{self, Invalid};
use crate::model::{AuthorizationPolicy, PolicyAction, PolicyOperation, PolicyRule, PolicySource, TextMatch};
use crate::v1;

pub fn authorization_policy(wire: v1::AuthorizationPolicy) -> Result<AuthorizationPolicy, Invalid> {
    use v1::authorization_policy::Action;
    let action = match Action::try_from(wire.action) {
        Ok(Action::Allow) => PolicyAction::Allow,
        Ok(Action::Deny) => PolicyAction::Deny,
        Ok(Action::Audit) => PolicyAction::Audit,
        Ok(Action::Unspecified) | Err(_) => {
            return Err(Invalid::new("action", wire.action, "is not a known action"));
        }
    };
    Ok(AuthorizationPolicy {
        id: field::namespaced(&wire.namespace, &wire.name)?,
        action,
        rules: field::list("rules", wire.rules, rule)?,
    })
}

fn rule(wire: v1::PolicyRule) -> Result<PolicyRule, Invalid> {
    Ok(PolicyRule {
        from: field::list("from", wire.from, source)?,
        to: field::list("to", wire.to, operation)?,
    })
}

fn text_matches(field: &str, wire: Vec<v1::StringMatch>) -> Result<Vec<TextMatch>, Invalid> {
    field::list(field, wire, field::text_match)
}

fn source(wire: v1::Source) -> Result<PolicySource, Invalid> {
    let namespaces = |field: &str, names| field::list(field, names, |n: String| field::object_name("", &n));
    Ok(PolicySource {
        principals: text_matches("principals", wire.principals)?,
        not_principals: text_matches("not_principals", wire.not_principals)?,
        namespaces: namespaces("namespaces", wire.namespaces)?,
        not_namespaces: namespaces("not_namespaces", wire.not_namespaces)?,
        cidrs: field::cidrs("cidrs", wire.cidrs)?,
        not_cidrs: field::cidrs("not_cidrs", wire.not_cidrs)?,
    })
}

fn operation(wire: v1::Operation) -> Result<PolicyOperation, Invalid> {
    Ok(PolicyOperation {
        ports: field::ports("ports", wire.ports)?,
        not_ports: field::ports("not_ports", wire.not_ports)?,
        methods: field::methods("methods", wire.methods)?,
        not_methods: field::methods("not_methods", wire.not_methods)?,
        paths: text_matches("paths", wire.paths)?,
        not_paths: text_matches("not_paths", wire.not_paths)?,
        headers: field::list("headers", wire.headers, |header| {
            let value = header.value.ok_or_else(|| Invalid::new("value", &header.name, "has no value"))?;
            Ok((
                field::header_name("name", &header.name)?,
                field::text_match(value).map_err(|e| e.within("value"))?,
            ))
        })?,
    })
}

pub(super) fn authorization_policy_to_wire(policy: &AuthorizationPolicy) -> v1::AuthorizationPolicy {
    use v1::authorization_policy::Action;
    v1::AuthorizationPolicy {
        namespace: policy.id.namespace.to_string(),
        name: policy.id.name.to_string(),
        action: match policy.action {
            PolicyAction::Allow => Action::Allow,
            PolicyAction::Deny => Action::Deny,
            PolicyAction::Audit => Action::Audit,
        }
        .into(),
        rules: policy
            .rules
            .iter()
            .map(|rule| v1::PolicyRule {
                from: rule.from.iter().map(source_to_wire).collect(),
                to: rule.to.iter().map(operation_to_wire).collect(),
            })
            .collect(),
    }
}

fn text_matches_to_wire(matches: &[TextMatch]) -> Vec<v1::StringMatch> {
    matches.iter().map(field::text_match_to_wire).collect()
}

fn source_to_wire(source: &PolicySource) -> v1::Source {
    v1::Source {
        principals: text_matches_to_wire(&source.principals),
        not_principals: text_matches_to_wire(&source.not_principals),
        namespaces: field::texts(&source.namespaces),
        not_namespaces: field::texts(&source.not_namespaces),
        cidrs: field::texts(&source.cidrs),
        not_cidrs: field::texts(&source.not_cidrs),
    }
}

fn operation_to_wire(operation: &PolicyOperation) -> v1::Operation {
    v1::Operation {
        ports: field::numbers(&operation.ports),
        not_ports: field::numbers(&operation.not_ports),
        methods: field::texts(&operation.methods),
        not_methods: field::texts(&operation.not_methods),
        paths: text_matches_to_wire(&operation.paths),
        not_paths: text_matches_to_wire(&operation.not_paths),
        headers: operation
            .headers
            .iter()
            .map(|(name, value)| v1::NamedMatch {
                name: name.to_string(),
                value: Some(field::text_match_to_wire(value)),
            })
            .collect(),
    }
}
