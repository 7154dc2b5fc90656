//! The way of spans to the collector: a bounded queue, batches, retries; on a thread of its own.
//!
//! Handing a span over never waits; what does not fit is dropped and counted. Start at [`SpanQueue`].

use tokio::sync::mpsc;

use super::metrics::Counter;
use super::span::FinishedSpan;

pub(super) enum Message {
    Span(Box<FinishedSpan>),
}

/// Where records leave their spans.
pub(super) struct SpanQueue {
    queue: mpsc::Sender<Message>,
    dropped_full: Counter,
}

impl SpanQueue {
    pub(super) fn submit(&self, span: FinishedSpan) {
        if self.queue.try_send(Message::Span(Box::new(span))).is_err() {
            self.dropped_full.increment();
        }
    }
}
