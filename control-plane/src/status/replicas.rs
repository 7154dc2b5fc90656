//! What each replica knows of its own nodes, published for the one that writes status.
//!
//! A replica hears the answers of the nodes that are connected to it, and of no others. So each keeps a Lease of its own
//! (`weft-control.<identity>`) with an annotation per object (its generation, how many of its nodes have it, and the first that do not)
//! and one per connected node. Over the replicas that are alive this is what status says. A change writes the annotations that changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::nodes::{Others, key_of};
use crate::push::Held;

const LABEL: &str = "weft.dev/replica";
const OBJECT: &str = "have.weft.dev/";
const NODE: &str = "node.weft.dev/";
/// How many nodes are connected, also where that is more than are told of.
const NODES: &str = "weft.dev/nodes";
const RENEWAL: Duration = Duration::from_secs(10);
/// Not renewed for so long: its nodes are elsewhere by now.
const ALIVE_MAX: Duration = Duration::from_secs(30);
/// Annotations of an object are bounded to 256 KiB in all; one of these has about 64 bytes without names.
const OBJECTS_MAX: usize = 3000;
/// Of 30 bytes each. The nodes of a replica that has more are not told of, only their number.
const NODES_MAX: usize = 1000;
/// Of the names of nodes that do not have an object, over all objects: beyond, the numbers stay.
const NAMES_BYTES_MAX: usize = 24 * 1024;

/// By the object's UID: its generation, and this replica's nodes.
pub(super) type Have = BTreeMap<String, (i64, Held)>;

/// Pure. What the other replicas have to know of this one.
fn told(have: &Have, connected: &BTreeSet<Arc<str>>) -> BTreeMap<String, String> {
    let mut names_bytes = 0;
    let objects = have.iter().filter(|(_, (_, held))| held.have > 0 || !held.lack.is_empty());
    let objects = objects.take(OBJECTS_MAX).map(|(uid, (generation, held))| {
        let mut value = format!("{generation}:{}", held.have);
        let names = held.lack.join(",");
        names_bytes += names.len() + 1;
        if !names.is_empty() && names_bytes <= NAMES_BYTES_MAX {
            value = format!("{value}:{names}");
        }
        (format!("{OBJECT}{uid}"), value)
    });
    let nodes = connected.iter().filter(|_| connected.len() <= NODES_MAX);
    let nodes = nodes.map(|node| (format!("{NODE}{:016x}", key_of(node)), String::new()));
    objects.chain(nodes).chain([(NODES.to_owned(), connected.len().to_string())]).collect()
}

/// Pure. Adds what another replica told.
fn hear(others: &mut Others, annotations: BTreeMap<String, String>) {
    let (mut nodes, mut all_nodes) = (0, None);
    for (key, value) in annotations {
        if let Some(node) = key.strip_prefix(NODE) {
            nodes += 1;
            others.connected.extend(u64::from_str_radix(node, 16));
        } else if key == NODES {
            all_nodes = value.parse().ok();
        } else if let Some(uid) = key.strip_prefix(OBJECT) {
            let mut parts = value.splitn(3, ':');
            let generation = parts.next().and_then(|part| part.parse().ok());
            let have: Option<usize> = parts.next().and_then(|part| part.parse().ok());
            let Some((generation, have)) = generation.zip(have) else { continue };
            let of_object = others.objects.entry((uid.to_owned(), generation)).or_default();
            of_object.have = of_object.have.saturating_add(have);
            of_object
                .lack
                .extend(parts.next().into_iter().flat_map(|names| names.split(',')).map(Into::into));
        }
    }
    others.more_connected |= all_nodes != Some(nodes);
}

pub(super) struct Replicas {
    api: Api<Lease>,
    name: String,
    published: BTreeMap<String, String>,
    renewed: Option<Instant>,
    /// Other replicas: what was last seen of each, and since when it is so.
    seen: HashMap<String, (Option<String>, Instant)>,
}

impl Replicas {
    pub(super) fn new(api: Api<Lease>, identity: &str) -> Self {
        let name = format!("weft-control.{identity}");
        Self { api, name, published: BTreeMap::new(), renewed: None, seen: HashMap::new() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Writes what changed since the last time, and a sign of life.
    pub(super) async fn publish(&mut self, have: &Have, connected: &BTreeSet<Arc<str>>) -> kube::Result<()> {
        let next = told(have, connected);
        let due = self.renewed.is_none_or(|at| at.elapsed() >= RENEWAL);
        if next == self.published && !due {
            return Ok(());
        }
        let first = self.renewed.is_none();
        let mut annotations = serde_json::Map::new();
        for (key, value) in next.iter().filter(|(key, value)| self.published.get(*key) != Some(value)) {
            annotations.insert(key.clone(), value.clone().into());
        }
        for key in self.published.keys().filter(|key| !next.contains_key(*key)) {
            annotations.insert(key.clone(), Value::Null);
        }
        let patch = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": self.name, "labels": { LABEL: "true" }, "annotations": annotations },
            "spec": {
                "holderIdentity": self.name,
                "leaseDurationSeconds": 30,
                "renewTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(Timestamp::now()),
            },
        });
        if first {
            let lease: Lease = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
            self.api.create(&kube::api::PostParams::default(), &lease).await?;
        } else {
            let patched = self.api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await;
            if let Err(error) = patched {
                // Deleted by another hand: the next one begins anew.
                if matches!(&error, kube::Error::Api(status) if status.code == 404) {
                    self.renewed = None;
                    self.published.clear();
                }
                return Err(error);
            }
        }
        self.renewed = Some(Instant::now());
        self.published = next;
        Ok(())
    }

    /// What the others tell, together; takes away what replicas that are gone left.
    pub(super) async fn others(&mut self) -> kube::Result<Others> {
        let leases = self.api.list(&ListParams::default().labels(LABEL)).await?;
        let mut others = Others::default();
        let mut found = Vec::new();
        for lease in leases.items {
            let name = lease.metadata.name.clone().unwrap_or_default();
            if name == self.name {
                continue;
            }
            found.push(name.clone());
            let version = lease.metadata.resource_version.clone();
            let seen = self.seen.entry(name.clone()).or_insert_with(|| (version.clone(), Instant::now()));
            if seen.0 != version {
                *seen = (version, Instant::now());
            }
            let silent = seen.1.elapsed();
            if silent >= 2 * ALIVE_MAX {
                self.api.delete(&name, &DeleteParams::default()).await?;
            }
            if silent >= ALIVE_MAX {
                continue;
            }
            hear(&mut others, lease.metadata.annotations.unwrap_or_default());
        }
        self.seen.retain(|name, _| found.contains(name));
        Ok(others)
    }

    /// At the end of this replica.
    pub(super) async fn withdraw(&self) {
        let _ = self.api.delete(&self.name, &DeleteParams::default()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The API server's bound, which counts keys and values.
    const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

    fn names(all: &[&str]) -> Vec<Arc<str>> {
        all.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn what_one_replica_tells_another_one_hears() {
        let uid = |last: char| format!("0b1c2d3e-0000-4000-8000-00000000000{last}");
        let have: Have = [
            (uid('a'), (3, Held { have: 2, lack: names(&["node-3", "node-4"]) })),
            (uid('b'), (1, Held { have: 0, lack: names(&["node-3"]) })),
            (uid('c'), (1, Held { have: 5, lack: Vec::new() })),
            (uid('d'), (1, Held::default())),
        ]
        .into();
        let connected = names(&["node-3", "node-4", "node-5"]).into_iter().collect();
        let annotations = told(&have, &connected);
        assert!(!annotations.contains_key(&format!("{OBJECT}{}", uid('d'))), "{annotations:?}");

        let mut others = Others::default();
        hear(&mut others, annotations.clone());
        let lack = |at: &str, generation| {
            let of_object = &others.objects[&(uid(at.chars().next().unwrap()), generation)];
            (of_object.have, of_object.lack.iter().map(String::as_str).collect::<Vec<_>>())
        };
        assert_eq!(lack("a", 3), (2, vec!["node-3", "node-4"]));
        assert_eq!(lack("b", 1), (0, vec!["node-3"]));
        assert_eq!(lack("c", 1), (5, vec![]));
        assert_eq!(others.connected, ["node-3", "node-4", "node-5"].into_iter().map(key_of).collect());
        assert!(!others.more_connected);

        // A third replica's come on top; what somebody else wrote there does no harm.
        let foreign = ["1", "1:x", "x:1", "::", ""].iter().enumerate();
        let foreign = foreign.map(|(at, value)| (format!("{OBJECT}{at}"), (*value).to_owned()));
        hear(&mut others, annotations.into_iter().chain(foreign).collect());
        assert_eq!((others.objects.len(), others.objects[&(uid('a'), 3)].have), (3, 4));
    }

    #[test]
    fn however_much_there_is_to_tell_a_lease_takes_it_and_numbers_stay() {
        let long = "n".repeat(240);
        let node = |at: usize| Arc::from(format!("{long}-{at:05}"));
        let have: Have = (0..2 * OBJECTS_MAX)
            .map(|at| {
                let lack = (0..super::super::nodes::NAMED_MAX).map(node).collect();
                (
                    format!("0b1c2d3e-0000-4000-8000-{at:012}"),
                    (i64::from(i32::MAX), Held { have: 9_999, lack }),
                )
            })
            .collect();
        let bytes = |told: &BTreeMap<String, String>| {
            told.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>()
        };
        for nodes in [NODES_MAX, 10 * NODES_MAX] {
            let annotations = told(&have, &(0..nodes).map(node).collect());
            assert!(bytes(&annotations) < ANNOTATIONS_BYTES_MAX, "{}", bytes(&annotations));
            let mut others = Others::default();
            hear(&mut others, annotations);
            assert_eq!(others.objects.len(), OBJECTS_MAX);
            assert!(others.objects.values().all(|of_object| of_object.have == 9_999));
            assert_eq!(others.more_connected, nodes > NODES_MAX);
            assert_eq!(others.connected.is_empty(), nodes > NODES_MAX);
        }
    }
}
