//! What goes back to the client: an application's answer, whose last byte ends the record, or the proxy's own.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use super::attempt::{Answer, Asking};
use super::body::{Ending, Relay, Upstream};
use super::lease::Lease;
use super::pool::PoolError;
use super::upgrade::Upgrades;
use super::{hop, limits, reply};
use crate::balance::{Live, Pick};
use crate::telemetry::{Attempt, CloseReason, RequestRecord};

pub(super) type Reply = Response<Relay<Exchange>>;

/// Why there is no answer from an application.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) reason: CloseReason,
    pub(super) detail: String,
}

impl Refusal {
    pub(super) fn new(reason: CloseReason, detail: impl Into<String>) -> Self {
        Self { status: reply::status_of(reason), reason, detail: detail.into() }
    }

    /// The proxy's own answer.
    pub(super) fn reply(self, grpc: bool, record: RequestRecord) -> Reply {
        let (response, grpc_status) = reply::local(grpc, self.status, self.reason, &self.detail);
        record.finish_with(Some(response.status()), grpc_status, self.reason, self.detail);
        response.map(|text: Bytes| Relay::Local((!text.is_empty()).then_some(text)))
    }

    /// Nobody waits for an answer.
    pub(super) fn finish(self, record: RequestRecord) {
        record.finish_with(None, None, self.reason, self.detail);
    }
}

impl From<PoolError> for Refusal {
    fn from(error: PoolError) -> Self {
        let reason = match &error {
            PoolError::Connect(error) => error.reason(),
            PoolError::Handshake(..) => CloseReason::ProtocolError,
            PoolError::TimedOut(_) => CloseReason::ConnectTimeout,
            PoolError::Overloaded(_) => CloseReason::Overloaded,
        };
        Self::new(reason, error.to_string())
    }
}

/// A redirect that a rule asks for.
pub(super) fn redirect(status: StatusCode, location: String, record: RequestRecord) -> Reply {
    let mut response = Response::new(Relay::Local(None));
    *response.status_mut() = status;
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    record.finish(Some(status), None, CloseReason::Ok);
    response
}

/// What is finished when the response has ended.
pub(super) struct Exchange {
    record: RequestRecord,
    attempt: Attempt,
    lease: Lease,
    status: StatusCode,
    _pick: Option<Pick>,
    _live: Option<Live>,
}

impl Ending for Exchange {
    fn end(self, grpc_status: Option<u32>, reason: CloseReason) {
        self.attempt.finish(Some(self.status), grpc_status, reason);
        self.record.finish(Some(self.status), grpc_status, reason);
        if reason == CloseReason::Ok {
            self.lease.give_back();
        }
    }
}

/// Where requests that leave HTTP go on.
pub(super) struct Leaving<'a> {
    pub(super) upgrades: &'a Upgrades,
    /// The client's pod is.
    pub(super) gone: &'a CancellationToken,
}

/// The answer goes back; the record ends with its last byte. `leaving`: None for one that must not leave HTTP.
pub(super) fn forward(
    answer: Answer,
    asking: &mut Asking<'_>,
    record: RequestRecord,
    live: Option<Live>,
    leaving: Option<Leaving<'_>>,
) -> Reply {
    let Answer { mut response, attempt, lease, pick } = answer;
    let status = response.status();
    let grpc_status = reply::grpc_status(response.headers());
    let exchange = Exchange { record, attempt, lease, status, _pick: pick, _live: live };
    if hop::upgraded(&asking.head.method, status)
        && let (Some(client), Some(Leaving { upgrades, gone })) = (asking.upgrade.take(), leaving)
    {
        let server = hyper::upgrade::on(&mut response);
        hop::strip(response.headers_mut(), status == StatusCode::SWITCHING_PROTOCOLS);
        // The connection belongs to the two ends now. It counts as in use, and hyper has closed it for requests.
        let gone = gone.clone();
        let stopped = move || if gone.is_cancelled() { CloseReason::PodGone } else { CloseReason::Draining };
        upgrades.start(client, server, Arc::clone(&asking.bytes), move |reason| {
            exchange.end(None, reason.unwrap_or_else(stopped));
        });
        return response.map(|_| Relay::Local(None));
    }
    hop::strip(response.headers_mut(), false);
    response.map(|incoming| {
        Relay::Upstream(Box::new(Upstream {
            incoming,
            bytes: Arc::clone(&asking.bytes),
            deadline: asking.deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
            grpc_status,
            ending: Some(exchange),
        }))
    })
}

/// An answer that is thrown away for another attempt. Its rest is read if it is small, so that the connection can serve again.
pub(super) fn discard(response: Response<Incoming>, lease: Lease) {
    use hyper::body::Body as _;
    let mut body = response.into_body();
    if body.is_end_stream() {
        return lease.give_back();
    }
    if body.size_hint().lower() > limits::DISCARD_BYTES_MAX {
        return;
    }
    tokio::spawn(async move {
        let rest = async {
            let mut read = 0;
            while let Some(frame) = body.frame().await {
                read += frame.ok()?.data_ref().map_or(0, |data| data.len() as u64);
                if read > limits::DISCARD_BYTES_MAX {
                    return None;
                }
            }
            Some(())
        };
        if let Ok(Some(())) = tokio::time::timeout(limits::DISCARD_WAIT, rest).await {
            lease.give_back();
        }
    });
}
