//! Status in the Kubernetes API: what became of each route and policy, and which nodes have it; and events (`events`) on objects
//! that have no status of Weft's.
//!
//! Every replica publishes what its own nodes have (`replicas`); the one that holds the Lease (`lease`) writes. What stands
//! there already is not written again; writes are bounded per second, and made against the version that was read. Start at
//! [`run`]; what is written is decided in `route` and `policy`.

mod conditions;
mod events;
mod lease;
mod nodes;
mod policy;
mod replicas;
mod route;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::events::Events;
use self::nodes::{NAMED_MAX, Nodes, Others};
use self::replicas::{Have, Replicas};
use crate::index::Index;
use crate::push::Held;
use crate::source::ObjectKey;
use crate::source::kubernetes::resource_of;
use crate::source::subjects::Subject;
use crate::world::World;

/// Between two rounds: bounds how often everything is looked at, and how often one object is written.
const PAUSE: Duration = Duration::from_millis(500);
/// A round without a cause: other replicas may have more to say, a write may have failed.
const ROUND_INTERVAL: Duration = Duration::from_secs(2);
/// Of one request: an API server that hangs must not hold up the rest.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);
/// Of one round; the rest waits for the next: 50 a second.
const WRITES_OF_A_ROUND_MAX: usize = 25;
const MANAGER: &str = "weft-control";

/// Names this process among the replicas: the pod's name, and when it began.
fn identity() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let host: String =
        host.chars().filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-').collect();
    let started =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("{}-{started:x}", host.trim_matches('-'))
}

/// Runs until `stop`, with an API server only.
pub(crate) async fn run(world: Arc<World>, client: Client, namespace: String, stop: CancellationToken) {
    let identity = identity();
    let leases: Api<Lease> = Api::namespaced(client.clone(), &namespace);
    let (sender, leads) = watch::channel(false);
    let election = tokio::spawn(lease::elect(leases.clone(), identity.clone(), sender, stop.clone()));
    let replicas = Replicas::new(leases, &identity);
    let mut writer = Writer::new(world, client, replicas, identity);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = writer.world.subjects.changed.notified() => writer.recount = true,
            () = writer.world.hub.counts_changed.notified() => writer.recount = true,
            () = tokio::time::sleep(ROUND_INTERVAL) => {}
        }
        if writer.world.synced.load(Ordering::Acquire) {
            let leading = *leads.borrow();
            let done = writer.round(leading).await;
            writer.tell(done);
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
    let _ = tokio::time::timeout(ANSWER_WAIT_MAX, writer.replicas.withdraw()).await;
    let _ = election.await;
}

/// An object with status, and the nodes.
struct Counted {
    key: ObjectKey,
    subject: Arc<Subject>,
    /// How many need it.
    need: usize,
    /// Of those that are connected here.
    own: Held,
}

struct Writer {
    world: Arc<World>,
    client: Client,
    replicas: Replicas,
    events: Events,
    counted: Vec<Counted>,
    have: Have,
    /// The nodes that are connected here.
    connected: BTreeSet<Arc<str>>,
    /// What is counted from has changed since the last count.
    recount: bool,
    /// What was judged last stands as it should, with what others told.
    settled: Option<Others>,
    /// The last round failed, and that was told.
    troubled: bool,
}

/// Why a round came to nothing.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Answer(#[from] kube::Error),
    #[error("the API server did not answer in time")]
    Silent,
}

async fn bounded<T>(asked: impl Future<Output = kube::Result<T>>) -> Result<T, RoundError> {
    Ok(tokio::time::timeout(ANSWER_WAIT_MAX, asked).await.map_err(|_| RoundError::Silent)??)
}

impl Writer {
    fn new(world: Arc<World>, client: Client, replicas: Replicas, identity: String) -> Self {
        Self {
            events: Events::new(client.clone(), identity),
            world,
            client,
            replicas,
            counted: Vec::new(),
            have: Have::new(),
            connected: BTreeSet::new(),
            recount: true,
            settled: None,
            troubled: false,
        }
    }

    /// The first failure of several, and their end.
    fn tell(&mut self, done: Result<(), RoundError>) {
        let failed = done.is_err();
        match done {
            Err(error) if !self.troubled => {
                tracing::warn!(%error, lease = self.replicas.name(), "status cannot be written now; trying again");
            }
            Ok(()) if self.troubled => tracing::info!("status is written again"),
            _ => {}
        }
        self.troubled = failed;
    }

    async fn round(&mut self, leading: bool) -> Result<(), RoundError> {
        if std::mem::take(&mut self.recount) {
            self.connected = self.world.hub.connected();
            self.counted = self.count(self.world.subjects.all());
            let have = self
                .counted
                .iter()
                .map(|Counted { subject, own, .. }| (subject.uid.clone(), (subject.generation, own.clone())));
            self.have = have.collect();
            self.settled = None;
        }
        bounded(self.replicas.publish(&self.have, &self.connected)).await?;
        if !leading {
            self.settled = None;
            self.events.yield_to_another();
            return Ok(());
        }
        let told = self.events.round(self.world.subjects.remarks()).await;
        let others = bounded(self.replicas.others()).await?;
        // At rest a round is one question to the API server, however many objects there are.
        if self.settled.as_ref() == Some(&others) {
            return told;
        }
        let mut written = 0;
        for counted in &self.counted {
            let Some(status) = self.differing(counted, &others) else { continue };
            written += 1;
            if written > WRITES_OF_A_ROUND_MAX {
                break;
            }
            self.write(&counted.key, &counted.subject, status).await;
        }
        // What was written comes back as a change; what could not be written is judged again.
        self.settled = (written == 0).then_some(others);
        told
    }

    /// Of each object: how many nodes need it, and those of this replica that have it.
    fn count(&self, subjects: Vec<(ObjectKey, Arc<Subject>)>) -> Vec<Counted> {
        let index = self.world.index.read();
        let count = |(key, subject): (ObjectKey, Arc<Subject>)| {
            if subject.refused.is_some() {
                return Counted { key, subject, need: 0, own: Held::default() };
            }
            let wanted = index.wanted_for(&key);
            let own = self.world.hub.held(&wanted, NAMED_MAX);
            Counted { key, subject, need: wanted.len(), own }
        };
        subjects.into_iter().map(count).collect()
    }

    /// The nodes of all replicas.
    fn nodes(&self, index: &Index, counted: &Counted, others: &Others) -> Nodes {
        let Counted { key, subject, need, own } = counted;
        let object = (subject.uid.clone(), subject.generation);
        let have = own.have + others.have(&object);
        let mut nodes = Nodes { have, need: *need, missing: Vec::new() };
        if have < *need {
            let wanted = index.wanted_for(key);
            nodes.missing = others.missing(&object, wanted.keys(), own, &self.connected);
        }
        nodes
    }

    /// The status that should stand there, if it does not.
    fn differing(&self, counted: &Counted, others: &Others) -> Option<Value> {
        let Counted { key, subject, .. } = counted;
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let index = self.world.index.read();
        let nodes = self.nodes(&index, counted, others);
        if let Some(kind) = key.kind.route() {
            let parents = route::parents(&index, kind, &key.id, subject, &nodes, &now);
            let none = Value::Array(Vec::new());
            let standing = subject.status.get("parents").unwrap_or(&none);
            return (parents != *standing).then(|| json!({ "parents": parents }));
        }
        let status = policy::status(&index, key, subject, &nodes, &now);
        (status != subject.status).then_some(status)
    }

    async fn write(&self, key: &ObjectKey, subject: &Subject, status: Value) {
        let Some(resource) = resource_of(key.kind) else { return };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.id.namespace, &resource);
        // Made against the version that was judged: whoever wrote meanwhile is not overwritten, and comes as an event.
        let patch = json!({
            "metadata": { "resourceVersion": subject.resource_version },
            "status": status,
        });
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match bounded(api.patch_status(&key.id.name, &parameters, &Patch::Merge(&patch))).await {
            Ok(_) => {}
            Err(RoundError::Answer(kube::Error::Api(answer))) if matches!(answer.code, 404 | 409) => {}
            Err(error) => tracing::warn!(object = %key, %error, "status not written; trying again"),
        }
    }
}

#[cfg(test)]
mod tests;
