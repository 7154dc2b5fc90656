//! Gateway API ReferenceGrant (v1, v1beta1): which routes of other namespaces may send requests to Services of its own.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Deserialize;
use weft_proto::model::RouteKind;

use super::super::manifest::{Document, Refused};
use super::super::object::{Object, ReferenceGrant};
use super::{Envelope, id_of, read_strict};

const GATEWAY_API: &str = "gateway.networking.k8s.io";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    from: Vec<Origin>,
    to: Vec<Target>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Origin {
    group: String,
    kind: String,
    namespace: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    group: String,
    kind: String,
    name: Option<String>,
}

/// None: it is about other references than those of routes to Services.
pub(super) fn reference_grant(document: &Document<'_>) -> Result<Option<Object>, Refused> {
    let read: Envelope<Spec> = read_strict(document)?;
    let id = id_of(document, &read.metadata)?;
    let from: BTreeSet<(RouteKind, Arc<str>)> = read
        .spec
        .from
        .into_iter()
        .filter(|from| from.group == GATEWAY_API)
        .filter_map(|from| {
            let kind =
                [RouteKind::Http, RouteKind::Grpc].into_iter().find(|kind| kind.name() == from.kind)?;
            Some((kind, from.namespace.into()))
        })
        .collect();
    let to: Vec<Option<Arc<str>>> = read
        .spec
        .to
        .into_iter()
        .filter(|to| to.group.is_empty() && to.kind == "Service")
        .map(|to| to.name.map(Into::into))
        .collect();
    if from.is_empty() || to.is_empty() {
        return Ok(None);
    }
    // One entry without a name is all of them.
    let services = to.into_iter().collect();
    Ok(Some(Object::ReferenceGrant(Arc::new(ReferenceGrant { id, from, services }))))
}
