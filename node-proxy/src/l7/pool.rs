//! Open HTTP connections towards destinations, kept for reuse; never shared between pods.
//!
//! Per pod a map of destinations, per destination a [`Slot`]: no lock is shared between pods, and none is held across
//! an await. A connection's own task ends it when it has been idle too long.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weft_proto::identity::{NamespacedName, PodUid, SpiffeId};

use super::body::Outgoing;
use super::limits;
use crate::connect::ConnectError;

/// The pools of every local pod.
#[derive(Default)]
pub struct Upstreams {
    pods: Mutex<HashMap<PodUid, Arc<PodPool>>>,
}

impl Upstreams {
    pub(super) fn of(&self, pod: &PodUid) -> Arc<PodPool> {
        let mut pods = self.pods.lock();
        Arc::clone(pods.entry(pod.clone()).or_default())
    }

    /// Closes what is idle of a pod that is gone.
    pub fn forget(&self, pod: &PodUid) {
        self.pods.lock().remove(pod);
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

/// The connections of one pod.
#[derive(Default)]
pub(super) struct PodPool {
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
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

struct Slot {
    /// One permit per request on its way; for HTTP/1 that is one per connection in use.
    in_use: Arc<Semaphore>,
    connections_max: u32,
    pending: AtomicU32,
    h1: Mutex<Vec<Open<http1::SendRequest<Outgoing>>>>,
    h2: Mutex<Vec<Open<http2::SendRequest<Outgoing>>>>,
    /// One HTTP/2 connection is made at a time: those who wait then share it.
    connecting: tokio::sync::Mutex<()>,
}

struct Open<S> {
    sender: S,
    peer: Option<SpiffeId>,
    usage: Arc<AtomicU32>,
}

impl PodPool {
    fn slot(&self, key: &Key, bounds: &Bounds) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(key)
            && slot.connections_max == bounds.connections_max
        {
            return Arc::clone(slot);
        }
        if slots.len() >= limits::DESTINATIONS_PER_POD_MAX {
            slots.retain(|_, slot| !slot.is_empty());
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
        F: Future<Output = Result<(IO, Option<SpiffeId>), ConnectError>>,
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
        F: Future<Output = Result<(IO, Option<SpiffeId>), ConnectError>>,
    {
        loop {
            // The latest first: the others may then grow old and close.
            let Some(mut open) = self.h1.lock().pop() else { break };
            open.usage.fetch_add(1, Relaxed);
            // It was given back after its last byte was read; ready when its task has noticed, an error when closed.
            if open.sender.ready().await.is_ok() {
                return Ok(Lease::new(self, Sender::Http1(open.sender), open.peer, open.usage, permit, true));
            }
        }
        let (io, peer) = connect().await?;
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .max_buf_size(limits::H1_BUFFER_BYTES_MAX)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| PoolError::Handshake(to, error))?;
        let usage = Arc::new(AtomicU32::new(1));
        tokio::spawn(until_idle(connection.with_upgrades(), Arc::clone(&usage)));
        Ok(Lease::new(self, Sender::Http1(sender), peer, usage, permit, false))
    }

    async fn h2<IO, F>(
        self: &Arc<Self>,
        to: SocketAddr,
        permit: OwnedSemaphorePermit,
        connect: impl FnOnce() -> F,
    ) -> Result<Lease, PoolError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = Result<(IO, Option<SpiffeId>), ConnectError>>,
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
        let (io, peer) = connect().await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(limits::H2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::H2_CONNECTION_WINDOW_BYTES)
            .max_header_list_size(limits::HEADER_BYTES_MAX)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| PoolError::Handshake(to, error))?;
        let usage = Arc::new(AtomicU32::new(1));
        tokio::spawn(until_idle(connection, Arc::clone(&usage)));
        self.h2.lock().push(Open { sender: sender.clone(), peer: peer.clone(), usage: Arc::clone(&usage) });
        Ok(Lease::new(self, Sender::Http2(sender), peer, usage, permit, false))
    }

    fn open_h2(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Result<Lease, OwnedSemaphorePermit> {
        let mut open = self.h2.lock();
        open.retain(|open| !open.sender.is_closed());
        let free = open.iter().find(|open| open.usage.load(Relaxed) < limits::STREAMS_PER_CONNECTION_MAX);
        let Some(free) = free else { return Err(permit) };
        free.usage.fetch_add(1, Relaxed);
        let (sender, peer) = (Sender::Http2(free.sender.clone()), free.peer.clone());
        Ok(Lease::new(self, sender, peer, Arc::clone(&free.usage), permit, true))
    }
}

/// Drives a connection until it ends, or nobody has used it for a while.
async fn until_idle<C, E>(connection: C, usage: Arc<AtomicU32>)
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

enum Sender {
    Http1(http1::SendRequest<Outgoing>),
    Http2(http2::SendRequest<Outgoing>),
}

/// A connection, or a stream's share of one, for one request.
pub(super) struct Lease {
    sender: Option<Sender>,
    pub peer: Option<SpiffeId>,
    /// It has served before.
    pub reused: bool,
    usage: Arc<AtomicU32>,
    slot: Arc<Slot>,
    _permit: OwnedSemaphorePermit,
}

/// A request that got no answer.
pub(super) struct Unanswered {
    /// Certainly no byte was sent.
    pub unsent: bool,
    pub error: hyper::Error,
}

impl Lease {
    fn new(
        slot: &Arc<Slot>,
        sender: Sender,
        peer: Option<SpiffeId>,
        usage: Arc<AtomicU32>,
        permit: OwnedSemaphorePermit,
        reused: bool,
    ) -> Self {
        Self { sender: Some(sender), peer, reused, usage, slot: Arc::clone(slot), _permit: permit }
    }

    pub(super) async fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Unanswered> {
        let sent = match self.sender.as_mut().expect("a lease has its sender until it is given back") {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            Unanswered { unsent, error: error.into_error() }
        })
    }

    /// The answer was read to its end: the connection may serve again.
    pub(super) fn give_back(mut self) {
        if let Some(Sender::Http1(sender)) = self.sender.take()
            && !sender.is_closed()
        {
            let mut idle = self.slot.h1.lock();
            if idle.len() < limits::IDLE_PER_DESTINATION_MAX {
                idle.push(Open { sender, peer: self.peer.take(), usage: Arc::clone(&self.usage) });
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.usage.fetch_sub(1, Relaxed);
    }
}
