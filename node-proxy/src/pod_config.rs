//! What `/pod/<namespace>/<name>` answers: what this node holds for one of its pods. `weft config` shows it.
//!
//! Reads, never changes. Without a question for one Service those of the pod's own namespace only: a mesh may have ten thousand others.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_proto::dump;
use weft_proto::identity::NamespacedName;
use weft_proto::model::{Endpoint, HttpRoute, InboundMode, Resource, Workload};

use crate::node::Node;
use crate::snapshot::{ServiceEntry, Snapshot};

impl Node {
    /// None: no such pod is on this node. With `service` (namespace and name) that Service alone, if the node knows it.
    pub fn pod_config(&self, namespace: &str, name: &str, service: Option<(&str, &str)>) -> Option<Value> {
        let snapshot = self.snapshot.load();
        let is_it = |pod: &&Arc<Workload>| *pod.namespace == *namespace && *pod.name == *name;
        // Of two with one name the live one: a StatefulSet's successor.
        let pods = snapshot.workloads_of_node(&self.settings.node_name).filter(is_it);
        let workload = pods.min_by_key(|pod| pod.terminating)?;
        let mut answer = config(&snapshot, workload, service);
        answer["pod"] = json!(self.pod_status(workload));
        Some(answer)
    }
}

/// Pure part.
fn config(snapshot: &Snapshot, workload: &Workload, service: Option<(&str, &str)>) -> Value {
    let policy = |id: &NamespacedName| {
        let found = snapshot.authorization_policies().find(|policy| policy.id == *id);
        match found {
            Some(policy) => dump::named(&Resource::AuthorizationPolicy(Arc::clone(policy))),
            None => json!({ "name": id.to_string(), "problem": "named, but not here: denies all" }),
        }
    };
    let mesh = snapshot.mesh();
    let identity = mesh.map(|mesh| {
        let (domain, namespace) = (mesh.trust_domain.as_str(), &workload.namespace);
        format!("spiffe://{domain}/ns/{namespace}/sa/{}", workload.service_account)
    });
    let services = shown(snapshot, workload, service);
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
        "services": services.into_iter().map(|entry| of_service(snapshot, workload, entry)).collect::<Vec<_>>(),
        "services_of_the_mesh": snapshot.services().count(),
    })
}

/// The Services to show: one, or those of the pod's namespace by name.
fn shown<'a>(
    snapshot: &'a Snapshot,
    workload: &Workload,
    service: Option<(&str, &str)>,
) -> Vec<&'a Arc<ServiceEntry>> {
    if let Some((namespace, name)) = service {
        let id = NamespacedName::new(namespace, name);
        return id.ok().and_then(|id| snapshot.service(&id)).into_iter().collect();
    }
    let own = |entry: &&Arc<ServiceEntry>| *entry.service.id.namespace == *workload.namespace;
    let mut services: Vec<_> = snapshot.services().filter(own).collect();
    services.sort_by_key(|entry| entry.service.id.clone());
    services
}

fn of_service(snapshot: &Snapshot, workload: &Workload, entry: &ServiceEntry) -> Value {
    let id = &entry.service.id;
    let ports = entry.service.ports.iter().map(|port| {
        let protocol = format!("{:?}", port.app_protocol).to_lowercase();
        json!({"port": port.port, "name": &*port.name, "protocol": protocol})
    });
    // A route in another namespace than the Service's is for the clients of its own.
    let of_this_client = |route: &&Arc<HttpRoute>| {
        let namespace = &*route.id.namespace;
        let is_of_service = route.parents.iter().any(|parent| parent.service == *id);
        is_of_service && (namespace == &*id.namespace || namespace == &*workload.namespace)
    };
    let mut routes: Vec<_> = snapshot.routes().filter(of_this_client).collect();
    routes.sort_by_key(|route| (route.id.clone(), route.kind));
    let routes = routes.into_iter().map(|route| dump::named(&Resource::HttpRoute(Arc::clone(route))));
    let policy = entry.traffic_policy.as_ref();
    let policy = policy.map(|policy| dump::named(&Resource::TrafficPolicy(Arc::clone(policy))));
    let endpoints = entry.endpoints.iter().map(|endpoint| self::endpoint(snapshot, endpoint));
    json!({
        "name": id.to_string(),
        "addresses": entry.service.vips,
        "ports": ports.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "traffic_policy": policy,
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
    use weft_proto::model::{
        AuthorizationPolicy, HttpRule, ParentRef, PolicyAction, PolicyRule, Resource, RouteKind, Service,
        Timeouts, TrafficPolicy,
    };

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

        let answer = config(&snapshot, &web, None);
        assert_eq!((&answer["revision"], &answer["mtls"]), (&json!(7), &json!("strict")));
        assert_eq!(
            answer["policies"],
            json!([{"name": "shop/lost", "problem": "named, but not here: denies all"}])
        );
        assert_eq!(answer["services_of_the_mesh"], 2);
        let services = answer["services"].as_array().unwrap();
        assert_eq!((services.len(), &services[0]["name"]), (1, &json!("shop/db")));
        let endpoint = &services[0]["endpoints"][0];
        assert_eq!(
            (&endpoint["workload"], &endpoint["state"]),
            (&json!("shop/db-0"), &json!("terminating, still serves"))
        );
    }
    fn route(namespace: &str) -> Resource {
        let parents = vec![ParentRef { service: name("bank", "db"), port: Some(80) }];
        let rule = HttpRule {
            name: "all".into(),
            matches: Vec::new(),
            filters: Vec::new(),
            backends: Vec::new(),
            timeouts: Timeouts { request: Some(std::time::Duration::from_secs(2)), backend_request: None },
            retry: None,
        };
        let (kind, id, rules) = (RouteKind::Http, name(namespace, "slow"), vec![Arc::new(rule)]);
        Resource::HttpRoute(HttpRoute { kind, id, created_unix_s: 0, parents, rules }.into())
    }

    #[test]
    fn a_service_of_another_namespace_is_shown_when_it_is_asked_for_with_all_that_its_routes_and_policies_say()
     {
        let mut web = fixtures::workload("web-1", "10.0.0.2", "n1", false);
        web.authorization_policies = vec![name("shop", "gate")];
        let rules = vec![PolicyRule::default()];
        let gate = AuthorizationPolicy { id: name("shop", "gate"), action: PolicyAction::Deny, rules };
        let patient = TrafficPolicy {
            id: name("bank", "patient"),
            created_unix_s: 0,
            services: Vec::new(),
            retry: None,
            connect_timeout: Some(std::time::Duration::from_secs(3)),
            ejection: None,
            max_connections: None,
            max_pending_requests: Some(9),
        };
        let resources = [
            service("shop"),
            service("bank"),
            route("bank"),
            route("shop"),
            // For clients of a third namespace.
            route("other"),
            Resource::AuthorizationPolicy(gate.into()),
            Resource::TrafficPolicy(patient.into()),
        ];
        let changes = resources.into_iter().map(|it| Change::Upsert(key_of(&it), version_of(&it), it));
        let snapshot = Snapshot::default().apply(weft_proto::model::Revision(7), changes);

        let answer = config(&snapshot, &web, Some(("bank", "db")));
        assert_eq!(
            (&answer["policies"][0]["name"], &answer["policies"][0]["action"]),
            (&json!("shop/gate"), &json!("Deny"))
        );
        assert_eq!(answer["policies"][0]["rules"], json!([{"from": [], "to": []}]));
        assert_eq!(answer["services"].as_array().map(Vec::len), Some(1));
        let db = &answer["services"][0];
        assert_eq!(db["name"], "bank/db");
        let routes: Vec<_> =
            db["routes"].as_array().unwrap().iter().map(|it| (&it["kind"], &it["name"])).collect();
        let kind = json!("HTTPRoute");
        assert_eq!(routes, [(&kind, &json!("bank/slow")), (&kind, &json!("shop/slow"))]);
        assert_eq!(db["routes"][0]["rules"][0]["request_timeout_ms"], 2_000);
        let policy = &db["traffic_policy"];
        assert_eq!((&policy["name"], &policy["connect_timeout_ms"]), (&json!("bank/patient"), &json!(3_000)));
        assert_eq!(policy["max_pending_requests"], 9);

        for unknown in [("bank", "nothing"), ("bank", "no such name")] {
            assert_eq!(config(&snapshot, &web, Some(unknown))["services"], json!([]));
        }
    }
}
