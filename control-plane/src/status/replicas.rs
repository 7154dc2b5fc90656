//! What each replica knows of its own nodes, published for the one that writes status.
//!
//! A replica hears the answers of the nodes that are connected to it, and of no others. So each keeps a Lease of its own
//! (`weft-control.<identity>`) with one annotation per object: the generation, and how many of its nodes have it. The sum
//! over the replicas that are alive is what status says. A change writes the annotations that changed.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

const LABEL: &str = "weft.dev/replica";
const PREFIX: &str = "have.weft.dev/";
const RENEWAL: Duration = Duration::from_secs(10);
/// Not renewed for so long: its nodes are elsewhere by now.
const ALIVE_MAX: Duration = Duration::from_secs(30);
/// Annotations of an object are bounded to 256 KiB in all; one of these has about 64 bytes.
const OBJECTS_MAX: usize = 3500;

/// Of one object: its generation, and the nodes that have it.
pub(super) type Have = BTreeMap<String, (i64, usize)>;

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
    pub(super) async fn publish(&mut self, have: &Have) -> kube::Result<()> {
        let next: BTreeMap<String, String> = have
            .iter()
            .filter(|(_, (_, nodes))| *nodes > 0)
            .take(OBJECTS_MAX)
            .map(|(uid, (generation, nodes))| (format!("{PREFIX}{uid}"), format!("{generation}:{nodes}")))
            .collect();
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

    /// What the others have, summed, by object and generation; takes away what replicas that are gone left.
    pub(super) async fn others(&mut self) -> kube::Result<HashMap<(String, i64), usize>> {
        let leases = self.api.list(&ListParams::default().labels(LABEL)).await?;
        let mut sums = HashMap::new();
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
            for (key, value) in lease.metadata.annotations.unwrap_or_default() {
                let have = key.strip_prefix(PREFIX).zip(value.split_once(':'));
                if let Some((uid, (generation, nodes))) = have
                    && let (Ok(generation), Ok(nodes)) = (generation.parse::<i64>(), nodes.parse::<usize>())
                {
                    *sums.entry((uid.to_owned(), generation)).or_insert(0) += nodes;
                }
            }
        }
        self.seen.retain(|name, _| found.contains(name));
        Ok(sums)
    }

    /// At the end of this replica.
    pub(super) async fn withdraw(&self) {
        let _ = self.api.delete(&self.name, &DeleteParams::default()).await;
    }
}
