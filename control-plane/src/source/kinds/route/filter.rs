//! Filters of rules and of backends: the same for both kinds of routes, though a GRPCRoute has fewer.

use serde::Deserialize;
use weft_proto::model::RouteKind;
use weft_proto::v1;

use super::super::super::manifest::Refused;
use super::{Reader, Reference, is_service};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Filter {
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

impl HeaderModifier {
    fn into_wire(self) -> v1::HeaderModifier {
        let list = |headers: Vec<Header>| {
            headers.into_iter().map(|h| v1::Header { name: h.name, value: h.value }).collect()
        };
        v1::HeaderModifier { set: list(self.set), add: list(self.add), remove: self.remove }
    }
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

impl Filter {
    pub(super) fn replaces_prefix(&self) -> bool {
        let paths = [
            self.request_redirect.as_ref().and_then(|redirect| redirect.path.as_ref()),
            self.url_rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref()),
        ];
        paths.into_iter().flatten().any(|path| path.replace_prefix_match.is_some())
    }

    pub(super) fn redirects(&self) -> bool {
        self.request_redirect.is_some()
    }

    pub(super) fn rewrites(&self) -> bool {
        self.url_rewrite.is_some()
    }
}

impl Reader<'_, '_> {
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
        let mut given = Vec::new();
        if let Some(modifier) = read.request_header_modifier {
            given.push(("RequestHeaderModifier", Wire::RequestHeaders(modifier.into_wire())));
        }
        if let Some(modifier) = read.response_header_modifier {
            given.push(("ResponseHeaderModifier", Wire::ResponseHeaders(modifier.into_wire())));
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
            Ok([("RequestRedirect" | "URLRewrite", _)]) if self.kind == RouteKind::Grpc => {
                Err(self.refuse(format!("filter {:?} is none of a GRPCRoute's", read.kind)))
            }
            Ok([(kind, filter)]) if kind == read.kind => Ok(v1::HttpFilter { filter: Some(filter) }),
            _ => Err(self
                .refuse(format!("filter {:?} is not supported or does not go with its fields", read.kind))),
        }
    }

    pub(super) fn filters(&self, read: Vec<Filter>) -> Result<Vec<v1::HttpFilter>, Refused> {
        read.into_iter().map(|filter| self.filter(filter)).collect()
    }

    /// What depends on the backend that was chosen; where a request goes, and what copies are made of it, is the rule's.
    pub(super) fn backend_filters(&self, read: Vec<Filter>) -> Result<Vec<v1::HttpFilter>, Refused> {
        let of_rules =
            |filter: &&Filter| filter.request_redirect.is_some() || filter.request_mirror.is_some();
        if let Some(filter) = read.iter().find(of_rules) {
            let message =
                format!("filter {:?} is supported for a rule, not for one of its backends", filter.kind);
            return Err(self.refuse(message));
        }
        self.filters(read)
    }
}
