//! An upstream connection, or one stream of it, lent to one request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use tokio::sync::OwnedSemaphorePermit;

use super::outbound::Remote;
use super::outgoing::Outgoing;
use super::pool::Slot;

pub(super) enum Sender {
    Http1(http1::SendRequest<Outgoing>),
    Http2(http2::SendRequest<Outgoing>),
}

/// A connection, or a stream's share of one, for one request.
pub(super) struct Lease {
    sender: Option<Sender>,
    pub remote: Remote,
    /// It has served before.
    pub reused: bool,
    usage: Arc<AtomicU32>,
    slot: Arc<Slot>,
    _permit: OwnedSemaphorePermit,
}

/// A request that got no answer.
pub(super) struct Unanswered {
    /// Certainly no byte was sent: the body as it was.
    pub unsent: Option<Outgoing>,
    pub error: hyper::Error,
}

impl Lease {
    pub(super) fn new(
        slot: &Arc<Slot>,
        sender: Sender,
        remote: Remote,
        usage: Arc<AtomicU32>,
        permit: OwnedSemaphorePermit,
        reused: bool,
    ) -> Self {
        Self { sender: Some(sender), remote, reused, usage, slot: Arc::clone(slot), _permit: permit }
    }

    pub(super) async fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Unanswered> {
        let sent = match self.sender.as_mut().expect("a lease has its sender until it is given back") {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let unsent = error.take_message().map(Request::into_body);
            Unanswered { unsent, error: error.into_error() }
        })
    }

    /// The answer was read to its end: the connection may serve again.
    pub(super) fn give_back(mut self) {
        if let Some(Sender::Http1(sender)) = self.sender.take()
            && !sender.is_closed()
        {
            self.slot.keep(sender, self.remote.clone(), Arc::clone(&self.usage));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.usage.fetch_sub(1, Relaxed);
    }
}
