//! Copies of requests for a `RequestMirror` filter. The answer is thrown away, and nothing here ever makes the original
//! wait: a mirror that cannot keep up loses its copy.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, header, request};
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use weft_proto::model::HttpFilter;

use super::attempt::{Asking, Sending};
use super::exchange::Session;
use super::informational::Hinter;
use super::limits;
use super::outbound::Mesh;
use super::outgoing::{BoxError, Outgoing};
use super::retry::RetryRules;
use super::towards::Towards;
use super::{answer, hop};
use crate::telemetry::RequestRecord;

enum Copied {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

/// The end of a copy that the original's body is put into.
pub(super) struct Copier(mpsc::Sender<Copied>);

impl Copier {
    /// False: the mirror is too slow, or gone.
    pub(super) fn put(&self, frame: &Frame<Bytes>) -> bool {
        let copy = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Copied::Data(data.clone()),
            (None, Some(trailers)) => Copied::Trailers(trailers.clone()),
            (None, None) => return true,
        };
        self.0.try_send(copy).is_ok()
    }

    /// The body is whole. Without this the mirror sees it break off.
    pub(super) fn end(self) {
        // A full queue here is a mirror that is too slow.
        let _ = self.0.try_send(Copied::End);
    }
}

/// The end that the mirror reads from.
pub(super) struct Mirrored {
    copied: mpsc::Receiver<Copied>,
    ended: bool,
}

impl Mirrored {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.copied.poll_recv(cx).map(|copied| match copied {
            Some(Copied::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Copied::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Copied::End) => {
                self.ended = true;
                None
            }
            None => Some(Err("the request broke off, or its mirror was too slow".into())),
        })
    }
}

fn pair() -> (Copier, Mirrored) {
    let (sender, copied) = mpsc::channel(limits::MIRROR_FRAMES_MAX);
    (Copier(sender), Mirrored { copied, ended: false })
}

/// Whether this request belongs to the share that is mirrored.
fn chosen((numerator, denominator): (u32, u32), random: u64) -> bool {
    // Multiply and shift: below the denominator, without the cost and bias of a remainder.
    let at = ((u128::from(random) * u128::from(denominator)) >> 64) as u64;
    at < u64::from(numerator)
}

impl<M: Mesh> Session<M> {
    /// Starts the copies that the filters ask for; gives where the body must be put as well.
    pub(super) fn mirror(
        self: &Arc<Self>,
        head: &request::Parts,
        filters: &[HttpFilter],
        empty: bool,
    ) -> Vec<Copier> {
        let mut copiers = Vec::new();
        for filter in filters {
            let HttpFilter::Mirror { service, port, fraction } = filter else { continue };
            if !chosen(*fraction, rand::random()) || head.method == Method::CONNECT {
                continue;
            }
            let Some(entry) = self.mesh.service(service) else { continue };
            let Some(permit) = self.pool.mirror() else { continue };
            let copy = (!empty).then(pair);
            let (copier, mirrored) = copy.unzip();
            copiers.extend(copier);
            let (session, towards) = (Arc::clone(self), self.towards(entry, *port));
            let record = self.record(head);
            let copy = Copy { head: head.clone(), body: mirrored, towards, record, permit };
            self.mesh.drain().connections.clone().spawn(async move { copy.run(&session).await });
        }
        copiers
    }
}

/// A copy of a request.
struct Copy {
    head: request::Parts,
    body: Option<Mirrored>,
    towards: Towards,
    record: RequestRecord,
    permit: OwnedSemaphorePermit,
}

impl Copy {
    async fn run<M: Mesh>(self, session: &Session<M>) {
        let Self { mut head, body, towards, mut record, permit: _permit } = self;
        hop::strip(&mut head.headers, false);
        head.headers.remove(header::EXPECT);
        // The client hears of the original only.
        head.extensions.remove::<Hinter>();
        let bytes = record.bytes();
        let body = match body {
            Some(copy) => Sending::Once(Some(Outgoing::mirrored(copy, &bytes))),
            None => Sending::Empty,
        };
        let rules = RetryRules::new(&head.method, None, None);
        let deadline = tokio::time::Instant::now() + limits::MIRROR_TIMEOUT;
        let mut asking = Asking::new(head, body, rules, towards.traffic(), bytes, Some(deadline));
        let live = towards.begin();
        let answered =
            tokio::time::timeout_at(deadline, session.attempts(&mut asking, &towards, &mut record)).await;
        match answered {
            // Dropping the record reports it as cancelled.
            Err(_) => {}
            Ok(Err(refusal)) => refusal.finish(record),
            Ok(Ok(found)) => {
                let mut body = answer::forward(found, &mut asking, record, live, None).into_body();
                while let Some(Ok(_)) = body.frame().await {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_requests_is_mirrored() {
        for (fraction, random, want) in [
            ((1, 1), u64::MAX, true),
            ((0, 100), 0, false),
            ((50, 100), 0, true),
            ((50, 100), u64::MAX / 2 - 1, true),
            ((50, 100), u64::MAX / 2 + 2, false),
        ] {
            assert_eq!(chosen(fraction, random), want, "{fraction:?} {random}");
        }
    }
}
