//! A request's body on its way to an endpoint: streamed, or kept up to a bound for being sent again; copied to mirrors
//! on the way. Nothing is delayed: a frame goes on as soon as it is there.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::informational::Hinter;
use super::limits::{CONTINUE_WAIT, REPLAY_BYTES_MAX};
use super::mirror::{Copier, Mirrored};
use crate::telemetry::ByteCounts;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the client sends, and who else gets a copy.
pub(super) struct Origin {
    incoming: Incoming,
    copies: Vec<Copier>,
}

impl Origin {
    pub(super) fn new(incoming: Incoming, copies: Vec<Copier>) -> Self {
        Self { incoming, copies }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        if !self.copies.is_empty() {
            match &frame {
                // A copier that is dropped before its end tells the mirror that the body broke off.
                Some(Err(_)) => self.copies.clear(),
                Some(Ok(frame)) => self.copies.retain(|copy| copy.put(frame)),
                None => {}
            }
            // A body that says it has ended is not polled for its None.
            if frame.is_none() || self.incoming.is_end_stream() {
                self.copies.drain(..).for_each(Copier::end);
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
    }
}

/// A request's body on its way to an endpoint.
pub(super) struct Outgoing {
    source: Source,
    bytes: Arc<ByteCounts>,
    /// Closed until the application says `100 Continue`.
    gate: Option<Gate>,
}

enum Source {
    Empty,
    Stream(Origin),
    Replay { shared: Arc<Replay>, attempt: u32, at: usize },
    Mirrored(Mirrored),
}

/// `Expect: 100-continue`: the body waits for the word, but not for ever, as HTTP says.
struct Gate {
    word: oneshot::Receiver<()>,
    patience: Pin<Box<Sleep>>,
}

impl Gate {
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if Pin::new(&mut self.word).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        self.patience.as_mut().poll(cx)
    }
}

/// A body that is kept while it is sent, up to a bound.
pub(super) struct Replay(Mutex<Kept>);

struct Kept {
    origin: Origin,
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
    pub(super) fn new(origin: Origin) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Kept {
            origin,
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
        // The request's size is that of its last attempt, not the sum.
        bytes.sent.store(0, Relaxed);
        if let Some(waker) = kept.waiting.take() {
            waker.wake();
        }
        let source = Source::Replay { shared: Arc::clone(self), attempt: kept.attempt, at: 0 };
        Outgoing { source, bytes: Arc::clone(bytes), gate: None }
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
        let Poll::Ready(frame) = self.origin.poll(cx) else {
            self.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        };
        match frame {
            None => self.ended = true,
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
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
        Self { source: Source::Empty, bytes: Arc::clone(bytes), gate: None }
    }
    pub(super) fn stream(origin: Origin, bytes: &Arc<ByteCounts>) -> Self {
        Self { source: Source::Stream(origin), bytes: Arc::clone(bytes), gate: None }
    }
    pub(super) fn mirrored(copy: Mirrored, bytes: &Arc<ByteCounts>) -> Self {
        Self { source: Source::Mirrored(copy), bytes: Arc::clone(bytes), gate: None }
    }

    /// Holds the body back until the sender has sent, or is dropped.
    pub(super) fn hold(&mut self) -> oneshot::Sender<()> {
        let (sender, word) = oneshot::channel();
        self.gate = Some(Gate { word, patience: Box::pin(tokio::time::sleep(CONTINUE_WAIT)) });
        sender
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
        if let Some(gate) = &mut this.gate {
            ready!(gate.poll_open(cx));
            this.gate = None;
        }
        let frame = match &mut this.source {
            Source::Empty => return Poll::Ready(None),
            Source::Stream(origin) => ready!(origin.poll(cx)),
            Source::Mirrored(copy) => ready!(copy.poll(cx)),
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
            Source::Stream(origin) => origin.incoming.is_end_stream(),
            Source::Replay { .. } | Source::Mirrored(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Stream(origin) => origin.incoming.size_hint(),
            // The head's Content-Length or Transfer-Encoding says it.
            Source::Replay { .. } | Source::Mirrored(_) => SizeHint::default(),
        }
    }
}

/// What an application says before its answer, from end to end. `Expect: 100-continue`: the body waits for its word, and
/// the client, which gets its own when its body is first read, with it. All else goes on to the client as it comes.
pub(super) fn listen(request: &mut Request<Outgoing>) {
    let expects = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    let expected = request.headers().get(header::EXPECT).is_some_and(expects);
    let word = expected.then(|| Mutex::new(Some(request.body_mut().hold())));
    let hinter = request.extensions_mut().remove::<Hinter>();
    if word.is_none() && hinter.is_none() {
        return;
    }
    hyper::ext::on_informational(request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            if let Some(word) = word.as_ref().and_then(|word| word.lock().take()) {
                // The body may be gone already.
                let _ = word.send(());
            }
        } else if let Some(hinter) = &hinter {
            hinter.hint(response.status(), response.headers());
        }
    });
}
