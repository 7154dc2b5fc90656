//! One node's session: at most one unanswered delta; what changes meanwhile is merged into the next.
//!
//! A resource that the node refused is left out until it changes; the rest of the refused delta is sent again at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use weft_proto::convert;
use weft_proto::model::ResourceKey;
use weft_proto::v1::{self, node_message::Message};

use super::{NackStatus, Session, unix_s};
use crate::caller::Certificate;
use crate::index::Sent;
use crate::world::World;

/// Below the 4 MiB that gRPC takes by default, and small enough not to stall the stream's keep-alive.
const CHUNK_BYTES_MAX: usize = 512 * 1024;
/// A node that does not answer a delta for this long is taken for dead; it will come again.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);
/// Time for the transport to take a message.
const SEND_WAIT_MAX: Duration = Duration::from_secs(60);
/// Refusals of one answer shown in status and in the log.
const REFUSALS_SHOWN_MAX: usize = 20;

type Out = mpsc::Sender<Result<v1::Delta, Status>>;

/// The unanswered delta.
struct Outstanding {
    nonce: u64,
    revision: u64,
    /// What the node will hold once it acks: version, or removed.
    outcome: HashMap<ResourceKey, Option<u64>>,
    since: Option<Instant>,
    sent_at: tokio::time::Instant,
}

struct State<'a> {
    world: &'a World,
    session: &'a Session,
    held: HashMap<ResourceKey, u64>,
    /// What the node refused, with the version it refused.
    refused: HashMap<ResourceKey, Option<u64>>,
    nonce: u64,
    outstanding: Option<Outstanding>,
    greeted: bool,
}

pub(super) async fn run(
    world: &Arc<World>,
    session: &Arc<Session>,
    certificate: &Certificate,
    held: HashMap<ResourceKey, u64>,
    mut inbound: Streaming<v1::NodeMessage>,
    out: &Out,
) -> Result<(), Status> {
    let counted: Vec<_> = {
        let index = world.index.read();
        let counted = held.iter().filter(|(key, _)| index.counts(&session.node, key));
        counted.map(|(key, version)| (key.clone(), Some(*version))).collect()
    };
    world.hub.holding(&session.node, counted);
    let mut state =
        State { world, session, held, refused: HashMap::new(), nonce: 0, outstanding: None, greeted: false };
    let mut distrusted = std::pin::pin!(certificate.ended(world));
    loop {
        if state.outstanding.is_none() {
            let deltas = state.next_delta();
            for delta in deltas {
                match tokio::time::timeout(SEND_WAIT_MAX, out.send(Ok(delta))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Ok(()),
                    Err(_) => return Err(Status::deadline_exceeded("the node does not read")),
                }
            }
        }
        let deadline = state.outstanding.as_ref().map(|o| o.sent_at + ANSWER_WAIT_MAX);
        let overdue = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = inbound.message() => match message? {
                Some(message) => state.answer(message)?,
                None => return Ok(()),
            },
            () = session.wake.notified(), if state.outstanding.is_none() => {}
            () = session.replaced.cancelled() => {
                return Err(Status::aborted("a newer session of this node took over"));
            }
            status = &mut distrusted => return Err(status),
            () = world.stop.cancelled() => return Err(Status::unavailable("the control plane is stopping")),
            () = overdue => return Err(Status::deadline_exceeded("the last delta was not answered")),
        }
    }
}

impl State<'_> {
    /// The messages of the next delta; empty if the node holds what it should. The first delta is sent even if empty,
    /// so that the node knows that it is in sync.
    fn next_delta(&mut self) -> Vec<v1::Delta> {
        let pending = std::mem::take(&mut *self.session.pending.lock());
        if pending.keys.is_empty() && !pending.whole {
            return Vec::new();
        }
        let index = self.world.index.read();
        let node = &self.session.node;
        let mut keys: BTreeSet<ResourceKey> = pending.keys;
        if pending.whole {
            keys.extend(index.all_keys(node));
            keys.extend(self.held.keys().cloned());
        }
        let mut outcome = HashMap::new();
        let mut upserts: Vec<Arc<Sent>> = Vec::new();
        let mut removals = Vec::new();
        for key in keys {
            let wanted = index.wanted(node, &key);
            let version = wanted.map(|sent| sent.wire.version);
            if version == self.held.get(&key).copied() || self.refused.get(&key) == Some(&version) {
                continue;
            }
            match wanted {
                Some(sent) => upserts.push(sent.clone()),
                None => removals.push(convert::resource_key_to_wire(&key)),
            }
            outcome.insert(key, version);
        }
        let revision = index.revision().0;
        drop(index);
        if outcome.is_empty() && self.greeted {
            return Vec::new();
        }
        self.greeted = true;
        let deltas = self.chunks(revision, &upserts, removals);
        let sent_at = tokio::time::Instant::now();
        self.outstanding =
            Some(Outstanding { nonce: self.nonce, revision, outcome, since: pending.since, sent_at });
        self.world.hub.note(node, |status| status.sent_revision = revision);
        deltas
    }

    fn chunks(
        &mut self,
        revision: u64,
        upserts: &[Arc<Sent>],
        removals: Vec<v1::ResourceKey>,
    ) -> Vec<v1::Delta> {
        let mut deltas = vec![v1::Delta { revision, ..Default::default() }];
        let mut bytes = 0;
        let mut room = |deltas: &mut Vec<v1::Delta>, more: usize| {
            if bytes + more > CHUNK_BYTES_MAX && bytes > 0 {
                deltas.push(v1::Delta { revision, ..Default::default() });
                bytes = 0;
            }
            // Tag and length of the element.
            bytes += more + 8;
        };
        for sent in upserts {
            room(&mut deltas, sent.bytes);
            if let Some(delta) = deltas.last_mut() {
                delta.upserts.push(sent.wire.clone());
            }
        }
        for key in removals {
            room(&mut deltas, key.name.len());
            if let Some(delta) = deltas.last_mut() {
                delta.removals.push(key);
            }
        }
        let last = deltas.len() - 1;
        for (i, delta) in deltas.iter_mut().enumerate() {
            self.nonce += 1;
            delta.nonce = self.nonce;
            delta.more = i < last;
        }
        deltas
    }

    fn answer(&mut self, message: v1::NodeMessage) -> Result<(), Status> {
        let nonce = match &message.message {
            Some(Message::Ack(ack)) => ack.nonce,
            Some(Message::Nack(nack)) => nack.nonce,
            _ => return Err(Status::invalid_argument("neither Ack nor Nack")),
        };
        let Some(outstanding) = self.outstanding.take_if(|o| o.nonce == nonce) else {
            return Err(Status::invalid_argument("the answer's nonce is not that of the last delta"));
        };
        match message.message {
            Some(Message::Nack(nack)) => self.nacked(outstanding, nack),
            _ => self.acked(outstanding),
        }
        Ok(())
    }

    fn acked(&mut self, outstanding: Outstanding) {
        let counted: Vec<_> = {
            let index = self.world.index.read();
            let counts = |(key, _): &(&ResourceKey, &Option<u64>)| index.counts(&self.session.node, key);
            let counted = outstanding.outcome.iter().filter(counts);
            counted.map(|(key, version)| (key.clone(), *version)).collect()
        };
        self.world.hub.holding(&self.session.node, counted);
        for (key, version) in outstanding.outcome {
            self.refused.remove(&key);
            match version {
                Some(version) => drop(self.held.insert(key, version)),
                None => drop(self.held.remove(&key)),
            }
        }
        if let Some(since) = outstanding.since {
            self.world.hub.pushed(u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX));
        }
        let resources = self.held.len();
        self.world.hub.note(&self.session.node, |status| {
            status.acks += 1;
            status.acked_revision = outstanding.revision;
            status.last_ack_unix_s = Some(unix_s());
            status.resources = resources;
            // What was refused stays in status until all of it is settled.
            if self.refused.is_empty() {
                status.last_nack = None;
            }
        });
    }

    fn nacked(&mut self, outstanding: Outstanding, nack: v1::Nack) {
        let node = &self.session.node;
        let mut shown = Vec::new();
        let mut named = 0;
        for refusal in nack.refusals {
            let Some(key) = refusal.key.as_ref().and_then(|key| convert::resource_key(key).ok()) else {
                continue;
            };
            let reason: String = refusal.reason.chars().filter(|c| !c.is_control()).take(512).collect();
            if shown.len() < REFUSALS_SHOWN_MAX {
                tracing::warn!(%node, resource = ?key, reason, "the node refused a resource");
                shown.push(format!("{key:?}: {reason}"));
            }
            if let Some(version) = outstanding.outcome.get(&key) {
                self.refused.insert(key, *version);
                named += 1;
            }
        }
        if named == 0 {
            // Nothing to leave out: the whole delta waits for a change, or it would be refused for ever.
            self.refused.extend(outstanding.outcome);
        } else {
            let mut pending = self.session.pending.lock();
            let rest = outstanding.outcome.into_keys().filter(|key| !self.refused.contains_key(key));
            pending.keys.extend(rest);
        }
        self.world.hub.note(node, |status| {
            status.nacks += 1;
            status.last_nack =
                Some(NackStatus { unix_s: unix_s(), revision: outstanding.revision, refusals: shown });
        });
    }
}
