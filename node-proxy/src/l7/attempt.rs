//! Attempts of one request until an answer goes back: pick → connection → send → judge → again.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Request, Response, StatusCode, request};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use weft_proto::model::TrafficPolicy;

use super::answer::{self, Refusal};
use super::exchange::Session;
use super::lease::Lease;
use super::outbound::Mesh;
use super::outgoing::{self, Outgoing, Replay};
use super::pool::{Bounds, Key, PoolError};
use super::retry::{Failure, RetryRules, Tried, http_status_of_grpc};
use super::towards::{Towards, destination};
use super::{limits, reply};
use crate::balance::{Outcome, Pick};
use crate::connect::{self, Destination};
use crate::telemetry::{Attempt, ByteCounts, CloseReason, Party, RequestRecord, Security};

/// Tells the application which attempt it sees, from 1.
const ATTEMPT_HEADER: &str = "x-weft-attempt";

/// A client's request while attempts are made.
pub(super) struct Asking<'a> {
    pub(super) head: request::Parts,
    pub(super) upgrade: Option<OnUpgrade>,
    pub(super) bytes: Arc<ByteCounts>,
    pub(super) deadline: Option<tokio::time::Instant>,
    body: Sending,
    rules: RetryRules<'a>,
    traffic: Option<Arc<TrafficPolicy>>,
    tried: Vec<IpAddr>,
    unsent: u32,
    answered: u32,
}

/// The request's body, as often as it may be needed.
pub(super) enum Sending {
    Empty,
    /// Taken by the first attempt; back again if nothing of it was sent.
    Once(Option<Outgoing>),
    Kept(Arc<Replay>),
}

impl Sending {
    fn replayable(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(body) => body.is_some(),
            Self::Kept(replay) => replay.replayable(),
        }
    }

    fn take(&mut self, bytes: &Arc<ByteCounts>) -> Outgoing {
        match self {
            Self::Empty => Outgoing::empty(bytes),
            Self::Once(body) => body.take().unwrap_or_else(|| Outgoing::empty(bytes)),
            Self::Kept(replay) => replay.again(bytes),
        }
    }

    fn put_back(&mut self, unsent: Outgoing) {
        if let Self::Once(body) = self {
            *body = Some(unsent);
        }
    }
}

/// One attempt that got an answer.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) attempt: Attempt,
    pub(super) lease: Lease,
    pub(super) pick: Option<Pick>,
}

/// One attempt that did not, or whose answer is to be thrown away.
struct Failed {
    failure: Failure,
    refusal: Refusal,
    answer: Option<Box<Answer>>,
}

impl Failed {
    fn new(failure: Failure, refusal: Refusal) -> Self {
        Self { failure, refusal, answer: None }
    }
}

/// An attempt under way. Dropped: the client went away, or the request's time is over, which counts against the endpoint.
struct Trying {
    attempt: Option<Attempt>,
    pick: Option<Pick>,
    started: Instant,
    deadline: Option<tokio::time::Instant>,
}

impl Trying {
    fn failed(&mut self, refusal: &Refusal, blame: bool) {
        if let Some(attempt) = self.attempt.take() {
            attempt.finish(None, None, refusal.reason);
        }
        if let Some(pick) = self.pick.take().filter(|_| blame) {
            pick.finish(Outcome::Failure { latency: self.started.elapsed() }, Instant::now());
        }
    }
}

impl Drop for Trying {
    fn drop(&mut self) {
        if self.deadline.is_some_and(|at| tokio::time::Instant::now() >= at) {
            self.failed(&Refusal::new(CloseReason::RequestTimeout, ""), true);
        }
    }
}

impl<'a> Asking<'a> {
    pub(super) fn new(
        head: request::Parts,
        body: Sending,
        rules: RetryRules<'a>,
        traffic: Option<Arc<TrafficPolicy>>,
        bytes: Arc<ByteCounts>,
        deadline: Option<tokio::time::Instant>,
    ) -> Self {
        let (tried, unsent, answered) = (Vec::new(), 0, 0);
        Self { head, body, rules, traffic, bytes, deadline, upgrade: None, tried, unsent, answered }
    }

    /// The request as this attempt sends it.
    fn request(&mut self, number: u32, attempt: Option<&Attempt>) -> Request<Outgoing> {
        let mut request = Request::from_parts(self.head.clone(), self.body.take(&self.bytes));
        request.headers_mut().insert(ATTEMPT_HEADER, HeaderValue::from(number));
        if let Some(attempt) = attempt {
            attempt.propagate(request.headers_mut());
        }
        outgoing::listen(&mut request);
        request
    }
}

impl<M: Mesh> Session<M> {
    /// Attempts until one answers for good.
    pub(super) async fn attempts(
        &self,
        asking: &mut Asking<'_>,
        towards: &Towards,
        record: &mut RequestRecord,
    ) -> Result<Answer, Refusal> {
        for number in 1.. {
            let failed = match self.attempt(asking, towards, record, number).await {
                Ok(answer) => return Ok(*answer),
                Err(failed) => *failed,
            };
            let replayable = asking.body.replayable();
            let tried = Tried {
                unsent: asking.unsent,
                answered: asking.answered,
                replayable: replayable && (asking.upgrade.is_none() || failed.failure == Failure::Unsent),
                elsewhere: towards.has_untried(&asking.tried),
            };
            let pause = asking.rules.again(failed.failure, tried, rand::random());
            let Some(pause) = pause.filter(|_| towards.budget()) else {
                return failed.answer.map(|answer| *answer).ok_or(failed.refusal);
            };
            match failed.failure {
                Failure::Unsent => asking.unsent += 1,
                _ => asking.answered += 1,
            }
            if let Some(answer) = failed.answer {
                let Answer { response, attempt, lease, .. } = *answer;
                let grpc = reply::grpc_status(response.headers());
                attempt.finish(Some(response.status()), grpc, CloseReason::Ok);
                answer::discard(response, lease);
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
    ) -> Result<Box<Answer>, Box<Failed>> {
        let started = Instant::now();
        let Some((to, pick)) = self.pick(towards, &asking.tried, started) else {
            let refusal = Refusal::new(CloseReason::NoEndpoints, towards.nobody(&self.source.pod));
            return Err(Box::new(Failed::new(Failure::Refused, refusal)));
        };
        asking.tried.push(to.address.ip());
        let party = Party { workload: to.workload.clone(), principal: None, address: Some(to.address) };
        record.destination(party.clone(), to.service.clone(), Security::None);
        let attempt = Some(record.attempt(number, &party));
        let mut trying = Trying { attempt, pick, started, deadline: asking.deadline };

        let others = towards.has_untried(&asking.tried);
        let mut lease = match self.connection(asking, &to, &trying, others).await {
            Ok(lease) => lease,
            Err(error) => {
                let (failure, blame) = whose_fault(&error);
                let refusal = Refusal::from(error);
                trying.failed(&refusal, blame);
                return Err(Box::new(Failed::new(failure, refusal)));
            }
        };
        let remote = lease.remote.clone();
        record.destination(
            Party { principal: remote.principal, ..party },
            to.service.clone(),
            remote.security,
        );

        let request = asking.request(number, trying.attempt.as_ref());
        let answered = match asking.rules.per_try {
            None => Some(lease.send(request).await),
            Some(limit) => tokio::time::timeout(limit, lease.send(request)).await.ok(),
        };
        let (failure, refusal) = match answered {
            Some(Ok(response)) => {
                let attempt = trying.attempt.take().expect("only failures take the attempt away");
                let answer = Answer { response, attempt, lease, pick: trying.pick.take() };
                return judge(&asking.rules, answer, started);
            }
            Some(Err(unanswered)) => {
                let detail = format!("{} ended the connection: {}", to.address, unanswered.error);
                let failure = match unanswered.unsent {
                    Some(body) => {
                        asking.body.put_back(body);
                        Failure::Unsent
                    }
                    None => Failure::Broken,
                };
                (failure, Refusal::new(CloseReason::ServerReset, detail))
            }
            None => {
                let detail = format!("{} did not answer in time", to.address);
                (Failure::TimedOut, Refusal::new(CloseReason::AttemptTimeout, detail))
            }
        };
        // A connection that was closed for idleness says nothing about the endpoint.
        let idle = lease.reused && matches!(failure, Failure::Unsent | Failure::Broken);
        trying.failed(&refusal, !idle);
        Err(Box::new(Failed::new(failure, refusal)))
    }

    async fn connection(
        &self,
        asking: &Asking<'_>,
        to: &Destination,
        trying: &Trying,
        others: bool,
    ) -> Result<Lease, PoolError> {
        let key = Key::new(to, self.http2);
        let mut bounds = Bounds::new(asking.traffic.as_deref(), others);
        if let Some(limit) = asking.rules.per_try {
            bounds.connect_timeout = bounds.connect_timeout.min(limit);
        }
        let connect = || async {
            let traceparent = trying.attempt.as_ref().and_then(Attempt::traceparent);
            self.mesh.connect(&self.source, &Destination { traceparent, ..to.clone() }).await
        };
        self.pool.checkout(&key, &bounds, connect).await
    }

    fn pick(&self, towards: &Towards, tried: &[IpAddr], now: Instant) -> Option<(Destination, Option<Pick>)> {
        match towards {
            Towards::Address(to) => Some((to.clone(), None)),
            Towards::Service { entry, port, balancer } => {
                let pick = balancer.pick(entry, *port, &self.here, tried, now, rand::random())?;
                let workload = self.mesh.workload(pick.endpoint.workload.as_ref(), pick.endpoint.ip);
                let mut to = destination(SocketAddr::new(pick.endpoint.ip, pick.target_port), workload);
                to.service = Some(entry.service.id.clone());
                Some((to, Some(pick)))
            }
        }
    }
}

/// What may be done about a connection that was not had, and whether it counts against the endpoint.
fn whose_fault(error: &PoolError) -> (Failure, bool) {
    match error {
        PoolError::Connect(error) if !error.worth_another_endpoint() => (Failure::Refused, false),
        // Our own bound.
        PoolError::Overloaded(_) => (Failure::Unsent, false),
        PoolError::Connect(_) | PoolError::Handshake(..) | PoolError::TimedOut(_) => (Failure::Unsent, true),
    }
}

/// Tells the balancer how it went, and whether the answer is one to repeat.
fn judge(rules: &RetryRules<'_>, answer: Answer, started: Instant) -> Result<Box<Answer>, Box<Failed>> {
    let latency = started.elapsed();
    let mut status = answer.response.status();
    if let Some(as_http) = reply::grpc_status(answer.response.headers()).and_then(http_status_of_grpc) {
        status = as_http;
    }
    let bad = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    if let Some(pick) = &answer.pick {
        let outcome = if bad { Outcome::Failure { latency } } else { Outcome::Success { latency } };
        pick.observe(outcome, Instant::now());
    }
    let answer = Box::new(answer);
    // A success is never repeated; which failures are is the rules' to say.
    if status.is_success() || !rules.may_repeat_answered() {
        return Ok(answer);
    }
    let refusal = Refusal::new(CloseReason::Ok, "");
    Err(Box::new(Failed { failure: Failure::Answered(status), refusal, answer: Some(answer) }))
}

impl Bounds {
    pub(super) fn new(traffic: Option<&TrafficPolicy>, others: bool) -> Self {
        Self {
            connections_max: traffic.and_then(|t| t.max_connections).unwrap_or(limits::CONNECTIONS_MAX),
            pending_max: traffic.and_then(|t| t.max_pending_requests).unwrap_or(limits::PENDING_MAX),
            connect_timeout: connect::time_out(traffic, others),
        }
    }
}
