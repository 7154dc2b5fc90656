//! What each replica knows of its own nodes, published for the one that writes status.
//!
//! A replica hears the answers of the nodes that are connected to it, and of no others. So each keeps a Lease of its own
//! (`weft-control.<identity>`) with an annotation per object (its generation, how many of its nodes have it, and the first that do not)
//! and one per connected node. Over the replicas that are alive this is what status says. A change writes the annotations that changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Request};
use serde::Deserialize;
use serde_json::{Value, json};

use super::ledger::News;
use super::nodes::{Differs, Others, key_of};
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

/// Pure. What the other replicas have to know of this one: the annotations of its Lease.
#[derive(Debug, Default)]
struct Told {
    annotations: BTreeMap<String, String>,
    /// Names of those that do not stand in the API server as they do here.
    unwritten: BTreeSet<String>,
    objects: usize,
    names_bytes: usize,
}

/// What the names of nodes in an object's annotation count for.
fn names_bytes(value: &str) -> usize {
    value.splitn(3, ':').nth(2).map_or(0, |names| names.len() + 1)
}

impl Told {
    fn set(&mut self, name: String, value: Option<String>) {
        if self.annotations.get(&name) == value.as_ref() {
            return;
        }
        match value {
            Some(value) => drop(self.annotations.insert(name.clone(), value)),
            None => drop(self.annotations.remove(&name)),
        }
        self.unwritten.insert(name);
    }

    /// `held`: with the object's generation; None: the object is gone.
    fn object(&mut self, uid: &str, held: Option<&(i64, Held)>) {
        let name = format!("{OBJECT}{uid}");
        let old = self.annotations.get(&name);
        if let Some(old) = old {
            self.objects -= 1;
            self.names_bytes -= names_bytes(old);
        }
        let worth_telling = held.filter(|(_, held)| held.have > 0 || !held.lack.is_empty());
        let value = worth_telling.filter(|_| self.objects < OBJECTS_MAX).map(|(generation, held)| {
            let numbers = format!("{generation}:{}", held.have);
            let names = format!("{numbers}:{}", held.lack.join(","));
            let fits = !held.lack.is_empty() && self.names_bytes + names_bytes(&names) <= NAMES_BYTES_MAX;
            if fits { names } else { numbers }
        });
        if let Some(value) = &value {
            self.objects += 1;
            self.names_bytes += names_bytes(value);
        }
        self.set(name, value);
    }

    fn nodes(&mut self, connected: &BTreeSet<Arc<str>>) {
        let told = connected.iter().filter(|_| connected.len() <= NODES_MAX);
        let told: BTreeSet<String> = told.map(|node| format!("{NODE}{:016x}", key_of(node))).collect();
        let gone = self.annotations.keys().filter(|name| name.starts_with(NODE) && !told.contains(*name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.set(name, None);
        }
        told.into_iter().for_each(|name| self.set(name, Some(String::new())));
        self.set(NODES.to_owned(), Some(connected.len().to_string()));
    }

    /// Of a Lease that has them all (`first`: that is not there yet), or of what changed.
    fn patch(&self, first: bool) -> serde_json::Map<String, Value> {
        if first {
            return self
                .annotations
                .iter()
                .map(|(name, value)| (name.clone(), value.clone().into()))
                .collect();
        }
        let value = |name| self.annotations.get(name).map_or(Value::Null, |value| value.clone().into());
        self.unwritten.iter().map(|name| (name.clone(), value(name))).collect()
    }
}

/// Pure. Adds what another replica told.
fn hear(others: &mut Others, annotations: &BTreeMap<String, String>) {
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

/// Of another replica's Lease what is read: what the API server adds to it (`managedFields`) is larger than the rest.
#[derive(Deserialize)]
struct Listed {
    items: Vec<ListedLease>,
}

#[derive(Deserialize)]
struct ListedLease {
    metadata: ListedMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListedMetadata {
    name: String,
    resource_version: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// An answer that says nothing new.
#[derive(Deserialize)]
struct Unread {}

/// Another replica.
struct Seen {
    version: String,
    since: Instant,
    annotations: BTreeMap<String, String>,
}

pub(super) struct Replicas {
    client: Client,
    leases: Api<Lease>,
    name: String,
    told: Told,
    renewed: Option<Instant>,
    /// The others, by the names of their Leases.
    seen: BTreeMap<String, Seen>,
    /// Those of them that are alive.
    alive: BTreeSet<String>,
    pub(super) others: Others,
}

impl Replicas {
    pub(super) fn new(client: Client, leases: Api<Lease>, identity: &str) -> Self {
        Self {
            client,
            leases,
            name: format!("weft-control.{identity}"),
            told: Told::default(),
            renewed: None,
            seen: BTreeMap::new(),
            alive: BTreeSet::new(),
            others: Others::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// To be told to the others.
    pub(super) fn tell(&mut self, news: &News, connected: Option<&BTreeSet<Arc<str>>>) {
        for (uid, held) in news {
            self.told.object(uid, held.as_ref());
        }
        if let Some(connected) = connected {
            self.told.nodes(connected);
        }
    }

    /// Writes what changed since the last time, and a sign of life.
    pub(super) async fn publish(&mut self) -> kube::Result<()> {
        let due = self.renewed.is_none_or(|at| at.elapsed() >= RENEWAL);
        if self.told.unwritten.is_empty() && !due {
            return Ok(());
        }
        let first = self.renewed.is_none();
        let patch = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": self.name, "labels": { LABEL: "true" }, "annotations": self.told.patch(first) },
            "spec": {
                "holderIdentity": self.name,
                "leaseDurationSeconds": 30,
                "renewTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(Timestamp::now()),
            },
        });
        if first {
            let lease: Lease = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
            self.leases.create(&PostParams::default(), &lease).await?;
        } else if let Err(error) = self.patch(&patch).await {
            // Deleted by another hand: the next one begins anew.
            if matches!(&error, kube::Error::Api(status) if status.code == 404) {
                self.renewed = None;
            }
            return Err(error);
        }
        self.renewed = Some(Instant::now());
        self.told.unwritten.clear();
        Ok(())
    }

    /// The answer is the whole Lease, and not looked at.
    async fn patch(&self, patch: &Value) -> kube::Result<()> {
        let request = Request::new(self.leases.resource_url());
        let request = request.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch));
        let _: Unread = self.client.request(request.map_err(kube::Error::BuildRequest)?).await?;
        Ok(())
    }

    /// Asks what the others tell now, together; takes away what replicas that are gone left. None: the same as before.
    pub(super) async fn hear(&mut self) -> kube::Result<Option<Differs>> {
        let others = ListParams::default().labels(LABEL).fields(&format!("metadata.name!={}", self.name));
        let request = Request::new(self.leases.resource_url()).list(&others);
        let listed: Listed = self.client.request(request.map_err(kube::Error::BuildRequest)?).await?;
        let mut changed = false;
        let mut found = BTreeSet::new();
        for ListedLease { metadata: ListedMetadata { name, resource_version, annotations } } in listed.items {
            found.insert(name.clone());
            let before = self.seen.get(&name);
            if before.is_some_and(|seen| seen.version == resource_version) {
                continue;
            }
            changed |= before.is_none_or(|seen| seen.annotations != annotations);
            let seen = Seen { version: resource_version, since: Instant::now(), annotations };
            self.seen.insert(name, seen);
        }
        self.seen.retain(|name, _| found.contains(name));
        for (name, seen) in &self.seen {
            if seen.since.elapsed() >= 2 * ALIVE_MAX {
                self.leases.delete(name, &DeleteParams::default()).await?;
            }
        }
        let alive = self.seen.iter().filter(|(_, seen)| seen.since.elapsed() < ALIVE_MAX);
        let alive: BTreeSet<String> = alive.map(|(name, _)| name.clone()).collect();
        if !changed && alive == self.alive {
            return Ok(None);
        }
        let mut others = Others::default();
        for name in &alive {
            if let Some(seen) = self.seen.get(name) {
                hear(&mut others, &seen.annotations);
            }
        }
        self.alive = alive;
        let differs = others.since(&self.others);
        self.others = others;
        Ok(Some(differs))
    }

    /// At the end of this replica.
    pub(super) async fn withdraw(&self) {
        let _ = self.leases.delete(&self.name, &DeleteParams::default()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The API server's bound, which counts keys and values.
    const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

    type Have = BTreeMap<String, (i64, Held)>;

    fn names(all: &[&str]) -> Vec<Arc<str>> {
        all.iter().map(|name| Arc::from(*name)).collect()
    }

    fn told(have: &Have, connected: &BTreeSet<Arc<str>>) -> Told {
        let mut told = Told::default();
        have.iter().for_each(|(uid, held)| told.object(uid, Some(held)));
        told.nodes(connected);
        told
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
        let annotations = told(&have, &connected).annotations;
        assert!(!annotations.contains_key(&format!("{OBJECT}{}", uid('d'))), "{annotations:?}");

        let mut others = Others::default();
        hear(&mut others, &annotations);
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
        hear(&mut others, &annotations.into_iter().chain(foreign).collect());
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
            let annotations = told(&have, &(0..nodes).map(node).collect()).annotations;
            assert!(bytes(&annotations) < ANNOTATIONS_BYTES_MAX, "{}", bytes(&annotations));
            let mut others = Others::default();
            hear(&mut others, &annotations);
            assert_eq!(others.objects.len(), OBJECTS_MAX);
            assert!(others.objects.values().all(|of_object| of_object.have == 9_999));
            assert_eq!(others.more_connected, nodes > NODES_MAX);
            assert_eq!(others.connected.is_empty(), nodes > NODES_MAX);
        }
    }

    #[test]
    fn what_is_written_is_what_changed() {
        let uid = |at: usize| format!("0b1c2d3e-0000-4000-8000-{at:012}");
        let held = |have, lack: &[&str]| (1, Held { have, lack: names(lack) });
        let have: Have = (0..1000).map(|at| (uid(at), held(10, &["node-3"]))).collect();
        let nodes = |all: &[&str]| names(all).into_iter().collect::<BTreeSet<_>>();
        let mut told = told(&have, &nodes(&["a", "b"]));
        assert_eq!((told.patch(true).len(), told.patch(false).len()), (1003, 1003));
        told.unwritten.clear();
        told.object(&uid(7), Some(&held(10, &["node-3"])));
        assert_eq!(told.patch(false).len(), 0);
        told.object(&uid(7), Some(&held(11, &[])));
        told.object(&uid(8), None);
        told.nodes(&nodes(&["b", "c"]));
        // Two objects, a node that went and one that came: of as many as before.
        let patch = told.patch(false);
        assert_eq!(patch.len(), 4);
        assert_eq!(patch[&format!("{OBJECT}{}", uid(7))], "1:11");
        assert_eq!(patch[&format!("{OBJECT}{}", uid(8))], Value::Null);
        assert_eq!((told.objects, told.names_bytes), (999, 998 * "node-3,".len()));
        assert_eq!(told.patch(true).len(), 1002);
    }
}
