//! A resource as JSON, with its fields by name: what `/config_dump` of both sides shows. For people, `jq` and `diff`, not an API.

use std::fmt::Display;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::convert::{key_of, resource_key_to_wire};
use crate::identity::PodUid;
use crate::model::{
    AuthorizationPolicy, Backend, Endpoint, HeaderModifier, HttpFilter, HttpMatch, HttpRoute, HttpRule, Mesh,
    PathMatch, PathModifier, PolicyOperation, PolicyRule, PolicySource, Resource, Revision, Service,
    TextMatch, TrafficPolicy, ValueMatch, Version, Workload,
};

/// What a node holds, or should hold: `resources` as [`resource`] shows them, in any order.
pub fn of_node(node: &str, revision: Revision, mut resources: Vec<Value>) -> Value {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    resources.sort_by_cached_key(|one| (text(&one["kind"]), text(&one["key"])));
    json!({ "node": node, "revision": revision.0, "resources": resources })
}

/// The same on both sides, so that a version tells whether a node holds what it should.
pub fn resource(resource: &Resource, version: Version) -> Value {
    let (kind, content) = kind_and_content(resource);
    let key = resource_key_to_wire(&key_of(resource)).name;
    json!({ "kind": kind, "key": key, "version": version_text(version), "content": content })
}

/// A route or policy under its name, with the same fields: for whoever shows it where it belongs.
pub fn named(resource: &Resource) -> Value {
    let (kind, mut content) = kind_and_content(resource);
    content["kind"] = kind.into();
    content["name"] = resource_key_to_wire(&key_of(resource)).name.into();
    content
}

fn kind_and_content(resource: &Resource) -> (&'static str, Value) {
    match resource {
        Resource::Mesh(mesh) => ("Mesh", of_mesh(mesh)),
        Resource::Workload(workload) => ("Workload", of_workload(workload)),
        Resource::Service(service) => ("Service", of_service(service)),
        Resource::Endpoint(endpoint) => ("Endpoint", of_endpoint(endpoint)),
        Resource::HttpRoute(route) => (route.kind.name(), of_route(route)),
        Resource::AuthorizationPolicy(policy) => ("AuthorizationPolicy", of_authorization(policy)),
        Resource::TrafficPolicy(policy) => ("TrafficPolicy", of_traffic(policy)),
    }
}

/// As it stands in a dump.
pub fn version_text(version: Version) -> String {
    format!("{:016x}", version.0)
}

fn texts<T: Display>(values: &[T]) -> Vec<String> {
    values.iter().map(T::to_string).collect()
}

fn codes(values: &[StatusCode]) -> Vec<u16> {
    values.iter().map(StatusCode::as_u16).collect()
}

fn millis(duration: Option<Duration>) -> Option<u64> {
    duration.map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// Of the roots only how many there are: certificates are long and say little here.
fn of_mesh(mesh: &Mesh) -> Value {
    let namespaces = texts(&mesh.enrolled_namespaces);
    json!({ "trust_domain": mesh.trust_domain.as_str(), "roots": mesh.roots.len(), "enrolled_namespaces": namespaces })
}

fn of_workload(workload: &Workload) -> Value {
    let protocols = workload.port_protocols.iter();
    let protocols: serde_json::Map<_, _> =
        protocols.map(|(port, protocol)| (port.to_string(), json!(format!("{protocol:?}")))).collect();
    json!({
        "uid": workload.uid.as_str(),
        "namespace": &*workload.namespace,
        "name": &*workload.name,
        "service_account": &*workload.service_account,
        "node": &*workload.node,
        "ips": texts(&workload.ips),
        "enrolled": workload.enrolled,
        "inbound_mode": format!("{:?}", workload.inbound_mode),
        "workload_name": &*workload.workload_name,
        "workload_kind": &*workload.workload_kind,
        "canonical_service": &*workload.canonical_service,
        "canonical_revision": &*workload.canonical_revision,
        "app": &*workload.app,
        "app_version": &*workload.app_version,
        "zone": &*workload.zone,
        "authorization_policies": texts(&workload.authorization_policies),
        "excluded_inbound_ports": workload.excluded_inbound_ports,
        "excluded_outbound_ports": workload.excluded_outbound_ports,
        "excluded_outbound_cidrs": texts(&workload.excluded_outbound_cidrs),
        "redirect": workload.redirect,
        "ready": workload.ready,
        "terminating": workload.terminating,
        "port_protocols": protocols,
        "probe_ports": workload.probe_ports,
    })
}

fn of_service(service: &Service) -> Value {
    let ports = service.ports.iter().map(|port| {
        json!({ "name": &*port.name, "port": port.port, "app_protocol": format!("{:?}", port.app_protocol) })
    });
    json!({
        "vips": texts(&service.vips),
        "ports": ports.collect::<Vec<_>>(),
        "node_local": service.node_local,
    })
}

fn of_endpoint(endpoint: &Endpoint) -> Value {
    let ports: serde_json::Map<_, _> =
        endpoint.ports.iter().map(|(port, target)| (port.to_string(), json!(target))).collect();
    json!({
        "service": endpoint.service.to_string(),
        "ip": endpoint.ip.to_string(),
        "workload": endpoint.workload.as_ref().map(PodUid::as_str),
        "ports": ports,
        "ready": endpoint.ready,
        "serving": endpoint.serving,
        "terminating": endpoint.terminating,
        "node": &*endpoint.node,
        "zone": &*endpoint.zone,
    })
}

fn of_route(route: &HttpRoute) -> Value {
    let parents = route.parents.iter();
    let parents = parents.map(|p| json!({ "service": p.service.to_string(), "port": p.port }));
    let rules = route.rules.iter().map(|rule| of_rule(rule));
    json!({
        "created_unix_s": route.created_unix_s,
        "parents": parents.collect::<Vec<_>>(),
        "rules": rules.collect::<Vec<_>>(),
    })
}

fn of_rule(rule: &HttpRule) -> Value {
    let retry = rule.retry.as_ref().map(|retry| {
        json!({ "codes": codes(&retry.codes), "attempts": retry.attempts, "backoff_ms": millis(retry.backoff) })
    });
    json!({
        "name": &*rule.name,
        "matches": rule.matches.iter().map(of_match).collect::<Vec<_>>(),
        "filters": rule.filters.iter().map(of_filter).collect::<Vec<_>>(),
        "backends": rule.backends.iter().map(of_backend).collect::<Vec<_>>(),
        "request_timeout_ms": millis(rule.timeouts.request),
        "backend_request_timeout_ms": millis(rule.timeouts.backend_request),
        "retry": retry,
    })
}

fn of_value(value: &ValueMatch) -> Value {
    match value {
        ValueMatch::Exact(text) => json!({ "exact": &**text }),
        ValueMatch::Regex(pattern) => json!({ "regex": pattern.0.as_str() }),
    }
}

fn of_match(matched: &HttpMatch) -> Value {
    let path = matched.path.as_ref().map(|path| match path {
        PathMatch::Exact(text) => json!({ "exact": &**text }),
        PathMatch::Prefix(text) => json!({ "prefix": &**text }),
        PathMatch::Regex(pattern) => json!({ "regex": pattern.0.as_str() }),
        PathMatch::Grpc(grpc) => json!({
            "grpc_service": grpc.service.as_ref().map(of_value),
            "grpc_method": grpc.method.as_ref().map(of_value),
        }),
    });
    let headers = matched.headers.iter();
    let headers = headers.map(|(name, value)| json!({ "name": name.as_str(), "value": of_value(value) }));
    let query = matched.query.iter();
    let query = query.map(|(name, value)| json!({ "name": &**name, "value": of_value(value) }));
    json!({
        "path": path,
        "method": matched.method.as_ref().map(http::Method::as_str),
        "headers": headers.collect::<Vec<_>>(),
        "query": query.collect::<Vec<_>>(),
    })
}

fn of_headers(headers: &HeaderModifier) -> Value {
    let pairs = |pairs: &[(http::HeaderName, http::HeaderValue)]| -> Vec<Value> {
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        pairs.iter().map(|(name, value)| json!({ "name": name.as_str(), "value": text(value) })).collect()
    };
    json!({ "set": pairs(&headers.set), "add": pairs(&headers.add), "remove": texts(&headers.remove) })
}

fn of_path(path: Option<&PathModifier>) -> Option<Value> {
    path.map(|path| match path {
        PathModifier::ReplaceFull(text) => json!({ "replace_full": &**text }),
        PathModifier::ReplacePrefix(text) => json!({ "replace_prefix": &**text }),
    })
}

fn of_filter(filter: &HttpFilter) -> Value {
    match filter {
        HttpFilter::RequestHeaders(headers) => json!({ "request_headers": of_headers(headers) }),
        HttpFilter::ResponseHeaders(headers) => json!({ "response_headers": of_headers(headers) }),
        HttpFilter::Redirect { scheme, hostname, port, path, status } => json!({ "redirect": {
            "scheme": scheme.as_deref(),
            "hostname": hostname.as_deref(),
            "port": port,
            "path": of_path(path.as_ref()),
            "status": status.as_u16(),
        }}),
        HttpFilter::Rewrite { hostname, path } => {
            json!({ "rewrite": { "hostname": hostname.as_deref(), "path": of_path(path.as_ref()) } })
        }
        HttpFilter::Mirror { service, port, fraction: (numerator, denominator) } => json!({ "mirror": {
            "service": service.to_string(),
            "port": port,
            "fraction": format!("{numerator}/{denominator}"),
        }}),
    }
}

fn of_backend(backend: &Backend) -> Value {
    json!({
        "service": backend.service.to_string(),
        "port": backend.port,
        "weight": backend.weight,
        "filters": backend.filters.iter().map(of_filter).collect::<Vec<_>>(),
        "invalid": backend.invalid,
    })
}

fn of_authorization(policy: &AuthorizationPolicy) -> Value {
    let rules: Vec<_> = policy.rules.iter().map(of_policy_rule).collect();
    json!({ "action": format!("{:?}", policy.action), "rules": rules })
}

fn of_policy_rule(rule: &PolicyRule) -> Value {
    let from: Vec<_> = rule.from.iter().map(of_source).collect();
    let to: Vec<_> = rule.to.iter().map(of_operation).collect();
    json!({ "from": from, "to": to })
}

/// As it is written in a policy.
fn text_match(matched: &TextMatch) -> String {
    match matched {
        TextMatch::Exact(text) => text.to_string(),
        TextMatch::Prefix(text) => format!("{text}*"),
        TextMatch::Suffix(text) => format!("*{text}"),
        TextMatch::Present => "*".to_owned(),
    }
}

fn text_matches(matches: &[TextMatch]) -> Vec<String> {
    matches.iter().map(text_match).collect()
}

fn of_source(source: &PolicySource) -> Value {
    json!({
        "principals": text_matches(&source.principals),
        "not_principals": text_matches(&source.not_principals),
        "namespaces": texts(&source.namespaces),
        "not_namespaces": texts(&source.not_namespaces),
        "cidrs": texts(&source.cidrs),
        "not_cidrs": texts(&source.not_cidrs),
    })
}

fn of_operation(operation: &PolicyOperation) -> Value {
    let headers = operation.headers.iter();
    let headers = headers.map(|(name, value)| json!({ "name": name.as_str(), "value": text_match(value) }));
    json!({
        "ports": operation.ports,
        "not_ports": operation.not_ports,
        "methods": texts(&operation.methods),
        "not_methods": texts(&operation.not_methods),
        "paths": text_matches(&operation.paths),
        "not_paths": text_matches(&operation.not_paths),
        "headers": headers.collect::<Vec<_>>(),
    })
}

fn of_traffic(policy: &TrafficPolicy) -> Value {
    let retry = policy.retry.as_ref().map(|retry| {
        json!({
            "codes": codes(&retry.codes),
            "attempts": retry.attempts,
            "backoff_ms": millis(retry.backoff),
            "methods": texts(&retry.methods),
            "budget_percent": retry.budget_percent,
            "budget_min_per_s": retry.budget_min_per_s,
            "per_try_timeout_ms": millis(retry.per_try_timeout),
        })
    });
    let ejection = policy.ejection.as_ref().map(|ejection| {
        json!({
            "consecutive_failures": ejection.consecutive_failures,
            "base_ejection_ms": millis(Some(ejection.base_ejection)),
            "max_ejected_percent": ejection.max_ejected_percent,
        })
    });
    json!({
        "created_unix_s": policy.created_unix_s,
        "services": texts(&policy.services),
        "retry": retry,
        "connect_timeout_ms": millis(policy.connect_timeout),
        "ejection": ejection,
        "max_connections": policy.max_connections,
        "max_pending_requests": policy.max_pending_requests,
    })
}

#[cfg(test)]
mod tests;
