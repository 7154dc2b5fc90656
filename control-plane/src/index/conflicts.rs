//! Where an object stands back behind another that says something else of the same: told in its status.
//!
//! Nothing is decided here: nodes choose among TrafficPolicies (`snapshot`) and routes (`route`), `derive` the mode of pods. The
//! order is theirs too. Start at [`Index::yields`] and [`Index::outdone`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use weft_proto::identity::NamespacedName;
use weft_proto::model::{
    AppProtocol, HttpMatch, HttpRule, InboundMode, PathMatch, RouteKind, TrafficPolicy, ValueMatch,
};

use super::Index;
use crate::source::ObjectKey;
use crate::source::object::{
    Inbound, Kind, Labels, Parent, RouteObject, ServicePort, TrafficPolicyObject, selects,
};

/// So many of a kind are named in a message, the others counted: a status is read by people.
const NAMED_MAX: usize = 8;

/// What of a TrafficPolicy others decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Yields {
    /// Nothing is left of it.
    pub everywhere: bool,
    pub message: String,
}

fn named(all: impl IntoIterator<Item = String>) -> String {
    let mut all: Vec<String> = all.into_iter().collect();
    if all.len() > NAMED_MAX {
        let more = all.len() - NAMED_MAX;
        all.truncate(NAMED_MAX);
        all.push(format!("and {more} more"));
    }
    all.join(", ")
}

/// Services, and the policies that count for them.
type Taken<'a> = BTreeMap<&'a Arc<str>, &'a NamespacedName>;

fn not_for(taken: &Taken<'_>, why: &str) -> String {
    if taken.is_empty() {
        return String::new();
    }
    let taken = taken.iter().map(|(service, by)| format!("Service {service} (TrafficPolicy {})", by.name));
    format!("not for {}; {why}", named(taken))
}

impl Index {
    /// Where a TrafficPolicy stands back. None: nowhere.
    pub(super) fn yields(&self, object: &ObjectKey) -> Option<Yields> {
        let own = self.objects.traffic.get(&object.id).filter(|_| object.kind == Kind::TrafficPolicy)?;
        let of_clients = own.for_clients.then(|| self.yields_for_clients(own));
        let of_pods = own.inbound.as_ref().map(|inbound| self.yields_inbound(&own.policy.id, inbound));
        let parts: Vec<Yields> = of_clients.into_iter().chain(of_pods).collect();
        let everywhere = parts.iter().all(|part| part.everywhere);
        let messages = parts.into_iter().map(|part| part.message).filter(|message| !message.is_empty());
        let message = messages.collect::<Vec<_>>().join("; ");
        (!message.is_empty()).then_some(Yields { everywhere, message })
    }

    fn yields_for_clients(&self, own: &TrafficPolicyObject) -> Yields {
        let own = &own.policy;
        let rivals = self.objects.traffic_of(&own.id.namespace).filter(|other| other.for_clients);
        let mut rivals: Vec<&TrafficPolicy> =
            rivals.map(|other| &*other.policy).filter(|policy| policy.id != own.id).collect();
        rivals.sort_by_key(|policy| policy.precedence());
        if own.services.is_empty() {
            return self.yields_for_namespace(own, &rivals);
        }
        rivals.retain(|policy| policy.precedence() < own.precedence());
        let asked: BTreeSet<&Arc<str>> =
            own.services.iter().filter(|service| self.has_service(own, service)).collect();
        let holder = |service: &Arc<str>| rivals.iter().find(|other| other.services.contains(service));
        let taken: Taken<'_> =
            asked.iter().filter_map(|service| Some((*service, &holder(service)?.id))).collect();
        let why = "of policies for the same Service the oldest, then the first by name, counts, as a whole";
        Yields { everywhere: taken.len() == asked.len(), message: not_for(&taken, why) }
    }

    /// `rivals`: in order of precedence.
    fn yields_for_namespace(&self, own: &TrafficPolicy, rivals: &[&TrafficPolicy]) -> Yields {
        let general = rivals.iter().find(|other| other.services.is_empty());
        if let Some(by) = general.filter(|other| other.precedence() < own.precedence()) {
            let message = format!(
                "TrafficPolicy {} is for the whole namespace too, and comes first: the oldest, then by name",
                by.id.name
            );
            return Yields { everywhere: true, message };
        }
        let mut taken = Taken::new();
        for rival in rivals {
            for service in rival.services.iter().filter(|service| self.has_service(own, service)) {
                taken.entry(service).or_insert(&rival.id);
            }
        }
        let why = "a policy that names a Service counts before one for the namespace, as a whole";
        Yields { everywhere: false, message: not_for(&taken, why) }
    }

    fn has_service(&self, policy: &TrafficPolicy, service: &Arc<str>) -> bool {
        let id = NamespacedName { namespace: policy.id.namespace.clone(), name: service.clone() };
        self.objects.services.contains_key(&id)
    }

    /// As [`Index::inbound_mode`] decides for each pod.
    fn yields_inbound(&self, id: &NamespacedName, own: &Inbound) -> Yields {
        let others = self.objects.traffic_of(&id.namespace).filter(|other| other.policy.id != *id);
        let others = others.filter_map(|other| Some((&other.policy.id, other.inbound.as_ref()?)));
        // Among equals STRICT wins; before a policy for all pods, one with a selector does.
        let wins = |other: &Inbound| {
            if own.selector.is_some() == other.selector.is_some() {
                other.mode == InboundMode::Strict
            } else {
                other.selector.is_some()
            }
        };
        let rivals: Vec<(&NamespacedName, &Inbound)> =
            others.filter(|(_, other)| other.mode != own.mode && wins(other)).collect();
        let specific = |other: &Inbound| other.selector.is_some() && own.selector.is_none();
        let covers = |other: &&(&NamespacedName, &Inbound)| {
            !specific(other.1)
                && wanted_labels(other.1).iter().all(|label| wanted_labels(own).contains(label))
        };
        if let Some((by, _)) = rivals.iter().find(covers) {
            let message = format!("TrafficPolicy {} says STRICT for the same pods, which wins", by.name);
            return Yields { everywhere: true, message };
        }
        let mut told: BTreeMap<&NamespacedName, &Inbound> = BTreeMap::new();
        let pods = if rivals.is_empty() { Vec::new() } else { self.objects.pods_selected_by_traffic(id) };
        for pod in pods.iter().filter_map(|id| self.objects.pods.get(id)) {
            if self.inbound_mode(pod) != own.mode {
                let selecting = rivals.iter().filter(|(_, other)| {
                    other.selector.as_ref().is_none_or(|selector| selects(selector, &pod.labels))
                });
                told.extend(selecting.copied());
            }
        }
        let told = told.into_iter().map(|(by, other)| {
            let mode = if other.mode == InboundMode::Permissive { "PERMISSIVE" } else { "STRICT" };
            let why = if specific(other) { "and goes before, with a selector" } else { "which wins" };
            format!("TrafficPolicy {} says {mode} for some of its pods, {why}", by.name)
        });
        Yields { everywhere: false, message: named(told) }
    }

    /// Matches of a route that get no request of a parent, since an older route for the same clients has the same; empty: none.
    pub fn outdone(&self, kind: RouteKind, id: &NamespacedName, parent: &Parent) -> String {
        let (Some(own), Some(service)) =
            (self.objects.route(id, kind), self.objects.services.get(&parent.service))
        else {
            return String::new();
        };
        let older = self.older_routes(own, parent);
        let ports = service.ports.iter();
        let ports: Vec<&ServicePort> =
            ports.filter(|port| port.app_protocol != AppProtocol::Tcp && parent.takes(port)).collect();
        let has = |other: &RouteObject, port: &ServicePort, own: &HttpMatch| {
            let mut matches = other.route.rules.iter().flat_map(|rule| matches_of(rule));
            other.attaches(&parent.service, port) && matches.any(|other| same(own, other))
        };
        let mut said = Vec::new();
        for (i, rule) in own.route.rules.iter().enumerate() {
            for (j, one) in matches_of(rule).iter().enumerate() {
                let which = if rule.matches.is_empty() { String::new() } else { format!(".matches[{j}]") };
                said.extend(ports.iter().filter_map(|port| {
                    let by = &older.iter().find(|other| has(other, port, one))?.route.id.name;
                    Some(format!("rules[{i}]{which} at port {} ({} {by})", port.port, kind.name()))
                }));
            }
        }
        if said.is_empty() {
            return String::new();
        }
        let why = "of routes with the same match the oldest, then the first by name, gets the requests";
        format!("not {}; {why}", named(said))
    }

    /// In order. Clients follow either the routes of their own namespace or those of the Service's.
    fn older_routes<'a>(&'a self, own: &RouteObject, parent: &Parent) -> Vec<&'a Arc<RouteObject>> {
        let (kind, namespace) = (own.route.kind, &own.route.id.namespace);
        let names = self.objects.routes_naming(&parent.service);
        let names = names.filter(|(id, of)| *of == kind && id.namespace == *namespace);
        let routes = names.filter_map(|name| self.objects.routes.get(name));
        let age = |object: &RouteObject| (object.route.created_unix_s, object.route.id.clone());
        let mut older: Vec<_> = routes.filter(|other| age(other) < age(own)).collect();
        older.sort_by_key(|object| age(object));
        older
    }
}

fn wanted_labels(inbound: &Inbound) -> Vec<(&String, &String)> {
    inbound.selector.iter().flat_map(Labels::iter).collect()
}

static EVERYTHING: LazyLock<[HttpMatch; 1]> = LazyLock::new(|| [HttpMatch::default()]);

fn matches_of(rule: &HttpRule) -> &[HttpMatch] {
    if rule.matches.is_empty() { &*EVERYTHING } else { &rule.matches }
}

/// Whether both take the same requests, with the same rank.
fn same(a: &HttpMatch, b: &HttpMatch) -> bool {
    path(a) == path(b)
        && a.method == b.method
        && firsts(&a.headers) == firsts(&b.headers)
        && firsts(&a.query) == firsts(&b.query)
}

/// None: any.
fn path(of: &HttpMatch) -> Option<&PathMatch> {
    let any = |path: &PathMatch| matches!(path, PathMatch::Prefix(prefix) if matches!(&**prefix, "" | "/"));
    of.path.as_ref().filter(|path| !any(path))
}

/// Of entries with the same name the first counts; their order does not.
fn firsts<N: AsRef<str>>(entries: &[(N, ValueMatch)]) -> BTreeMap<&str, &ValueMatch> {
    let mut firsts = BTreeMap::new();
    for (name, value) in entries {
        firsts.entry(name.as_ref()).or_insert(value);
    }
    firsts
}
