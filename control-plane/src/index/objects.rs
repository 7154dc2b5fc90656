//! The objects as delivered, by kind, and the questions that derivation asks of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_proto::identity::{NamespacedName, PodUid};
use weft_proto::model::{HttpFilter, RouteKind};

use super::selectors::{PodsByLabel, Selectors};
use crate::source::object::{
    AuthorizationPolicyObject, EndpointSlice, Inbound, JoinToken, Kind, Labels, Namespace, Node, Pod,
    ReferenceGrant, RouteObject, Service, TrafficPolicyObject, selects,
};
use crate::source::{Object, ObjectKey};

/// Routes of different kinds may have the same name.
pub(super) type RouteName = (NamespacedName, RouteKind);

#[derive(Debug, Default)]
pub struct Objects {
    pub(super) namespaces: BTreeMap<Arc<str>, Arc<Namespace>>,
    pub(super) accounts: BTreeSet<NamespacedName>,
    pub(super) nodes: BTreeMap<Arc<str>, Arc<Node>>,
    pub(super) pods: BTreeMap<NamespacedName, Arc<Pod>>,
    pub(super) services: BTreeMap<NamespacedName, Arc<Service>>,
    pub(super) slices: BTreeMap<NamespacedName, Arc<EndpointSlice>>,
    pub(super) routes: BTreeMap<RouteName, Arc<RouteObject>>,
    pub(super) grants: BTreeMap<NamespacedName, Arc<ReferenceGrant>>,
    pub(super) authorization: BTreeMap<NamespacedName, Arc<AuthorizationPolicyObject>>,
    pub(super) traffic: BTreeMap<NamespacedName, Arc<TrafficPolicyObject>>,
    pub(super) tokens: BTreeMap<NamespacedName, Arc<JoinToken>>,
    pub(super) pod_ids_by_uid: BTreeMap<PodUid, NamespacedName>,
    slices_of_service: BTreeMap<NamespacedName, BTreeSet<NamespacedName>>,
    services_of_pod: BTreeMap<NamespacedName, BTreeMap<NamespacedName, usize>>,
    routes_of_service: BTreeMap<NamespacedName, BTreeSet<RouteName>>,
    pods_by_label: PodsByLabel,
    pods_on_node: BTreeMap<Arc<str>, BTreeSet<NamespacedName>>,
    service_selectors: Selectors,
    policy_selectors: Selectors,
    /// Of TrafficPolicies that say how their pods take connections in.
    inbound_selectors: Selectors,
}

/// The entries of one namespace of a map by namespace and name.
fn of_namespace<'a, T>(
    map: &'a BTreeMap<NamespacedName, T>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a NamespacedName, &'a T)> + use<'a, T> {
    let first = NamespacedName { namespace: namespace.into(), name: "".into() };
    map.range(first..).take_while(move |(id, _)| *id.namespace == *namespace)
}

impl Objects {
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Namespace => self.namespaces.len(),
            Kind::Node => self.nodes.len(),
            Kind::ServiceAccount => self.accounts.len(),
            Kind::Pod => self.pods.len(),
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.slices.len(),
            Kind::HttpRoute | Kind::GrpcRoute => {
                self.routes.keys().filter(|(_, route)| kind.route() == Some(*route)).count()
            }
            Kind::ReferenceGrant => self.grants.len(),
            Kind::AuthorizationPolicy => self.authorization.len(),
            Kind::TrafficPolicy => self.traffic.len(),
            Kind::JoinToken => self.tokens.len(),
        }
    }

    pub(super) fn find(&self, key: &ObjectKey) -> Option<Object> {
        let id = &key.id;
        Some(match key.kind {
            Kind::Namespace => Object::Namespace(self.namespaces.get(&id.name)?.clone()),
            Kind::Node => Object::Node(self.nodes.get(&id.name)?.clone()),
            Kind::ServiceAccount => Object::ServiceAccount(self.accounts.get(id)?.clone()),
            Kind::Pod => Object::Pod(self.pods.get(id)?.clone()),
            Kind::Service => Object::Service(self.services.get(id)?.clone()),
            Kind::EndpointSlice => Object::EndpointSlice(self.slices.get(id)?.clone()),
            Kind::HttpRoute => Object::HttpRoute(self.route(id, RouteKind::Http)?.clone()),
            Kind::GrpcRoute => Object::HttpRoute(self.route(id, RouteKind::Grpc)?.clone()),
            Kind::ReferenceGrant => Object::ReferenceGrant(self.grants.get(id)?.clone()),
            Kind::AuthorizationPolicy => Object::AuthorizationPolicy(self.authorization.get(id)?.clone()),
            Kind::TrafficPolicy => Object::TrafficPolicy(self.traffic.get(id)?.clone()),
            Kind::JoinToken => Object::JoinToken(self.tokens.get(id)?.clone()),
        })
    }

    pub(super) fn keys(&self) -> Vec<ObjectKey> {
        let key = |kind| move |id: &NamespacedName| ObjectKey { kind, id: id.clone() };
        let namespaces =
            self.namespaces.values().map(|n| ObjectKey { kind: Kind::Namespace, id: n.id.clone() });
        let nodes = self.nodes.values().map(|n| ObjectKey { kind: Kind::Node, id: n.id.clone() });
        namespaces
            .chain(nodes)
            .chain(self.accounts.iter().map(key(Kind::ServiceAccount)))
            .chain(self.pods.keys().map(key(Kind::Pod)))
            .chain(self.services.keys().map(key(Kind::Service)))
            .chain(self.slices.keys().map(key(Kind::EndpointSlice)))
            .chain(self.routes.values().map(|o| Object::HttpRoute(o.clone()).key()))
            .chain(self.grants.keys().map(key(Kind::ReferenceGrant)))
            .chain(self.authorization.keys().map(key(Kind::AuthorizationPolicy)))
            .chain(self.traffic.keys().map(key(Kind::TrafficPolicy)))
            .chain(self.tokens.keys().map(key(Kind::JoinToken)))
            .collect()
    }

    pub(super) fn insert(&mut self, object: Object) {
        self.remove(&object.key());
        match object {
            Object::Namespace(o) => drop(self.namespaces.insert(o.id.name.clone(), o)),
            Object::Node(o) => drop(self.nodes.insert(o.id.name.clone(), o)),
            Object::ServiceAccount(id) => drop(self.accounts.insert(id)),
            Object::Pod(o) => {
                self.pod_ids_by_uid.insert(o.uid.clone(), o.id.clone());
                self.pods_by_label.insert(&o.id, &o.labels);
                if let Some(node) = &o.node {
                    self.pods_on_node.entry(node.clone()).or_default().insert(o.id.clone());
                }
                self.pods.insert(o.id.clone(), o);
            }
            Object::Service(o) => {
                if let Some(selector) = &o.selector {
                    self.service_selectors.insert(&o.id, Some(selector));
                }
                self.services.insert(o.id.clone(), o);
            }
            Object::EndpointSlice(o) => {
                self.slices_of_service.entry(o.service.clone()).or_default().insert(o.id.clone());
                for pod in o.endpoints.iter().filter_map(|e| Some(&e.pod.as_ref()?.id)) {
                    *self
                        .services_of_pod
                        .entry(pod.clone())
                        .or_default()
                        .entry(o.service.clone())
                        .or_default() += 1;
                }
                self.slices.insert(o.id.clone(), o);
            }
            Object::HttpRoute(o) => {
                let name = (o.route.id.clone(), o.route.kind);
                for service in services_of_route(&o) {
                    self.routes_of_service.entry(service).or_default().insert(name.clone());
                }
                self.routes.insert(name, o);
            }
            Object::ReferenceGrant(o) => drop(self.grants.insert(o.id.clone(), o)),
            Object::AuthorizationPolicy(o) => {
                self.policy_selectors.insert(&o.policy.id, o.selector.as_ref());
                self.authorization.insert(o.policy.id.clone(), o);
            }
            Object::TrafficPolicy(o) => {
                if let Some(inbound) = &o.inbound {
                    self.inbound_selectors.insert(&o.policy.id, inbound.selector.as_ref());
                }
                self.traffic.insert(o.policy.id.clone(), o);
            }
            Object::JoinToken(o) => drop(self.tokens.insert(o.id.clone(), o)),
        }
    }

    pub(super) fn remove(&mut self, key: &ObjectKey) {
        let id = &key.id;
        match key.kind {
            Kind::Namespace => drop(self.namespaces.remove(&id.name)),
            Kind::Node => drop(self.nodes.remove(&id.name)),
            Kind::ServiceAccount => drop(self.accounts.remove(id)),
            Kind::Pod => {
                if let Some(pod) = self.pods.remove(id) {
                    self.forget_pod(&pod);
                }
            }
            Kind::Service => {
                self.service_selectors.remove(id);
                self.services.remove(id);
            }
            Kind::EndpointSlice => self.remove_slice(id),
            Kind::HttpRoute => self.remove_route(&(id.clone(), RouteKind::Http)),
            Kind::GrpcRoute => self.remove_route(&(id.clone(), RouteKind::Grpc)),
            Kind::ReferenceGrant => drop(self.grants.remove(id)),
            Kind::AuthorizationPolicy => {
                self.policy_selectors.remove(id);
                self.authorization.remove(id);
            }
            Kind::TrafficPolicy => {
                self.inbound_selectors.remove(id);
                self.traffic.remove(id);
            }
            Kind::JoinToken => drop(self.tokens.remove(id)),
        }
    }

    fn remove_route(&mut self, name: &RouteName) {
        let Some(route) = self.routes.remove(name) else { return };
        for service in services_of_route(&route) {
            if let Some(routes) = self.routes_of_service.get_mut(&service) {
                routes.remove(name);
                if routes.is_empty() {
                    self.routes_of_service.remove(&service);
                }
            }
        }
    }

    fn forget_pod(&mut self, pod: &Pod) {
        if self.pod_ids_by_uid.get(&pod.uid) == Some(&pod.id) {
            self.pod_ids_by_uid.remove(&pod.uid);
        }
        self.pods_by_label.remove(&pod.id, &pod.labels);
        if let Some(node) = &pod.node
            && let Some(pods) = self.pods_on_node.get_mut(node)
        {
            pods.remove(&pod.id);
            if pods.is_empty() {
                self.pods_on_node.remove(node);
            }
        }
    }

    fn remove_slice(&mut self, id: &NamespacedName) {
        let Some(slice) = self.slices.remove(id) else { return };
        if let Some(slices) = self.slices_of_service.get_mut(&slice.service) {
            slices.remove(id);
            if slices.is_empty() {
                self.slices_of_service.remove(&slice.service);
            }
        }
        for pod in slice.endpoints.iter().filter_map(|e| Some(&e.pod.as_ref()?.id)) {
            let Some(services) = self.services_of_pod.get_mut(pod) else { continue };
            if let Some(count) = services.get_mut(&slice.service) {
                *count -= 1;
                if *count == 0 {
                    services.remove(&slice.service);
                }
            }
            if services.is_empty() {
                self.services_of_pod.remove(pod);
            }
        }
    }

    pub(super) fn pods_of<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Pod>> {
        of_namespace(&self.pods, namespace).map(|(_, pod)| pod)
    }

    /// Pods of a namespace that a selector takes; without labels it takes all of them.
    fn selected(&self, namespace: &str, selector: Option<&Labels>) -> Vec<NamespacedName> {
        match selector.filter(|selector| !selector.is_empty()) {
            None => self.pods_of(namespace).map(|pod| pod.id.clone()).collect(),
            Some(selector) => self.pods_with(namespace, selector).map(|pod| pod.id.clone()).collect(),
        }
    }

    /// Whether a policy is about pods, and there is none.
    pub(super) fn selects_none(&self, policy: &ObjectKey) -> bool {
        let ObjectKey { kind, id } = policy;
        let selector = match kind {
            Kind::AuthorizationPolicy => self.authorization.get(id).map(|own| own.selector.as_ref()),
            _ => self.traffic.get(id).and_then(|own| own.inbound.as_ref()).map(|own| own.selector.as_ref()),
        };
        selector.is_some_and(|selector| match selector.filter(|selector| !selector.is_empty()) {
            None => self.pods_of(&id.namespace).next().is_none(),
            Some(selector) => self.pods_with(&id.namespace, selector).next().is_none(),
        })
    }

    /// Pods of a namespace with all of these labels, of which there is one at least.
    pub(super) fn pods_with<'a>(
        &'a self,
        namespace: &str,
        selector: &'a Labels,
    ) -> impl Iterator<Item = &'a Arc<Pod>> {
        let candidates = self.pods_by_label.candidates(namespace, selector);
        candidates.filter_map(|id| self.pods.get(id)).filter(move |pod| selects(selector, &pod.labels))
    }

    /// The pod's own label, else its node's.
    pub(super) fn zone_of(&self, pod: &Pod) -> Arc<str> {
        if !pod.zone.is_empty() {
            return pod.zone.clone();
        }
        let node = pod.node.as_ref().and_then(|node| self.nodes.get(node));
        node.map(|node| node.zone.clone()).unwrap_or_default()
    }

    pub(super) fn pods_on<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.pods_on_node.get(node).into_iter().flatten().filter_map(|id| self.pods.get(id))
    }

    /// Namespaces with the label, sorted.
    pub(super) fn enrolled_namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.namespaces.iter().filter(|(_, namespace)| namespace.enrolled).map(|(name, _)| name)
    }

    /// Services whose selector takes this pod, by name.
    pub(super) fn services_selecting<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a Arc<Service>> {
        let candidates = self.service_selectors.candidates(&pod.id.namespace, &pod.labels).into_iter();
        candidates
            .filter_map(|id| self.services.get(id))
            .filter(|service| service.selector.as_ref().is_some_and(|s| selects(s, &pod.labels)))
    }

    /// Services with a slice that names this pod.
    pub(super) fn services_naming(&self, pod: &NamespacedName) -> Vec<NamespacedName> {
        self.services_of_pod.get(pod).map(|services| services.keys().cloned().collect()).unwrap_or_default()
    }

    pub(super) fn route(&self, id: &NamespacedName, kind: RouteKind) -> Option<&Arc<RouteObject>> {
        self.routes.get(&(id.clone(), kind))
    }

    pub(super) fn routes_naming(&self, service: &NamespacedName) -> impl Iterator<Item = &RouteName> {
        self.routes_of_service.get(service).into_iter().flatten()
    }

    /// Routes of other namespaces that name a Service of this one.
    pub(super) fn routes_into<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a RouteName> {
        let names = of_namespace(&self.routes_of_service, namespace).flat_map(|(_, routes)| routes);
        names.filter(move |(id, _)| *id.namespace != *namespace)
    }

    pub(super) fn grants_of<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<ReferenceGrant>> {
        of_namespace(&self.grants, namespace).map(|(_, grant)| grant)
    }

    pub(super) fn pods_selected_by_service(&self, id: &NamespacedName) -> Vec<NamespacedName> {
        let selector = self.services.get(id).and_then(|service| service.selector.as_ref());
        selector.map(|selector| self.selected(&id.namespace, Some(selector))).unwrap_or_default()
    }

    pub(super) fn pods_selected_by_policy(&self, id: &NamespacedName) -> Vec<NamespacedName> {
        let policy = self.authorization.get(id);
        policy.map(|policy| self.selected(&id.namespace, policy.selector.as_ref())).unwrap_or_default()
    }

    pub(super) fn pods_selected_by_traffic(&self, id: &NamespacedName) -> Vec<NamespacedName> {
        let inbound = self.traffic.get(id).and_then(|policy| policy.inbound.as_ref());
        inbound.map(|inbound| self.selected(&id.namespace, inbound.selector.as_ref())).unwrap_or_default()
    }

    pub(super) fn policies_for<'a>(
        &'a self,
        pod: &'a Pod,
    ) -> impl Iterator<Item = &'a Arc<AuthorizationPolicyObject>> {
        let candidates = self.policy_selectors.candidates(&pod.id.namespace, &pod.labels).into_iter();
        candidates
            .filter_map(|id| self.authorization.get(id))
            .filter(|policy| policy.selector.as_ref().is_none_or(|s| selects(s, &pod.labels)))
    }

    pub(super) fn traffic_of<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<TrafficPolicyObject>> {
        of_namespace(&self.traffic, namespace).map(|(_, policy)| policy)
    }

    /// What TrafficPolicies say of how this pod takes connections in.
    pub(super) fn inbounds_for<'a>(
        &'a self,
        pod: &'a Pod,
    ) -> impl Iterator<Item = (&'a NamespacedName, &'a Inbound)> {
        let candidates = self.inbound_selectors.candidates(&pod.id.namespace, &pod.labels).into_iter();
        candidates
            .filter_map(|id| Some((id, self.traffic.get(id)?.inbound.as_ref()?)))
            .filter(|(_, inbound)| inbound.selector.as_ref().is_none_or(|s| selects(s, &pod.labels)))
    }

    pub(super) fn slices_of<'a>(
        &'a self,
        service: &NamespacedName,
    ) -> impl Iterator<Item = &'a Arc<EndpointSlice>> {
        self.slices_of_service.get(service).into_iter().flatten().filter_map(|id| self.slices.get(id))
    }
}

/// Every Service that a route names, as parent, backend or mirror.
fn services_of_route(object: &RouteObject) -> BTreeSet<NamespacedName> {
    let parents = object.parents.iter().map(|parent| parent.service.clone());
    let rules = &object.route.rules;
    let backends = rules.iter().flat_map(|rule| rule.backends.iter().map(|b| b.service.clone()));
    let mirrors = rules.iter().flat_map(|rule| &rule.filters).filter_map(|filter| match filter {
        HttpFilter::Mirror { service, .. } => Some(service.clone()),
        _ => None,
    });
    parents.chain(backends).chain(mirrors).collect()
}
