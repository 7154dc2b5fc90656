//! Graceful end: who is told to finish, and who waits for whom.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

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
