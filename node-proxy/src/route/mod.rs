//! Which rule, backends and filters a request gets, as the Gateway API says. Pure: no I/O, no clock, randomness passed in.
//!
//! [`RouteTable::compile`] sorts every match of every route once, by precedence; [`RouteTable::find`] then takes the
//! first that matches. What a rule's filters do to a request is in `filter.rs`, one match in `matcher.rs`.

pub mod filter;
mod matcher;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::sync::Arc;

use http::{HeaderMap, Method};
use weft_proto::identity::NamespacedName;
use weft_proto::model::{Backend, HttpMatch, HttpRoute, HttpRule, ParentRef, RouteKind};

use matcher::Matcher;

/// The routes of one Service, in order of precedence, compiled.
#[derive(Debug, Default)]
pub struct RouteTable {
    groups: Vec<Group>,
}

/// Routes of one kind for the same clients.
#[derive(Debug)]
struct Group {
    kind: RouteKind,
    /// The namespace that these routes are for; None: the Service's own (producer) routes, for everybody else.
    clients: Option<Arc<str>>,
    /// The ports for which there is a route at all, even one without a rule.
    ports: Vec<Ports>,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ports {
    All,
    Some(Vec<u16>),
}

impl Ports {
    /// Of the parents that are this Service.
    fn of(parents: &[ParentRef], service: &NamespacedName) -> Option<Self> {
        let mut some = Vec::new();
        let mut found = false;
        for parent in parents.iter().filter(|parent| parent.service == *service) {
            found = true;
            match parent.port {
                None => return Some(Self::All),
                Some(port) => some.push(port),
            }
        }
        found.then_some(Self::Some(some))
    }

    fn contain(&self, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Some(ports) => ports.contains(&port),
        }
    }
}

#[derive(Debug)]
struct Candidate {
    ports: Ports,
    matcher: Matcher,
    rule: Arc<RouteRule>,
}

/// A rule, and what it is called.
#[derive(Debug)]
pub struct RouteRule {
    pub route: NamespacedName,
    pub rule: Arc<HttpRule>,
    /// `namespace/name` with the rule's name, if it has one: for spans and logs.
    pub label: Arc<str>,
}

/// A rule that matched.
#[derive(Debug, Clone)]
pub struct Matched {
    pub rule: Arc<RouteRule>,
    /// The prefix that matched, for replacing it.
    pub prefix: Option<Arc<str>>,
}

/// What the table says about a request.
#[derive(Debug, Clone)]
pub enum Found {
    /// No route is attached: to the Service itself.
    Default,
    /// Routes are attached and no rule matches: 404.
    NoMatch,
    Rule(Matched),
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    pub method: &'a Method,
    /// Without the query.
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
}

/// Where a request's share of a rule goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice<'a> {
    Backend(&'a Backend),
    /// No backend, all of weight 0, or the share of one that does not exist: 500.
    Unavailable,
}

impl RouteTable {
    /// `routes`: those with `service` as a parent.
    pub fn compile(service: &NamespacedName, routes: &[Arc<HttpRoute>]) -> Self {
        let mut routes: Vec<_> = routes.iter().collect();
        routes.sort_by(|a, b| (a.created_unix_s, &a.id).cmp(&(b.created_unix_s, &b.id)));
        let mut groups: Vec<Group> = Vec::new();
        for route in routes {
            let Some(ports) = Ports::of(&route.parents, service) else { continue };
            let clients = (route.id.namespace != service.namespace).then(|| Arc::clone(&route.id.namespace));
            let same = |group: &Group| group.kind == route.kind && group.clients == clients;
            let at = groups.iter().position(same).unwrap_or_else(|| {
                groups.push(Group { kind: route.kind, clients, ports: Vec::new(), candidates: Vec::new() });
                groups.len() - 1
            });
            groups[at].add(route, &ports);
        }
        for group in &mut groups {
            // Stable: among equals the older route, its earlier rule and that rule's earlier match stay first.
            group.candidates.sort_by_key(|candidate| Reverse(candidate.matcher.precedence()));
        }
        // Where both kinds are attached to a port only the one found first counts, as the Gateway API says.
        groups.sort_by_key(|group| group.kind);
        Self { groups }
    }

    /// The first rule in order of precedence that matches a request of a client in `client_namespace` to `port`.
    pub fn find(&self, client_namespace: &str, port: u16, request: &RequestHead<'_>) -> Found {
        let attached = |clients: Option<&str>| {
            self.groups.iter().find(|group| {
                group.clients.as_deref() == clients && group.ports.iter().any(|ports| ports.contain(port))
            })
        };
        let Some(group) = attached(Some(client_namespace)).or_else(|| attached(None)) else {
            return Found::Default;
        };
        let found = group
            .candidates
            .iter()
            .find(|candidate| candidate.ports.contain(port) && candidate.matcher.matches(request));
        match found {
            None => Found::NoMatch,
            Some(candidate) => Found::Rule(Matched {
                rule: Arc::clone(&candidate.rule),
                prefix: candidate.matcher.prefix().cloned(),
            }),
        }
    }
}

impl Group {
    fn add(&mut self, route: &HttpRoute, ports: &Ports) {
        self.ports.push(ports.clone());
        for rule in &route.rules {
            let label = if rule.name.is_empty() {
                route.id.to_string()
            } else {
                format!("{}/{}", route.id, rule.name)
            };
            let named =
                Arc::new(RouteRule { route: route.id.clone(), rule: Arc::clone(rule), label: label.into() });
            let everything = [HttpMatch::default()];
            let matches = if rule.matches.is_empty() { &everything[..] } else { &rule.matches[..] };
            for one in matches {
                let (ports, rule) = (ports.clone(), Arc::clone(&named));
                self.candidates.push(Candidate { ports, matcher: Matcher::new(one), rule });
            }
        }
    }
}

/// Chooses by weight; `random` is uniform over all of u64.
pub fn choose(rule: &HttpRule, random: u64) -> Choice<'_> {
    let total: u64 = rule.backends.iter().map(|backend| u64::from(backend.weight)).sum();
    if total == 0 {
        return Choice::Unavailable;
    }
    // Multiply and shift: below `total`, without the cost and bias of a remainder.
    let mut at = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    for backend in &rule.backends {
        let weight = u64::from(backend.weight);
        if at < weight {
            return if backend.invalid { Choice::Unavailable } else { Choice::Backend(backend) };
        }
        at -= weight;
    }
    Choice::Unavailable
}
