//! GRPCRoute (v1). It knows neither time-outs nor retries: a TrafficPolicy does, and a call's own deadline.

use serde::Deserialize;
use weft_proto::convert::{self, Invalid};
use weft_proto::model::{HttpRoute, RouteKind};
use weft_proto::v1;

use super::super::super::manifest::{Document, Refused};
use super::super::super::object::Object;
use super::filter::Filter;
use super::{BackendRef, NamedMatch, Reader, Rule, value_match};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct GrpcRule {
    #[serde(default)]
    name: String,
    #[serde(default)]
    matches: Vec<Match>,
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    backend_refs: Vec<BackendRef>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Match {
    method: Option<MethodMatch>,
    #[serde(default)]
    headers: Vec<NamedMatch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MethodMatch {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    service: String,
    #[serde(default)]
    method: String,
}

impl Reader<'_, '_> {
    /// A name that is left out, or empty, is any.
    fn method_match(&self, read: MethodMatch) -> Result<v1::GrpcMethodMatch, Refused> {
        let kind = read.kind.as_deref();
        let name = |text: String| {
            if text.is_empty() {
                return Ok(None);
            }
            let matched = value_match(kind, text);
            matched
                .map(Some)
                .ok_or_else(|| self.refuse(format!("method match type {kind:?} is not supported")))
        };
        let (service, method) = (name(read.service)?, name(read.method)?);
        if service.is_none() && method.is_none() {
            return Err(self.refuse("a method match needs a service, a method, or both"));
        }
        Ok(v1::GrpcMethodMatch { service, method })
    }

    fn grpc_match(&self, read: Match) -> Result<v1::HttpMatch, Refused> {
        Ok(v1::HttpMatch {
            grpc: read.method.map(|method| self.method_match(method)).transpose()?,
            headers: self.named(read.headers)?,
            ..v1::HttpMatch::default()
        })
    }

    fn grpc_rule(&self, read: GrpcRule) -> Result<v1::HttpRule, Refused> {
        Ok(v1::HttpRule {
            name: read.name,
            matches: read.matches.into_iter().map(|m| self.grpc_match(m)).collect::<Result<_, _>>()?,
            filters: self.filters(read.filters)?,
            backends: self.backends(read.backend_refs)?,
            timeouts: None,
            retry: None,
        })
    }
}

impl Rule for GrpcRule {
    const KIND: RouteKind = RouteKind::Grpc;
    fn into_wire(self, reader: &Reader<'_, '_>) -> Result<v1::HttpRule, Refused> {
        reader.grpc_rule(self)
    }
    fn convert(route: v1::HttpRoute) -> Result<HttpRoute, Invalid> {
        convert::grpc_route(route)
    }
}

pub(in super::super) fn grpc_route(
    document: &Document<'_>,
    warn: &mut dyn FnMut(usize, String),
) -> Result<Option<Object>, Refused> {
    super::read::<GrpcRule>(document, warn)
}
