//! Whose status may read otherwise after a change: routes and policies, and no more of them than the change touches.
//!
//! Status is what nodes need ([`Index::wanted_for`]) and what an object stands for ([`Index::standing`], [`Index::attached`]...). Whatever
//! one of these asks for is followed here to who asks: a test compares after any change. Start at [`Index::concerned_by`].

use std::collections::BTreeSet;

use weft_proto::identity::NamespacedName;
use weft_proto::model::{ResourceKey, RouteKind};

use super::Index;
use super::objects::RouteName;
use crate::source::ObjectKey;
use crate::source::object::{Kind, Pod, TrafficPolicyObject};

fn route((id, kind): &RouteName) -> ObjectKey {
    ObjectKey { kind: Kind::of_route(*kind), id: id.clone() }
}

fn traffic(id: &NamespacedName) -> ObjectKey {
    ObjectKey { kind: Kind::TrafficPolicy, id: id.clone() }
}

pub(super) fn authorization(id: &NamespacedName) -> ObjectKey {
    ObjectKey { kind: Kind::AuthorizationPolicy, id: id.clone() }
}

/// Whether one may decide what the other asks for: for a Service, for all of the namespace, or for the same pods.
fn rivals(one: &TrafficPolicyObject, other: &TrafficPolicyObject) -> bool {
    let (a, b) = (&one.policy.services, &other.policy.services);
    let of_clients = one.for_clients && other.for_clients;
    (one.inbound.is_some() && other.inbound.is_some())
        || (of_clients && (a.is_empty() || b.is_empty() || a.iter().any(|service| b.contains(service))))
}

impl Index {
    /// Those that refer to an object as it stands now, or are compared with it. What else its change does to nodes comes with what is
    /// derived from it.
    pub(super) fn concerned_by(&self, key: &ObjectKey, concerned: &mut BTreeSet<ObjectKey>) {
        let id = &key.id;
        match key.kind {
            Kind::Pod => {
                if let Some(pod) = self.objects.pods.get(id) {
                    let policies = self.objects.policies_for(pod);
                    concerned.extend(policies.map(|policy| authorization(&policy.policy.id)));
                    concerned.extend(self.traffic_about(pod));
                }
            }
            Kind::Service => {
                concerned.extend(self.objects.routes_naming(id).map(route));
                let namespace = self.objects.traffic_of(&id.namespace);
                let named = namespace.filter(|other| {
                    let services = &other.policy.services;
                    services.contains(&id.name) || (other.for_clients && services.is_empty())
                });
                concerned.extend(named.map(|other| traffic(&other.policy.id)));
            }
            Kind::HttpRoute => self.concerned_by_route(&(id.clone(), RouteKind::Http), concerned),
            Kind::GrpcRoute => self.concerned_by_route(&(id.clone(), RouteKind::Grpc), concerned),
            Kind::ReferenceGrant => concerned.extend(self.objects.routes_into(&id.namespace).map(route)),
            Kind::AuthorizationPolicy => drop(concerned.insert(key.clone())),
            Kind::TrafficPolicy => {
                concerned.insert(key.clone());
                let Some(own) = self.objects.traffic.get(id) else { return };
                let others = self.objects.traffic_of(&id.namespace).filter(|other| rivals(own, other));
                concerned.extend(others.map(|other| traffic(&other.policy.id)));
            }
            Kind::Namespace | Kind::Node | Kind::ServiceAccount | Kind::EndpointSlice | Kind::JoinToken => {}
        }
    }

    /// Routes of one parent are compared with each other.
    fn concerned_by_route(&self, name: &RouteName, concerned: &mut BTreeSet<ObjectKey>) {
        concerned.insert(route(name));
        let Some(own) = self.objects.routes.get(name) else { return };
        for parent in &own.parents {
            concerned.extend(self.objects.routes_naming(&parent.service).map(route));
        }
    }

    /// TrafficPolicies that say how this pod takes connections in.
    pub(super) fn traffic_about<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = ObjectKey> + use<'a> {
        self.objects.inbounds_for(pod).map(|(id, _)| traffic(id))
    }

    /// A node begins or ceases to need anything at all.
    pub(super) fn concerned_by_interest(&self, concerned: &mut BTreeSet<ObjectKey>) {
        concerned.extend(self.objects.routes.keys().map(route));
        concerned.extend(self.objects.traffic.keys().map(traffic));
    }

    /// Objects whose status counts nodes that hold this resource.
    pub fn counted_by(&self, key: &ResourceKey) -> Vec<ObjectKey> {
        match key {
            ResourceKey::HttpRoute(id) => vec![ObjectKey { kind: Kind::HttpRoute, id: id.clone() }],
            ResourceKey::GrpcRoute(id) => vec![ObjectKey { kind: Kind::GrpcRoute, id: id.clone() }],
            ResourceKey::AuthorizationPolicy(id) => vec![authorization(id)],
            ResourceKey::TrafficPolicy(id) => vec![traffic(id)],
            ResourceKey::Workload(uid) => {
                let pod = self.workloads.get(uid).and_then(|entry| self.objects.pods.get(&entry.pod));
                pod.map(|pod| self.traffic_about(pod).collect()).unwrap_or_default()
            }
            ResourceKey::Mesh | ResourceKey::Service(_) | ResourceKey::Endpoint { .. } => Vec::new(),
        }
    }
}

#[cfg(test)]
#[path = "concerned_tests.rs"]
mod tests;
