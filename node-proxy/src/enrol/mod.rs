//! The enrolled pods of this node: finding their namespaces, opening the proxy's sockets inside, programming the kernel.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;
use weft_proto::identity::{PodUid, SpiffeId};
use weft_proto::model::Workload;

/// A network namespace, held open.
#[derive(Debug)]
pub struct Netns {
    pub fd: std::os::fd::OwnedFd,
    pub cookie: u64,
}

/// An enrolled pod of this node.
pub struct LocalPod {
    pub uid: PodUid,
    pub identity: SpiffeId,
    pub netns: Netns,
    /// The latest that the control plane said about it.
    pub workload: ArcSwap<Workload>,
    /// The pod left the mesh or is gone: its listeners close. Live connections of a relabelled pod finish.
    pub released: CancellationToken,
    /// The pod is gone: its live connections end with `PodGone`.
    pub gone: CancellationToken,
}

impl LocalPod {
    pub fn new(identity: SpiffeId, netns: Netns, workload: Arc<Workload>) -> Self {
        Self {
            uid: workload.uid.clone(),
            identity,
            netns,
            workload: ArcSwap::new(workload),
            released: CancellationToken::new(),
            gone: CancellationToken::new(),
        }
    }
}

/// All enrolled pods that are set up. Reading is one atomic load; a change replaces the whole (at most some hundred).
#[derive(Default)]
pub struct Pods {
    by_uid: ArcSwap<HashMap<PodUid, Arc<LocalPod>>>,
}

impl Pods {
    pub fn by_uid(&self, uid: &PodUid) -> Option<Arc<LocalPod>> {
        self.by_uid.load().get(uid).cloned()
    }
    pub fn all(&self) -> Vec<Arc<LocalPod>> {
        self.by_uid.load().values().cloned().collect()
    }
    pub fn insert(&self, pod: &Arc<LocalPod>) {
        self.by_uid.rcu(|pods| {
            let mut pods = HashMap::clone(pods);
            pods.insert(pod.uid.clone(), Arc::clone(pod));
            pods
        });
    }
    pub fn remove(&self, uid: &PodUid) {
        self.by_uid.rcu(|pods| {
            let mut pods = HashMap::clone(pods);
            pods.remove(uid);
            pods
        });
    }
}
