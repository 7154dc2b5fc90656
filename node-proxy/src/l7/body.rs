//! A response's body on its way to the client: its end is the end of the request's record. Nothing is delayed: a frame
//! goes on as soon as it is there. The request's body is in `outgoing.rs`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::outgoing::BoxError;
use super::reply;
use crate::telemetry::{ByteCounts, CloseReason};

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
