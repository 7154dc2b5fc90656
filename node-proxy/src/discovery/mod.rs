//! The client of the control plane's stream: receives deltas, validates, makes snapshots, answers ACK or NACK.
//!
//! `channel` reaches the control plane with what `credentials` holds, `assembly` puts deltas together and validates them, and [`run`] drives the
//! stream. Generated types do not leave this folder. Losing the control plane changes nothing: the last good
//! snapshot stays.

mod assembly;
mod channel;
mod credentials;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, info, warn};
use weft_proto::convert;
use weft_proto::model::{Resource, ResourceKey};
use weft_proto::v1;

use crate::identity::Identities;
use crate::snapshot::{Change, Snapshot, SnapshotHandle};
use assembly::{Assembly, Complete};
pub use channel::{ControlError, ControlPlane};
pub use credentials::NodeCertificateStatus;

/// First pause after a lost stream, doubled up to the longest; half of each is random, lest all nodes of a cluster
/// come back at once. Short, since a restarted control plane should find its nodes in sync within seconds.
const RECONNECT_MS_MIN: u64 = 100;
const RECONNECT_MS_MAX: u64 = 5_000;
/// A stream that lived this long was a good one: the next pause is the first again.
const GOOD_STREAM: Duration = Duration::from_secs(10);
/// Answers waiting to be sent. There is at most one unanswered delta, so two places are enough.
const ANSWERS_MAX: usize = 4;

/// How things stand with the control plane: for status and readiness.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ControlStatus {
    pub connected: bool,
    /// A whole configuration was applied at least once.
    pub synced: bool,
    pub revision: u64,
    pub applied_unix_ms: Option<u64>,
    /// The lag behind the control plane: how long the last delta took from its receipt until pods and kernel had followed.
    pub applied_after_ms: Option<u64>,
    /// Since when a delta is being applied; None: all that came is.
    pub applying_since_unix_ms: Option<u64>,
    pub deltas_applied: u64,
    pub deltas_refused: u64,
    pub connects: u64,
    /// The node's own, for this connection.
    pub certificate: Option<NodeCertificateStatus>,
    /// Of the connection; None while all is well.
    pub last_error: Option<String>,
    /// What the last delta was refused for; empty if it was not.
    pub refused: Vec<String>,
}

/// Follows each new snapshot: returns when pods, sockets and kernel hold what it says, or failures are reported.
pub trait Follow: Send + Sync + 'static {
    fn follow(&self) -> impl Future<Output = ()> + Send;
}

impl Follow for crate::enrol::Passes {
    fn follow(&self) -> impl Future<Output = ()> + Send {
        self.request()
    }
}

/// What the stream feeds.
pub struct Sink<F> {
    pub node_name: String,
    pub snapshot: Arc<SnapshotHandle>,
    pub identities: Arc<Identities>,
    pub status: Arc<watch::Sender<ControlStatus>>,
    pub follow: F,
}

/// Keeps the stream open for ever.
pub async fn run<F: Follow>(control: Arc<ControlPlane>, sink: Sink<F>) {
    let mut failures = 0_u32;
    loop {
        let started = tokio::time::Instant::now();
        let ended = session(&control, &sink).await;
        let reason =
            ended.err().map_or_else(|| "the control plane closed the stream".into(), |e| e.to_string());
        failures = if started.elapsed() >= GOOD_STREAM { 1 } else { failures.saturating_add(1) };
        let pause = reconnect_pause(failures, rand::random());
        warn!(
            reason,
            pause_ms = pause.as_millis(),
            "no stream to the control plane; the last configuration stays"
        );
        sink.status.send_modify(|status| {
            status.connected = false;
            status.last_error = Some(reason);
        });
        tokio::time::sleep(pause).await;
    }
}

fn reconnect_pause(failures: u32, random: u32) -> Duration {
    let whole = (RECONNECT_MS_MIN << failures.saturating_sub(1).min(16)).min(RECONNECT_MS_MAX);
    Duration::from_millis(whole / 2 + u64::from(random) % (whole / 2 + 1))
}

/// One stream, until it ends.
async fn session<F: Follow>(control: &ControlPlane, sink: &Sink<F>) -> Result<(), ControlError> {
    let (answers, outgoing) = mpsc::channel(ANSWERS_MAX);
    let hello = hello(&sink.node_name, &sink.snapshot.load());
    answers.try_send(hello).expect("the channel is new and has room");
    let mut deltas = control.subscribe(ReceiverStream::new(outgoing), &sink.status).await?;
    info!("connected to the control plane");
    sink.status.send_modify(|status| {
        status.connected = true;
        status.connects += 1;
        status.last_error = None;
    });
    let mut assembly = Assembly::default();
    let mut upkeep = std::pin::pin!(control.upkeep(&sink.status));
    loop {
        let delta = tokio::select! {
            delta = deltas.message() => delta.inspect_err(|error| control.ended(error))?,
            reason = &mut upkeep => return Err(reason),
        };
        let Some(delta) = delta else { return Ok(()) };
        control.believed();
        let Some(complete) = assembly.add(delta) else { continue };
        let answer = apply(sink, complete).await;
        if answers.send(v1::NodeMessage { message: Some(answer) }).await.is_err() {
            return Ok(());
        }
    }
}

fn hello(node: &str, snapshot: &Snapshot) -> v1::NodeMessage {
    let known = snapshot.versions().map(|(key, version)| v1::KnownResource {
        key: Some(convert::resource_key_to_wire(key)),
        version: version.0,
    });
    let hello = v1::Hello {
        node: node.into(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        known: known.collect(),
    };
    v1::NodeMessage { message: Some(v1::node_message::Message::Hello(hello)) }
}

/// Makes a whole delta current, or refuses it whole.
async fn apply<F: Follow>(sink: &Sink<F>, complete: Complete) -> v1::node_message::Message {
    let Complete { nonce, revision, changes, mut refusals } = complete;
    refusals.extend(changes.iter().filter_map(|change| unusable(sink, change)));
    if !refusals.is_empty() {
        return refuse(sink, nonce, refusals);
    }
    debug!(revision = revision.0, changes = changes.len(), "applying a delta");
    let started = tokio::time::Instant::now();
    sink.status.send_modify(|status| status.applying_since_unix_ms = unix_ms());
    let mesh = changes.iter().rev().find_map(|change| match change {
        Change::Upsert(_, _, Resource::Mesh(mesh)) => Some(Arc::clone(mesh)),
        _ => None,
    });
    // Trust before use: certificates under a new root may be asked for by the very pods that come with it.
    if let Some(mesh) = mesh
        && let Err(error) = sink.identities.trust(&mesh)
    {
        return refuse(sink, nonce, vec![refusal(&ResourceKey::Mesh, error.to_string())]);
    }
    sink.snapshot.replace(sink.snapshot.load().apply(revision, changes));
    sink.follow.follow().await;
    sink.status.send_modify(|status| {
        status.synced = true;
        status.revision = revision.0;
        status.applied_unix_ms = unix_ms();
        status.applied_after_ms = u64::try_from(started.elapsed().as_millis()).ok();
        status.applying_since_unix_ms = None;
        status.deltas_applied += 1;
        status.refused.clear();
    });
    v1::node_message::Message::Ack(v1::Ack { nonce, revision: revision.0 })
}

/// What is valid by itself, but cannot be used here.
fn unusable<F>(sink: &Sink<F>, change: &Change) -> Option<v1::Refusal> {
    match change {
        Change::Upsert(key, _, Resource::Mesh(mesh)) => {
            sink.identities.check_trust(mesh).err().map(|error| refusal(key, error.to_string()))
        }
        Change::Remove(key @ ResourceKey::Mesh) => Some(refusal(key, "the mesh cannot be removed".into())),
        _ => None,
    }
}

fn refusal(key: &ResourceKey, reason: String) -> v1::Refusal {
    v1::Refusal { key: Some(convert::resource_key_to_wire(key)), reason }
}

fn refuse<F>(sink: &Sink<F>, nonce: u64, refusals: Vec<v1::Refusal>) -> v1::node_message::Message {
    let refused: Vec<String> = refusals
        .iter()
        .map(|refusal| {
            let name = refusal.key.as_ref().map_or("", |key| key.name.as_str());
            format!("{name}: {}", refusal.reason)
        })
        .collect();
    warn!(?refused, "the control plane's delta is refused; the last good configuration stays");
    sink.status.send_modify(|status| {
        status.deltas_refused += 1;
        status.applying_since_unix_ms = None;
        status.refused = refused;
    });
    v1::node_message::Message::Nack(v1::Nack { nonce, refusals })
}

fn unix_ms() -> Option<u64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}
