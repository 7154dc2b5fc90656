//! The way of spans to the collector: a bounded queue, batches, retries; on a thread of its own.
//!
//! Handing a span over never waits; what does not fit is dropped and counted. A batch that the collector cannot take is
//! repeated with backoff until `OTEL_BSP_EXPORT_TIMEOUT`, then dropped and counted; meanwhile the queue fills up. Start at
//! [`SpanQueue::start`].

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::TelemetryError;
use super::environment::{BatchSettings, OtelSettings};
use super::metrics::{Counter, Metrics, names};
use super::span::{FinishedSpan, to_request};
use super::transport::{Transport, TransportError};

/// Before the first repeat; doubled each time, up to the longest, with jitter. OTLP asks for exponential backoff.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

enum Message {
    Span(Box<FinishedSpan>),
    /// Answered when all before it was sent, or given up.
    Flush(oneshot::Sender<()>),
}

/// Where records leave their spans.
pub(super) struct SpanQueue {
    queue: mpsc::Sender<Message>,
    dropped_full: Counter,
}

/// What happened to spans.
#[derive(Clone)]
struct Counters {
    exported: Counter,
    failures: Counter,
    dropped_failed: Counter,
    dropped_refused: Counter,
}

impl SpanQueue {
    /// None: no endpoint is set. Starts a thread with a runtime of its own: exporting takes nothing from the data path.
    pub(super) fn start(settings: &OtelSettings, metrics: &Metrics) -> Result<Option<Self>, TelemetryError> {
        let Some(export) = &settings.export else { return Ok(None) };
        let (queue, spans) = mpsc::channel(settings.batch.queue_spans_max);
        let dropped = |cause| metrics.counter(&names::SPANS_DROPPED, &[("cause", cause)]);
        let counters = Counters {
            exported: metrics.counter(&names::SPANS_EXPORTED, &[]),
            failures: metrics.counter(&names::SPAN_EXPORT_FAILURES, &[]),
            dropped_failed: dropped("export"),
            dropped_refused: dropped("refused"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(TelemetryError::Thread)?;
        // tonic needs the runtime's context; the caller may be inside another one, so nothing blocks here.
        let made = {
            let _context = runtime.enter();
            Transport::new(export)
        };
        let transport = match made {
            Ok(transport) => transport,
            Err(error) => {
                // Dropping a runtime within another one is not allowed.
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let exporter = Exporter {
            spans,
            transport,
            batch: settings.batch,
            resource: settings.resource.clone(),
            counters,
            endpoint: export.endpoint.to_string(),
            failing: false,
        };
        std::thread::Builder::new()
            .name("otlp-export".into())
            .spawn(move || runtime.block_on(exporter.run()))
            .map_err(TelemetryError::Thread)?;
        Ok(Some(Self { queue, dropped_full: dropped("queue") }))
    }

    pub(super) fn submit(&self, span: FinishedSpan) {
        if self.queue.try_send(Message::Span(Box::new(span))).is_err() {
            self.dropped_full.increment();
        }
    }

    /// Waits until what was submitted before is sent or given up, for at most `wait_max`.
    pub(super) async fn flush(&self, wait_max: Duration) -> bool {
        let flush = async {
            let (done, sent) = oneshot::channel();
            self.queue.send(Message::Flush(done)).await.is_ok() && sent.await.is_ok()
        };
        tokio::time::timeout(wait_max, flush).await.unwrap_or(false)
    }
}

struct Exporter {
    spans: mpsc::Receiver<Message>,
    transport: Transport,
    batch: BatchSettings,
    resource: Vec<(String, String)>,
    counters: Counters,
    endpoint: String,
    /// Whether the last export failed: only changes are logged.
    failing: bool,
}

impl Exporter {
    /// Until every sender is gone.
    async fn run(mut self) {
        let mut batch = Vec::with_capacity(self.batch.batch_spans_max);
        loop {
            let due = Instant::now() + self.batch.schedule_delay;
            let (flush, open) = self.fill(&mut batch, due).await;
            if !batch.is_empty() {
                self.export(&batch).await;
                batch.clear();
            }
            if let Some(done) = flush {
                // Who asked may be gone.
                let _ = done.send(());
            }
            if !open {
                return;
            }
        }
    }

    /// Collects until the batch is full, `due`, a flush, or the end of the queue (false).
    async fn fill(
        &mut self,
        batch: &mut Vec<FinishedSpan>,
        due: Instant,
    ) -> (Option<oneshot::Sender<()>>, bool) {
        while batch.len() < self.batch.batch_spans_max {
            match tokio::time::timeout_at(due, self.spans.recv()).await {
                Ok(Some(Message::Span(span))) => batch.push(*span),
                Ok(Some(Message::Flush(done))) => return (Some(done), true),
                Ok(None) => return (None, false),
                Err(_due) => break,
            }
        }
        (None, true)
    }

    async fn export(&mut self, batch: &[FinishedSpan]) {
        let request = to_request(batch, &self.resource);
        let sent = tokio::time::timeout(self.batch.export_timeout, self.send_repeatedly(&request)).await;
        let count = batch.len() as u64;
        let error = match sent {
            Ok(Ok(refused)) => {
                let refused = refused.min(count);
                self.counters.exported.add(count - refused);
                self.counters.dropped_refused.add(refused);
                if std::mem::take(&mut self.failing) {
                    tracing::info!(endpoint = self.endpoint, "spans are exported again");
                }
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "no success within OTEL_BSP_EXPORT_TIMEOUT".to_owned(),
        };
        self.counters.dropped_failed.add(count);
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(endpoint = self.endpoint, error, "spans cannot be exported and are dropped");
        }
    }

    async fn send_repeatedly(&self, request: &ExportTraceServiceRequest) -> Result<u64, TransportError> {
        let mut backoff = BACKOFF;
        loop {
            match self.transport.send(request).await {
                Ok(refused) => return Ok(refused),
                Err(error) => {
                    self.counters.failures.increment();
                    if !error.repeatable {
                        return Err(error);
                    }
                }
            }
            // Between half and all of it, so that the nodes of a cluster do not come back at once.
            tokio::time::sleep(backoff.mul_f64(rand::random_range(0.5..=1.0))).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }
}
