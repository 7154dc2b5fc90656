//! Computes resources from objects: workloads, Services, endpoints, routes. Each is a pure function of [`Objects`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weft_proto::identity::{NamespacedName, PodUid};
use weft_proto::model::{
    AppProtocol, Endpoint, HttpFilter, HttpRoute, HttpRule, InboundMode, Resource, ResourceKey, RouteKind,
    Service, ServicePort, Workload,
};

use super::concerned::authorization;
use super::interest::Edge;
use super::objects::RouteName;
use super::{Changes, Dirty, Index, Referrer, RouteEntry, Sent, WorkloadEntry};
use crate::source::ObjectKey;
use crate::source::object::{self, Kind, Pod, RouteObject, TargetPort};

impl Index {
    pub(super) fn derive(&mut self, dirty: Dirty, changes: &mut Changes) {
        for id in &dirty.pods {
            self.derive_workload(id, changes);
        }
        for id in dirty.services {
            let next = self.objects.services.get(&id).map(|service| Sent::new(&service_resource(service)));
            let key = ResourceKey::Service(id.clone());
            let before = self.common(&key);
            replace(&mut self.services, id, next, || changes.everywhere(key, before));
        }
        for id in dirty.endpoints {
            self.derive_endpoints(&id, changes);
        }
        for name in dirty.routes {
            self.derive_route(&name, changes);
        }
    }

    /// Policies are sent as they are; only who needs them is derived.
    pub(super) fn policy_changed(&mut self, key: &ObjectKey, changes: &mut Changes) {
        let id = key.id.clone();
        match key.kind {
            Kind::AuthorizationPolicy => {
                let next = self.objects.authorization.get(&id);
                let next = next.map(|o| Sent::new(&Resource::AuthorizationPolicy(o.policy.clone())));
                let nodes = self.interest.nodes_of_policy(&id);
                replace(&mut self.authorization, id.clone(), next, || {
                    for node in &nodes {
                        changes.for_node(node, ResourceKey::AuthorizationPolicy(id.clone()));
                    }
                });
            }
            Kind::TrafficPolicy => {
                let next = self.objects.traffic.get(&id).filter(|o| o.for_clients);
                let next = next.map(|o| Sent::new(&Resource::TrafficPolicy(o.policy.clone())));
                let key = ResourceKey::TrafficPolicy(id.clone());
                let before = self.common(&key);
                replace(&mut self.traffic, id, next, || changes.everywhere(key, before));
            }
            _ => {}
        }
    }

    fn derive_workload(&mut self, id: &NamespacedName, changes: &mut Changes) {
        let next =
            self.objects.pods.get(id).and_then(|pod| self.workload_entry(pod).map(|e| (pod.uid.clone(), e)));
        // A pod without an address is its node's business alone.
        let told = |entry: &WorkloadEntry, uid: &PodUid, before: Option<u64>, changes: &mut Changes| {
            let key = ResourceKey::Workload(uid.clone());
            match (&entry.others, before) {
                (None, None) => changes.for_node(&entry.node, key),
                _ => changes.everywhere(key, before),
            }
        };
        let old_uid = self.uid_of_pod.get(id).cloned();
        if let (Some((uid, entry)), Some(old_uid)) = (&next, &old_uid)
            && uid == old_uid
            && self.workloads.get(old_uid) == Some(entry)
        {
            return;
        }
        if let Some(pod) = self.objects.pods.get(id) {
            changes.status.extend(self.traffic_about(pod));
        }
        let common = |uid: &PodUid| self.common(&ResourceKey::Workload(uid.clone()));
        let old_common = old_uid.as_ref().and_then(common);
        let next_common = next.as_ref().and_then(|(uid, _)| common(uid));
        let old = old_uid.and_then(|uid| self.workloads.remove(&uid).map(|old| (uid, old)));
        self.uid_of_pod.remove(id);
        // In before out: a node whose only pod changed did not lose its interest in everything.
        if let Some((_, entry)) = &next {
            self.count(entry, true, changes);
        }
        if let Some((uid, old)) = &old {
            self.count(old, false, changes);
            told(old, uid, old_common, changes);
        }
        let Some((uid, entry)) = next else { return };
        told(&entry, &uid, next_common, changes);
        self.uid_of_pod.insert(id.clone(), uid.clone());
        self.workloads.insert(uid, entry);
    }

    /// Counts a workload in or out of its node's interests.
    fn count(&mut self, entry: &WorkloadEntry, add: bool, changes: &mut Changes) {
        if !entry.enrolled {
            return;
        }
        let (node, namespace) = (&entry.node, &entry.pod.namespace);
        let (whole, in_namespace) = if add {
            self.interest.add_pod(node, namespace)
        } else {
            self.interest.remove_pod(node, namespace)
        };
        if whole == Edge::Crossed {
            changes.whole.insert(node.clone());
            self.concerned_by_interest(&mut changes.status);
        }
        if in_namespace == Edge::Crossed {
            let first = NamespacedName { namespace: namespace.clone(), name: "".into() };
            let first = (first, RouteKind::Grpc);
            let routes = self.routes.range(first..).take_while(|((id, _), _)| id.namespace == *namespace);
            let consumers = routes.filter(|(_, route)| !route.producer);
            for ((id, kind), _) in consumers {
                changes.for_node(node, kind.key(id.clone()));
                changes.status.insert(ObjectKey { kind: Kind::of_route(*kind), id: id.clone() });
            }
        }
        for policy in &entry.policies {
            let edge = if add {
                self.interest.add_policy(node, policy)
            } else {
                self.interest.remove_policy(node, policy)
            };
            if edge == Edge::Crossed {
                changes.for_node(node, ResourceKey::AuthorizationPolicy(policy.clone()));
                changes.status.insert(authorization(policy));
            }
        }
    }

    /// None for a pod that nobody can talk to, ever: without a node, or ended, or in the host's network.
    fn workload_entry(&self, pod: &Pod) -> Option<WorkloadEntry> {
        let node = pod.node.clone()?;
        if pod.terminal || pod.host_network {
            return None;
        }
        let enrolled = self.is_enrolled(pod);
        let policies: BTreeSet<NamespacedName> = if enrolled {
            self.objects.policies_for(pod).map(|policy| policy.policy.id.clone()).collect()
        } else {
            BTreeSet::new()
        };
        let others = Workload {
            uid: pod.uid.clone(),
            namespace: pod.id.namespace.clone(),
            name: pod.id.name.clone(),
            service_account: pod.service_account.clone(),
            node: node.clone(),
            ips: pod.ips.clone(),
            enrolled,
            inbound_mode: self.inbound_mode(pod),
            workload_name: pod.workload_name.clone(),
            workload_kind: pod.workload_kind.clone(),
            canonical_service: first_label(
                pod,
                &["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"],
                &pod.workload_name,
            ),
            canonical_revision: first_label(
                pod,
                &["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"],
                "latest",
            ),
            app: first_label(pod, &["app"], ""),
            app_version: first_label(pod, &["version"], ""),
            zone: self.objects.zone_of(pod),
            authorization_policies: Vec::new(),
            excluded_inbound_ports: pod.excluded_inbound_ports.clone(),
            excluded_outbound_ports: pod.excluded_outbound_ports.clone(),
            excluded_outbound_cidrs: pod.excluded_outbound_cidrs.clone(),
            redirect: pod.redirect,
            ready: pod.ready && !pod.terminating,
            terminating: pod.terminating,
            port_protocols: self.port_protocols(pod),
            probe_ports: pod.probe_ports.clone(),
        };
        let own = Workload { authorization_policies: policies.iter().cloned().collect(), ..others.clone() };
        Some(WorkloadEntry {
            pod: pod.id.clone(),
            node,
            own: Sent::new(&Resource::Workload(Arc::new(own))),
            others: (!pod.ips.is_empty()).then(|| Sent::new(&Resource::Workload(Arc::new(others)))),
            policies,
            enrolled,
        })
    }

    /// The most specific word counts: a policy that selects the pod, a policy of its namespace, the namespace's label.
    /// Among equals STRICT wins.
    pub(super) fn inbound_mode(&self, pod: &Pod) -> InboundMode {
        let inbounds: Vec<_> = self.objects.inbounds_for(pod).map(|(_, inbound)| inbound).collect();
        let strictest = |modes: Vec<InboundMode>| {
            let permissive = modes.iter().all(|mode| *mode == InboundMode::Permissive);
            (!modes.is_empty()).then_some(if permissive {
                InboundMode::Permissive
            } else {
                InboundMode::Strict
            })
        };
        let modes = |by_selector: bool| {
            let inbounds = inbounds.iter().filter(|inbound| inbound.selector.is_some() == by_selector);
            inbounds.map(|inbound| inbound.mode).collect()
        };
        strictest(modes(true))
            .or_else(|| strictest(modes(false)))
            .or_else(|| self.objects.namespaces.get(&pod.id.namespace)?.inbound_mode)
            .unwrap_or_default()
    }

    /// By container port; the first Service (by name) that declares a protocol decides.
    fn port_protocols(&self, pod: &Pod) -> BTreeMap<u16, AppProtocol> {
        let mut protocols = BTreeMap::new();
        for service in self.objects.services_selecting(pod) {
            for port in &service.ports {
                let Some(target) = target_port(&port.target, pod) else { continue };
                let protocol = protocols.entry(target).or_insert(port.app_protocol);
                if *protocol == AppProtocol::Detect {
                    *protocol = port.app_protocol;
                }
            }
        }
        protocols
    }

    fn derive_endpoints(&mut self, id: &NamespacedName, changes: &mut Changes) {
        let next: BTreeMap<IpAddr, Arc<Sent>> = self
            .endpoints_of(id)
            .into_iter()
            .map(|(ip, endpoint)| (ip, Sent::new(&Resource::Endpoint(Arc::new(endpoint)))))
            .collect();
        let old = self.endpoints.remove(id).unwrap_or_default();
        let ips: BTreeSet<IpAddr> = old.keys().chain(next.keys()).copied().collect();
        for ip in ips.into_iter().filter(|ip| old.get(ip) != next.get(ip)) {
            let before = old.get(&ip).map(|sent| sent.version);
            changes.everywhere(ResourceKey::Endpoint { service: id.clone(), ip }, before);
        }
        if !next.is_empty() {
            self.endpoints.insert(id.clone(), next);
        }
    }

    fn endpoints_of(&self, id: &NamespacedName) -> BTreeMap<IpAddr, Endpoint> {
        let Some(service) = self.objects.services.get(id) else { return BTreeMap::new() };
        if self.objects.slices_of(id).next().is_some() {
            return self.endpoints_from_slices(service);
        }
        // A Service's selector has labels: an empty one is none.
        let Some(selector) = &service.selector else { return BTreeMap::new() };
        let pods = self.objects.pods_with(&id.namespace, selector);
        pods.filter(|pod| !pod.terminal)
            .flat_map(|pod| endpoints_of_pod(service, pod, &self.objects.zone_of(pod)))
            .collect()
    }

    fn endpoints_from_slices(&self, service: &object::Service) -> BTreeMap<IpAddr, Endpoint> {
        let mut endpoints: BTreeMap<IpAddr, Endpoint> = BTreeMap::new();
        for slice in self.objects.slices_of(&service.id) {
            let ports: BTreeMap<u16, u16> = service
                .ports
                .iter()
                .filter_map(|port| Some((port.port, *slice.ports.get(&*port.name)?)))
                .collect();
            for endpoint in &slice.endpoints {
                let pod = match &endpoint.pod {
                    None => None,
                    // The pod's own state is the newer of the two: watches of different kinds are not in step. An endpoint
                    // whose pod is not known yet would be reached outside the mesh.
                    Some(reference) => match self.objects.pods.get(&reference.id) {
                        Some(pod) if reference.is(pod) && !pod.terminal => Some(pod),
                        _ => continue,
                    },
                };
                let terminating = endpoint.terminating || pod.is_some_and(|pod| pod.terminating);
                let pod_ready = pod.is_none_or(|pod| pod.ready && !pod.terminating);
                for ip in &endpoint.ips {
                    let entry = endpoints.entry(*ip).or_insert_with(|| Endpoint {
                        service: service.id.clone(),
                        ip: *ip,
                        workload: pod.filter(|pod| !pod.host_network).map(|pod| pod.uid.clone()),
                        ports: BTreeMap::new(),
                        ready: (endpoint.ready && pod_ready) || service.publish_not_ready,
                        serving: endpoint.serving,
                        terminating,
                        node: endpoint.node.clone(),
                        zone: endpoint.zone.clone(),
                    });
                    entry.ports.extend(&ports);
                }
            }
        }
        endpoints
    }

    fn derive_route(&mut self, name: &RouteName, changes: &mut Changes) {
        let (id, kind) = name;
        let next = self.objects.routes.get(name).map(|object| RouteEntry {
            producer: object.parents.iter().any(|parent| parent.service.namespace == id.namespace),
            sent: Sent::new(&Resource::HttpRoute(Arc::new(self.resolved(object)))),
        });
        let key = kind.key(id.clone());
        let before = self.common(&key);
        replace(&mut self.routes, name.clone(), next, || {
            changes.everywhere(key, before);
            changes.status.insert(ObjectKey { kind: Kind::of_route(*kind), id: id.clone() });
        });
    }

    /// The route with its references checked: backends that cannot be resolved are marked, mirrors and parents left out.
    fn resolved(&self, object: &RouteObject) -> HttpRoute {
        let RouteObject { route, parents } = object;
        let from = Referrer::of(object);
        let resolves = |service: &NamespacedName, port| self.resolve(&from, service, port).is_ok();
        let rules = route.rules.iter().map(|rule| {
            let mut rule: HttpRule = (**rule).clone();
            for backend in &mut rule.backends {
                backend.invalid = backend.invalid || !resolves(&backend.service, backend.port);
            }
            rule.filters.retain(|filter| match filter {
                HttpFilter::Mirror { service, port, .. } => resolves(service, *port),
                _ => true,
            });
            Arc::new(rule)
        });
        let parents = parents.iter().filter_map(|parent| self.parent_by_number(parent));
        HttpRoute { parents: parents.collect(), rules: rules.collect(), ..route.clone() }
    }

    pub(crate) fn has_port(&self, service: &NamespacedName, port: u16) -> bool {
        let service = self.objects.services.get(service);
        service.is_some_and(|service| service.ports.iter().any(|p| p.port == port))
    }
}

/// Puts a derived resource in place (None: takes it away), calling `changed` if that made a difference.
fn replace<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, next: Option<V>, changed: impl FnOnce()) {
    if map.get(&key) == next.as_ref() {
        return;
    }
    match next {
        Some(next) => drop(map.insert(key, next)),
        None => drop(map.remove(&key)),
    }
    changed();
}

fn first_label(pod: &Pod, names: &[&str], otherwise: &str) -> Arc<str> {
    names.iter().find_map(|name| pod.labels.get(*name)).map_or(otherwise, String::as_str).into()
}

fn target_port(target: &TargetPort, pod: &Pod) -> Option<u16> {
    match target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Named(name) => pod.named_ports.get(name).copied(),
    }
}

fn service_resource(service: &object::Service) -> Resource {
    let ports = service.ports.iter().map(|port| ServicePort {
        name: port.name.clone(),
        port: port.port,
        app_protocol: port.app_protocol,
    });
    Resource::Service(Arc::new(Service {
        id: service.id.clone(),
        vips: service.vips.clone(),
        ports: ports.collect(),
        node_local: service.node_local,
    }))
}

/// One endpoint for each address family of the Service (of the pod's primary address when the Service is headless).
fn endpoints_of_pod(service: &object::Service, pod: &Pod, zone: &Arc<str>) -> Vec<(IpAddr, Endpoint)> {
    let wanted = |ip: &&IpAddr| {
        if service.vips.is_empty() {
            pod.ips.first().is_some_and(|primary| primary.is_ipv4() == ip.is_ipv4())
        } else {
            service.vips.iter().any(|vip| vip.is_ipv4() == ip.is_ipv4())
        }
    };
    let mut families = BTreeSet::new();
    let addresses = pod.ips.iter().filter(wanted).filter(|ip| families.insert(ip.is_ipv4()));
    let ports: BTreeMap<u16, u16> =
        service.ports.iter().filter_map(|port| Some((port.port, target_port(&port.target, pod)?))).collect();
    addresses
        .map(|ip| {
            let endpoint = Endpoint {
                service: service.id.clone(),
                ip: *ip,
                workload: (!pod.host_network).then(|| pod.uid.clone()),
                ports: ports.clone(),
                ready: (pod.ready && !pod.terminating) || service.publish_not_ready,
                serving: pod.ready,
                terminating: pod.terminating,
                node: pod.node.clone().unwrap_or_default(),
                zone: zone.clone(),
            };
            (*ip, endpoint)
        })
        .collect()
}
