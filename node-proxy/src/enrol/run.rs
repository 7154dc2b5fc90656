//! Runs the enroller: at each new snapshot on request, and again as long as something is missing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tracing::error;
use weft_proto::model::Workload;

use super::Enroller;
use crate::node::Node;

/// Asks for a pass over the pods with the current snapshot. Cheap to clone.
#[derive(Clone)]
pub struct Passes(mpsc::Sender<oneshot::Sender<()>>);

impl Passes {
    /// One place: there is one control plane stream, and it waits for the answer.
    pub fn channel() -> (Self, mpsc::Receiver<oneshot::Sender<()>>) {
        let (sender, receiver) = mpsc::channel(1);
        (Self(sender), receiver)
    }

    /// Returns when pods, sockets and kernel have followed the current snapshot, or failed and were reported.
    pub async fn request(&self) {
        let (done, wait) = oneshot::channel();
        if self.0.send(done).await.is_ok() {
            // An error means that the node is ending.
            let _ = wait.await;
        }
    }
}

/// Until the node drains.
pub async fn run(
    node: Arc<Node>,
    enroller: Arc<Mutex<Enroller>>,
    mut requests: mpsc::Receiver<oneshot::Sender<()>>,
) {
    let mut pause = Duration::MAX;
    let ended = enroller.lock().ended();
    loop {
        let done = tokio::select! {
            () = node.drain.draining.cancelled() => break,
            () = ended.notified() => {
                enroller.lock().recheck_next();
                None
            }
            request = requests.recv() => match request {
                Some(done) => Some(done),
                None => break,
            },
            () = tokio::time::sleep(pause) => None,
        };
        pause = pass(&node, &enroller).await;
        if let Some(done) = done {
            retire_tunnels(&node);
            // Whoever asked may have gone.
            let _ = done.send(());
        }
    }
}

/// Tunnels of pods that are going or gone, at either end, take no new streams; live ones finish.
fn retire_tunnels(node: &Node) {
    let snapshot = node.snapshot.load();
    let here: HashSet<u64> = node.pods.all().iter().map(|pod| pod.netns.cookie).collect();
    node.tunnels.retire(|key| {
        let going = |workload: &Arc<Workload>| workload.terminating || !workload.enrolled;
        !here.contains(&key.netns_cookie) || snapshot.workload_by_ip(key.to.ip()).is_none_or(going)
    });
}

async fn pass(node: &Arc<Node>, enroller: &Arc<Mutex<Enroller>>) -> Duration {
    /// After a panic of the pass: it must not become a tight loop.
    const AFTER_PANIC: Duration = Duration::from_secs(1);
    let (node, enroller) = (Arc::clone(node), Arc::clone(enroller));
    let pass = tokio::task::spawn_blocking(move || {
        let snapshot = node.snapshot.load();
        let pause = enroller.lock().pass(&snapshot, &node.pods, &node.identities, Instant::now());
        // What pods and Services leave behind in the data path. Those that still use it keep it until they end.
        node.upstreams.retain(|uid| node.pods.by_uid(uid).is_some());
        node.places.retain(|uid| node.pods.by_uid(uid).is_some());
        node.balancers.retain(|id| snapshot.service(id).is_some());
        pause
    });
    pass.await.unwrap_or_else(|error| {
        error!(%error, "the pass over the pods failed");
        AFTER_PANIC
    })
}
