//! The gRPC side of discovery: who is calling, what it holds, and a task for its session.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_proto::convert;
use weft_proto::model::ResourceKey;
use weft_proto::v1::{self, node_message::Message};

use super::session;
use super::wire::Delta;
use crate::caller::{Caller, Certificate};
use crate::world::World;

/// Time for the first message.
const HELLO_WAIT_MAX: Duration = Duration::from_secs(10);
/// What a node may claim to hold: beyond the largest mesh.
const KNOWN_MAX: usize = 2_000_000;
/// Messages handed to the transport and not sent yet.
const CHUNKS_UNDER_WAY_MAX: usize = 2;

/// Hellos that are read at the same time: with the largest that is taken (64 MiB) this bounds their memory. A usual one takes
/// milliseconds; who waits longer than its wait may come again.
const HELLOS_UNDER_WAY_MAX: usize = 8;
const HELLO_PLACE_WAIT_MAX: Duration = Duration::from_secs(30);

pub struct DiscoveryService {
    world: Arc<World>,
    hellos: Arc<Semaphore>,
}

impl DiscoveryService {
    pub fn new(world: Arc<World>) -> Self {
        Self { world, hellos: Arc::new(Semaphore::new(HELLOS_UNDER_WAY_MAX)) }
    }
}

/// Of deltas to one node.
pub(super) type Stream = ReceiverStream<Result<Delta, Status>>;

impl DiscoveryService {
    pub(super) fn subscribe(
        &self,
        request: Request<Streaming<v1::NodeMessage>>,
    ) -> Result<Response<Stream>, Status> {
        let (world, hellos) = (self.world.clone(), self.hellos.clone());
        let caller = Caller::of(&request)?;
        let certificate = caller.node(&world).cloned().inspect_err(|status| {
            world.metrics.subscriptions_refused.fetch_add(1, Ordering::Relaxed);
            if world.refusals_logged.admit() {
                tracing::warn!(peer = %caller.peer, reason = status.message(), "subscription refused");
            }
        })?;
        let inbound = request.into_inner();
        let (out, stream) = mpsc::channel(CHUNKS_UNDER_WAY_MAX);
        // The answer's headers go out at once: a client may send its Hello only after them.
        tokio::spawn(async move { serve(world, hellos, certificate, inbound, out).await });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

async fn serve(
    world: Arc<World>,
    hellos: Arc<Semaphore>,
    certificate: Arc<Certificate>,
    mut inbound: Streaming<v1::NodeMessage>,
    out: mpsc::Sender<Result<Delta, Status>>,
) {
    let node = certificate.node();
    let ended = match hello(&hellos, node, &mut inbound).await {
        Ok((agent_version, held)) => match world.hub.join(node, agent_version) {
            Some(joined) => {
                tracing::info!(%node, held = held.len(), "node connected");
                let ended = session::run(&world, &joined, &certificate, held, inbound, &out).await;
                world.hub.leave(&joined);
                ended
            }
            None => Err(Status::resource_exhausted("too many nodes")),
        },
        Err(status) => {
            world.metrics.subscriptions_refused.fetch_add(1, Ordering::Relaxed);
            Err(status)
        }
    };
    match ended {
        Ok(()) => tracing::info!(%node, "node disconnected"),
        Err(status) => {
            tracing::warn!(%node, reason = status.message(), "session ended");
            let _ = out.try_send(Err(status));
        }
    }
}

/// The first message: what the node already holds.
async fn hello(
    hellos: &Semaphore,
    node: &str,
    inbound: &mut Streaming<v1::NodeMessage>,
) -> Result<(String, HashMap<ResourceKey, u64>), Status> {
    let _place = tokio::time::timeout(HELLO_PLACE_WAIT_MAX, hellos.acquire())
        .await
        .map_err(|_| Status::resource_exhausted("too many nodes say hello at once"))?;
    let first = tokio::time::timeout(HELLO_WAIT_MAX, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no Hello"))??;
    let Some(Message::Hello(hello)) = first.and_then(|message| message.message) else {
        return Err(Status::invalid_argument("the first message is not a Hello"));
    };
    if hello.node != node {
        return Err(Status::permission_denied("the certificate is another node's"));
    }
    if hello.known.len() > KNOWN_MAX {
        return Err(Status::invalid_argument("too many known resources"));
    }
    let mut held = HashMap::with_capacity(hello.known.len());
    let mut newer = 0_usize;
    for known in hello.known {
        let key = known.key.ok_or_else(|| Status::invalid_argument("a known resource has no key"))?;
        if v1::Kind::try_from(key.kind).is_err() {
            newer += 1;
            continue;
        }
        let key = convert::resource_key(&key).map_err(|e| Status::invalid_argument(e.to_string()))?;
        held.insert(key, known.version);
    }
    if newer > 0 {
        let version = &hello.agent_version;
        tracing::warn!(%node, ?version, newer, "the node is of a newer version: what it holds of kinds that are not known here stays with it");
    }
    let agent_version = hello.agent_version.chars().filter(|c| !c.is_control()).take(64).collect();
    Ok((agent_version, held))
}
