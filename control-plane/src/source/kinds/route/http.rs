//! HTTPRoute (v1, with the experimental `retry`).

use serde::Deserialize;
use weft_proto::convert::{self, Invalid};
use weft_proto::model::{HttpRoute, RouteKind};
use weft_proto::v1;

use super::super::super::manifest::{Document, Refused};
use super::super::super::object::Object;
use super::filter::Filter;
use super::{BackendRef, NamedMatch, Reader, Rule};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct HttpRule {
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

const PATH_PREFIX: &str = "PathPrefix";

fn path_prefix() -> String {
    PATH_PREFIX.to_owned()
}

fn slash() -> String {
    "/".to_owned()
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

impl HttpRule {
    /// What the Gateway API's CRD refuses, and a directory of manifests has nobody to refuse.
    fn contradiction(&self) -> Option<&'static str> {
        let filters = || self.filters.iter().chain(self.backend_refs.iter().flat_map(|b| &b.filters));
        let by_prefix = |one: &Match| one.path.as_ref().is_none_or(|path| path.kind == PATH_PREFIX);
        let redirects = self.filters.iter().any(Filter::redirects);
        if filters().any(Filter::replaces_prefix) && !self.matches.iter().all(by_prefix) {
            Some("replacePrefixMatch needs a prefix: every match must be of type PathPrefix")
        } else if redirects && !self.backend_refs.is_empty() {
            Some("RequestRedirect and backendRefs exclude each other")
        } else if redirects && self.filters.iter().any(Filter::rewrites) {
            Some("RequestRedirect and URLRewrite exclude each other")
        } else {
            None
        }
    }
}

impl Reader<'_, '_> {
    fn path_match(&self, read: PathMatch) -> Result<v1::StringMatch, Refused> {
        use v1::string_match::Kind;
        let kind = match read.kind.as_str() {
            "Exact" => Kind::Exact(read.value),
            PATH_PREFIX => Kind::Prefix(read.value),
            "RegularExpression" => Kind::Regex(read.value),
            kind => return Err(self.refuse(format!("path match type {kind:?} is not supported"))),
        };
        Ok(v1::StringMatch { kind: Some(kind) })
    }

    fn http_match(&self, read: Match) -> Result<v1::HttpMatch, Refused> {
        Ok(v1::HttpMatch {
            path: read.path.map(|path| self.path_match(path)).transpose()?,
            method: read.method,
            headers: self.named(read.headers)?,
            query: self.named(read.query_params)?,
            grpc: None,
        })
    }

    fn timeouts(&self, read: &Timeouts) -> Result<v1::Timeouts, Refused> {
        Ok(v1::Timeouts {
            request_ms: self.optional_ms("timeouts.request", read.request.as_deref())?,
            backend_request_ms: self
                .optional_ms("timeouts.backendRequest", read.backend_request.as_deref())?,
        })
    }

    fn retry(&self, read: Retry) -> Result<v1::Retry, Refused> {
        Ok(v1::Retry {
            codes: read.codes,
            attempts: read.attempts.unwrap_or(1),
            backoff_ms: self.optional_ms("retry.backoff", read.backoff.as_deref())?,
        })
    }

    fn http_rule(&self, read: HttpRule) -> Result<v1::HttpRule, Refused> {
        if let Some(contradiction) = read.contradiction() {
            return Err(self.refuse(contradiction));
        }
        Ok(v1::HttpRule {
            name: read.name,
            matches: read.matches.into_iter().map(|m| self.http_match(m)).collect::<Result<_, _>>()?,
            filters: self.filters(read.filters)?,
            backends: self.backends(read.backend_refs)?,
            timeouts: read.timeouts.map(|timeouts| self.timeouts(&timeouts)).transpose()?,
            retry: read.retry.map(|retry| self.retry(retry)).transpose()?,
        })
    }
}

impl Rule for HttpRule {
    const KIND: RouteKind = RouteKind::Http;
    fn into_wire(self, reader: &Reader<'_, '_>) -> Result<v1::HttpRule, Refused> {
        reader.http_rule(self)
    }
    fn convert(route: v1::HttpRoute) -> Result<HttpRoute, Invalid> {
        convert::http_route(route)
    }
}

pub(in super::super) fn http_route(
    document: &Document<'_>,
    warn: &mut dyn FnMut(usize, String),
) -> Result<Option<Object>, Refused> {
    super::read::<HttpRule>(document, warn)
}
