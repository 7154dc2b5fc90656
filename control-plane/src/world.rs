//! What the parts of the control plane share: the index, the sessions of nodes, the authority, the source's report.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::authority::{Authenticate, Authority, LivePods};
use crate::index::Index;
use crate::line_quota::LineQuota;
use crate::push::Hub;
use crate::source::{Report, Subjects};

#[derive(Debug, Default)]
pub struct Metrics {
    pub certificates_signed: AtomicU64,
    pub certificates_refused: AtomicU64,
    pub node_certificates_signed: AtomicU64,
    pub node_certificates_refused: AtomicU64,
    pub handshakes_refused: AtomicU64,
    pub subscriptions_refused: AtomicU64,
}

pub struct World {
    pub subjects: Arc<Subjects>,
    /// Of the API server, with `--kubernetes`.
    pub client: Option<kube::Client>,
    /// Held for look-ups only, never across an await.
    pub index: Arc<RwLock<Index>>,
    pub hub: Hub,
    pub authority: Authority,
    /// Judges the tokens of nodes.
    pub authenticate: Arc<dyn Authenticate>,
    /// Pods that the index does not know yet; None without a cluster.
    pub(crate) live_pods: Option<LivePods>,
    /// Lines about refused strangers: whoever can connect must not be able to fill the disk.
    pub refusals_logged: LineQuota,
    pub report: watch::Receiver<Arc<Report>>,
    pub metrics: Metrics,
    /// The first state of the source is in the index.
    pub synced: AtomicBool,
    /// Cancelled at shutdown: every stream ends.
    pub stop: CancellationToken,
}
