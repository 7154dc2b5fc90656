//! The configuration as the data path sees it: immutable and whole.
//!
//! A connection takes one [`Snapshot`] and decides by it; a new one replaces the old as a whole. [`apply`] makes the
//! next one out of the former and a list of changes, at a cost in proportion to the changes: all maps are
//! [`shards::ShardMap`]s, and routes are compiled again only for Services whose routes changed.

mod apply;
#[cfg(test)]
pub(crate) mod fixtures;
mod shards;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use weft_proto::convert::key_of;
use weft_proto::identity::{NamespacedName, PodUid};
use weft_proto::model::{
    AppProtocol, AuthorizationPolicy, Endpoint, HttpRoute, Mesh, PolicyAction, Resource, ResourceKey,
    Revision, RouteKind, Service, ServicePort, TrafficPolicy, Version, Workload,
};

pub use apply::Change;

use crate::route::RouteTable;
use shards::ShardMap;

/// A Service with what belongs to it.
#[derive(Debug, Clone)]
pub struct ServiceEntry {
    pub service: Arc<Service>,
    /// In a stable order (by address).
    pub endpoints: Vec<Arc<Endpoint>>,
    pub traffic_policy: Option<Arc<TrafficPolicy>>,
    /// The routes of all its ports and client namespaces, compiled.
    pub routes: Arc<RouteTable>,
}

impl ServiceEntry {
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.service.ports.iter().find(|candidate| candidate.port == port)
    }
}

/// What a pod declares to speak on a port.
pub fn port_protocol(workload: &Workload, port: u16) -> AppProtocol {
    workload.port_protocols.get(&port).copied().unwrap_or_default()
}

/// Routes of different kinds may have the same name.
type RouteName = (NamespacedName, RouteKind);

/// What is known about a Service's name; the Service itself may come later than its endpoints and routes.
#[derive(Debug, Clone, Default)]
struct ServiceParts {
    service: Option<Arc<Service>>,
    endpoints: BTreeMap<IpAddr, Arc<Endpoint>>,
    /// Sorted by name.
    routes: BTreeMap<RouteName, Arc<HttpRoute>>,
}

impl ServiceParts {
    fn is_empty(&self) -> bool {
        self.service.is_none() && self.endpoints.is_empty() && self.routes.is_empty()
    }
}

/// One immutable view of the cluster.
#[derive(Debug, Default, Clone)]
pub struct Snapshot {
    revision: Revision,
    mesh: Option<Arc<Mesh>>,
    versions: ShardMap<ResourceKey, Version>,
    workloads: ShardMap<PodUid, Arc<Workload>>,
    /// Pods of an address, the one that answers for it first: see `apply::precedence`.
    by_ip: ShardMap<IpAddr, Vec<Arc<Workload>>>,
    by_node: ShardMap<Arc<str>, Arc<BTreeMap<PodUid, Arc<Workload>>>>,
    parts: ShardMap<NamespacedName, Arc<ServiceParts>>,
    services: ShardMap<NamespacedName, Arc<ServiceEntry>>,
    /// The first by name answers for an address.
    by_vip: ShardMap<IpAddr, BTreeSet<NamespacedName>>,
    /// Names of the Services of a namespace, for policies that hold for all of it.
    by_namespace: ShardMap<Arc<str>, Arc<BTreeSet<NamespacedName>>>,
    routes: ShardMap<RouteName, Arc<HttpRoute>>,
    traffic_policies: ShardMap<Arc<str>, Arc<BTreeMap<NamespacedName, Arc<TrafficPolicy>>>>,
    authorization_policies: ShardMap<NamespacedName, Arc<AuthorizationPolicy>>,
}

impl Snapshot {
    pub fn revision(&self) -> Revision {
        self.revision
    }
    pub fn mesh(&self) -> Option<&Arc<Mesh>> {
        self.mesh.as_ref()
    }
    pub fn workload(&self, uid: &PodUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }
    /// Of several pods with one address the live one (an old pod may linger while its successor runs).
    pub fn workload_by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_ip.get(&ip.to_canonical())?.first()
    }
    pub fn service(&self, id: &NamespacedName) -> Option<&Arc<ServiceEntry>> {
        self.services.get(id)
    }
    pub fn service_by_vip(&self, ip: IpAddr) -> Option<&Arc<ServiceEntry>> {
        self.services.get(self.by_vip.get(&ip.to_canonical())?.first()?)
    }

    /// The policies that select this (local) workload. One that is named but unknown denies everything: a
    /// missing DENY must not let anybody in.
    pub fn policies(&self, workload: &Workload) -> Vec<Arc<AuthorizationPolicy>> {
        let known = |id: &NamespacedName| self.authorization_policies.get(id).cloned();
        let closed = |id: &NamespacedName| {
            let (id, action) = (id.clone(), PolicyAction::Allow);
            Arc::new(AuthorizationPolicy { id, action, rules: Vec::new() })
        };
        workload.authorization_policies.iter().map(|id| known(id).unwrap_or_else(|| closed(id))).collect()
    }

    /// The pods of a node, by UID.
    pub fn workloads_of_node<'a>(
        &'a self,
        node: &'a str,
    ) -> Box<dyn Iterator<Item = &'a Arc<Workload>> + 'a> {
        match self.by_node.get(node) {
            Some(pods) => Box::new(pods.values()),
            None => Box::new(std::iter::empty()),
        }
    }

    /// What this snapshot was made of, for the first message to a control plane.
    pub fn versions(&self) -> impl Iterator<Item = (&ResourceKey, Version)> {
        self.versions.iter().map(|(key, version)| (key, *version))
    }

    /// Everything, in no order, with the versions that came with it: for the configuration dump.
    pub fn held(&self) -> impl Iterator<Item = (Resource, Version)> {
        let parts = || self.parts.iter().map(|(_, parts)| parts);
        let of_mesh = self.mesh.iter().cloned().map(Resource::Mesh);
        let all = of_mesh
            .chain(self.workloads().cloned().map(Resource::Workload))
            .chain(parts().filter_map(|parts| parts.service.clone()).map(Resource::Service))
            .chain(parts().flat_map(|parts| parts.endpoints.values().cloned()).map(Resource::Endpoint))
            .chain(self.routes().cloned().map(Resource::HttpRoute))
            .chain(self.authorization_policies().cloned().map(Resource::AuthorizationPolicy))
            .chain(self.traffic_policies().cloned().map(Resource::TrafficPolicy));
        all.filter_map(|resource| {
            let version = *self.versions.get(&key_of(&resource))?;
            Some((resource, version))
        })
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter().map(|(_, workload)| workload)
    }
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.services.iter().map(|(_, entry)| entry)
    }
    /// Of both kinds.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<HttpRoute>> {
        self.routes.iter().map(|(_, route)| route)
    }
    pub fn authorization_policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.authorization_policies.iter().map(|(_, policy)| policy)
    }
    pub fn traffic_policies(&self) -> impl Iterator<Item = &Arc<TrafficPolicy>> {
        self.traffic_policies.iter().flat_map(|(_, policies)| policies.values())
    }
    /// How many resources it holds.
    pub fn resources(&self) -> usize {
        self.versions.len()
    }
}

/// The current snapshot, and word of each new one.
pub struct SnapshotHandle {
    current: ArcSwap<Snapshot>,
    changed: watch::Sender<Revision>,
}

impl Default for SnapshotHandle {
    fn default() -> Self {
        Self { current: ArcSwap::default(), changed: watch::Sender::new(Revision::default()) }
    }
}

impl SnapshotHandle {
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }
    /// Changes whenever a new snapshot is current.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.changed.subscribe()
    }
    /// Makes `next` current, then tells.
    pub fn replace(&self, next: Snapshot) {
        let revision = next.revision;
        self.current.store(Arc::new(next));
        self.changed.send_replace(revision);
    }
}
