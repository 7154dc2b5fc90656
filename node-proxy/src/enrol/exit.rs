//! Word of the end of a pod's process: its sandbox may be about to be replaced, and the new one must not wait for a
//! regular look to be in the mesh.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Notifies `ended` when a process has ended; not after this is dropped.
pub(super) struct ExitWatch(Option<JoinHandle<()>>);

impl ExitWatch {
    /// Needs a runtime. A process that cannot be watched is found out by the regular look.
    pub(super) fn new(pid: &str, ended: &Arc<Notify>) -> Self {
        let Ok(process) = open(pid) else {
            ended.notify_one();
            return Self(None);
        };
        let ended = Arc::clone(ended);
        Self(Some(tokio::spawn(async move {
            // Readable from the end on.
            if process.readable().await.is_ok() {
                ended.notify_one();
            }
        })))
    }
}

fn open(pid: &str) -> io::Result<AsyncFd<OwnedFd>> {
    let pid = pid.parse().ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let process = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
    // SAFETY: the descriptor is owned by what is returned, and nobody else closes it.
    Ok(unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }?)
}

impl Drop for ExitWatch {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
