//! Which nodes have to hold what, for an object to have effect: what its status is counted from.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_proto::identity::NamespacedName;
use weft_proto::model::ResourceKey;

use super::Index;
use crate::source::ObjectKey;
use crate::source::object::Kind;

/// Resources with their versions, by node.
pub type Wanted = BTreeMap<Arc<str>, Vec<(ResourceKey, u64)>>;

impl Index {
    /// Nodes that need an object, with what it became for each.
    pub fn wanted_for(&self, object: &ObjectKey) -> Wanted {
        let id = object.id.clone();
        match object.kind {
            Kind::HttpRoute => self.wanted_of(&ResourceKey::HttpRoute(id)),
            Kind::GrpcRoute => self.wanted_of(&ResourceKey::GrpcRoute(id)),
            Kind::AuthorizationPolicy => self.wanted_of(&ResourceKey::AuthorizationPolicy(id)),
            Kind::TrafficPolicy => {
                let mut wanted = self.wanted_of(&ResourceKey::TrafficPolicy(id.clone()));
                // The mode of inbound connections reaches nodes as a property of their pods.
                for pod in self.objects.pods_selected_by_traffic(&id) {
                    let Some(uid) = self.uid_of_pod.get(&pod) else { continue };
                    let Some(entry) = self.workloads.get(uid).filter(|entry| entry.enrolled) else {
                        continue;
                    };
                    let resource = (ResourceKey::Workload(uid.clone()), entry.own.version);
                    wanted.entry(entry.node.clone()).or_default().push(resource);
                }
                wanted
            }
            _ => Wanted::new(),
        }
    }

    fn wanted_of(&self, key: &ResourceKey) -> Wanted {
        let of_node = |node: &Arc<str>| {
            let sent = self.wanted(node, key)?;
            Some((node.clone(), vec![(key.clone(), sent.version)]))
        };
        match key {
            // The few nodes where a selected pod runs, not each that there is.
            ResourceKey::AuthorizationPolicy(id) => {
                self.interest.nodes_of_policy(id).iter().filter_map(of_node).collect()
            }
            _ => self.interest.active_nodes().filter_map(of_node).collect(),
        }
    }

    /// Whether a node's answer about this resource is worth remembering: status is counted from it.
    pub fn counts(&self, node: &str, key: &ResourceKey) -> bool {
        match key {
            ResourceKey::HttpRoute(_)
            | ResourceKey::GrpcRoute(_)
            | ResourceKey::AuthorizationPolicy(_)
            | ResourceKey::TrafficPolicy(_) => true,
            ResourceKey::Workload(uid) => self.workloads.get(uid).is_some_and(|entry| *entry.node == *node),
            _ => false,
        }
    }

    /// Services that a TrafficPolicy names and that are not there, and whether that is all that it asks for.
    pub(super) fn missing_targets(&self, object: &ObjectKey) -> (Vec<String>, bool) {
        let policy = self.objects.traffic.get(&object.id).filter(|_| object.kind == Kind::TrafficPolicy);
        let Some(own) = policy else { return (Vec::new(), false) };
        let named = own.policy.services.iter().filter_map(|name| {
            let id = NamespacedName { namespace: object.id.namespace.clone(), name: name.clone() };
            (!self.objects.services.contains_key(&id)).then(|| id.to_string())
        });
        let missing: Vec<String> = named.collect();
        let all = !missing.is_empty() && missing.len() == own.policy.services.len() && own.inbound.is_none();
        (missing, all)
    }
}
