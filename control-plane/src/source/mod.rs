//! Where objects come from. One interface: a source sends batches of [`Event`]s and reports what it could not use.
//!
//! Today a directory of manifests ([`directory`]); a Kubernetes watch takes the same place. Start at [`Source`].

pub mod directory;
pub mod kinds;
mod list;
pub mod locate;
pub mod manifest;
pub mod object;

use std::future::Future;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use self::object::{Object, ObjectKey};

/// Batches under way to the index: a source that is ahead waits.
pub const BATCHES_UNDER_WAY_MAX: usize = 16;
/// Problems kept for status; the rest are counted.
pub const PROBLEMS_SHOWN_MAX: usize = 200;

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Apply(Object),
    Delete(ObjectKey),
    /// The whole state, replacing whatever was there, at once.
    Reset(Vec<Object>),
}

/// Something a source found wrong. `line` counts from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub file: String,
    pub line: usize,
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

/// What a source has to say about its input as it stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    pub files: usize,
    pub errors: Vec<Problem>,
    pub warnings: Vec<Problem>,
}

/// Where a source sends to.
pub struct Sink {
    pub batches: mpsc::Sender<Vec<Event>>,
    pub report: watch::Sender<Arc<Report>>,
}

pub trait Source: Send + 'static {
    /// Runs until `stop`; the first batch is a [`Event::Reset`].
    fn run(self, sink: Sink, stop: CancellationToken) -> impl Future<Output = ()> + Send;
}
