//! What the parts of the control plane share: the index, the sessions of nodes, the authority, the source's report.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::authority::Authority;
use crate::index::Index;
use crate::push::Hub;
use crate::source::Report;

#[derive(Debug, Default)]
pub struct Metrics {
    pub certificates_signed: AtomicU64,
    pub certificates_refused: AtomicU64,
    pub subscriptions_refused: AtomicU64,
}

pub struct World {
    /// Of the API server, with `--kubernetes`.
    pub client: Option<kube::Client>,
    /// Held for look-ups only, never across an await.
    pub index: RwLock<Index>,
    pub hub: Hub,
    pub authority: Authority,
    pub report: watch::Receiver<Arc<Report>>,
    pub metrics: Metrics,
    /// The first state of the source is in the index.
    pub synced: AtomicBool,
    /// Cancelled at shutdown: every stream ends.
    pub stop: CancellationToken,
}
