//! The bodies that cross the proxy: the request's, which may have to be sent again, and the response's, whose end is
//! the end of the request's record. Nothing is delayed: a frame goes on as soon as it is there.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::time::Sleep;

use super::limits::REPLAY_BYTES_MAX;
use super::reply;
use crate::telemetry::{ByteCounts, CloseReason};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body on its way to an endpoint.
pub(super) struct Outgoing {
    source: Source,
    bytes: Arc<ByteCounts>,
}

enum Source {
    Empty,
    Stream(Incoming),
    Replay { shared: Arc<Replay>, attempt: u32, at: usize },
}

/// A body that is kept while it is sent, up to a bound.
pub(super) struct Replay(Mutex<Kept>);

struct Kept {
    incoming: Incoming,
    frames: Vec<Bytes>,
    kept_bytes: usize,
    /// More than may be kept was sent: cannot be sent again.
    overflowed: bool,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// Only the latest attempt reads on.
    attempt: u32,
    waiting: Option<Waker>,
}

impl Replay {
    pub(super) fn new(incoming: Incoming) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Kept {
            incoming,
            frames: Vec::new(),
            kept_bytes: 0,
            overflowed: false,
            trailers: None,
            ended: false,
            attempt: 0,
            waiting: None,
        })))
    }

    pub(super) fn replayable(&self) -> bool {
        !self.0.lock().overflowed
    }

    /// The whole body again; the attempt before ends in an error if it is still reading.
    pub(super) fn again(self: &Arc<Self>, bytes: &Arc<ByteCounts>) -> Outgoing {
        let mut kept = self.0.lock();
        kept.attempt += 1;
        if let Some(waker) = kept.waiting.take() {
            waker.wake();
        }
        let source = Source::Replay { shared: Arc::clone(self), attempt: kept.attempt, at: 0 };
        Outgoing { source, bytes: Arc::clone(bytes) }
    }
}

impl Kept {
    fn poll(&mut self, at: &mut usize, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(frame) = self.frames.get(*at) {
            *at += 1;
            return Poll::Ready(Some(Ok(Frame::data(frame.clone()))));
        }
        if self.ended {
            // Trailers count as one frame more.
            if *at == self.frames.len()
                && let Some(trailers) = &self.trailers
            {
                *at += 1;
                return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
            }
            return Poll::Ready(None);
        }
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            self.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        };
        match frame {
            None => self.ended = true,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.keep(data, at);
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.trailers = Some(trailers.clone());
                    self.ended = true;
                    *at += 1;
                }
                return Poll::Ready(Some(Ok(frame)));
            }
        }
        Poll::Ready(None)
    }

    fn keep(&mut self, data: &Bytes, at: &mut usize) {
        self.kept_bytes = self.kept_bytes.saturating_add(data.len());
        if self.overflowed {
            return;
        }
        if self.kept_bytes > REPLAY_BYTES_MAX {
            self.overflowed = true;
            self.frames = Vec::new();
            *at = 0;
        } else {
            self.frames.push(data.clone());
            *at += 1;
        }
    }
}

impl Outgoing {
    pub(super) fn empty(bytes: &Arc<ByteCounts>) -> Self {
        Self { source: Source::Empty, bytes: Arc::clone(bytes) }
    }
    pub(super) fn stream(incoming: Incoming, bytes: &Arc<ByteCounts>) -> Self {
        Self { source: Source::Stream(incoming), bytes: Arc::clone(bytes) }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Empty => return Poll::Ready(None),
            Source::Stream(incoming) => {
                ready!(Pin::new(incoming).poll_frame(cx)).map(|frame| frame.map_err(BoxError::from))
            }
            Source::Replay { shared, attempt, at } => {
                let mut kept = shared.0.lock();
                if kept.attempt != *attempt {
                    return Poll::Ready(Some(Err("another attempt has begun".into())));
                }
                ready!(kept.poll(at, cx))
            }
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.bytes.sent.fetch_add(data.len() as u64, Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Stream(incoming) => incoming.is_end_stream(),
            Source::Replay { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Stream(incoming) => incoming.size_hint(),
            // The head's Content-Length or Transfer-Encoding says it.
            Source::Replay { .. } => SizeHint::default(),
        }
    }
}

/// What happens when a response has ended; dropped before: the client went away.
pub(super) trait Ending: Send + Unpin + 'static {
    /// `whole`: to its last byte.
    fn end(self, grpc_status: Option<u32>, reason: CloseReason);
}

/// A response's body on its way to the client.
pub(super) enum Relay<E: Ending> {
    Local(Option<Bytes>),
    Upstream(Box<Upstream<E>>),
}

pub(super) struct Upstream<E: Ending> {
    pub incoming: Incoming,
    pub bytes: Arc<ByteCounts>,
    /// The request's time-out covers the response's last byte.
    pub deadline: Option<Pin<Box<Sleep>>>,
    pub grpc_status: Option<u32>,
    pub ending: Option<E>,
}

impl<E: Ending> Upstream<E> {
    fn end(&mut self, reason: CloseReason) {
        if let Some(ending) = self.ending.take() {
            ending.end(self.grpc_status, reason);
        }
    }
}

impl<E: Ending> Drop for Upstream<E> {
    fn drop(&mut self) {
        // hyper does not poll a body that says it has ended.
        let reason = if self.incoming.is_end_stream() { CloseReason::Ok } else { CloseReason::Cancelled };
        self.end(reason);
    }
}

impl<E: Ending> Body for Relay<E> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let upstream = match &mut *self {
            Self::Local(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Upstream(upstream) => upstream,
        };
        let Poll::Ready(frame) = Pin::new(&mut upstream.incoming).poll_frame(cx) else {
            if let Some(deadline) = &mut upstream.deadline
                && deadline.as_mut().poll(cx).is_ready()
            {
                upstream.end(CloseReason::RequestTimeout);
                return Poll::Ready(Some(Err("the request took too long".into())));
            }
            return Poll::Pending;
        };
        match &frame {
            None => upstream.end(CloseReason::Ok),
            Some(Err(_)) => upstream.end(CloseReason::ServerReset),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    upstream.bytes.received.fetch_add(data.len() as u64, Relaxed);
                } else if let Some(trailers) = frame.trailers_ref() {
                    upstream.grpc_status = upstream.grpc_status.or_else(|| reply::grpc_status(trailers));
                }
                if upstream.incoming.is_end_stream() {
                    upstream.end(CloseReason::Ok);
                }
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Local(bytes) => bytes.is_none(),
            Self::Upstream(upstream) => upstream.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Local(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Upstream(upstream) => upstream.incoming.size_hint(),
        }
    }
}
