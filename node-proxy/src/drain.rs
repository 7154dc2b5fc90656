//! Graceful end: who is told to finish, and who waits for whom.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// After the deadline every task ends at its next await; one that does not must not hold up the end.
const FORCED_MS_MAX: u64 = 2_000;

/// A signal to stop taking work (`draining`), one to end at once (`deadline`), and a count of what is still running.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    /// No new connection, no new request on an old one; what runs may finish.
    pub draining: CancellationToken,
    /// The time to finish is over.
    pub deadline: CancellationToken,
    /// Every connection's task.
    pub connections: TaskTracker,
}

impl Drain {
    /// Drains: waits for the connections, at most for `time` or until `hurry`; then ends those that are left.
    pub async fn finish(&self, time: Duration, hurry: impl Future<Output = ()>) {
        self.draining.cancel();
        self.connections.close();
        info!(connections = self.connections.len(), seconds = time.as_secs(), "draining");
        let in_time = tokio::select! {
            () = self.connections.wait() => true,
            () = tokio::time::sleep(time) => false,
            () = hurry => false,
        };
        self.deadline.cancel();
        if in_time {
            return;
        }
        warn!(connections = self.connections.len(), "the time to drain is over: ending connections");
        let forced = Duration::from_millis(FORCED_MS_MAX);
        if tokio::time::timeout(forced, self.connections.wait()).await.is_err() {
            warn!(connections = self.connections.len(), "connections did not end when told to");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_finishes_is_waited_for() {
        let drain = Drain::default();
        let (draining, deadline) = (drain.draining.clone(), drain.deadline.clone());
        let task = drain.connections.spawn(async move {
            draining.cancelled().await;
            tokio::task::yield_now().await;
            deadline.is_cancelled()
        });
        drain.finish(LONG, pending()).await;
        assert!(!task.await.unwrap(), "the deadline came before the end");
    }

    #[tokio::test]
    async fn what_does_not_finish_is_ended_at_the_deadline() {
        let drain = Drain::default();
        let deadline = drain.deadline.clone();
        let task = drain.connections.spawn(async move { deadline.cancelled().await });
        drain.finish(Duration::from_millis(20), pending()).await;
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_second_signal_ends_even_what_does_not_listen() {
        let drain = Drain::default();
        drain.connections.spawn(pending::<()>());
        let started = Instant::now();
        drain.finish(LONG, async {}).await;
        assert!(started.elapsed() < LONG / 2);
    }
}
