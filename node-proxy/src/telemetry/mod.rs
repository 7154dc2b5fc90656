//! One record per connection or request, from which metrics, spans and access log all come.
//!
//! Stages open a [`ConnectionRecord`] or a [`RequestRecord`] (with an [`Attempt`] per try), tell it what they learn, and
//! finish it once; nothing here ever makes them wait. Names and rules: `docs/telemetry.md`.

mod context;
mod environment;
mod export;
mod lines;
mod live;
mod log;
pub mod metrics;
mod reason;
mod record;
mod sampler;
mod span;
mod transport;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use weft_proto::identity::{NamespacedName, SpiffeId};
use weft_proto::model::Workload;

pub use crate::settings::AccessLog as LogLevel;

pub use environment::{BatchSettings, EnvironmentError, ExportProtocol, ExportSettings, OtelSettings};
pub use live::{LiveList, Row};
use log::AccessLog;
pub use log::LogSink;
use metrics::{Counter, Family, Gauge, Metrics, Samples, TextFormat, names};
pub use reason::CloseReason;
pub use record::{Attempt, ConnectionRecord, RequestRecord, RequestStart};

pub use context::Propagators;
use export::SpanQueue;
use live::LiveTable;
use record::Tally;
pub use sampler::{Root, Sampler};

/// Which side of the mesh reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's proxy.
    Source,
    /// The server's proxy.
    Destination,
}

impl Reporter {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Security {
    MutualTls,
    /// Both ends on this node, known by their namespaces: no wire, no TLS.
    Local,
    None,
}

impl Security {
    /// The label `connection_security_policy`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Local => "local",
            Self::None => "none",
        }
    }
}

/// One end of a flow, as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Party {
    pub workload: Option<Arc<Workload>>,
    pub principal: Option<SpiffeId>,
    pub address: Option<SocketAddr>,
}

/// Who speaks to whom.
#[derive(Debug, Clone)]
pub struct Flow {
    pub reporter: Reporter,
    pub source: Party,
    pub destination: Party,
    /// The Service that was addressed, if known.
    pub service: Option<NamespacedName>,
    pub security: Security,
}

/// Bytes of a flow, counted while it lives.
#[derive(Debug, Default)]
pub struct ByteCounts {
    /// From the client towards the server.
    pub sent: AtomicU64,
    /// From the server towards the client.
    pub received: AtomicU64,
}

/// What is switched on. The default: metrics only, no thread, no file, no network.
#[derive(Debug, Clone)]
pub struct TelemetrySettings {
    pub log_level: LogLevel,
    pub log_sink: LogSink,
    /// For the label `destination_service`.
    pub cluster_domain: String,
    /// Tracing, by OpenTelemetry's environment variables.
    pub otel: OtelSettings,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self {
            log_level: LogLevel::Off,
            log_sink: LogSink::Stdout,
            cluster_domain: "cluster.local".into(),
            otel: OtelSettings::default(),
        }
    }
}

/// Why telemetry does not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("the access log {path:?} cannot be opened")]
    LogFile { path: PathBuf, source: io::Error },
    #[error("standard output cannot be had for the access log")]
    Stdout(#[source] io::Error),
    #[error("the exporter's TLS: {0}")]
    ExporterTls(String),
    #[error("a thread cannot be started")]
    Thread(#[source] io::Error),
}

/// The exporter, for `/status`.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct TraceStatus {
    /// None: off.
    pub endpoint: Option<String>,
    pub exported: u64,
    pub dropped: u64,
    pub failed_calls: u64,
}

struct Inner {
    started: Instant,
    metrics: Metrics,
    live: LiveTable,
    tally: Tally,
    log: Option<AccessLog>,
    propagators: Propagators,
    sampler: Sampler,
    /// None: no spans are made here.
    spans: Option<SpanQueue>,
    endpoint: Option<String>,
}

/// The sinks: metrics, spans, access log. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    inner: Arc<Inner>,
}

impl Telemetry {
    /// Opens the sinks. Needs no runtime; with the default settings it starts nothing at all.
    pub fn start(settings: &TelemetrySettings) -> Result<Self, TelemetryError> {
        let metrics = Metrics::new(&settings.cluster_domain);
        let log = AccessLog::start(settings.log_level, &settings.log_sink, &metrics)?;
        let spans = SpanQueue::start(&settings.otel, &metrics)?;
        let tally = Tally::new(&metrics);
        Ok(Self {
            inner: Arc::new(Inner {
                started: Instant::now(),
                metrics,
                live: LiveTable::new(),
                tally,
                log,
                propagators: settings.otel.propagators,
                sampler: settings.otel.sampler,
                spans,
                endpoint: settings.otel.export.as_ref().map(|export| export.endpoint.to_string()),
            }),
        })
    }

    /// A counter of a family; register once, keep it, count for free.
    pub fn counter(&self, family: &'static Family, labels: &[(&str, &str)]) -> Counter {
        self.inner.metrics.counter(family, labels)
    }

    /// A gauge of a family; register once, keep it, set for free.
    pub fn gauge(&self, family: &'static Family, labels: &[(&str, &str)]) -> Gauge {
        self.inner.metrics.gauge(family, labels)
    }

    /// Calls `collect` at every scrape, for what is cheaper to look up than to keep. It must not block, and should hold
    /// its state weakly: it lives as long as telemetry does.
    pub fn collector(&self, collect: impl Fn(&mut Samples) + Send + Sync + 'static) {
        self.inner.metrics.collector(collect);
    }

    /// `/metrics`. Counts the bytes of live connections first, so that long flows report while they live.
    pub fn metrics(&self, format: TextFormat) -> String {
        let inner = &self.inner;
        inner.live.report(&inner.metrics.flows);
        let counts = inner.live.counts();
        inner.metrics.gauge(&names::CONNECTIONS_LIVE, &[]).set(metrics::to_f64(counts.connections));
        inner.metrics.gauge(&names::REQUESTS_LIVE, &[]).set(metrics::to_f64(counts.requests));
        inner.tally.unlisted(counts.unlisted_total);
        inner.metrics.render(format, inner.started.elapsed())
    }

    /// Where spans go, and what became of them so far.
    pub fn traces(&self) -> TraceStatus {
        let count = |family, labels: &[(&str, &str)]| self.counter(family, labels).value();
        let dropped = |cause| count(&names::SPANS_DROPPED, &[("cause", cause)]);
        let Some(endpoint) = self.inner.endpoint.clone() else { return TraceStatus::default() };
        TraceStatus {
            endpoint: Some(endpoint),
            exported: count(&names::SPANS_EXPORTED, &[]),
            dropped: ["queue", "export", "refused"].into_iter().map(dropped).sum(),
            failed_calls: count(&names::SPAN_EXPORT_FAILURES, &[]),
        }
    }

    /// `/connections`.
    pub fn connections(&self) -> LiveList {
        self.inner.live.list()
    }

    /// Writes out what is queued, for at most `wait_max`.
    pub async fn shutdown(&self, wait_max: Duration) {
        let inner = Arc::clone(&self.inner);
        let lines =
            tokio::task::spawn_blocking(move || inner.log.as_ref().is_none_or(|log| log.flush(wait_max)));
        let spans = async {
            match &self.inner.spans {
                Some(spans) => spans.flush(wait_max).await,
                None => true,
            }
        };
        let (lines, spans) = tokio::join!(lines, spans);
        if !spans {
            tracing::warn!("not all spans could be exported before the end");
        }
        if !lines.unwrap_or(false) {
            tracing::warn!("not all access log lines could be written before the end");
        }
    }

    /// Opens the record of an L4 connection. Listed under `/connections` while it lives.
    pub fn connection(&self, flow: Flow) -> ConnectionRecord {
        ConnectionRecord::open(Arc::clone(&self.inner), flow)
    }
    /// Opens the record of a request. `headers` are the client's: the parent of the spans comes from them.
    pub fn request(&self, flow: Flow, start: &RequestStart<'_>) -> RequestRecord {
        RequestRecord::open(Arc::clone(&self.inner), flow, start)
    }
}

/// `network.protocol.version`
fn version_name(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "1.0",
        http::Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

#[cfg(test)]
mod tests;
