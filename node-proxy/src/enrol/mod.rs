//! The enrolled pods of this node: finding their namespaces, opening the proxy's sockets inside, programming the kernel.
//!
//! `sandbox` keeps what the CNI plugin told of new pods, `cgroup` finds the process of those that run already, `netns` opens a namespace,
//! [`enroller`] compares what should be with what is, and [`run`] does so whenever the snapshot changes and as long as something is
//! missing.

mod cgroup;
mod enroller;
mod exit;
mod journal;
mod netns;
mod run;
mod sandbox;
mod steering;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;
use weft_proto::identity::{PodUid, SpiffeId};
use weft_proto::model::Workload;

pub use enroller::{Enroller, Listeners, Start};
pub use journal::{Event, Events};
pub use netns::Netns;
pub use run::{Passes, run};
pub use sandbox::{ADDRESSES_MAX, Sandbox, SandboxError};
pub use steering::Steering;

/// An enrolled pod of this node.
pub struct LocalPod {
    pub uid: PodUid,
    pub identity: SpiffeId,
    pub netns: Netns,
    /// The latest that the control plane said about it.
    pub workload: ArcSwap<Workload>,
    /// The pod was told to end: its tunnels say GOAWAY. All else goes on until it is gone.
    pub ending: CancellationToken,
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
            ending: CancellationToken::new(),
            released: CancellationToken::new(),
            gone: CancellationToken::new(),
        }
    }
}

/// Why an enrolled pod is not set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    /// Its namespace is known, and the kernel refuses its connections. Otherwise they bypass the mesh, if it runs.
    pub shut: bool,
}

/// All enrolled pods that are set up. Reading is one atomic load; a change replaces the whole (at most some hundred).
#[derive(Default)]
pub struct Pods {
    by_uid: ArcSwap<HashMap<PodUid, Arc<LocalPod>>>,
    /// Enrolled pods that cannot be set up, and why: for status.
    failures: ArcSwap<BTreeMap<PodUid, Failure>>,
    events: ArcSwap<Events>,
}

impl Pods {
    pub fn by_uid(&self, uid: &PodUid) -> Option<Arc<LocalPod>> {
        self.by_uid.load().get(uid).cloned()
    }
    pub fn all(&self) -> Vec<Arc<LocalPod>> {
        self.by_uid.load().values().cloned().collect()
    }
    pub fn failures(&self) -> Arc<BTreeMap<PodUid, Failure>> {
        self.failures.load_full()
    }
    /// What happened to the pods of this node.
    pub fn events(&self) -> Arc<Events> {
        self.events.load_full()
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
