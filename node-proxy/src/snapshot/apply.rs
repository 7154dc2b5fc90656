//! Makes the next snapshot out of the former one and a list of changes. Pure.
//!
//! The result depends on the resources alone, not on the order in which they came: see the property test.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use weft_proto::identity::{NamespacedName, PodUid};
use weft_proto::model::{
    Endpoint, HttpRoute, Resource, ResourceKey, Revision, RouteKind, Service, TrafficPolicy, Version,
    Workload,
};

use super::{RouteName, ServiceEntry, ServiceParts, Snapshot};
use crate::route::RouteTable;

/// One resource that is new, other, or gone.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Upsert(ResourceKey, Version, Resource),
    Remove(ResourceKey),
}

/// What must be put together again once all changes are in.
#[derive(Default)]
struct Touched {
    services: BTreeSet<NamespacedName>,
    /// Those whose routes changed too.
    routes: BTreeSet<NamespacedName>,
}

impl Snapshot {
    /// The next snapshot. A later change of the list wins over an earlier one with the same key.
    pub fn apply(&self, revision: Revision, changes: impl IntoIterator<Item = Change>) -> Self {
        let mut next = self.clone();
        next.revision = revision;
        let mut touched = Touched::default();
        for change in changes {
            match change {
                Change::Upsert(key, version, resource) => {
                    next.versions.insert(key, version);
                    next.upsert(resource, &mut touched);
                }
                Change::Remove(key) => {
                    next.versions.remove(&key);
                    next.remove(&key, &mut touched);
                }
            }
        }
        for id in &touched.services {
            next.assemble(id, touched.routes.contains(id));
        }
        next
    }

    fn upsert(&mut self, resource: Resource, touched: &mut Touched) {
        match resource {
            Resource::Mesh(mesh) => self.mesh = Some(mesh),
            Resource::Workload(workload) => {
                self.remove_workload(&workload.uid.clone());
                self.insert_workload(workload);
            }
            Resource::Service(service) => {
                let id = service.id.clone();
                self.set_service(&id, Some(service), touched);
            }
            Resource::Endpoint(endpoint) => {
                let (id, ip) = (endpoint.service.clone(), endpoint.ip);
                self.set_endpoint(&id, ip, Some(endpoint), touched);
            }
            Resource::HttpRoute(route) => {
                let name = (route.id.clone(), route.kind);
                self.set_route(&name, Some(&route), touched);
            }
            Resource::AuthorizationPolicy(policy) => {
                self.authorization_policies.insert(policy.id.clone(), policy);
            }
            Resource::TrafficPolicy(policy) => {
                let id = policy.id.clone();
                self.set_traffic_policy(&id, Some(policy), touched);
            }
        }
    }

    fn remove(&mut self, key: &ResourceKey, touched: &mut Touched) {
        match key {
            ResourceKey::Mesh => self.mesh = None,
            ResourceKey::Workload(uid) => self.remove_workload(uid),
            ResourceKey::Service(id) => self.set_service(id, None, touched),
            ResourceKey::Endpoint { service, ip } => self.set_endpoint(service, *ip, None, touched),
            ResourceKey::HttpRoute(id) => self.set_route(&(id.clone(), RouteKind::Http), None, touched),
            ResourceKey::GrpcRoute(id) => self.set_route(&(id.clone(), RouteKind::Grpc), None, touched),
            ResourceKey::AuthorizationPolicy(id) => {
                self.authorization_policies.remove(id);
            }
            ResourceKey::TrafficPolicy(id) => self.set_traffic_policy(id, None, touched),
        }
    }

    fn insert_workload(&mut self, workload: Arc<Workload>) {
        for ip in addresses(&workload) {
            self.by_ip.update(&ip, |pods| {
                pods.push(Arc::clone(&workload));
                pods.sort_by(|a, b| precedence(a).cmp(&precedence(b)));
                true
            });
        }
        self.by_node.update(&workload.node, |pods| {
            Arc::make_mut(pods).insert(workload.uid.clone(), Arc::clone(&workload));
            true
        });
        self.workloads.insert(workload.uid.clone(), workload);
    }

    fn remove_workload(&mut self, uid: &PodUid) {
        let Some(old) = self.workloads.remove(uid) else { return };
        for ip in addresses(&old) {
            self.by_ip.update(&ip, |pods| {
                pods.retain(|pod| pod.uid != *uid);
                !pods.is_empty()
            });
        }
        self.by_node.update(&old.node, |pods| {
            Arc::make_mut(pods).remove(uid);
            !pods.is_empty()
        });
    }

    fn change_parts(&mut self, id: &NamespacedName, change: impl FnOnce(&mut ServiceParts)) {
        self.parts.update(id, |parts| {
            let parts = Arc::make_mut(parts);
            change(parts);
            !parts.is_empty()
        });
    }

    fn set_service(&mut self, id: &NamespacedName, service: Option<Arc<Service>>, touched: &mut Touched) {
        let present = service.is_some();
        let new_vips: BTreeSet<IpAddr> = service.iter().flat_map(|service| vips(service)).collect();
        let old = self.parts.get(id).and_then(|parts| parts.service.clone());
        let old_vips: BTreeSet<IpAddr> = old.iter().flat_map(|service| vips(service)).collect();
        for ip in old_vips.difference(&new_vips) {
            self.by_vip.update(ip, |ids| {
                ids.remove(id);
                !ids.is_empty()
            });
        }
        for ip in new_vips.difference(&old_vips) {
            self.by_vip.update(ip, |ids| ids.insert(id.clone()) || !ids.is_empty());
        }
        if present != old.is_some() {
            self.by_namespace.update(&id.namespace, |names| {
                let names = Arc::make_mut(names);
                if present {
                    names.insert(id.clone())
                } else {
                    names.remove(id)
                };
                !names.is_empty()
            });
        }
        self.change_parts(id, |parts| parts.service = service);
        touched.services.insert(id.clone());
    }

    fn set_endpoint(
        &mut self,
        id: &NamespacedName,
        ip: IpAddr,
        endpoint: Option<Arc<Endpoint>>,
        touched: &mut Touched,
    ) {
        self.change_parts(id, |parts| {
            match endpoint {
                Some(endpoint) => parts.endpoints.insert(ip, endpoint),
                None => parts.endpoints.remove(&ip),
            };
        });
        touched.services.insert(id.clone());
    }

    fn set_route(&mut self, name: &RouteName, route: Option<&Arc<HttpRoute>>, touched: &mut Touched) {
        let old = match route {
            Some(route) => self.routes.insert(name.clone(), Arc::clone(route)),
            None => self.routes.remove(name),
        };
        let parents_of = |route: Option<&Arc<HttpRoute>>| -> BTreeSet<NamespacedName> {
            route.iter().flat_map(|route| route.parents.iter().map(|parent| parent.service.clone())).collect()
        };
        let (before, after) = (parents_of(old.as_ref()), parents_of(route));
        for parent in before.union(&after) {
            let route = route.filter(|_| after.contains(parent));
            self.change_parts(parent, |parts| {
                match route {
                    Some(route) => parts.routes.insert(name.clone(), Arc::clone(route)),
                    None => parts.routes.remove(name),
                };
            });
            touched.services.insert(parent.clone());
            touched.routes.insert(parent.clone());
        }
    }

    fn set_traffic_policy(
        &mut self,
        id: &NamespacedName,
        policy: Option<Arc<TrafficPolicy>>,
        touched: &mut Touched,
    ) {
        self.traffic_policies.update(&id.namespace, |policies| {
            let policies = Arc::make_mut(policies);
            match policy {
                Some(policy) => policies.insert(id.clone(), policy),
                None => policies.remove(id),
            };
            !policies.is_empty()
        });
        if let Some(names) = self.by_namespace.get(&id.namespace) {
            touched.services.extend(names.iter().cloned());
        }
    }

    /// Makes a Service's entry out of its parts. Routes are compiled only if they changed or never were.
    fn assemble(&mut self, id: &NamespacedName, routes_changed: bool) {
        let parts = self.parts.get(id).cloned().unwrap_or_default();
        let Some(service) = parts.service.clone() else {
            self.services.remove(id);
            return;
        };
        let routes = match self.services.get(id) {
            Some(old) if !routes_changed => Arc::clone(&old.routes),
            _ if parts.routes.is_empty() => Arc::default(),
            _ => Arc::new(RouteTable::compile(id, &parts.routes.values().cloned().collect::<Vec<_>>())),
        };
        let endpoints = parts.endpoints.values().cloned().collect();
        let entry = ServiceEntry { service, endpoints, traffic_policy: self.traffic_policy_of(id), routes };
        self.services.insert(id.clone(), Arc::new(entry));
    }

    /// One that names the Service wins over one for the whole namespace; of equal ones the oldest, then the first by name.
    fn traffic_policy_of(&self, id: &NamespacedName) -> Option<Arc<TrafficPolicy>> {
        let policies = self.traffic_policies.get(&id.namespace)?;
        let named = |policy: &&Arc<TrafficPolicy>| policy.services.contains(&id.name);
        let general = |policy: &&Arc<TrafficPolicy>| policy.services.is_empty();
        let first = |all: &dyn Fn(&&Arc<TrafficPolicy>) -> bool| {
            policies.values().filter(|policy| all(policy)).min_by_key(|policy| policy.precedence())
        };
        first(&named).or_else(|| first(&general)).cloned()
    }
}

/// Of pods with the same address the one sorted first answers: live before ending, then by UID.
fn precedence(workload: &Workload) -> (bool, &PodUid) {
    (workload.terminating, &workload.uid)
}

fn addresses(workload: &Workload) -> BTreeSet<IpAddr> {
    workload.ips.iter().map(IpAddr::to_canonical).collect()
}

fn vips(service: &Service) -> impl Iterator<Item = IpAddr> {
    service.vips.iter().map(IpAddr::to_canonical)
}
