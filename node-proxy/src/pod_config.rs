//! What `/pod/<namespace>/<name>` answers: what this node holds for one of its pods. `weft config` shows it.
//!
//! Reads, never changes. Services of the pod's own namespace only: a mesh may have ten thousand others.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_proto::identity::NamespacedName;
use weft_proto::model::{Endpoint, InboundMode, Workload};

use crate::node::Node;
use crate::snapshot::{ServiceEntry, Snapshot};

impl Node {
    /// None: no such pod is on this node.
    pub fn pod_config(&self, namespace: &str, name: &str) -> Option<Value> {
        let snapshot = self.snapshot.load();
        let is_it = |pod: &&Arc<Workload>| *pod.namespace == *namespace && *pod.name == *name;
        // Of two with one name the live one: a StatefulSet's successor.
        let pods = snapshot.workloads_of_node(&self.settings.node_name).filter(is_it);
        let workload = pods.min_by_key(|pod| pod.terminating)?;
        let mut answer = config(&snapshot, workload);
        answer["pod"] = json!(self.pod_status(workload));
        Some(answer)
    }
}

/// Pure part.
fn config(snapshot: &Snapshot, workload: &Workload) -> Value {
    let policy = |id: &NamespacedName| {
        let found = snapshot.authorization_policies().find(|policy| policy.id == *id);
        match found {
            Some(policy) => format!("{id} ({:?})", policy.action),
            None => format!("{id} (named, but not here: denies all)"),
        }
    };
    let mesh = snapshot.mesh();
    let identity = mesh.map(|mesh| {
        let (domain, namespace) = (mesh.trust_domain.as_str(), &workload.namespace);
        format!("spiffe://{domain}/ns/{namespace}/sa/{}", workload.service_account)
    });
    let own = |entry: &&Arc<ServiceEntry>| *entry.service.id.namespace == *workload.namespace;
    let mut services: Vec<_> = snapshot.services().filter(own).collect();
    services.sort_by_key(|entry| entry.service.id.clone());
    json!({
        "revision": snapshot.revision().0,
        "identity": identity,
        "enrolled": workload.enrolled,
        "mtls": match workload.inbound_mode {
            InboundMode::Strict => "strict",
            InboundMode::Permissive => "permissive",
        },
        "policies": workload.authorization_policies.iter().map(policy).collect::<Vec<_>>(),
        "excluded_inbound_ports": workload.excluded_inbound_ports,
        "excluded_outbound_ports": workload.excluded_outbound_ports,
        "excluded_outbound_cidrs": workload.excluded_outbound_cidrs,
        "probe_ports": workload.probe_ports,
        "services": services.into_iter().map(|entry| service(snapshot, entry)).collect::<Vec<_>>(),
        "services_of_the_mesh": snapshot.services().count(),
    })
}

fn service(snapshot: &Snapshot, entry: &ServiceEntry) -> Value {
    let id = &entry.service.id;
    let ports = entry.service.ports.iter().map(|port| {
        let protocol = format!("{:?}", port.app_protocol).to_lowercase();
        json!({"port": port.port, "name": &*port.name, "protocol": protocol})
    });
    let mut routes: Vec<_> = snapshot
        .routes()
        .filter(|route| route.parents.iter().any(|parent| parent.service == *id))
        .map(|route| (route.id.to_string(), route.kind, route.rules.len()))
        .collect();
    routes.sort();
    let routes = routes
        .into_iter()
        .map(|(name, kind, rules)| json!({"name": name, "kind": kind.name(), "rules": rules}));
    let endpoints = entry.endpoints.iter().map(|endpoint| self::endpoint(snapshot, endpoint));
    json!({
        "name": id.to_string(),
        "addresses": entry.service.vips,
        "ports": ports.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "traffic_policy": entry.traffic_policy.as_ref().map(|policy| policy.id.to_string()),
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

fn endpoint(snapshot: &Snapshot, endpoint: &Endpoint) -> Value {
    let workload = endpoint.workload.as_ref().and_then(|uid| snapshot.workload(uid));
    let state = match (endpoint.ready, endpoint.terminating, endpoint.serving) {
        (true, false, _) => "ready",
        (_, true, true) => "terminating, still serves",
        (_, true, false) => "terminating",
        (false, false, _) => "not ready",
    };
    json!({
        "address": endpoint.ip,
        "workload": workload.map(|pod| format!("{}/{}", pod.namespace, pod.name)),
        "in_mesh": workload.is_some_and(|pod| pod.enrolled),
        "node": &*endpoint.node,
        "ports": endpoint.ports,
        "state": state,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weft_proto::convert::{key_of, version_of};
    use weft_proto::model::{Resource, Service};

    use super::*;
    use crate::snapshot::{Change, fixtures};

    fn name(namespace: &str, name: &str) -> NamespacedName {
        NamespacedName::new(namespace, name).unwrap()
    }

    fn service(namespace: &str) -> Resource {
        let vips = vec!["10.96.0.9".parse().unwrap()];
        Resource::Service(
            Service { id: name(namespace, "db"), vips, ports: Vec::new(), node_local: false }.into(),
        )
    }

    #[test]
    fn a_pod_sees_the_services_of_its_namespace_and_the_policies_that_select_it() {
        let (mut web, db) = (
            fixtures::workload("web-1", "10.0.0.2", "n1", false),
            fixtures::workload("db-0", "10.0.0.3", "n2", false),
        );
        web.authorization_policies = vec![name("shop", "lost")];
        let endpoint = Endpoint {
            service: name("shop", "db"),
            ip: "10.0.0.3".parse().unwrap(),
            workload: Some(db.uid.clone()),
            ports: BTreeMap::new(),
            ready: false,
            serving: true,
            terminating: true,
            node: "n2".into(),
            zone: "".into(),
        };
        let resources = [
            Resource::Workload(db.into()),
            service("shop"),
            service("bank"),
            Resource::Endpoint(endpoint.into()),
        ];
        let changes = resources.into_iter().map(|it| Change::Upsert(key_of(&it), version_of(&it), it));
        let snapshot = Snapshot::default().apply(weft_proto::model::Revision(7), changes);

        let answer = config(&snapshot, &web);
        assert_eq!((&answer["revision"], &answer["mtls"]), (&json!(7), &json!("strict")));
        assert_eq!(answer["policies"], json!(["shop/lost (named, but not here: denies all)"]));
        assert_eq!(answer["services_of_the_mesh"], 2);
        let services = answer["services"].as_array().unwrap();
        assert_eq!((services.len(), &services[0]["name"]), (1, &json!("shop/db")));
        let endpoint = &services[0]["endpoints"][0];
        assert_eq!(
            (&endpoint["workload"], &endpoint["state"]),
            (&json!("shop/db-0"), &json!("terminating, still serves"))
        );
    }
}
