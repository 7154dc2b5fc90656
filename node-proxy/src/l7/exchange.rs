//! One request of a client application: route, filters, backend, then attempts until an answer goes back.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use weft_proto::identity::SpiffeId;
use weft_proto::model::{HttpFilter, TrafficPolicy};

use super::body::{Ending, Outgoing, Relay, Replay, Upstream};
use super::outbound::{Mesh, Protocol};
use super::pool::{Bounds, Key, Lease, PodPool, PoolError};
use super::retry::{Failure, RetryRules, Tried, grpc_timeout, http_status_of_grpc};
use super::{hop, limits, reply};
use crate::balance::{Balancer, Family, Live, Locality, Outcome, Pick};
use crate::connect::{Destination, Source};
use crate::outbound::Target;
use crate::route::{self, Choice, Found, Matched, RequestHead, filter};
use crate::snapshot::ServiceEntry;
use crate::telemetry::{
    Attempt, ByteCounts, CloseReason, Flow, Party, Reporter, RequestRecord, RequestStart, Security,
};

/// Tells the application which attempt it sees, from 1.
const ATTEMPT_HEADER: &str = "x-weft-attempt";

pub(super) type Reply = Response<Relay<Exchange>>;

/// A client application's connection.
pub(super) struct Session<M> {
    mesh: M,
    source: Source,
    target: Target,
    http2: bool,
    pool: Arc<PodPool>,
    here: Locality,
}

/// Where a request goes: one of a Service's endpoints, or one address.
enum Towards {
    Service { entry: Arc<ServiceEntry>, port: u16, balancer: Arc<Balancer> },
    Address(Destination),
}

/// Why there is no answer from an application.
struct Refusal {
    status: StatusCode,
    reason: CloseReason,
    detail: String,
}

impl Refusal {
    fn new(reason: CloseReason, detail: impl Into<String>) -> Self {
        Self { status: reply::status_of(reason), reason, detail: detail.into() }
    }
}

/// What is finished when the response has ended.
pub(super) struct Exchange {
    record: RequestRecord,
    attempt: Attempt,
    lease: Option<Lease>,
    status: StatusCode,
    _pick: Option<Pick>,
    _live: Option<Live>,
}

impl Ending for Exchange {
    fn end(self, grpc_status: Option<u32>, reason: CloseReason) {
        self.attempt.finish(Some(self.status), grpc_status, reason);
        self.record.finish(Some(self.status), grpc_status, reason);
        if reason == CloseReason::Ok
            && let Some(lease) = self.lease
        {
            lease.give_back();
        }
    }
}

/// A client's request while attempts are made.
struct Asking<'a> {
    head: request::Parts,
    body: Sending,
    rules: RetryRules<'a>,
    traffic: Option<&'a TrafficPolicy>,
    bytes: Arc<ByteCounts>,
    upgrade: Option<OnUpgrade>,
    deadline: Option<tokio::time::Instant>,
    tried: Vec<IpAddr>,
    unsent: u32,
    answered: u32,
}

enum Sending {
    Empty,
    /// Taken by the first attempt.
    Once(Option<Incoming>),
    Kept(Arc<Replay>),
}

impl Sending {
    fn replayable(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(incoming) => incoming.is_some(),
            Self::Kept(replay) => replay.replayable(),
        }
    }
    fn take(&mut self, bytes: &Arc<ByteCounts>) -> Outgoing {
        match self {
            Self::Empty => Outgoing::empty(bytes),
            Self::Once(incoming) => {
                incoming.take().map_or_else(|| Outgoing::empty(bytes), |body| Outgoing::stream(body, bytes))
            }
            Self::Kept(replay) => replay.again(bytes),
        }
    }
}

/// One attempt that got an answer.
struct Answer {
    response: Response<Incoming>,
    attempt: Attempt,
    lease: Lease,
    pick: Option<Pick>,
}

/// One attempt that did not, or whose answer is to be thrown away.
struct Failed {
    failure: Failure,
    refusal: Refusal,
    answer: Option<Answer>,
}

impl<M: Mesh> Session<M> {
    pub(super) fn new(mesh: M, source: Source, target: Target, protocol: Protocol) -> Self {
        let pool = mesh.upstreams().of(&source.pod.uid);
        let workload = source.pod.workload.load();
        let here = Locality { node: Arc::clone(&workload.node), zone: Arc::clone(&workload.zone) };
        drop(workload);
        Self { mesh, source, target, http2: protocol == Protocol::Http2, pool, here }
    }

    /// Answers one request. Never fails: what goes wrong is an answer too.
    pub(super) async fn request(&self, mut request: Request<Incoming>) -> Reply {
        let upgrade =
            hop::wants_upgrade(request.method(), request.headers()).then(|| hyper::upgrade::on(&mut request));
        let mut record = self.record(&request);
        let grpc = reply::is_grpc(request.headers());
        let (head, body) = request.into_parts();
        let mut filters = Vec::new();
        match self.route(head, &mut record, &mut filters) {
            Err(Routed::Redirect(status, location)) => {
                let mut response = Response::new(Relay::Local(None));
                *response.status_mut() = status;
                if let Ok(location) = HeaderValue::try_from(location) {
                    response.headers_mut().insert(header::LOCATION, location);
                }
                respond_headers(response.headers_mut(), &filters);
                record.finish(Some(status), None, CloseReason::Ok);
                response
            }
            Err(Routed::Refused(refusal)) => refuse(grpc, refusal, record),
            Ok((head, towards, matched)) => {
                let mut reply =
                    self.exchange(head, body, upgrade, towards, matched.as_ref(), record, grpc).await;
                respond_headers(reply.headers_mut(), &filters);
                reply
            }
        }
    }

    fn record(&self, request: &Request<Incoming>) -> RequestRecord {
        let source = Party {
            workload: Some(self.source.pod.workload.load_full()),
            principal: Some(self.source.pod.identity.clone()),
            address: Some(self.source.client),
        };
        let service = match &self.target {
            Target::Service { entry, .. } => Some(entry.service.id.clone()),
            Target::Workload { .. } | Target::External { .. } => None,
        };
        let flow = Flow {
            reporter: Reporter::Source,
            source,
            destination: Party::default(),
            service,
            security: Security::None,
        };
        let start = RequestStart {
            method: request.method(),
            path: request.uri().path(),
            authority: authority(request.uri(), request.headers()),
            version: request.version(),
            headers: request.headers(),
        };
        self.mesh.telemetry().request(flow, &start)
    }

    /// Finds the rule and the backend, and applies the filters of the request. `response_filters` are for its answer.
    fn route(
        &self,
        mut head: request::Parts,
        record: &mut RequestRecord,
        response_filters: &mut Vec<HttpFilter>,
    ) -> Result<(request::Parts, Towards, Option<Matched>), Routed> {
        let (entry, port) = match &self.target {
            Target::Service { entry, port } => {
                // The latest; the one of when the connection came, if the Service has gone.
                let latest = self.mesh.service(&entry.service.id);
                (latest.unwrap_or_else(|| Arc::clone(entry)), port.port)
            }
            Target::Workload { workload, address } => {
                let workload = Some(Arc::clone(workload));
                return Ok((head, Towards::Address(destination(*address, workload)), None));
            }
            Target::External { address } => {
                return Ok((head, Towards::Address(destination(*address, None)), None));
            }
        };
        let looked_at = RequestHead {
            method: &head.method,
            path: head.uri.path(),
            query: head.uri.query(),
            headers: &head.headers,
        };
        let matched = match entry.routes.find(self.source.pod.identity.namespace(), port, &looked_at) {
            Found::Default => return Ok((head, self.towards(entry, port), None)),
            Found::NoMatch => {
                let detail = format!("no rule of the routes of {} matches", entry.service.id);
                return Err(Refusal::new(CloseReason::NoRoute, detail).into());
            }
            Found::Rule(matched) => matched,
        };
        record.route(&matched.rule.label);
        let rule = &matched.rule.rule;
        response_filters
            .extend(rule.filters.iter().filter(|f| matches!(f, HttpFilter::ResponseHeaders(_))).cloned());
        let origin = filter::Origin {
            authority: authority(&head.uri, &head.headers).unwrap_or_default(),
            port,
            path: head.uri.path(),
            query: head.uri.query(),
            prefix: matched.prefix.as_deref(),
        };
        if let Some((status, location)) = filter::redirect(&rule.filters, &origin) {
            return Err(Routed::Redirect(status, location));
        }
        let backend = match route::choose(rule, rand::random()) {
            Choice::Backend(backend) => backend,
            Choice::Unavailable => {
                let detail = format!("rule {} has no backend for this request", matched.rule.label);
                let mut refusal = Refusal::new(CloseReason::NoEndpoints, detail);
                refusal.status = StatusCode::INTERNAL_SERVER_ERROR;
                return Err(refusal.into());
            }
        };
        let Some(entry) = self.mesh.service(&backend.service) else {
            let mut refusal =
                Refusal::new(CloseReason::NoEndpoints, format!("there is no Service {}", backend.service));
            refusal.status = StatusCode::INTERNAL_SERVER_ERROR;
            return Err(refusal.into());
        };
        let port = backend.port;
        for filter in rule.filters.iter().chain(&backend.filters) {
            request_filter(&mut head, filter, matched.prefix.as_deref());
        }
        response_filters
            .extend(backend.filters.iter().filter(|f| matches!(f, HttpFilter::ResponseHeaders(_))).cloned());
        Ok((head, self.towards(entry, port), Some(matched)))
    }

    fn towards(&self, entry: Arc<ServiceEntry>, port: u16) -> Towards {
        let balancer = self.mesh.balancers().of(&entry.service.id, port, Family::of(self.source.client.ip()));
        Towards::Service { entry, port, balancer }
    }

    #[expect(clippy::too_many_arguments, reason = "one call; what it takes is consumed here")]
    async fn exchange(
        &self,
        mut head: request::Parts,
        body: Incoming,
        upgrade: Option<OnUpgrade>,
        towards: Towards,
        matched: Option<&Matched>,
        mut record: RequestRecord,
        grpc: bool,
    ) -> Reply {
        hop::strip(&mut head.headers, upgrade.is_some() && head.method != Method::CONNECT);
        let (traffic, live) = match &towards {
            Towards::Service { entry, balancer, .. } => {
                (entry.traffic_policy.clone(), Some(balancer.begin()))
            }
            Towards::Address(_) => (None, None),
        };
        let rule = matched.map(|matched| &*matched.rule.rule);
        let rules = RetryRules::new(&head.method, rule, traffic.as_deref());
        let limit = shorter(rule.and_then(|rule| rule.timeouts.request), grpc_timeout(&head.headers));
        let body = if body.is_end_stream() {
            Sending::Empty
        } else if rules.may_repeat_answered() && upgrade.is_none() {
            Sending::Kept(Replay::new(body))
        } else {
            Sending::Once(Some(body))
        };
        let mut asking = Asking {
            head,
            body,
            traffic: traffic.as_deref(),
            bytes: record.bytes(),
            upgrade,
            deadline: limit.map(|limit| tokio::time::Instant::now() + limit),
            tried: Vec::new(),
            unsent: 0,
            answered: 0,
            rules,
        };
        let attempts = self.attempts(&mut asking, &towards, &mut record);
        let answered = match limit {
            None => attempts.await,
            Some(limit) => match tokio::time::timeout(limit, attempts).await {
                Ok(answered) => answered,
                Err(_) => Err(Refusal::new(CloseReason::RequestTimeout, "the request took too long")),
            },
        };
        match answered {
            Err(refusal) => refuse(grpc, refusal, record),
            Ok(answer) => forward(answer, &mut asking, record, live),
        }
    }

    /// Attempts until one answers for good.
    async fn attempts(
        &self,
        asking: &mut Asking<'_>,
        towards: &Towards,
        record: &mut RequestRecord,
    ) -> Result<Answer, Refusal> {
        for number in 1.. {
            let failed = match self.attempt(asking, towards, record, number).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let tried = Tried {
                unsent: asking.unsent,
                answered: asking.answered,
                replayable: asking.body.replayable() && asking.upgrade.is_none()
                    || failed.failure == Failure::Unsent && asking.body.replayable(),
                elsewhere: towards.has_untried(&asking.tried),
            };
            let pause = asking.rules.again(failed.failure, tried, rand::random());
            let again = pause.filter(|_| towards.budget());
            let Some(pause) = again else {
                return failed.answer.ok_or(failed.refusal);
            };
            match failed.failure {
                Failure::Unsent => asking.unsent += 1,
                _ => asking.answered += 1,
            }
            if let Some(answer) = failed.answer {
                let status = answer.response.status();
                let grpc = reply::grpc_status(answer.response.headers());
                answer.attempt.finish(Some(status), grpc, CloseReason::Ok);
                drain_small(answer.response, answer.lease);
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        Err(Refusal::new(CloseReason::Internal, "too many attempts"))
    }

    async fn attempt(
        &self,
        asking: &mut Asking<'_>,
        towards: &Towards,
        record: &mut RequestRecord,
        number: u32,
    ) -> Result<Answer, Failed> {
        let started = Instant::now();
        let none = || Failed {
            failure: Failure::Answered(StatusCode::SERVICE_UNAVAILABLE),
            refusal: Refusal::new(CloseReason::NoEndpoints, towards.nobody()),
            answer: None,
        };
        let (to, pick) = self.pick(towards, &asking.tried, started).ok_or_else(none)?;
        asking.tried.push(to.address.ip());
        let fixed = Party { workload: to.workload.clone(), principal: None, address: Some(to.address) };
        record.destination(fixed.clone(), to.service.clone(), Security::None);
        let mut attempt = Some(record.attempt(number, &fixed));
        let fail = |attempt: &mut Option<Attempt>, failure, refusal: Refusal, pick: &Option<Pick>| {
            if let Some(attempt) = attempt.take() {
                attempt.finish(None, None, refusal.reason);
            }
            if let Some(pick) = pick {
                pick.observe(Outcome::Failure { latency: started.elapsed() }, Instant::now());
            }
            Failed { failure, refusal, answer: None }
        };

        let key = Key {
            address: to.address,
            workload: to.workload.as_ref().map(|workload| workload.uid.clone()),
            service: to.service.clone(),
            http2: self.http2,
        };
        let bounds = bounds(asking.traffic, towards.has_untried(&asking.tried));
        let connect = || self.mesh.connect(&self.source, &to);
        let mut lease = match self.pool.checkout(&key, &bounds, connect).await {
            Ok(lease) => lease,
            Err(error) => return Err(fail(&mut attempt, Failure::Unsent, error.into(), &pick)),
        };
        record.destination(
            Party { principal: lease.peer.clone(), ..fixed },
            to.service.clone(),
            security(lease.peer.as_ref()),
        );

        let mut request = Request::from_parts(asking.head.clone(), ());
        request.headers_mut().insert(ATTEMPT_HEADER, HeaderValue::from(number));
        if let Some(attempt) = &attempt {
            attempt.propagate(request.headers_mut());
        }
        let request = request.map(|()| asking.body.take(&asking.bytes));
        let sent = match asking.rules.per_try {
            None => Ok(lease.send(request).await),
            Some(limit) => tokio::time::timeout(limit, lease.send(request)).await,
        };
        match sent {
            Err(_) => {
                let refusal = Refusal::new(
                    CloseReason::AttemptTimeout,
                    format!("{} did not answer in time", to.address),
                );
                Err(fail(&mut attempt, Failure::TimedOut, refusal, &pick))
            }
            Ok(Err(unanswered)) => {
                let detail = format!("{} ended the connection: {}", to.address, unanswered.error);
                let refusal = Refusal::new(CloseReason::ServerReset, detail);
                let failure = if unanswered.unsent {
                    Failure::Unsent
                } else {
                    Failure::Broken { reused: lease.reused }
                };
                Err(fail(&mut attempt, failure, refusal, &pick))
            }
            Ok(Ok(response)) => {
                let attempt = attempt.take().expect("only failures take the attempt away");
                judge(asking, Answer { response, attempt, lease, pick }, started)
            }
        }
    }

    fn pick(&self, towards: &Towards, tried: &[IpAddr], now: Instant) -> Option<(Destination, Option<Pick>)> {
        match towards {
            Towards::Address(to) => Some((to.clone(), None)),
            Towards::Service { entry, port, balancer } => {
                let pick = balancer.pick(entry, *port, &self.here, tried, now, rand::random())?;
                let workload = pick.endpoint.workload.as_ref().and_then(|uid| self.mesh.workload(uid));
                let mut to = destination(SocketAddr::new(pick.endpoint.ip, pick.target_port), workload);
                to.service = Some(entry.service.id.clone());
                Some((to, Some(pick)))
            }
        }
    }
}

/// What routing says instead of a destination.
enum Routed {
    Redirect(StatusCode, String),
    Refused(Refusal),
}

impl From<Refusal> for Routed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
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

impl Towards {
    fn has_untried(&self, tried: &[IpAddr]) -> bool {
        match self {
            Self::Address(_) => false,
            Self::Service { balancer, .. } => balancer.has_untried(tried, Instant::now()),
        }
    }
    fn budget(&self) -> bool {
        match self {
            // One address, one client connection: the bound on attempts is enough.
            Self::Address(_) => true,
            Self::Service { entry, balancer, .. } => balancer.try_retry(entry, Instant::now()),
        }
    }
    fn nobody(&self) -> String {
        match self {
            Self::Address(to) => format!("{} cannot be reached", to.address),
            Self::Service { entry, port, .. } => {
                format!("no endpoint of {} port {port} is ready", entry.service.id)
            }
        }
    }
}

/// Tells the balancer how it went, and whether the answer is one to repeat.
fn judge(asking: &Asking<'_>, answer: Answer, started: Instant) -> Result<Answer, Failed> {
    let latency = started.elapsed();
    let mut status = answer.response.status();
    if let Some(grpc) = reply::grpc_status(answer.response.headers())
        && let Some(as_http) = http_status_of_grpc(grpc)
    {
        status = as_http;
    }
    let bad = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    if let Some(pick) = &answer.pick {
        let outcome = if bad { Outcome::Failure { latency } } else { Outcome::Success { latency } };
        pick.observe(outcome, Instant::now());
    }
    // A success is never repeated; which failures are is the rules' to say.
    if status.is_success() || !asking.rules.may_repeat_answered() {
        return Ok(answer);
    }
    let refusal = Refusal::new(CloseReason::Ok, "");
    Err(Failed { failure: Failure::Answered(status), refusal, answer: Some(answer) })
}

/// The answer goes back; the record ends with its last byte.
fn forward(answer: Answer, asking: &mut Asking<'_>, record: RequestRecord, live: Option<Live>) -> Reply {
    let Answer { mut response, attempt, lease, pick } = answer;
    let status = response.status();
    let grpc_status = reply::grpc_status(response.headers());
    let exchange = Exchange { record, attempt, lease: Some(lease), status, _pick: pick, _live: live };
    if hop::upgraded(&asking.head.method, status)
        && let Some(client) = asking.upgrade.take()
    {
        let server = hyper::upgrade::on(&mut response);
        hop::strip(response.headers_mut(), status == StatusCode::SWITCHING_PROTOCOLS);
        tokio::spawn(tunnel(client, server, exchange, Arc::clone(&asking.bytes)));
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

/// After an upgrade: bytes both ways, each direction to its own end.
async fn tunnel(client: OnUpgrade, server: OnUpgrade, mut exchange: Exchange, bytes: Arc<ByteCounts>) {
    // The connection now belongs to the two ends: it never serves another request.
    let lease = exchange.lease.take();
    let reason = hop::relay(client, server, &bytes).await;
    drop(lease);
    exchange.end(None, reason);
}

/// Reads a thrown-away answer's end if it is there already, so that the connection can serve again.
fn drain_small(response: Response<Incoming>, lease: Lease) {
    if response.body().is_end_stream() {
        lease.give_back();
    }
}

fn refuse(grpc: bool, refusal: Refusal, record: RequestRecord) -> Reply {
    let (response, grpc_status) = reply::local(grpc, refusal.status, refusal.reason, &refusal.detail);
    record.finish(Some(response.status()), grpc_status, refusal.reason);
    response.map(|text: Bytes| Relay::Local((!text.is_empty()).then_some(text)))
}

fn request_filter(head: &mut request::Parts, filter: &HttpFilter, prefix: Option<&str>) {
    match filter {
        HttpFilter::RequestHeaders(by) => filter::modify(&mut head.headers, by),
        HttpFilter::Rewrite { hostname, path } => {
            filter::rewrite(&mut head.uri, &mut head.headers, prefix, hostname.as_deref(), path.as_ref());
        }
        HttpFilter::ResponseHeaders(_) | HttpFilter::Redirect { .. } | HttpFilter::Mirror { .. } => {}
    }
}

fn respond_headers(headers: &mut http::HeaderMap, filters: &[HttpFilter]) {
    for filter in filters {
        if let HttpFilter::ResponseHeaders(by) = filter {
            filter::modify(headers, by);
        }
    }
}

fn destination(address: SocketAddr, workload: Option<Arc<weft_proto::model::Workload>>) -> Destination {
    Destination { address, workload, service: None, traceparent: None }
}

fn authority<'a>(uri: &'a http::Uri, headers: &'a http::HeaderMap) -> Option<&'a str> {
    let host = || headers.get(header::HOST).and_then(|host| host.to_str().ok());
    uri.authority().map(http::uri::Authority::as_str).or_else(host)
}

fn security(peer: Option<&SpiffeId>) -> Security {
    if peer.is_some() { Security::MutualTls } else { Security::None }
}

fn bounds(traffic: Option<&TrafficPolicy>, others: bool) -> Bounds {
    let default = if others { limits::CONNECT_TIMEOUT_WITH_OTHERS } else { limits::CONNECT_TIMEOUT };
    Bounds {
        connections_max: traffic.and_then(|t| t.max_connections).unwrap_or(limits::CONNECTIONS_MAX),
        pending_max: traffic.and_then(|t| t.max_pending_requests).unwrap_or(limits::PENDING_MAX),
        connect_timeout: traffic.and_then(|t| t.connect_timeout).unwrap_or(default),
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
