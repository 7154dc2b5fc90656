//! Gateway API HTTPRoute (v1, with the experimental `retry`), for parents that are Services.

use std::sync::Arc;

use serde::Deserialize;
use weft_proto::{convert, v1};

use super::super::manifest::{Document, Refused};
use super::super::object::Object;
use super::{Envelope, id_of, refused};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    parent_refs: Vec<Reference>,
    #[serde(default)]
    hostnames: Vec<String>,
    #[serde(default)]
    rules: Vec<Rule>,
}

/// Of a parent or of a backend.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Reference {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    section_name: Option<String>,
    port: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: String,
    #[serde(default)]
    matches: Vec<Match>,
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    backend_refs: Vec<BackendRef>,
    timeouts: Option<Timeouts>,
    retry: Option<Retry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Match {
    path: Option<PathMatch>,
    #[serde(default)]
    headers: Vec<NamedMatch>,
    #[serde(default)]
    query_params: Vec<NamedMatch>,
    #[serde(default)]
    method: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PathMatch {
    #[serde(rename = "type", default = "path_prefix")]
    kind: String,
    #[serde(default = "slash")]
    value: String,
}

fn path_prefix() -> String {
    "PathPrefix".to_owned()
}

fn slash() -> String {
    "/".to_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedMatch {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Filter {
    #[serde(rename = "type")]
    kind: String,
    request_header_modifier: Option<HeaderModifier>,
    response_header_modifier: Option<HeaderModifier>,
    request_redirect: Option<Redirect>,
    url_rewrite: Option<Rewrite>,
    request_mirror: Option<Mirror>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderModifier {
    #[serde(default)]
    set: Vec<Header>,
    #[serde(default)]
    add: Vec<Header>,
    #[serde(default)]
    remove: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Redirect {
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    hostname: String,
    path: Option<PathModifier>,
    port: Option<u32>,
    status_code: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rewrite {
    #[serde(default)]
    hostname: String,
    path: Option<PathModifier>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PathModifier {
    #[serde(rename = "type")]
    kind: String,
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Mirror {
    backend_ref: Reference,
    percent: Option<u32>,
    fraction: Option<Fraction>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fraction {
    numerator: u32,
    denominator: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BackendRef {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<u32>,
    weight: Option<u32>,
    #[serde(default)]
    filters: Vec<Filter>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Timeouts {
    request: Option<String>,
    backend_request: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Retry {
    #[serde(default)]
    codes: Vec<u32>,
    attempts: Option<u32>,
    backoff: Option<String>,
}

/// A Gateway API duration: one to four of `1h`, `2m`, `3s`, `4ms`.
pub(super) fn duration_ms(document: &Document<'_>, path: &str, text: &str) -> Result<u64, Refused> {
    parse_duration_ms(text).ok_or_else(|| {
        document.refuse(path, format!("{path}: {text:?} is not a duration such as 250ms, 10s or 1h30m"))
    })
}

fn parse_duration_ms(text: &str) -> Option<u64> {
    let (mut rest, mut total, mut parts) = (text, 0u64, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) || parts == 4 {
            return None;
        }
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, ms) = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)]
            .into_iter()
            .find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        total += number * ms;
        parts += 1;
    }
    (parts > 0).then_some(total)
}

fn is_service(group: Option<&str>, kind: Option<&str>, kind_default: &str) -> bool {
    matches!(group, None | Some("" | "core")) && kind.unwrap_or(kind_default) == "Service"
}

fn string_match(kind: Option<&str>, value: String) -> Option<v1::StringMatch> {
    use v1::string_match::Kind;
    let kind = match kind {
        None | Some("Exact") => Kind::Exact(value),
        Some("PathPrefix") => Kind::Prefix(value),
        Some("RegularExpression") => Kind::Regex(value),
        Some(_) => return None,
    };
    Some(v1::StringMatch { kind: Some(kind) })
}

/// Converts below one rule; `at` is the path in the manifest for messages.
struct Reader<'a, 'b> {
    document: &'a Document<'b>,
    namespace: &'a str,
    at: String,
}

impl Reader<'_, '_> {
    fn refuse(&self, message: impl std::fmt::Display) -> Refused {
        self.document.refuse(&self.at, format!("{}: {message}", self.at))
    }

    fn named(&self, read: Vec<NamedMatch>) -> Result<Vec<v1::NamedMatch>, Refused> {
        read.into_iter()
            .map(|m| {
                let kind = m.kind.as_deref().filter(|kind| *kind != "PathPrefix" || m.kind.is_none());
                let value = string_match(kind, m.value)
                    .ok_or_else(|| self.refuse(format!("match type {:?} is not supported", m.kind)))?;
                Ok(v1::NamedMatch { name: m.name, value: Some(value) })
            })
            .collect()
    }

    fn http_match(&self, read: Match) -> Result<v1::HttpMatch, Refused> {
        let path = read
            .path
            .map(|path| {
                string_match(Some(&path.kind), path.value)
                    .ok_or_else(|| self.refuse(format!("path match type {:?} is not supported", path.kind)))
            })
            .transpose()?;
        Ok(v1::HttpMatch {
            path,
            method: read.method,
            headers: self.named(read.headers)?,
            query: self.named(read.query_params)?,
        })
    }

    fn path_modifier(&self, read: Option<PathModifier>) -> Result<Option<v1::PathModifier>, Refused> {
        use v1::path_modifier::Kind;
        let Some(read) = read else { return Ok(None) };
        let kind = match (read.kind.as_str(), read.replace_full_path, read.replace_prefix_match) {
            ("ReplaceFullPath", Some(path), None) => Kind::ReplaceFull(path),
            ("ReplacePrefixMatch", None, Some(path)) => Kind::ReplacePrefix(path),
            (kind, ..) => {
                return Err(self.refuse(format!("path of type {kind:?} does not go with its fields")));
            }
        };
        Ok(Some(v1::PathModifier { kind: Some(kind) }))
    }

    fn mirror(&self, read: Mirror) -> Result<v1::Mirror, Refused> {
        let backend = read.backend_ref;
        if !is_service(backend.group.as_deref(), backend.kind.as_deref(), "Service") {
            return Err(self.refuse("a mirror must be a Service"));
        }
        let (numerator, denominator) = match (read.percent, read.fraction) {
            (None, None) => (1, 1),
            (Some(percent), None) => (percent, 100),
            (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
            (Some(_), Some(_)) => return Err(self.refuse("percent and fraction exclude each other")),
        };
        Ok(v1::Mirror {
            service: Some(v1::NamespacedName {
                namespace: backend.namespace.unwrap_or_else(|| self.namespace.to_owned()),
                name: backend.name,
            }),
            port: backend.port.unwrap_or(0),
            numerator,
            denominator,
        })
    }

    fn filter(&self, read: Filter) -> Result<v1::HttpFilter, Refused> {
        use v1::http_filter::Filter as Wire;
        let headers = |modifier: HeaderModifier| {
            let list = |headers: Vec<Header>| {
                headers.into_iter().map(|h| v1::Header { name: h.name, value: h.value }).collect()
            };
            v1::HeaderModifier { set: list(modifier.set), add: list(modifier.add), remove: modifier.remove }
        };
        let mut given = Vec::new();
        if let Some(modifier) = read.request_header_modifier {
            given.push(("RequestHeaderModifier", Wire::RequestHeaders(headers(modifier))));
        }
        if let Some(modifier) = read.response_header_modifier {
            given.push(("ResponseHeaderModifier", Wire::ResponseHeaders(headers(modifier))));
        }
        if let Some(redirect) = read.request_redirect {
            let wire = v1::Redirect {
                scheme: redirect.scheme,
                hostname: redirect.hostname,
                port: redirect.port.unwrap_or(0),
                path: self.path_modifier(redirect.path)?,
                status: redirect.status_code.unwrap_or(302),
            };
            given.push(("RequestRedirect", Wire::Redirect(wire)));
        }
        if let Some(rewrite) = read.url_rewrite {
            let path = self.path_modifier(rewrite.path)?;
            given.push(("URLRewrite", Wire::Rewrite(v1::UrlRewrite { hostname: rewrite.hostname, path })));
        }
        if let Some(mirror) = read.request_mirror {
            given.push(("RequestMirror", Wire::Mirror(self.mirror(mirror)?)));
        }
        match <[_; 1]>::try_from(given) {
            Ok([(kind, filter)]) if kind == read.kind => Ok(v1::HttpFilter { filter: Some(filter) }),
            _ => Err(self
                .refuse(format!("filter {:?} is not supported or does not go with its fields", read.kind))),
        }
    }

    fn filters(&self, read: Vec<Filter>) -> Result<Vec<v1::HttpFilter>, Refused> {
        read.into_iter().map(|filter| self.filter(filter)).collect()
    }

    /// A reference that Weft cannot follow stays, marked invalid: its share answers 500, as the Gateway API says.
    fn backend(&self, read: BackendRef) -> Result<v1::Backend, Refused> {
        let namespace = read.namespace.unwrap_or_else(|| self.namespace.to_owned());
        let resolvable = is_service(read.group.as_deref(), read.kind.as_deref(), "Service")
            && namespace == self.namespace
            && read.port.is_some();
        Ok(v1::Backend {
            service: Some(v1::NamespacedName { namespace, name: read.name }),
            port: read.port.unwrap_or(0),
            weight: read.weight.unwrap_or(1),
            filters: self.filters(read.filters)?,
            invalid: !resolvable,
        })
    }

    fn optional_ms(&self, field: &str, text: Option<&str>) -> Result<u64, Refused> {
        text.map_or(Ok(0), |text| duration_ms(self.document, &format!("{}.{field}", self.at), text))
    }

    fn rule(&self, read: Rule) -> Result<v1::HttpRule, Refused> {
        let timeouts = read
            .timeouts
            .map(|timeouts| {
                Ok(v1::Timeouts {
                    request_ms: self.optional_ms("timeouts.request", timeouts.request.as_deref())?,
                    backend_request_ms: self
                        .optional_ms("timeouts.backendRequest", timeouts.backend_request.as_deref())?,
                })
            })
            .transpose()?;
        let retry = read
            .retry
            .map(|retry| {
                Ok(v1::Retry {
                    codes: retry.codes,
                    attempts: retry.attempts.unwrap_or(1),
                    backoff_ms: self.optional_ms("retry.backoff", retry.backoff.as_deref())?,
                })
            })
            .transpose()?;
        Ok(v1::HttpRule {
            name: read.name,
            matches: read.matches.into_iter().map(|m| self.http_match(m)).collect::<Result<_, _>>()?,
            filters: self.filters(read.filters)?,
            backends: read.backend_refs.into_iter().map(|b| self.backend(b)).collect::<Result<_, _>>()?,
            timeouts,
            retry,
        })
    }
}

pub(super) fn http_route(
    document: &Document<'_>,
    warn: &mut dyn FnMut(usize, String),
) -> Result<Object, Refused> {
    let read: Envelope<Spec> = document.read(|_, _| {})?;
    let id = id_of(document, &read.metadata)?;
    if !read.spec.hostnames.is_empty() {
        warn(
            document.line_of("spec.hostnames"),
            "spec.hostnames has no meaning for a Service parent and is ignored".into(),
        );
    }
    let mut parents = Vec::new();
    for (i, parent) in read.spec.parent_refs.into_iter().enumerate() {
        if !is_service(parent.group.as_deref().or(Some("gateway")), parent.kind.as_deref(), "Gateway")
            || parent.section_name.is_some()
        {
            let message = format!(
                "spec.parentRefs[{i}]: {:?} is not a Service (group \"\", kind Service) and ignored",
                parent.name
            );
            warn(document.line_of(&format!("spec.parentRefs.{i}")), message);
            continue;
        }
        let namespace = parent.namespace.unwrap_or_else(|| id.namespace.to_string());
        let service = Some(v1::NamespacedName { namespace, name: parent.name });
        parents.push(v1::ParentRef { service, port: parent.port.unwrap_or(0) });
    }
    let rules = read.spec.rules.into_iter().enumerate().map(|(i, rule)| {
        Reader { document, namespace: &id.namespace, at: format!("spec.rules.{i}") }.rule(rule)
    });
    let created = read.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
    let wire = v1::HttpRoute {
        namespace: id.namespace.to_string(),
        name: id.name.to_string(),
        created_unix_s: created,
        parents,
        rules: rules.collect::<Result<_, _>>()?,
    };
    let route = convert::http_route(wire).map_err(|invalid| refused(document, &invalid))?;
    Ok(Object::HttpRoute(Arc::new(route)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_the_gateway_api() {
        for (text, expected) in [
            ("250ms", Some(250)),
            ("10s", Some(10_000)),
            ("1h30m", Some(5_400_000)),
            ("0s", Some(0)),
            ("", None),
            ("1", None),
            ("1.5s", None),
            ("123456s", None),
            ("1s1s1s1s1s", None),
            ("-1s", None),
        ] {
            assert_eq!(parse_duration_ms(text), expected, "{text}");
        }
    }
}
