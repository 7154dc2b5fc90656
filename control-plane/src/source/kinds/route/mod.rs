//! Gateway API routes whose parents are Services: [`http`] HTTPRoute, [`grpc`] GRPCRoute.
//!
//! What both have in common is here and in `filter`: parents, backends, conditions on headers, durations. A feature that
//! the mesh does not have is refused, never passed over. Start at [`read`].

mod filter;
mod grpc;
mod http;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use weft_proto::convert::Invalid;
use weft_proto::model::{HttpRoute, RouteKind};
use weft_proto::v1;

use super::super::manifest::{Document, Refused};
use super::super::object::{Object, Parent, RouteObject};
use super::edge::refused;
use super::{Envelope, id_of, read_strict};

use self::filter::Filter;
pub(super) use self::grpc::grpc_route;
pub(super) use self::http::http_route;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", bound = "R: Rule")]
struct Spec<R> {
    #[serde(default)]
    parent_refs: Vec<Reference>,
    #[serde(default)]
    hostnames: Vec<String>,
    #[serde(default)]
    rules: Vec<R>,
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

impl Reference {
    /// Whether a parent is a Service; what it is in the absence of a word is a Gateway.
    fn is_service_parent(&self) -> bool {
        is_service(self.group.as_deref().or(Some("gateway")), self.kind.as_deref(), "Gateway")
    }
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

/// `Exact` (the default) or `RegularExpression`.
fn value_match(kind: Option<&str>, value: String) -> Option<v1::StringMatch> {
    use v1::string_match::Kind;
    let kind = match kind {
        None | Some("Exact") => Kind::Exact(value),
        Some("RegularExpression") => Kind::Regex(value),
        Some(_) => return None,
    };
    Some(v1::StringMatch { kind: Some(kind) })
}

/// Converts below one rule; `at` is the path in the manifest for messages.
struct Reader<'a, 'b> {
    kind: RouteKind,
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
                let value = value_match(m.kind.as_deref(), m.value)
                    .ok_or_else(|| self.refuse(format!("match type {:?} is not supported", m.kind)))?;
                Ok(v1::NamedMatch { name: m.name, value: Some(value) })
            })
            .collect()
    }

    /// A reference that Weft cannot follow stays, marked invalid: its share answers 500, as the Gateway API says. Whether
    /// one to another namespace is permitted depends on other objects, and is the index's to say.
    fn backend(&self, read: BackendRef) -> Result<v1::Backend, Refused> {
        let service =
            is_service(read.group.as_deref(), read.kind.as_deref(), "Service") && read.port.is_some();
        Ok(v1::Backend {
            service: Some(v1::NamespacedName {
                namespace: read.namespace.unwrap_or_else(|| self.namespace.to_owned()),
                name: read.name,
            }),
            port: read.port.unwrap_or(0),
            weight: read.weight.unwrap_or(1),
            filters: self.backend_filters(read.filters)?,
            invalid: !service,
        })
    }

    fn backends(&self, read: Vec<BackendRef>) -> Result<Vec<v1::Backend>, Refused> {
        read.into_iter().map(|backend| self.backend(backend)).collect()
    }

    fn optional_ms(&self, field: &str, text: Option<&str>) -> Result<u64, Refused> {
        text.map_or(Ok(0), |text| duration_ms(self.document, &format!("{}.{field}", self.at), text))
    }
}

#[derive(Deserialize)]
struct Attachment {
    #[serde(default)]
    spec: Parents,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Parents {
    parent_refs: Vec<KindOfParent>,
}

#[derive(Deserialize)]
struct KindOfParent {
    group: Option<String>,
    kind: Option<String>,
}

/// Whether some parent is a Service. A cluster's other routes are another controller's, which may know more of their
/// features than Weft does.
fn concerns_services(document: &Document<'_>) -> Result<bool, Refused> {
    let read: Attachment = document.read(|_, _| {})?;
    Ok(read.spec.parent_refs.iter().any(|parent| {
        is_service(parent.group.as_deref().or(Some("gateway")), parent.kind.as_deref(), "Gateway")
    }))
}

/// What one kind of route has of its own.
trait Rule: DeserializeOwned {
    const KIND: RouteKind;
    fn into_wire(self, reader: &Reader<'_, '_>) -> Result<v1::HttpRule, Refused>;
    fn convert(route: v1::HttpRoute) -> Result<HttpRoute, Invalid>;
}

/// Reads a route of either kind. None: it has no parent that is a Service, and an API server is where it comes from.
fn read<R: Rule>(
    document: &Document<'_>,
    warn: &mut dyn FnMut(usize, String),
) -> Result<Option<Object>, Refused> {
    if document.is_live() && !concerns_services(document)? {
        return Ok(None);
    }
    let read: Envelope<Spec<R>> = read_strict(document)?;
    let id = id_of(document, &read.metadata)?;
    if !read.spec.hostnames.is_empty() {
        warn(
            document.line_of("spec.hostnames"),
            "spec.hostnames has no meaning for a Service parent and is ignored".into(),
        );
    }
    let (mut parents, mut sections) = (Vec::new(), Vec::new());
    for (i, parent) in read.spec.parent_refs.into_iter().enumerate() {
        if parent.is_service_parent() {
            let namespace = parent.namespace.unwrap_or_else(|| id.namespace.to_string());
            let service = Some(v1::NamespacedName { namespace, name: parent.name });
            parents.push(v1::ParentRef { service, port: parent.port.unwrap_or(0) });
            sections.push(parent.section_name);
        } else if !document.is_live() {
            // From an API server it would be another controller's.
            let problem = "is not a Service (group \"\", kind Service) and is ignored";
            let message = format!("spec.parentRefs[{i}]: {:?} {problem}", parent.name);
            warn(document.line_of(&format!("spec.parentRefs.{i}")), message);
        }
    }
    let rules = read.spec.rules.into_iter().enumerate().map(|(i, read)| {
        let at = format!("spec.rules.{i}");
        read.into_wire(&Reader { kind: R::KIND, document, namespace: &id.namespace, at })
    });
    let created = read.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
    let wire = v1::HttpRoute {
        namespace: id.namespace.to_string(),
        name: id.name.to_string(),
        created_unix_s: created,
        parents,
        rules: rules.collect::<Result<_, _>>()?,
    };
    let mut route = R::convert(wire).map_err(|invalid| refused(document, &invalid))?;
    let parents = std::mem::take(&mut route.parents).into_iter().zip(sections);
    let parents =
        parents.map(|(parent, section)| Parent::new(parent.service, parent.port, section.as_deref()));
    let parents = parents.collect();
    Ok(Some(Object::HttpRoute(Arc::new(RouteObject { route, parents }))))
}
