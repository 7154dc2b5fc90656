//! Where objects come from. One interface: a source sends batches of [`Event`]s and reports what it could not use.
//!
//! A directory of manifests ([`directory`]) or a Kubernetes API server ([`kubernetes`]). Start at [`Source`].

pub mod directory;
pub mod kinds;
pub mod kubernetes;
mod last_good;
mod list;
pub mod locate;
pub mod manifest;
pub mod object;
pub mod subjects;

use std::future::Future;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use self::object::{Object, ObjectKey};
pub use self::subjects::Subjects;

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

/// Something a source found wrong, in a file or (line 0) in an object of an API server. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub file: String,
    pub line: usize,
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.line == 0 {
            return write!(f, "{}: {}", self.file, self.message);
        }
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

/// How much a source reads, and of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Read {
    Files(usize),
    /// Of an API server.
    Objects(usize),
}

/// What a source has to say about its input as it stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub read: Read,
    pub errors: Vec<Problem>,
    pub warnings: Vec<Problem>,
}

impl Report {
    /// Before the first word of the source.
    pub fn empty(read: Read) -> Self {
        Self { read, errors: Vec::new(), warnings: Vec::new() }
    }
}

/// Where a source sends to.
pub struct Sink {
    pub batches: mpsc::Sender<Vec<Event>>,
    pub report: watch::Sender<Arc<Report>>,
    pub subjects: Arc<Subjects>,
}

pub trait Source: Send + 'static {
    /// Runs until `stop`; the first batch is a [`Event::Reset`].
    fn run(self, sink: Sink, stop: CancellationToken) -> impl Future<Output = ()> + Send;
}
