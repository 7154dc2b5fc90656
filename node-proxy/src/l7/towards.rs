//! Where a request goes: the rule that matches, its filters, the backend's Service and port.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use http::{StatusCode, header, request};
use weft_proto::model::{HttpFilter, TrafficPolicy, Workload};

use super::answer::Refusal;
use super::exchange::Session;
use super::outbound::Mesh;
use crate::balance::{Balancer, Family, Live};
use crate::connect::Destination;
use crate::enrol::LocalPod;
use crate::outbound::{Target, report_nobody};
use crate::route::{self, Choice, Found, Matched, RequestHead, filter};
use crate::snapshot::ServiceEntry;
use crate::telemetry::{CloseReason, RequestRecord};

/// One of a Service's endpoints, or one address.
pub(super) enum Towards {
    Service { entry: Arc<ServiceEntry>, port: u16, balancer: Arc<Balancer> },
    Address(Destination),
}

/// A request that is to be sent on.
pub(super) struct Routed {
    pub(super) head: request::Parts,
    pub(super) towards: Towards,
    pub(super) matched: Option<Matched>,
}

/// What routing says instead.
pub(super) enum Stop {
    Redirect(StatusCode, String),
    Refused(Refusal),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl<M: Mesh> Session<M> {
    /// Finds the rule and the backend, and applies the filters of the request. `response_filters` are for its answer.
    pub(super) fn route(
        &self,
        mut head: request::Parts,
        record: &mut RequestRecord,
        response_filters: &mut Vec<HttpFilter>,
    ) -> Result<Routed, Stop> {
        let direct = |head, towards| Ok(Routed { head, towards, matched: None });
        let (entry, port) = match &self.target {
            Target::Service { entry, port } => {
                // The latest; the one of when the connection came, if the Service has gone.
                let latest = self.mesh.service(&entry.service.id);
                (latest.unwrap_or_else(|| Arc::clone(entry)), port.port)
            }
            Target::Workload { workload, address } => {
                let workload = Some(Arc::clone(workload));
                return direct(head, Towards::Address(destination(*address, workload)));
            }
            Target::External { address } => {
                return direct(head, Towards::Address(destination(*address, None)));
            }
        };
        let looked_at = RequestHead {
            method: &head.method,
            path: head.uri.path(),
            query: head.uri.query(),
            headers: &head.headers,
        };
        let matched = match entry.routes.find(self.source.pod.identity.namespace(), port, &looked_at) {
            Found::Default => return direct(head, self.towards(entry, port)),
            Found::NoMatch => {
                let detail = format!("no rule of the routes of {} matches", entry.service.id);
                return Err(Refusal::new(CloseReason::NoRoute, detail).into());
            }
            Found::Rule(matched) => matched,
        };
        record.route(&matched.rule.label);
        let rule = &matched.rule.rule;
        response_filters.extend(for_responses(&rule.filters));
        let origin = filter::Origin {
            authority: authority(&head.uri, &head.headers).unwrap_or_default(),
            port,
            path: head.uri.path(),
            query: head.uri.query(),
            prefix: matched.prefix.as_deref(),
        };
        if let Some((status, location)) = filter::redirect(&rule.filters, &origin) {
            return Err(Stop::Redirect(status, location));
        }
        let backend = match route::choose(rule, rand::random()) {
            Choice::Backend(backend) => backend,
            Choice::Unavailable => {
                let detail = format!("rule {} has no backend for this request", matched.rule.label);
                return Err(no_backend(detail).into());
            }
        };
        let Some(entry) = self.mesh.service(&backend.service) else {
            return Err(no_backend(format!("there is no Service {}", backend.service)).into());
        };
        for filter in rule.filters.iter().chain(&backend.filters) {
            request_filter(&mut head, filter, matched.prefix.as_deref());
        }
        response_filters.extend(for_responses(&backend.filters));
        let towards = self.towards(entry, backend.port);
        Ok(Routed { head, towards, matched: Some(matched) })
    }

    pub(super) fn towards(&self, entry: Arc<ServiceEntry>, port: u16) -> Towards {
        let balancer = self.mesh.balancers().of(&entry.service.id, port, Family::of(self.source.client.ip()));
        Towards::Service { entry, port, balancer }
    }
}

/// The Gateway API wants 500 for it.
fn no_backend(detail: String) -> Refusal {
    let mut refusal = Refusal::new(CloseReason::NoEndpoints, detail);
    refusal.status = StatusCode::INTERNAL_SERVER_ERROR;
    refusal
}

impl Towards {
    /// Whether there is an endpoint left to try.
    pub(super) fn has_untried(&self, tried: &[IpAddr]) -> bool {
        match self {
            Self::Address(_) => false,
            Self::Service { balancer, .. } => balancer.has_untried(tried),
        }
    }

    /// Takes one retry out of the budget.
    pub(super) fn budget(&self) -> bool {
        match self {
            // One address, one client connection: the bound on attempts is enough.
            Self::Address(_) => true,
            Self::Service { entry, balancer, .. } => balancer.try_retry(entry, Instant::now()),
        }
    }

    pub(super) fn traffic(&self) -> Option<Arc<TrafficPolicy>> {
        match self {
            Self::Address(_) => None,
            Self::Service { entry, .. } => entry.traffic_policy.clone(),
        }
    }

    /// Counts the request as live.
    pub(super) fn begin(&self) -> Option<Live> {
        match self {
            Self::Address(_) => None,
            Self::Service { balancer, .. } => Some(balancer.begin()),
        }
    }

    /// What the client is told when there was nobody to pick; now and then the log is, too.
    pub(super) fn nobody(&self, client: &LocalPod) -> String {
        match self {
            Self::Address(to) => format!("{} cannot be reached", to.address),
            Self::Service { entry, port, balancer } => {
                report_nobody(balancer, &entry.service.id, *port, client);
                format!("no endpoint of {} port {port} is ready", entry.service.id)
            }
        }
    }
}

fn request_filter(head: &mut request::Parts, filter: &HttpFilter, prefix: Option<&str>) {
    match filter {
        HttpFilter::RequestHeaders(by) => filter::modify(&mut head.headers, by),
        HttpFilter::Rewrite { hostname, path } => {
            filter::rewrite(&mut head.uri, &mut head.headers, prefix, hostname.as_deref(), path.as_ref());
        }
        // The first two need no request's head; mirrors are made of it when all filters are through.
        HttpFilter::ResponseHeaders(_) | HttpFilter::Redirect { .. } | HttpFilter::Mirror { .. } => {}
    }
}

fn for_responses(filters: &[HttpFilter]) -> impl Iterator<Item = HttpFilter> + '_ {
    filters.iter().filter(|filter| matches!(filter, HttpFilter::ResponseHeaders(_))).cloned()
}

pub(super) fn response_headers(headers: &mut http::HeaderMap, filters: &[HttpFilter]) {
    for filter in filters {
        if let HttpFilter::ResponseHeaders(by) = filter {
            filter::modify(headers, by);
        }
    }
}

pub(super) fn destination(address: SocketAddr, workload: Option<Arc<Workload>>) -> Destination {
    Destination { address, workload, service: None, traceparent: None }
}

pub(super) fn authority<'a>(uri: &'a http::Uri, headers: &'a http::HeaderMap) -> Option<&'a str> {
    let host = || headers.get(header::HOST).and_then(|host| host.to_str().ok());
    uri.authority().map(http::uri::Authority::as_str).or_else(host)
}
