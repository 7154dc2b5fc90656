//! A bound on how long an HTTP/1 client may take to send a request's head.
//!
//! The time runs from the head's first byte: a kept-alive connection may be silent for as long as both ends like, which
//! hyper's own time-out would end. HTTP/2's heads are in `frames.rs`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Method, Response};
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::hop;
use crate::forward_writes::forward_writes;
use crate::telemetry::{CloseReason, Flow, Telemetry};

/// What the connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The first byte of a head.
    Silence,
    /// The rest of it.
    Head { since: Instant },
    /// A head is complete; its answer has not ended.
    Request,
    /// The rest of a head did not come in time.
    Late,
    /// Nothing of HTTP any more.
    LeftHttp,
}

/// Shared by the connection's reader and its requests.
#[derive(Debug, Clone)]
pub(super) struct HeadClock {
    phase: Arc<Mutex<Phase>>,
    limit: Duration,
}

impl HeadClock {
    /// `limit`: from the first byte of a head to its last.
    pub(super) fn new(limit: Duration) -> Self {
        Self { phase: Arc::new(Mutex::new(Phase::Silence)), limit }
    }
    /// A head is complete. The answer's body holds what this returns.
    pub(super) fn request(&self) -> Answering {
        let mut phase = self.phase.lock();
        if *phase != Phase::Late {
            *phase = Phase::Request;
        }
        drop(phase);
        Answering(self.clone())
    }
    /// Whether that is why the connection ended.
    pub(super) fn late(&self) -> bool {
        *self.phase.lock() == Phase::Late
    }
    /// Until when may what began at `since` last? `timer` is made when it is first asked for.
    pub(super) fn poll_late(
        &self,
        since: Instant,
        timer: &mut Option<Pin<Box<Sleep>>>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let deadline = since + self.limit;
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        ready!(timer.as_mut().poll(cx));
        *self.phase.lock() = Phase::Late;
        Poll::Ready(())
    }
}

/// Until it is dropped, what comes in is a request's body.
pub(super) struct Answering(HeadClock);

impl Answering {
    /// ... which is when the answer has ended; never, where it leaves HTTP.
    pub(super) fn until_end<B>(self, method: &Method, response: Response<B>) -> Response<Holding<B>> {
        let held = if hop::upgraded(method, response.status()) {
            *self.0.phase.lock() = Phase::LeftHttp;
            None
        } else {
            Some(self)
        };
        response.map(|body| Holding { body, _held: held })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut phase = self.0.phase.lock();
        if *phase == Phase::Request {
            *phase = Phase::Silence;
        }
    }
}

/// An answer's body, and the time of its request.
pub(super) struct Holding<B> {
    body: B,
    _held: Option<Answering>,
}

impl<B: Body + Unpin> Body for Holding<B> {
    type Data = B::Data;
    type Error = B::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Leaves the one record of a request whose head never was whole, or of a frame that was not: as its connection's.
pub(super) fn report_late(telemetry: &Telemetry, flow: Flow) {
    let detail = "the rest of a request's head did not come in time".to_owned();
    telemetry.connection(flow).finish(CloseReason::RequestTimeout, Some(detail));
}

/// Ends a connection whose head is late, with `TimedOut`.
pub(super) struct HeadTimed<IO> {
    io: IO,
    clock: HeadClock,
    /// Runs out when the head is late; made when the first head is not whole at once.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<IO> HeadTimed<IO> {
    pub(super) fn new(io: IO, clock: HeadClock) -> Self {
        Self { io, clock, timer: None }
    }

    /// Nothing more to read now: until when may it last?
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Phase::Head { since } = *self.clock.phase.lock() else { return Poll::Pending };
        self.clock.poll_late(since, &mut self.timer, cx)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for HeadTimed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, into);
        if into.filled().len() > before {
            let mut phase = self.clock.phase.lock();
            if *phase == Phase::Silence {
                *phase = Phase::Head { since: Instant::now() };
            }
        }
        // Asked each time: bytes that keep trickling in must not put it off.
        match self.poll_late(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => read,
        }
    }
}

forward_writes!(HeadTimed);
