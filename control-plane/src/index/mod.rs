//! The index: typed objects in, each node's resources out. Pure: no I/O, no clock.
//!
//! Objects are kept by kind in [`Objects`]; a change marks the derived resources that depend on it, and only those are
//! computed again (`derive`). Who needs a resource is a question of counts per node (`interest`), so an answer costs a
//! look-up. Start at [`Index::apply`] and [`Index::wanted`].

mod concerned;
mod conflicts;
mod derive;
mod interest;
mod objects;
mod programmed;
mod references;
mod selectors;
mod status;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use weft_proto::convert;
use weft_proto::identity::{NamespacedName, PodUid, TrustDomain};
use weft_proto::model::{Mesh, Resource, ResourceKey, Revision, RouteKind};
use weft_proto::v1;

use self::interest::Interest;
pub use self::objects::Objects;
use self::objects::RouteName;
pub use self::programmed::Wanted;
pub use self::references::{NotAccepted, Referrer};
pub use self::status::{PolicyStatus, RouteStatus};
use crate::source::object::{JoinToken, Kind, Pod};
use crate::source::{Event, Object, ObjectKey};

/// A resource as it is sent, encoded once for all nodes.
#[derive(Debug, PartialEq)]
pub struct Sent {
    pub key: ResourceKey,
    pub version: u64,
    /// A `v1::Resource`.
    pub encoded: Bytes,
}

impl Sent {
    fn new(resource: &Resource) -> Arc<Self> {
        let wire = convert::resource_to_wire(resource);
        let encoded = wire.encode_to_vec().into();
        Arc::new(Self { key: convert::key_of(resource), version: wire.version, encoded })
    }

    /// Unpacked, for people.
    pub fn resource(&self) -> v1::Resource {
        v1::Resource::decode(self.encoded.clone()).unwrap_or_default()
    }
}

/// What a batch of events changed, for those who push.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// Of interest to every node; with what was [common](Index::common) before.
    pub everywhere: BTreeMap<ResourceKey, Option<u64>>,
    /// Of interest to one node.
    pub by_node: BTreeMap<Arc<str>, BTreeSet<ResourceKey>>,
    /// Nodes for which everything may differ.
    pub whole: BTreeSet<Arc<str>>,
    /// Routes and policies whose status may read otherwise, even if no node is told anything.
    pub status: BTreeSet<ObjectKey>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.everywhere.is_empty() && self.by_node.is_empty() && self.whole.is_empty()
    }

    /// `before`: as it was right before; what is said first of a batch counts.
    fn everywhere(&mut self, key: ResourceKey, before: Option<u64>) {
        self.everywhere.entry(key).or_insert(before);
    }

    fn for_node(&mut self, node: &Arc<str>, key: ResourceKey) {
        self.by_node.entry(node.clone()).or_default().insert(key);
    }
}

/// A workload as its own node sees it (with its policies), and as the others do.
#[derive(Debug, PartialEq)]
struct WorkloadEntry {
    pod: NamespacedName,
    node: Arc<str>,
    own: Arc<Sent>,
    /// None: nobody else can reach it, since it has no address yet.
    others: Option<Arc<Sent>>,
    policies: BTreeSet<NamespacedName>,
    enrolled: bool,
}

/// A workload as this node should hold it; `active`: whether it has enrolled pods.
fn of_workload<'a>(entry: &'a WorkloadEntry, node: &str, active: bool) -> Option<&'a Arc<Sent>> {
    match &entry.others {
        _ if *entry.node == *node => Some(&entry.own),
        others => others.as_ref().filter(|_| active),
    }
}

#[derive(Debug, PartialEq)]
struct RouteEntry {
    sent: Arc<Sent>,
    /// Some parent is in the route's own namespace, so that every client follows it.
    producer: bool,
}

/// Derived resources that have to be computed again.
#[derive(Debug, Default)]
struct Dirty {
    pods: BTreeSet<NamespacedName>,
    services: BTreeSet<NamespacedName>,
    endpoints: BTreeSet<NamespacedName>,
    routes: BTreeSet<RouteName>,
    mesh: bool,
    status: BTreeSet<ObjectKey>,
}

#[derive(Debug)]
pub struct Index {
    trust_domain: TrustDomain,
    /// Weft's: never enrolled, or it would wait for itself.
    own_namespace: Arc<str>,
    roots: Vec<Vec<u8>>,
    revision: Revision,
    objects: Objects,
    mesh: Option<Arc<Sent>>,
    workloads: BTreeMap<PodUid, WorkloadEntry>,
    uid_of_pod: BTreeMap<NamespacedName, PodUid>,
    services: BTreeMap<NamespacedName, Arc<Sent>>,
    endpoints: BTreeMap<NamespacedName, BTreeMap<std::net::IpAddr, Arc<Sent>>>,
    routes: BTreeMap<RouteName, RouteEntry>,
    authorization: BTreeMap<NamespacedName, Arc<Sent>>,
    traffic: BTreeMap<NamespacedName, Arc<Sent>>,
    interest: Interest,
}

impl Index {
    pub fn new(trust_domain: TrustDomain, own_namespace: &str) -> Self {
        Self {
            trust_domain,
            own_namespace: own_namespace.into(),
            roots: Vec::new(),
            revision: Revision::default(),
            objects: Objects::default(),
            mesh: None,
            workloads: BTreeMap::new(),
            uid_of_pod: BTreeMap::new(),
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            routes: BTreeMap::new(),
            authorization: BTreeMap::new(),
            traffic: BTreeMap::new(),
            interest: Interest::default(),
        }
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The trust bundle that every node gets.
    pub fn set_roots(&mut self, roots: Vec<Vec<u8>>) -> Changes {
        self.roots = roots;
        let mut changes = Changes::default();
        self.derive_mesh(&mut changes);
        if !changes.is_empty() {
            self.revision.0 += 1;
        }
        changes
    }

    fn derive_mesh(&mut self, changes: &mut Changes) {
        // Without roots there is nothing that a node could use.
        if self.roots.is_empty() {
            return;
        }
        let enrolled = self.objects.enrolled_namespaces().filter(|name| **name != self.own_namespace);
        let mesh = Mesh {
            trust_domain: self.trust_domain.clone(),
            roots: self.roots.clone(),
            enrolled_namespaces: enrolled.cloned().collect(),
        };
        let sent = Some(Sent::new(&Resource::Mesh(Arc::new(mesh))));
        if self.mesh != sent {
            self.mesh = sent;
            changes.everywhere(ResourceKey::Mesh, None);
        }
    }

    /// Takes a batch in, and says which resources it may have changed for whom.
    pub fn apply(&mut self, events: Vec<Event>) -> Changes {
        let mut dirty = Dirty::default();
        let mut changes = Changes::default();
        for event in events {
            match event {
                Event::Apply(object) => self.apply_object(object, &mut dirty, &mut changes),
                Event::Delete(key) => self.delete_object(&key, &mut dirty, &mut changes),
                Event::Reset(objects) => {
                    let keep: BTreeSet<ObjectKey> = objects.iter().map(Object::key).collect();
                    for key in self.objects.keys().into_iter().filter(|key| !keep.contains(key)) {
                        self.delete_object(&key, &mut dirty, &mut changes);
                    }
                    for object in objects {
                        self.apply_object(object, &mut dirty, &mut changes);
                    }
                }
            }
        }
        if dirty.mesh {
            self.derive_mesh(&mut changes);
        }
        changes.status.append(&mut dirty.status);
        self.derive(dirty, &mut changes);
        if !changes.is_empty() {
            self.revision.0 += 1;
        }
        changes
    }

    fn apply_object(&mut self, object: Object, dirty: &mut Dirty, changes: &mut Changes) {
        let key = object.key();
        if self.objects.find(&key).as_ref() == Some(&object) {
            return;
        }
        // What depended on the old state, then what depends on the new.
        self.mark(&key, dirty);
        self.objects.insert(object);
        self.mark(&key, dirty);
        self.policy_changed(&key, changes);
    }

    fn delete_object(&mut self, key: &ObjectKey, dirty: &mut Dirty, changes: &mut Changes) {
        self.mark(key, dirty);
        self.objects.remove(key);
        self.mark(key, dirty);
        self.policy_changed(key, changes);
    }

    /// Marks what is derived from an object, as it stands now.
    fn mark(&self, key: &ObjectKey, dirty: &mut Dirty) {
        let id = &key.id;
        self.concerned_by(key, &mut dirty.status);
        match key.kind {
            Kind::Namespace => {
                dirty.mesh = true;
                dirty.pods.extend(self.objects.pods_of(&id.name).map(|pod| pod.id.clone()));
            }
            Kind::Node => {
                for pod in self.objects.pods_on(&id.name) {
                    dirty.pods.insert(pod.id.clone());
                    dirty.endpoints.extend(self.objects.services_selecting(pod).map(|s| s.id.clone()));
                }
            }
            Kind::ServiceAccount | Kind::JoinToken => {}
            Kind::Pod => {
                dirty.pods.insert(id.clone());
                if let Some(pod) = self.objects.pods.get(id) {
                    dirty.endpoints.extend(self.objects.services_selecting(pod).map(|s| s.id.clone()));
                }
                dirty.endpoints.extend(self.objects.services_naming(id));
            }
            Kind::Service => {
                dirty.services.insert(id.clone());
                dirty.endpoints.insert(id.clone());
                dirty.routes.extend(self.objects.routes_naming(id).cloned());
                dirty.pods.extend(self.objects.pods_selected_by_service(id));
            }
            Kind::EndpointSlice => {
                if let Some(slice) = self.objects.slices.get(id) {
                    dirty.endpoints.insert(slice.service.clone());
                }
            }
            Kind::HttpRoute => {
                dirty.routes.insert((id.clone(), RouteKind::Http));
            }
            Kind::GrpcRoute => {
                dirty.routes.insert((id.clone(), RouteKind::Grpc));
            }
            Kind::ReferenceGrant => {
                dirty.routes.extend(self.objects.routes_into(&id.namespace).cloned());
            }
            Kind::AuthorizationPolicy => dirty.pods.extend(self.objects.pods_selected_by_policy(id)),
            Kind::TrafficPolicy => dirty.pods.extend(self.objects.pods_selected_by_traffic(id)),
        }
    }

    /// Whether any object speaks of this node.
    pub fn names_node(&self, node: &str) -> bool {
        self.objects.nodes.contains_key(node)
            || self.workloads.values().any(|workload| *workload.node == *node)
            || self.objects.tokens.values().any(|token| *token.node == *node)
    }

    /// Every resource that a node should hold.
    pub fn all(&self, node: &str) -> Vec<&Arc<Sent>> {
        let mut all: Vec<&Arc<Sent>> = self.mesh.iter().collect();
        let active = self.interest.active(node);
        let workloads = self.workloads.values().filter_map(|entry| of_workload(entry, node, active));
        all.extend(workloads);
        if active {
            all.extend(self.services.values());
            all.extend(self.endpoints.values().flat_map(BTreeMap::values));
            let keys = self.routes.keys().map(|(id, kind)| kind.key(id.clone()));
            let keys = keys.chain(self.authorization.keys().cloned().map(ResourceKey::AuthorizationPolicy));
            all.extend(keys.filter_map(|key| self.wanted(node, &key)));
            all.extend(self.traffic.values());
        }
        all
    }

    /// What every node with enrolled pods holds of this key, unless it is told something else of it than the others; its
    /// version. What a node holds is kept as the difference to this: it takes as much memory as the node is special.
    pub fn common(&self, key: &ResourceKey) -> Option<u64> {
        let sent = match key {
            ResourceKey::Mesh | ResourceKey::AuthorizationPolicy(_) => None,
            ResourceKey::Workload(uid) => self.workloads.get(uid)?.others.as_ref(),
            ResourceKey::Service(id) => self.services.get(id),
            ResourceKey::Endpoint { service, ip } => self.endpoints.get(service)?.get(ip),
            ResourceKey::HttpRoute(id) => self.producer(id, RouteKind::Http),
            ResourceKey::GrpcRoute(id) => self.producer(id, RouteKind::Grpc),
            ResourceKey::TrafficPolicy(id) => self.traffic.get(id),
        };
        sent.map(|sent| sent.version)
    }

    fn producer(&self, id: &NamespacedName, kind: RouteKind) -> Option<&Arc<Sent>> {
        let entry = self.routes.get(&(id.clone(), kind)).filter(|entry| entry.producer)?;
        Some(&entry.sent)
    }

    /// Every key that is [common](Self::common).
    pub fn all_common(&self) -> impl Iterator<Item = &ResourceKey> {
        let workloads = self.workloads.values().filter_map(|entry| entry.others.as_ref());
        let routes = self.routes.values().filter(|entry| entry.producer).map(|entry| &entry.sent);
        let endpoints = self.endpoints.values().flat_map(BTreeMap::values);
        let all = workloads.chain(self.services.values()).chain(endpoints).chain(routes);
        all.chain(self.traffic.values()).map(|sent| &sent.key)
    }

    /// Whether a node has enrolled pods.
    pub fn is_active(&self, node: &str) -> bool {
        self.interest.active(node)
    }

    /// The resource as this node should hold it. None: it should not.
    pub fn wanted(&self, node: &str, key: &ResourceKey) -> Option<&Arc<Sent>> {
        let active = self.interest.active(node);
        match key {
            ResourceKey::Mesh => self.mesh.as_ref(),
            ResourceKey::Workload(uid) => of_workload(self.workloads.get(uid)?, node, active),
            _ if !active => None,
            ResourceKey::Service(id) => self.services.get(id),
            ResourceKey::Endpoint { service, ip } => self.endpoints.get(service)?.get(ip),
            ResourceKey::HttpRoute(id) => self.wanted_route(node, id, RouteKind::Http),
            ResourceKey::GrpcRoute(id) => self.wanted_route(node, id, RouteKind::Grpc),
            ResourceKey::AuthorizationPolicy(id) => {
                self.interest.needs_policy(node, id).then(|| self.authorization.get(id))?
            }
            ResourceKey::TrafficPolicy(id) => self.traffic.get(id),
        }
    }

    fn wanted_route(&self, node: &str, id: &NamespacedName, kind: RouteKind) -> Option<&Arc<Sent>> {
        let entry = self.routes.get(&(id.clone(), kind))?;
        (entry.producer || self.interest.has_pods_of(node, &id.namespace)).then_some(&entry.sent)
    }

    /// The pod of a certificate request, whatever state it is in.
    pub fn pod_by_uid(&self, uid: &PodUid) -> Option<&Arc<Pod>> {
        self.objects.pod_ids_by_uid.get(uid).and_then(|id| self.objects.pods.get(id))
    }

    /// Whether the mesh takes this pod in: namespace label, pod label; never a pod in the host's network or of Weft itself.
    pub fn is_enrolled(&self, pod: &Pod) -> bool {
        let namespace = || self.objects.namespaces.get(&pod.id.namespace).is_some_and(|n| n.enrolled);
        !pod.host_network && pod.id.namespace != self.own_namespace && pod.mesh.unwrap_or_else(namespace)
    }

    pub fn join_tokens(&self) -> impl Iterator<Item = &Arc<JoinToken>> {
        self.objects.tokens.values()
    }
}
