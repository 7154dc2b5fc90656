//! HTTPRoute and GRPCRoute.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode};

use crate::convert::field::{self, Invalid};
use crate::convert::traffic::attempts;
use crate::model::{
    Backend, GrpcMethodMatch, HeaderModifier, HttpFilter, HttpMatch, HttpRoute, HttpRule, ParentRef,
    PathMatch, PathModifier, Retry, RouteKind, Timeouts, ValueMatch,
};
use crate::v1;

/// Largest weight of a backend, as the Gateway API says.
const WEIGHT_MAX: u32 = 1_000_000;

pub fn http_route(wire: v1::HttpRoute) -> Result<HttpRoute, Invalid> {
    route(RouteKind::Http, wire)
}

pub fn grpc_route(wire: v1::HttpRoute) -> Result<HttpRoute, Invalid> {
    route(RouteKind::Grpc, wire)
}

fn route(kind: RouteKind, wire: v1::HttpRoute) -> Result<HttpRoute, Invalid> {
    Ok(HttpRoute {
        kind,
        id: field::namespaced(&wire.namespace, &wire.name)?,
        created_unix_s: wire.created_unix_s,
        parents: field::list("parents", wire.parents, |parent| {
            Ok(ParentRef {
                service: field::namespaced_message("service", parent.service)?,
                port: field::optional_port("port", parent.port)?,
            })
        })?,
        rules: field::list("rules", wire.rules, |wire| rule(kind, wire).map(Arc::new))?,
    })
}

fn rule(kind: RouteKind, wire: v1::HttpRule) -> Result<HttpRule, Invalid> {
    let timeouts = wire.timeouts.unwrap_or_default();
    Ok(HttpRule {
        name: field::text("name", &wire.name)?,
        matches: field::list("matches", wire.matches, |wire| http_match(kind, wire))?,
        filters: field::list("filters", wire.filters, filter)?,
        backends: field::list("backends", wire.backends, backend)?,
        timeouts: Timeouts {
            request: field::optional_duration("timeouts.request_ms", timeouts.request_ms)?,
            backend_request: field::optional_duration(
                "timeouts.backend_request_ms",
                timeouts.backend_request_ms,
            )?,
        },
        retry: wire.retry.map(retry).transpose().map_err(|e| e.within("retry"))?,
    })
}

fn retry(wire: v1::Retry) -> Result<Retry, Invalid> {
    Ok(Retry {
        codes: field::statuses("codes", wire.codes)?,
        attempts: attempts(wire.attempts)?,
        backoff: field::optional_duration("backoff_ms", wire.backoff_ms)?,
    })
}

fn http_match(kind: RouteKind, wire: v1::HttpMatch) -> Result<HttpMatch, Invalid> {
    let path = match (kind, wire.path, wire.grpc) {
        (_, None, None) => None,
        (RouteKind::Http, Some(path), None) => Some(path_match(path).map_err(|e| e.within("path"))?),
        (RouteKind::Grpc, None, Some(call)) => {
            Some(PathMatch::Grpc(grpc_method(call).map_err(|e| e.within("grpc"))?))
        }
        (kind, Some(_), _) => {
            return Err(Invalid::new("path", kind.name(), "is not matched so, or by one of path and grpc"));
        }
        (kind, None, Some(_)) => return Err(Invalid::new("grpc", kind.name(), "is not matched so")),
    };
    let method = match wire.method.as_str() {
        "" => None,
        method => Some(field::method("method", method)?),
    };
    Ok(HttpMatch {
        path,
        method,
        headers: field::list("headers", wire.headers, |header| {
            let name = field::header_name("name", &header.name)?;
            value_match(header.value).map_err(|e| e.within("value")).map(|value| (name, value))
        })?,
        query: field::list("query", wire.query, |parameter| {
            let name = field::required_text("name", &parameter.name)?;
            value_match(parameter.value).map_err(|e| e.within("value")).map(|value| (name, value))
        })?,
    })
}

/// An absolute path, as a route may match or put in place of another.
fn path(field: &str, value: &str) -> Result<Arc<str>, Invalid> {
    if !value.starts_with('/') {
        return Err(Invalid::new(field, value, "does not start with /"));
    }
    if !value.bytes().all(|b| b.is_ascii_graphic()) || value.contains(['?', '#']) {
        return Err(Invalid::new(field, value, "is not a path"));
    }
    field::text(field, value)
}

fn path_match(wire: v1::StringMatch) -> Result<PathMatch, Invalid> {
    use v1::string_match::Kind;
    Ok(match wire.kind {
        Some(Kind::Exact(value)) => PathMatch::Exact(path("exact", &value)?),
        Some(Kind::Prefix(value)) => {
            let whole = path("prefix", &value)?;
            let trimmed = whole.trim_end_matches('/');
            PathMatch::Prefix(if trimmed.is_empty() { "/".into() } else { trimmed.into() })
        }
        Some(Kind::Regex(value)) => PathMatch::Regex(field::pattern(&value).map_err(|e| e.within("regex"))?),
        Some(Kind::Suffix(value)) => return Err(Invalid::new("suffix", value, "is not supported here")),
        Some(Kind::Present(value)) => return Err(Invalid::new("present", value, "is not supported here")),
        None => return Err(Invalid::new("", "", "is missing")),
    })
}

fn grpc_method(wire: v1::GrpcMethodMatch) -> Result<GrpcMethodMatch, Invalid> {
    if wire.service.is_none() && wire.method.is_none() {
        return Err(Invalid::new("", "", "has neither a service nor a method"));
    }
    let named = |field: &str, wire: Option<v1::StringMatch>| {
        let Some(wire) = wire else { return Ok(None) };
        let value = value_match(Some(wire)).map_err(|e| e.within(field))?;
        match &value {
            ValueMatch::Exact(name) if name.is_empty() || name.contains('/') => {
                Err(Invalid::new(field, name, "is not a name of a gRPC service or method"))
            }
            _ => Ok(Some(value)),
        }
    };
    Ok(GrpcMethodMatch { service: named("service", wire.service)?, method: named("method", wire.method)? })
}

fn grpc_method_to_wire(wanted: &GrpcMethodMatch) -> v1::GrpcMethodMatch {
    v1::GrpcMethodMatch {
        service: wanted.service.as_ref().and_then(value_match_to_wire),
        method: wanted.method.as_ref().and_then(value_match_to_wire),
    }
}

/// None: of a gRPC call, which has a field of its own.
fn path_match_to_wire(path: &PathMatch) -> Option<v1::StringMatch> {
    use v1::string_match::Kind;
    let kind = match path {
        PathMatch::Exact(value) => Kind::Exact(value.to_string()),
        PathMatch::Prefix(value) => Kind::Prefix(value.to_string()),
        PathMatch::Regex(pattern) => Kind::Regex(field::pattern_text(pattern).to_owned()),
        PathMatch::Grpc(_) => return None,
    };
    Some(v1::StringMatch { kind: Some(kind) })
}

fn value_match(wire: Option<v1::StringMatch>) -> Result<ValueMatch, Invalid> {
    use v1::string_match::Kind;
    match wire.and_then(|wire| wire.kind) {
        Some(Kind::Exact(value)) => Ok(ValueMatch::Exact(field::text("exact", &value)?)),
        Some(Kind::Regex(value)) => {
            field::pattern(&value).map(ValueMatch::Regex).map_err(|e| e.within("regex"))
        }
        Some(Kind::Prefix(value)) => Err(Invalid::new("prefix", value, "is not supported here")),
        Some(Kind::Suffix(value)) => Err(Invalid::new("suffix", value, "is not supported here")),
        Some(Kind::Present(value)) => Err(Invalid::new("present", value, "is not supported here")),
        None => Err(Invalid::new("", "", "is missing")),
    }
}

fn value_match_to_wire(value: &ValueMatch) -> Option<v1::StringMatch> {
    use v1::string_match::Kind;
    let kind = match value {
        ValueMatch::Exact(value) => Kind::Exact(value.to_string()),
        ValueMatch::Regex(pattern) => Kind::Regex(field::pattern_text(pattern).to_owned()),
    };
    Some(v1::StringMatch { kind: Some(kind) })
}

fn headers(field: &str, wire: Vec<v1::Header>) -> Result<Vec<(HeaderName, HeaderValue)>, Invalid> {
    field::list(field, wire, |header| {
        Ok((field::header_name("name", &header.name)?, field::header_value("value", &header.value)?))
    })
}

fn header_modifier(wire: v1::HeaderModifier) -> Result<HeaderModifier, Invalid> {
    Ok(HeaderModifier {
        set: headers("set", wire.set)?,
        add: headers("add", wire.add)?,
        remove: field::list("remove", wire.remove, |name| field::header_name("", &name))?,
    })
}

fn path_modifier(wire: Option<v1::PathModifier>) -> Result<Option<PathModifier>, Invalid> {
    use v1::path_modifier::Kind;
    let Some(wire) = wire else { return Ok(None) };
    Ok(Some(match wire.kind {
        Some(Kind::ReplaceFull(value)) => PathModifier::ReplaceFull(path("path.replace_full", &value)?),
        // An empty replacement drops the prefix.
        Some(Kind::ReplacePrefix(value)) if value.is_empty() => PathModifier::ReplacePrefix("".into()),
        Some(Kind::ReplacePrefix(value)) => PathModifier::ReplacePrefix(path("path.replace_prefix", &value)?),
        None => return Err(Invalid::new("path", "", "is missing")),
    }))
}

fn hostname(field: &str, value: &str) -> Result<Option<Arc<str>>, Invalid> {
    if value.is_empty() { Ok(None) } else { field::object_name(field, value).map(Some) }
}

fn redirect(wire: v1::Redirect) -> Result<HttpFilter, Invalid> {
    let scheme = field::optional_text("scheme", &wire.scheme)?;
    if scheme.as_deref().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        return Err(Invalid::new("scheme", wire.scheme, "is not http or https"));
    }
    let status = u16::try_from(wire.status)
        .ok()
        .filter(|code| matches!(code, 301 | 302 | 303 | 307 | 308))
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or_else(|| Invalid::new("status", wire.status, "is not 301, 302, 303, 307 or 308"))?;
    Ok(HttpFilter::Redirect {
        scheme,
        hostname: hostname("hostname", &wire.hostname)?,
        port: field::optional_port("port", wire.port)?,
        path: path_modifier(wire.path)?,
        status,
    })
}

fn mirror(wire: v1::Mirror) -> Result<HttpFilter, Invalid> {
    let fraction = if wire.denominator == 0 { (1, 1) } else { (wire.numerator, wire.denominator) };
    if fraction.0 > fraction.1 {
        return Err(Invalid::new("numerator", fraction.0, "is larger than the denominator"));
    }
    Ok(HttpFilter::Mirror {
        service: field::namespaced_message("service", wire.service)?,
        port: field::port("port", wire.port)?,
        fraction,
    })
}

fn filter(wire: v1::HttpFilter) -> Result<HttpFilter, Invalid> {
    use v1::http_filter::Filter;
    match wire.filter {
        Some(Filter::RequestHeaders(wire)) => {
            header_modifier(wire).map(HttpFilter::RequestHeaders).map_err(|e| e.within("request_headers"))
        }
        Some(Filter::ResponseHeaders(wire)) => {
            header_modifier(wire).map(HttpFilter::ResponseHeaders).map_err(|e| e.within("response_headers"))
        }
        Some(Filter::Redirect(wire)) => redirect(wire).map_err(|e| e.within("redirect")),
        Some(Filter::Rewrite(wire)) => Ok(HttpFilter::Rewrite {
            hostname: hostname("rewrite.hostname", &wire.hostname)?,
            path: path_modifier(wire.path).map_err(|e| e.within("rewrite"))?,
        }),
        Some(Filter::Mirror(wire)) => mirror(wire).map_err(|e| e.within("mirror")),
        None => Err(Invalid::new("", "", "is missing or of an unknown kind")),
    }
}

fn backend(wire: v1::Backend) -> Result<Backend, Invalid> {
    if wire.weight > WEIGHT_MAX {
        return Err(Invalid::new("weight", wire.weight, format!("is more than {WEIGHT_MAX}")));
    }
    Ok(Backend {
        service: field::namespaced_message("service", wire.service)?,
        // A reference that cannot be resolved may lack a port.
        port: if wire.invalid && wire.port == 0 { 0 } else { field::port("port", wire.port)? },
        weight: wire.weight,
        filters: field::list("filters", wire.filters, filter)?,
        invalid: wire.invalid,
    })
}

pub(super) fn route_to_wire(route: &HttpRoute) -> v1::HttpRoute {
    v1::HttpRoute {
        namespace: route.id.namespace.to_string(),
        name: route.id.name.to_string(),
        created_unix_s: route.created_unix_s,
        parents: route
            .parents
            .iter()
            .map(|parent| v1::ParentRef {
                service: Some(field::namespaced_to_wire(&parent.service)),
                port: parent.port.unwrap_or(0).into(),
            })
            .collect(),
        rules: route.rules.iter().map(|rule| rule_to_wire(rule)).collect(),
    }
}

fn rule_to_wire(rule: &HttpRule) -> v1::HttpRule {
    let Timeouts { request, backend_request } = rule.timeouts;
    v1::HttpRule {
        name: rule.name.to_string(),
        matches: rule.matches.iter().map(http_match_to_wire).collect(),
        filters: rule.filters.iter().map(filter_to_wire).collect(),
        backends: rule.backends.iter().map(backend_to_wire).collect(),
        timeouts: (request.is_some() || backend_request.is_some()).then(|| v1::Timeouts {
            request_ms: field::duration_to_wire(request),
            backend_request_ms: field::duration_to_wire(backend_request),
        }),
        retry: rule.retry.as_ref().map(|retry| v1::Retry {
            codes: retry.codes.iter().map(|code| code.as_u16().into()).collect(),
            attempts: retry.attempts,
            backoff_ms: field::duration_to_wire(retry.backoff),
        }),
    }
}

fn http_match_to_wire(wanted: &HttpMatch) -> v1::HttpMatch {
    let named = |name: String, value| v1::NamedMatch { name, value: value_match_to_wire(value) };
    v1::HttpMatch {
        path: wanted.path.as_ref().and_then(path_match_to_wire),
        method: wanted.method.as_ref().map(ToString::to_string).unwrap_or_default(),
        headers: wanted.headers.iter().map(|(name, value)| named(name.to_string(), value)).collect(),
        query: wanted.query.iter().map(|(name, value)| named(name.to_string(), value)).collect(),
        grpc: match &wanted.path {
            Some(PathMatch::Grpc(call)) => Some(grpc_method_to_wire(call)),
            _ => None,
        },
    }
}

fn header_modifier_to_wire(modifier: &HeaderModifier) -> v1::HeaderModifier {
    let headers = |list: &[(HeaderName, HeaderValue)]| {
        list.iter()
            .map(|(name, value)| v1::Header {
                name: name.to_string(),
                // Values come from text, so nothing is lost here.
                value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
            })
            .collect()
    };
    v1::HeaderModifier {
        set: headers(&modifier.set),
        add: headers(&modifier.add),
        remove: field::texts(&modifier.remove),
    }
}

fn path_modifier_to_wire(path: Option<&PathModifier>) -> Option<v1::PathModifier> {
    use v1::path_modifier::Kind;
    let kind = match path? {
        PathModifier::ReplaceFull(value) => Kind::ReplaceFull(value.to_string()),
        PathModifier::ReplacePrefix(value) => Kind::ReplacePrefix(value.to_string()),
    };
    Some(v1::PathModifier { kind: Some(kind) })
}

fn filter_to_wire(filter: &HttpFilter) -> v1::HttpFilter {
    use v1::http_filter::Filter;
    let optional = |text: &Option<Arc<str>>| text.as_deref().unwrap_or_default().to_owned();
    v1::HttpFilter {
        filter: Some(match filter {
            HttpFilter::RequestHeaders(modifier) => Filter::RequestHeaders(header_modifier_to_wire(modifier)),
            HttpFilter::ResponseHeaders(modifier) => {
                Filter::ResponseHeaders(header_modifier_to_wire(modifier))
            }
            HttpFilter::Redirect { scheme, hostname, port, path, status } => Filter::Redirect(v1::Redirect {
                scheme: optional(scheme),
                hostname: optional(hostname),
                port: port.unwrap_or(0).into(),
                path: path_modifier_to_wire(path.as_ref()),
                status: status.as_u16().into(),
            }),
            HttpFilter::Rewrite { hostname, path } => Filter::Rewrite(v1::UrlRewrite {
                hostname: optional(hostname),
                path: path_modifier_to_wire(path.as_ref()),
            }),
            HttpFilter::Mirror { service, port, fraction } => Filter::Mirror(v1::Mirror {
                service: Some(field::namespaced_to_wire(service)),
                port: (*port).into(),
                numerator: fraction.0,
                denominator: fraction.1,
            }),
        }),
    }
}

fn backend_to_wire(backend: &Backend) -> v1::Backend {
    v1::Backend {
        service: Some(field::namespaced_to_wire(&backend.service)),
        port: backend.port.into(),
        weight: backend.weight,
        filters: backend.filters.iter().map(filter_to_wire).collect(),
        invalid: backend.invalid,
    }
}
