//! Open tunnels, shared by the streams of one source towards one destination and by nobody else.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use http::Request;
use parking_lot::Mutex;
use tokio::time::timeout;
use weft_proto::identity::SpiffeId;

use super::client::{Reserved, Tunnel};
use super::counts::Counts;
use super::{TunnelError, TunnelStream};
use crate::identity::VerifiedPeer;

/// A GOAWAY may overtake a request: such a one is tried again on another tunnel, so often.
const OPEN_ATTEMPTS_MAX: usize = 3;

/// Fewer keys than this are not worth looking through.
const SWEEP_KEYS_MIN: usize = 256;

/// What must be equal for two streams to share a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolKey {
    pub source: SpiffeId,
    /// In the order asked for; any of them is accepted.
    pub expected: Vec<SpiffeId>,
    /// The other proxy.
    pub to: SocketAddr,
    /// The client pod's address.
    pub from: IpAddr,
    /// The client pod's network namespace.
    pub netns_cookie: u64,
}

type Dialling = BoxFuture<'static, Result<Arc<Tunnel>, TunnelError>>;

#[derive(Default)]
struct Entry {
    tunnels: Vec<Arc<Tunnel>>,
    /// At most one dial at a time; everybody who needs a tunnel waits for it. Weak: without a waiter it is given up.
    dial: Option<WeakShared<Dialling>>,
}

/// Open tunnels by [`PoolKey`].
#[derive(Default)]
pub struct Pool {
    entries: Mutex<Entries>,
    /// Of both roles: the one place that every stage reaches.
    pub counts: Arc<Counts>,
}

#[derive(Default)]
struct Entries {
    by_key: HashMap<PoolKey, Arc<Mutex<Entry>>>,
    /// With so many keys it is time to forget unused ones: pods that are gone leave nothing behind.
    sweep_at: usize,
}

impl Entries {
    fn of(&mut self, key: &PoolKey) -> Arc<Mutex<Entry>> {
        if let Some(entry) = self.by_key.get(key) {
            return Arc::clone(entry);
        }
        if self.by_key.len() >= self.sweep_at {
            self.sweep();
            self.sweep_at = SWEEP_KEYS_MIN.max(self.by_key.len() * 2);
        }
        Arc::clone(self.by_key.entry(key.clone()).or_default())
    }

    fn sweep(&mut self) {
        self.by_key.retain(|_, shared| {
            let mut entry = shared.lock();
            entry.tunnels.retain(|tunnel| !tunnel.retired());
            let dialling = entry.dial.as_ref().is_some_and(|dial| dial.upgrade().is_some());
            // Somebody holds it who is about to dial.
            let held = Arc::strong_count(shared) > 1;
            dialling || held || !entry.tunnels.is_empty()
        });
    }
}

enum Step {
    Use(Reserved),
    Wait(Shared<Dialling>),
}

impl Pool {
    /// A stream of a tunnel with this key: of an open one with room, or of a new one that `dial` makes.
    ///
    /// `time_out` bounds the answer to the CONNECT; the dial has its own time-outs.
    pub async fn open<F>(
        &self,
        key: &PoolKey,
        request: &Request<()>,
        time_out: Duration,
        dial: impl Fn() -> F,
    ) -> Result<(TunnelStream, VerifiedPeer), TunnelError>
    where
        F: Future<Output = Result<Arc<Tunnel>, TunnelError>> + Send + 'static,
    {
        let mut attempts = 0;
        let mut waited = false;
        loop {
            let (reserved, peer) = match self.step(key, &dial)? {
                Step::Use(reserved) => {
                    if !waited {
                        self.counts.count_reuse();
                    }
                    let peer = reserved.peer();
                    (reserved, peer)
                }
                Step::Wait(dialled) => {
                    // Once made, it is in the entry: the next round finds it there, unless others were faster.
                    dialled.await?;
                    waited = true;
                    continue;
                }
            };
            attempts += 1;
            let answer = timeout(time_out, reserved.open(request.clone())).await;
            match answer.map_err(|_| TunnelError::TimedOut)? {
                Ok(stream) => return Ok((stream.counted(self.counts.client.streams.one()), peer)),
                Err(TunnelError::Lost(error)) if attempts < OPEN_ATTEMPTS_MAX && never_processed(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn step<F>(&self, key: &PoolKey, dial: impl Fn() -> F) -> Result<Step, TunnelError>
    where
        F: Future<Output = Result<Arc<Tunnel>, TunnelError>> + Send + 'static,
    {
        let shared = self.entries.lock().of(key);
        let mut entry = shared.lock();
        entry.tunnels.retain(|tunnel| !tunnel.retired());
        if let Some(reserved) = entry.tunnels.iter().find_map(Tunnel::reserve) {
            return Ok(Step::Use(reserved));
        }
        if let Some(running) = entry.dial.as_ref().and_then(WeakShared::upgrade) {
            return Ok(Step::Wait(running));
        }
        if entry.tunnels.len() >= super::limits::TUNNELS_PER_KEY_MAX {
            return Err(TunnelError::Overloaded);
        }
        let (made, home) = (dial(), Arc::downgrade(&shared));
        let counts = Arc::clone(&self.counts);
        let running = async move {
            let result = made.await;
            counts.opened.count(result.is_ok());
            if let Ok(tunnel) = &result {
                tunnel.counted(counts.client.tunnels.one());
            }
            if let Some(home) = home.upgrade() {
                let mut entry = home.lock();
                entry.dial = None;
                if let Ok(tunnel) = &result {
                    entry.tunnels.push(Arc::clone(tunnel));
                }
            }
            result
        }
        .boxed()
        .shared();
        entry.dial = running.downgrade();
        Ok(Step::Wait(running))
    }

    /// Retires what matches: live streams finish, new ones get new tunnels.
    pub fn retire(&self, matches: impl Fn(&PoolKey) -> bool) {
        for (_, shared) in self.entries.lock().by_key.iter().filter(|(key, _)| matches(key)) {
            shared.lock().tunnels.drain(..).for_each(|tunnel| tunnel.retire());
        }
    }

    /// How many tunnels are open.
    pub fn len(&self) -> usize {
        let entries = self.entries.lock();
        entries
            .by_key
            .values()
            .map(|shared| shared.lock().tunnels.iter().filter(|t| !t.retired()).count())
            .sum()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The other side says that it did not look at the request: repeating it is safe.
fn never_processed(error: &h2::Error) -> bool {
    (error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR))
        || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM))
        // The handle was closed before the request was sent.
        || error.is_io() && error.get_io().is_some_and(|io| io.kind() == std::io::ErrorKind::NotConnected)
}
