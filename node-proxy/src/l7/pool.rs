//! Open HTTP connections towards destinations, kept for reuse; never shared between pods.
//!
//! Per pod a map of destinations, per destination a [`Slot`]: no lock is shared between pods, and none is held across
//! an await. A connection's own task ends it when it has been idle too long.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weft_proto::identity::{NamespacedName, PodUid};
use weft_proto::model::TrafficPolicy;

use super::lease::{Lease, Sender};
use super::outbound::{Reached, Remote};
use super::outgoing::Outgoing;
use super::{conn, limits};
use crate::connect::{ConnectError, Destination};

/// The pools of every local pod.
pub struct Upstreams {
    pods: Mutex<HashMap<PodUid, Arc<PodPool>>>,
    open: Arc<AtomicU64>,
    per_pod: u32,
}

impl Upstreams {
    /// `per_pod`: HTTP connections that one pod may have open, idle ones included.
    pub fn new(per_pod: u32) -> Self {
        Self { pods: Mutex::default(), open: Arc::default(), per_pod }
    }

    pub(super) fn of(&self, pod: &PodUid) -> Arc<PodPool> {
        let mut pods = self.pods.lock();
        let new = || Arc::new(PodPool::new(Arc::clone(&self.open), self.per_pod));
        Arc::clone(pods.entry(pod.clone()).or_insert_with(new))
    }

    /// Forgets the pods for which `keep` is false; their idle connections close.
    pub fn retain(&self, mut keep: impl FnMut(&PodUid) -> bool) {
        self.pods.lock().retain(|pod, _| keep(pod));
    }

    /// The right to one more connection that is copied and not looked into, within the same bounds as those that carry
    /// HTTP. None: no policy bounds them.
    pub async fn reserve(
        &self,
        pod: &PodUid,
        to: &Destination,
        traffic: Option<&TrafficPolicy>,
        others: bool,
    ) -> Result<Option<Reservation>, ConnectError> {
        if traffic.and_then(|traffic| traffic.max_connections).is_none() {
            return Ok(None);
        }
        let bounds = Bounds::new(traffic, others);
        let slot = self.of(pod).slot(&Key::new(to, false), &bounds);
        let permit = slot.permit(to.address, bounds.pending_max);
        match tokio::time::timeout(bounds.connect_timeout, permit).await {
            Ok(Ok(permit)) => Ok(Some(Reservation { _permit: permit, _slot: slot })),
            Ok(Err(_)) | Err(_) => Err(ConnectError::Overloaded(to.address)),
        }
    }

    /// Connections open now.
    pub fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }
}

/// What a connection is good for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub address: SocketAddr,
    pub workload: Option<PodUid>,
    pub service: Option<NamespacedName>,
    pub http2: bool,
}

impl Key {
    pub(super) fn new(to: &Destination, http2: bool) -> Self {
        let workload = to.workload.as_ref().map(|workload| workload.uid.clone());
        Self { address: to.address, workload, service: to.service.clone(), http2 }
    }
}

/// A place among a destination's connections, while it exists.
pub struct Reservation {
    _permit: OwnedSemaphorePermit,
    /// Keeps the bound in being while somebody counts against it.
    _slot: Arc<Slot>,
}

/// The connections of one pod.
pub(super) struct PodPool {
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
    open: Open,
    mirrors: Arc<Semaphore>,
}

/// The open connections of one pod, and their number over all pods.
#[derive(Clone)]
struct Open {
    all: Arc<AtomicU64>,
    places: Arc<Semaphore>,
}

/// Why no connection was had. The request has not been sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum PoolError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{0} gave no HTTP connection: {1}")]
    Handshake(SocketAddr, hyper::Error),
    #[error("no connection to {0} in time")]
    TimedOut(SocketAddr),
    #[error("too many requests wait for {0}")]
    Overloaded(SocketAddr),
}

/// Bounds of one destination.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub connections_max: u32,
    pub pending_max: u32,
    pub connect_timeout: Duration,
}

/// The connections of one destination.
pub(super) struct Slot {
    /// One permit per request on its way; for HTTP/1 that is one per connection in use.
    in_use: Arc<Semaphore>,
    connections_max: u32,
    pending: AtomicU32,
    h1: Mutex<Vec<Kept<http1::SendRequest<Outgoing>>>>,
    h2: Mutex<Vec<Kept<http2::SendRequest<Outgoing>>>>,
    /// One HTTP/2 connection is made at a time: those who wait then share it.
    connecting: tokio::sync::Mutex<()>,
    open: Open,
}

struct Kept<S> {
    sender: S,
    remote: Remote,
    usage: Arc<AtomicU32>,
}

impl PodPool {
    pub(super) fn new(all: Arc<AtomicU64>, most: u32) -> Self {
        let mirrors = Arc::new(Semaphore::new(limits::MIRRORS_MAX));
        let open = Open { all, places: Arc::new(Semaphore::new(most as usize)) };
        Self { slots: Mutex::default(), open, mirrors }
    }

    /// The right to one more copy of a request.
    pub(super) fn mirror(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.mirrors).try_acquire_owned().ok()
    }

    fn slot(&self, key: &Key, bounds: &Bounds) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(key)
            && slot.connections_max == bounds.connections_max
        {
            return Arc::clone(slot);
        }
        if slots.len() >= limits::DESTINATIONS_PER_POD_MAX {
            slots.retain(|_, slot| !slot.is_empty() || Arc::strong_count(slot) > 1);
        }
        let per_connection = if key.http2 { limits::STREAMS_PER_CONNECTION_MAX } else { 1 };
        let permits = (bounds.connections_max.max(1) as usize).saturating_mul(per_connection as usize);
        let slot = Arc::new(Slot {
            in_use: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
            connections_max: bounds.connections_max,
            pending: AtomicU32::new(0),
            h1: Mutex::default(),
            h2: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            open: self.open.clone(),
        });
        slots.insert(key.clone(), Arc::clone(&slot));
        slot
    }

    /// A connection to `key`: an open one, or what `connect` makes.
    pub(super) async fn checkout<IO, F>(
        &self,
        key: &Key,
        bounds: &Bounds,
        connect: impl FnOnce() -> F,
    ) -> Result<Lease, PoolError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = Result<Reached<IO>, ConnectError>>,
    {
        let slot = self.slot(key, bounds);
        let take = async {
            let permit = slot.permit(key.address, bounds.pending_max).await?;
            if key.http2 {
                slot.h2(key.address, permit, connect).await
            } else {
                slot.h1(key.address, permit, connect).await
            }
        };
        match tokio::time::timeout(bounds.connect_timeout, take).await {
            Ok(lease) => lease,
            Err(_) => Err(PoolError::TimedOut(key.address)),
        }
    }
}

/// Counts one that waits, also when it gives up.
struct Pending<'a>(&'a AtomicU32);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Slot {
    fn is_empty(&self) -> bool {
        let mut h1 = self.h1.lock();
        h1.retain(|open| !open.sender.is_closed());
        let mut h2 = self.h2.lock();
        h2.retain(|open| !open.sender.is_closed());
        h1.is_empty() && h2.is_empty()
    }

    async fn permit(&self, to: SocketAddr, pending_max: u32) -> Result<OwnedSemaphorePermit, PoolError> {
        if let Ok(permit) = Arc::clone(&self.in_use).try_acquire_owned() {
            return Ok(permit);
        }
        let waiting = self.pending.fetch_add(1, Relaxed);
        let _pending = Pending(&self.pending);
        if waiting >= pending_max {
            return Err(PoolError::Overloaded(to));
        }
        Arc::clone(&self.in_use).acquire_owned().await.map_err(|_| PoolError::Overloaded(to))
    }

    async fn h1<IO, F>(
        self: &Arc<Self>,
        to: SocketAddr,
        permit: OwnedSemaphorePermit,
        connect: impl FnOnce() -> F,
    ) -> Result<Lease, PoolError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = Result<Reached<IO>, ConnectError>>,
    {
        loop {
            // The latest first: the others may then grow old and close.
            let Some(mut open) = self.h1.lock().pop() else { break };
            open.usage.fetch_add(1, Relaxed);
            // It was given back after its last byte was read; ready when its task has noticed, an error when closed. One
            // that stays busy is sending a body that nobody waits for.
            if let Ok(Ok(())) = tokio::time::timeout(limits::READY_WAIT, open.sender.ready()).await {
                return Ok(Lease::new(
                    self,
                    Sender::Http1(open.sender),
                    open.remote,
                    open.usage,
                    permit,
                    true,
                ));
            }
            open.usage.fetch_sub(1, Relaxed);
        }
        let counted = self.open.one().ok_or(PoolError::Overloaded(to))?;
        let Reached { io, remote } = connect().await?;
        let (sender, connection) = conn::http1_client()
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| PoolError::Handshake(to, error))?;
        let usage = Arc::new(AtomicU32::new(1));
        tokio::spawn(until_idle(connection.with_upgrades(), Arc::clone(&usage), counted));
        Ok(Lease::new(self, Sender::Http1(sender), remote, usage, permit, false))
    }

    async fn h2<IO, F>(
        self: &Arc<Self>,
        to: SocketAddr,
        permit: OwnedSemaphorePermit,
        connect: impl FnOnce() -> F,
    ) -> Result<Lease, PoolError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = Result<Reached<IO>, ConnectError>>,
    {
        let permit = match self.open_h2(permit) {
            Ok(lease) => return Ok(lease),
            Err(permit) => permit,
        };
        let _turn = self.connecting.lock().await;
        let permit = match self.open_h2(permit) {
            Ok(lease) => return Ok(lease),
            Err(permit) => permit,
        };
        let counted = self.open.one().ok_or(PoolError::Overloaded(to))?;
        let Reached { io, remote } = connect().await?;
        let (sender, connection) = conn::http2_client()
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| PoolError::Handshake(to, error))?;
        let usage = Arc::new(AtomicU32::new(1));
        tokio::spawn(until_idle(connection, Arc::clone(&usage), counted));
        let kept = Kept { sender: sender.clone(), remote: remote.clone(), usage: Arc::clone(&usage) };
        self.h2.lock().push(kept);
        Ok(Lease::new(self, Sender::Http2(sender), remote, usage, permit, false))
    }

    /// A connection that is free again.
    pub(super) fn keep(&self, sender: http1::SendRequest<Outgoing>, remote: Remote, usage: Arc<AtomicU32>) {
        let mut idle = self.h1.lock();
        if idle.len() < limits::IDLE_PER_DESTINATION_MAX {
            idle.push(Kept { sender, remote, usage });
        }
    }

    fn open_h2(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Result<Lease, OwnedSemaphorePermit> {
        let mut open = self.h2.lock();
        open.retain(|open| !open.sender.is_closed());
        let free = open.iter().find(|open| open.usage.load(Relaxed) < limits::STREAMS_PER_CONNECTION_MAX);
        let Some(free) = free else { return Err(permit) };
        free.usage.fetch_add(1, Relaxed);
        let (sender, remote) = (Sender::Http2(free.sender.clone()), free.remote.clone());
        Ok(Lease::new(self, sender, remote, Arc::clone(&free.usage), permit, true))
    }
}

impl Open {
    /// One more, if the pod may have it.
    fn one(&self) -> Option<Counted> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        self.all.fetch_add(1, Relaxed);
        Some(Counted { all: Arc::clone(&self.all), _place: place })
    }
}

/// Counts one open connection.
struct Counted {
    all: Arc<AtomicU64>,
    _place: OwnedSemaphorePermit,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Relaxed);
    }
}

/// Drives a connection until it ends, or nobody has used it for a while.
async fn until_idle<C, E>(connection: C, usage: Arc<AtomicU32>, _open: Counted)
where
    C: Future<Output = Result<(), E>>,
{
    tokio::pin!(connection);
    let mut was_idle = false;
    loop {
        match tokio::time::timeout(limits::UPSTREAM_IDLE / 2, &mut connection).await {
            Ok(_) => return,
            Err(_) => {
                let idle = usage.load(Relaxed) == 0;
                // Idle at two looks in a row. A request that comes now finds it closed, unsent, and takes another.
                if idle && was_idle {
                    return;
                }
                was_idle = idle;
            }
        }
    }
}
