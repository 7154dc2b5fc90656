//! One request of a client application: route → mirror → attempts → answer. The steps are in `towards.rs`, `mirror.rs`,
//! `attempt.rs` and `answer.rs`.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, request};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use weft_proto::model::HttpFilter;

use super::answer::{self, Leaving, Refusal, Reply};
use super::attempt::{Asking, Sending};
use super::outbound::{Mesh, Protocol};
use super::outgoing::{Origin, Outgoing, Replay};
use super::pool::PodPool;
use super::retry::{RetryRules, grpc_timeout};
use super::towards::{Routed, Stop, authority, response_headers};
use super::upgrade::Upgrades;
use super::{hop, reply};
use crate::balance::Locality;
use crate::connect::Source;
use crate::outbound::Target;
use crate::telemetry::{CloseReason, Flow, Party, Reporter, RequestRecord, RequestStart, Security};

/// A client application's connection.
pub(super) struct Session<M> {
    pub(super) mesh: M,
    pub(super) source: Source,
    pub(super) target: Target,
    pub(super) http2: bool,
    pub(super) pool: Arc<PodPool>,
    pub(super) here: Locality,
    pub(super) upgrades: Upgrades,
}

impl<M: Mesh> Session<M> {
    pub(super) fn new(mesh: M, source: Source, target: Target, protocol: Protocol) -> Self {
        let pool = mesh.upstreams().of(&source.pod.uid);
        let workload = source.pod.workload.load();
        let here = Locality { node: Arc::clone(&workload.node), zone: Arc::clone(&workload.zone) };
        drop(workload);
        let http2 = protocol == Protocol::Http2;
        Self { mesh, source, target, http2, pool, here, upgrades: Upgrades::default() }
    }

    /// Answers one request. Never fails: what goes wrong is an answer too.
    pub(super) async fn request(self: &Arc<Self>, mut request: Request<Incoming>) -> Reply {
        let upgrade =
            hop::wants_upgrade(request.method(), request.headers()).then(|| hyper::upgrade::on(&mut request));
        let (mut head, body) = request.into_parts();
        // Before routing looks: a header that concerns this connection only is no part of the request.
        hop::strip(&mut head.headers, upgrade.is_some() && head.method != Method::CONNECT);
        let mut record = self.record(&head);
        let grpc = reply::is_grpc(&head.headers);
        let mut filters = Vec::new();
        let mut reply = match self.route(head, &mut record, &mut filters) {
            Err(Stop::Redirect(status, location)) => answer::redirect(status, location, record),
            Err(Stop::Refused(refusal)) => return refusal.reply(grpc, record),
            Ok(routed) => self.exchange(routed, body, upgrade, record, grpc).await,
        };
        response_headers(reply.headers_mut(), &filters);
        reply
    }

    /// Who speaks, before it is known to whom.
    pub(super) fn flow(&self) -> Flow {
        let source = Party {
            workload: Some(self.source.pod.workload.load_full()),
            principal: Some(self.source.pod.identity.clone()),
            address: Some(self.source.client),
        };
        let service = match &self.target {
            Target::Service { entry, .. } => Some(entry.service.id.clone()),
            Target::Workload { .. } | Target::External { .. } => None,
        };
        let destination = Party::default();
        Flow { reporter: Reporter::Source, source, destination, service, security: Security::None }
    }

    pub(super) fn record(&self, head: &request::Parts) -> RequestRecord {
        let start = RequestStart {
            method: &head.method,
            path: head.uri.path(),
            authority: authority(&head.uri, &head.headers),
            version: head.version,
            headers: &head.headers,
        };
        self.mesh.telemetry().request(self.flow(), &start)
    }

    async fn exchange(
        self: &Arc<Self>,
        routed: Routed,
        body: Incoming,
        upgrade: Option<OnUpgrade>,
        mut record: RequestRecord,
        grpc: bool,
    ) -> Reply {
        let Routed { head, towards, matched } = routed;
        let live = towards.begin();
        let traffic = towards.traffic();
        let rule = matched.as_ref().map(|matched| &*matched.rule.rule);
        let rules = RetryRules::new(&head.method, rule, traffic.as_deref());
        let limit = shorter(rule.and_then(|rule| rule.timeouts.request), grpc_timeout(&head.headers));
        let deadline = limit.map(|limit| tokio::time::Instant::now() + limit);
        let filters: &[HttpFilter] = rule.filter(|_| upgrade.is_none()).map_or(&[], |rule| &rule.filters);
        let copies = self.mirror(&head, filters, body.is_end_stream());
        let bytes = record.bytes();
        let body = if body.is_end_stream() {
            Sending::Empty
        } else if rules.may_repeat_answered() && upgrade.is_none() {
            Sending::Kept(Replay::new(Origin::new(body, copies)))
        } else {
            Sending::Once(Some(Outgoing::stream(Origin::new(body, copies), &bytes)))
        };
        let mut asking = Asking::new(head, body, rules, traffic.clone(), bytes, deadline);
        asking.upgrade = upgrade;
        let attempts = self.attempts(&mut asking, &towards, &mut record);
        let answered = match deadline {
            None => attempts.await,
            Some(deadline) => match tokio::time::timeout_at(deadline, attempts).await {
                Ok(answered) => answered,
                Err(_) => Err(Refusal::new(CloseReason::RequestTimeout, "the request took too long")),
            },
        };
        match answered {
            Err(refusal) => refusal.reply(grpc, record),
            Ok(found) => {
                let leaving = Leaving { upgrades: &self.upgrades, gone: &self.source.pod.gone };
                answer::forward(found, &mut asking, record, live, Some(leaving))
            }
        }
    }
}

/// Zero means without a limit, as the Gateway API says.
fn shorter(route: Option<Duration>, grpc: Option<Duration>) -> Option<Duration> {
    let route = route.filter(|limit| !limit.is_zero());
    match (route, grpc) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
