//! Status in the Kubernetes API: what became of each route and policy, and which nodes have it; and events (`events`) on objects
//! that have no status of Weft's.
//!
//! Every replica counts which of its own nodes have what (`ledger`) and publishes it (`replicas`); the one that holds the Lease (`lease`)
//! writes. A round looks at what has changed since the last; what stands there already is not written again; writes are bounded per
//! second, and made against the version that was read. Start at [`run`]; what is written is decided in `route` and `policy`.

mod conditions;
mod events;
mod lease;
mod ledger;
mod nodes;
mod policy;
mod replicas;
mod route;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::events::Events;
use self::ledger::Ledger;
use self::replicas::Replicas;
use crate::source::ObjectKey;
use crate::source::kubernetes::resource_of;
use crate::source::subjects::Subject;
use crate::stale::Which;
use crate::world::World;

/// Between two rounds: bounds how often one object is looked at, and written.
const PAUSE: Duration = Duration::from_millis(500);
/// A round without a cause: other replicas may have more to say, a write may have failed.
const ROUND_INTERVAL: Duration = Duration::from_secs(2);
/// Everything is counted anew at least so often, whatever was said to have changed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(300);
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
    let replicas = Replicas::new(client.clone(), leases, &identity);
    let mut writer = Writer::new(world, client, replicas, identity);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = writer.world.subjects.stale.changed() => {}
            () = writer.world.hub.stale.changed() => {}
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

struct Writer {
    world: Arc<World>,
    client: Client,
    replicas: Replicas,
    events: Events,
    ledger: Ledger,
    /// When everything was counted last.
    swept: Option<Instant>,
    /// This replica wrote in the last round.
    led: bool,
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
            ledger: Ledger::default(),
            swept: None,
            led: false,
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
        self.recount();
        bounded(self.replicas.publish()).await?;
        if !leading {
            self.led = false;
            self.events.yield_to_another();
            return Ok(());
        }
        if !std::mem::replace(&mut self.led, true) {
            self.ledger.all_due();
        }
        let told = self.events.round(self.world.subjects.remarks()).await;
        // At rest a round is this one question to the API server.
        if let Some(differs) = bounded(self.replicas.hear()).await? {
            self.ledger.others_differ(differs);
        }
        self.settle().await;
        told
    }

    /// Counts what changed since the last round, for this replica and for the others.
    fn recount(&mut self) {
        let world = &self.world;
        let mut which = world.subjects.stale.take();
        which.merge(world.hub.stale.take());
        if self.swept.is_none_or(|at| at.elapsed() >= SWEEP_INTERVAL) {
            which = Which::All;
        }
        let all = which == Which::All;
        let news = self.ledger.recount(which, &world.subjects, &world.index.read(), &world.hub);
        if all {
            self.swept = Some(Instant::now());
        }
        self.replicas.tell(&news, all.then_some(&self.ledger.connected));
    }

    /// Writes the status of what is due, where another one stands there.
    async fn settle(&mut self) {
        let mut written = 0;
        let mut due = std::mem::take(&mut self.ledger.due).into_iter();
        while written < WRITES_OF_A_ROUND_MAX
            && let Some(key) = due.next()
        {
            let Some((subject, status)) = self.differing(&key) else { continue };
            written += 1;
            // What could not be written is looked at again. What was comes back as a change.
            if !self.write(&key, &subject, status).await {
                self.ledger.due.insert(key);
            }
        }
        self.ledger.due.extend(due);
    }

    /// The status that should stand there, if it does not.
    fn differing(&self, key: &ObjectKey) -> Option<(Arc<Subject>, Value)> {
        let counted = self.ledger.of(key)?;
        let subject = &counted.subject;
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let index = self.world.index.read();
        let nodes = self.ledger.nodes(&index, key, counted, &self.replicas.others);
        let status = if let Some(kind) = key.kind.route() {
            let parents = route::parents(&index, kind, &key.id, subject, &nodes, &now);
            let none = Value::Array(Vec::new());
            let standing = subject.status.get("parents").unwrap_or(&none);
            (parents != *standing).then(|| json!({ "parents": parents }))
        } else {
            let status = policy::status(&index, key, subject, &nodes, &now);
            (status != subject.status).then_some(status)
        };
        Some((subject.clone(), status?))
    }

    /// Whether it was written.
    async fn write(&self, key: &ObjectKey, subject: &Subject, status: Value) -> bool {
        let Some(resource) = resource_of(key.kind) else { return true };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.id.namespace, &resource);
        // Made against the version that was judged: whoever wrote meanwhile is not overwritten, and comes as an event.
        let patch = json!({
            "metadata": { "resourceVersion": subject.resource_version },
            "status": status,
        });
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match bounded(api.patch_status(&key.id.name, &parameters, &Patch::Merge(&patch))).await {
            Ok(_) => return true,
            Err(RoundError::Answer(kube::Error::Api(answer))) if matches!(answer.code, 404 | 409) => {}
            Err(error) => tracing::warn!(object = %key, %error, "status not written; trying again"),
        }
        false
    }
}

#[cfg(test)]
mod tests;
