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

use super::holding::{Difference, Holding, Refused};
use super::wire::Delta;
use super::{NackStatus, Session, unix_s};
use crate::caller::Certificate;
use crate::world::World;

/// Below the 4 MiB that gRPC takes by default, and small enough not to stall the stream's keep-alive.
const CHUNK_BYTES_MAX: usize = 512 * 1024;
/// A node that does not answer a delta for this long is taken for dead; it will come again.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);
/// Time for the transport to take a message.
const SEND_WAIT_MAX: Duration = Duration::from_secs(60);
/// Refusals of one answer shown in status and in the log.
const REFUSALS_SHOWN_MAX: usize = 20;

type Out = mpsc::Sender<Result<Delta, Status>>;

/// The unanswered delta.
struct Outstanding {
    /// Of its last message.
    nonce: u64,
    revision: u64,
    difference: Difference,
    since: Option<Instant>,
    sent_at: tokio::time::Instant,
}

struct State<'a> {
    world: &'a World,
    session: &'a Session,
    /// What the node holds once it acked the outstanding delta.
    holding: Holding,
    refused: Refused,
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
    let known = held.iter().map(|(key, version)| (key, Some(*version)));
    note_held(world, session, known);
    let mut state = State {
        world,
        session,
        holding: Holding::told(held),
        refused: Refused::new(),
        nonce: 0,
        outstanding: None,
        greeted: false,
    };
    let mut distrusted = std::pin::pin!(certificate.ended(world));
    loop {
        if state.outstanding.is_none() && state.next_delta() {
            let mut place = Place::default();
            while let Some(message) = state.message(&mut place) {
                match tokio::time::timeout(SEND_WAIT_MAX, out.send(Ok(message))).await {
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

/// Remembers, of what a node holds now, what status is counted from.
fn note_held<'a>(
    world: &World,
    session: &Session,
    held: impl Iterator<Item = (&'a ResourceKey, Option<u64>)>,
) {
    let (mut resources, mut counted_by) = (Vec::new(), BTreeSet::new());
    {
        let index = world.index.read();
        for (key, version) in held.filter(|(key, _)| index.counts(&session.node, key)) {
            resources.push((key.clone(), version));
            counted_by.extend(index.counted_by(key));
        }
    }
    world.hub.holding(&session.node, resources, counted_by);
}

/// How far the outstanding delta was cut into messages.
#[derive(Debug, Default)]
struct Place {
    upserts: usize,
    removals: usize,
    done: bool,
}

impl State<'_> {
    /// Whether there is a delta to send; none if the node holds what it should. The first is sent even if empty, so that the
    /// node knows that it is in sync.
    fn next_delta(&mut self) -> bool {
        let node = &self.session.node;
        let (difference, since, revision) = {
            let index = self.world.index.read();
            // Taken under the index's lock: just what led to this state of it.
            let pending = std::mem::take(&mut *self.session.pending.lock());
            if pending.is_empty() {
                return false;
            }
            let since = pending.since;
            let difference = self.holding.difference(&index, node, pending, &self.refused);
            (difference, since, index.revision().0)
        };
        if difference.is_empty() && self.greeted {
            return false;
        }
        self.greeted = true;
        let sent_at = tokio::time::Instant::now();
        self.outstanding = Some(Outstanding { nonce: self.nonce, revision, difference, since, sent_at });
        self.world.hub.note(node, |status| status.sent_revision = revision);
        true
    }

    /// The next message of the outstanding delta, made when there is room for it.
    fn message(&mut self, place: &mut Place) -> Option<Delta> {
        let outstanding = self.outstanding.as_mut().filter(|_| !place.done)?;
        let Difference { upserts, removals, .. } = &outstanding.difference;
        let mut delta = Delta { revision: outstanding.revision, ..Delta::default() };
        let mut bytes = 0;
        // Tag and length of the element included; one that is too large by itself has a message of its own.
        let mut room = |more: usize| {
            let fits = bytes == 0 || bytes + more + 8 <= CHUNK_BYTES_MAX;
            bytes += more + 8;
            fits
        };
        while let Some(sent) = upserts.get(place.upserts).filter(|sent| room(sent.encoded.len())) {
            delta.upserts.push(sent.encoded.clone());
            place.upserts += 1;
        }
        while place.upserts == upserts.len()
            && let Some(key) = removals.get(place.removals).map(convert::resource_key_to_wire)
            && room(key.name.len())
        {
            delta.removals.push(key);
            place.removals += 1;
        }
        place.done = place.upserts == upserts.len() && place.removals == removals.len();
        self.nonce += 1;
        outstanding.nonce = self.nonce;
        outstanding.sent_at = tokio::time::Instant::now();
        (delta.nonce, delta.more) = (self.nonce, !place.done);
        Some(delta)
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
            _ => self.acked(&outstanding),
        }
        Ok(())
    }

    fn acked(&mut self, outstanding: &Outstanding) {
        note_held(self.world, self.session, outstanding.difference.outcome());
        if !self.refused.is_empty() {
            for (key, _) in outstanding.difference.outcome() {
                self.refused.remove(key);
            }
        }
        if let Some(since) = outstanding.since {
            self.world.hub.pushed(u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX));
        }
        let resources = self.holding.resources();
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
        let mut outcome: HashMap<&ResourceKey, Option<u64>> = outstanding.difference.outcome().collect();
        for refusal in nack.refusals {
            let Some(key) = refusal.key.as_ref().and_then(|key| convert::resource_key(key).ok()) else {
                continue;
            };
            let reason: String = refusal.reason.chars().filter(|c| !c.is_control()).take(512).collect();
            if shown.len() < REFUSALS_SHOWN_MAX {
                tracing::warn!(%node, resource = ?key, reason, "the node refused a resource");
                shown.push(format!("{key:?}: {reason}"));
            }
            if let Some(version) = outcome.remove(&key) {
                self.refused.insert(key, version);
                named += 1;
            }
        }
        if named == 0 {
            // Nothing to leave out: the whole delta waits for a change, or it would be refused for ever.
            self.refused.extend(outcome.into_iter().map(|(key, version)| (key.clone(), version)));
        }
        // Looked at again at once, without what is refused now.
        self.holding.undo(node, outstanding.difference, &mut self.session.pending.lock());
        self.world.hub.note(node, |status| {
            status.nacks += 1;
            status.last_nack =
                Some(NackStatus { unix_s: unix_s(), revision: outstanding.revision, refusals: shown });
        });
    }
}
