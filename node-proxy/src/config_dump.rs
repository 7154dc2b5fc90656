//! What `/config_dump` answers: the current snapshot, by kind and name. For people: the values are the model's own
//! text form, not an API.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::sync::Arc;

use serde_json::{Value, json};
use weft_proto::identity::NamespacedName;
use weft_proto::model::{HttpRoute, RouteKind};

use crate::node::Node;
use crate::snapshot::Snapshot;

impl Node {
    pub fn config_dump(&self) -> Value {
        let snapshot = self.snapshot.load();
        json!({
            "revision": snapshot.revision().0,
            // Of the roots only how many there are: certificates are long and say little here.
            "mesh": snapshot.mesh().map(|mesh| json!({
                "trust_domain": mesh.trust_domain.as_str(),
                "roots": mesh.roots.len(),
            })),
            "workloads": by_name(snapshot.workloads().map(|workload| (&workload.uid, workload))),
            "services": by_name(snapshot.services().map(|entry| (&entry.service.id, entry))),
            "http_routes": by_name(routes(&snapshot, RouteKind::Http)),
            "grpc_routes": by_name(routes(&snapshot, RouteKind::Grpc)),
            "authorization_policies":
                by_name(snapshot.authorization_policies().map(|policy| (&policy.id, policy))),
            "traffic_policies": by_name(snapshot.traffic_policies().map(|policy| (&policy.id, policy))),
        })
    }
}

fn routes(snapshot: &Snapshot, kind: RouteKind) -> impl Iterator<Item = (&NamespacedName, &Arc<HttpRoute>)> {
    snapshot.routes().filter(move |route| route.kind == kind).map(|route| (&route.id, route))
}

fn by_name<'a, N: Display + 'a, V: Debug + 'a>(items: impl Iterator<Item = (&'a N, &'a V)>) -> Value {
    let named: BTreeMap<String, String> =
        items.map(|(name, value)| (name.to_string(), format!("{value:?}"))).collect();
    json!(named)
}
