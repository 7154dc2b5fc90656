//! The enrolled pods of this node: finding their namespaces, opening the proxy's sockets inside, programming the kernel.

use std::sync::Arc;

use arc_swap::ArcSwap;
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
}

/// All enrolled pods.
pub struct Pods {
    _private: (),
}

impl Pods {
    pub fn by_uid(&self, _uid: &PodUid) -> Option<Arc<LocalPod>> {
        todo!()
    }
}
