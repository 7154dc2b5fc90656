//! A Kubernetes API server as a source: one watch per kind, merged.
//!
//! The first batch is sent when every kind was listed; a new list of one kind is one batch of its differences. Losing the
//! API server changes nothing: what is known stays. Only what the index needs is kept of an object. Start at
//! [`Kubernetes::run`], then `state`.

mod kinds;
mod raw;
mod state;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::kinds::WATCHED;
pub(crate) use self::kinds::resource_of;
use self::state::State;
use super::{Sink, Source};

/// Told by the watches and not taken in yet: a watch that is ahead waits.
const TOLD_UNDER_WAY_MAX: usize = 1024;
/// Taken in as one batch: a burst is one change of the index, and not so large that nodes wait for it.
const BATCH_MAX: usize = 1024;
/// How long before the log says what the first state still waits for.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Kubernetes {
    client: Client,
    watch_time: Duration,
}

impl Kubernetes {
    /// `watch_time`: how long a watch lives before it is resumed.
    pub fn new(client: Client, watch_time: Duration) -> Self {
        Self { client, watch_time }
    }
}

impl Source for Kubernetes {
    async fn run(self, sink: Sink, stop: CancellationToken) {
        let (out, mut told) = mpsc::channel(TOLD_UNDER_WAY_MAX);
        let mut watches = tokio::task::JoinSet::new();
        for (at, watched) in WATCHED.into_iter().enumerate() {
            let client = self.client.clone();
            watches.spawn(watch::run(client, at, watched, self.watch_time, out.clone(), stop.clone()));
        }
        drop(out);
        let mut state = State::new(sink.subjects.clone());
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut patience = tokio::time::interval(PATIENCE);
        patience.tick().await;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                received = told.recv_many(&mut batch, BATCH_MAX) => {
                    if received == 0 {
                        return;
                    }
                }
                _ = patience.tick() => {
                    let awaited = state.awaited();
                    if !awaited.is_empty() {
                        tracing::warn!(?awaited, "nodes are served once these are listed");
                    }
                    continue;
                }
            }
            let mut events = Vec::new();
            for (at, told) in batch.drain(..) {
                state.take(at, told, &mut events);
            }
            sink.report.send_if_modified(|report| {
                let next = state.report();
                let differs = **report != next;
                if differs {
                    *report = Arc::new(next);
                }
                differs
            });
            if !events.is_empty() && sink.batches.send(events).await.is_err() {
                return;
            }
        }
    }
}
