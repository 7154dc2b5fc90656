//! What routes refer to: the Services that they are attached to, and those that they send requests to.
//!
//! The Gateway API's rules and reasons for both, for the resources that nodes get and for status alike.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_proto::identity::NamespacedName;
use weft_proto::model::{AppProtocol, HttpFilter, ParentRef, RouteKind};

use super::Index;
use super::objects::RouteName;
use crate::source::object::{Parent, RouteObject, ServicePort};

/// Who refers to a backend.
#[derive(Debug, Clone)]
pub struct Referrer {
    pub kind: RouteKind,
    pub namespace: Arc<str>,
    /// Namespaces of the Services that are its parents.
    pub of_parents: BTreeSet<Arc<str>>,
}

impl Referrer {
    pub(super) fn of(RouteObject { route, parents }: &RouteObject) -> Self {
        let of_parents = parents.iter().map(|parent| parent.service.namespace.clone()).collect();
        Self { kind: route.kind, namespace: route.id.namespace.clone(), of_parents }
    }
}

/// Why requests cannot be sent to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unresolved {
    /// Another namespace's, without a ReferenceGrant there. Said before anything else: whether it exists is not told.
    NotPermitted,
    NotFound,
}

impl Unresolved {
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotPermitted => "RefNotPermitted",
            Self::NotFound => "BackendNotFound",
        }
    }

    pub fn message(self, service: &NamespacedName, port: u16) -> String {
        match self {
            Self::NotPermitted => {
                format!("no ReferenceGrant in {} permits backend {service}", service.namespace)
            }
            Self::NotFound => format!("there is no Service {service} with port {port}"),
        }
    }
}

/// Why a route has no effect at a parent, with the Gateway API's reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAccepted {
    pub reason: &'static str,
    pub message: String,
}

impl Index {
    /// Whether a route may send requests to a Service's port, and whether there is one.
    pub fn resolve(&self, from: &Referrer, service: &NamespacedName, port: u16) -> Result<(), Unresolved> {
        if !self.permitted(from, service) {
            Err(Unresolved::NotPermitted)
        } else if !self.has_port(service, port) {
            Err(Unresolved::NotFound)
        } else {
            Ok(())
        }
    }

    /// In the route's own namespace; in that of its parents, whose traffic a consumer route only shapes; or granted.
    fn permitted(&self, from: &Referrer, service: &NamespacedName) -> bool {
        let namespace = &service.namespace;
        let grants = || self.objects.grants_of(namespace);
        from.namespace == *namespace
            || (from.of_parents.len() == 1 && from.of_parents.contains(namespace))
            || grants().any(|grant| grant.permits(from.kind, &from.namespace, &service.name))
    }

    /// The first backend or mirror of a route that cannot be resolved.
    pub(super) fn unresolved(&self, object: &RouteObject) -> Option<(&'static str, String)> {
        let route = &object.route;
        let invalid = route.rules.iter().flat_map(|rule| &rule.backends).find(|backend| backend.invalid);
        if let Some(backend) = invalid {
            let message = format!("backend {} is not a Service, or has no port", backend.service.name);
            return Some(("InvalidKind", message));
        }
        let named = route.rules.iter().flat_map(|rule| {
            let backends = rule.backends.iter().map(|backend| (&backend.service, backend.port));
            backends.chain(rule.filters.iter().filter_map(|filter| match filter {
                HttpFilter::Mirror { service, port, .. } => Some((service, *port)),
                _ => None,
            }))
        });
        let (mut named, from) = (named, Referrer::of(object));
        named.find_map(|(service, port)| {
            let unresolved = self.resolve(&from, service, port).err()?;
            Some((unresolved.reason(), unresolved.message(service, port)))
        })
    }

    /// A parent as nodes know it, with the number of the port. None: the name is no port's of the Service as it is now, so that no
    /// request is the route's there.
    pub(super) fn parent_by_number(&self, parent: &Parent) -> Option<ParentRef> {
        let service = parent.service.clone();
        if parent.port_name.is_none() {
            return Some(ParentRef { service, port: parent.port });
        }
        let mut ports = self.objects.services.get(&service)?.ports.iter();
        let port = ports.find(|port| parent.takes(port))?.port;
        Some(ParentRef { service, port: Some(port) })
    }

    /// Whether a route of this kind and namespace has effect at a parent; `Ok` with what has to be said of it.
    pub fn attached(&self, kind: RouteKind, namespace: &str, parent: &Parent) -> Result<String, NotAccepted> {
        let id = &parent.service;
        let not = |reason, message| Err(NotAccepted { reason, message });
        let Some(service) = self.objects.services.get(id) else {
            return not("NoMatchingParent", format!("there is no Service {id}"));
        };
        let ports: Vec<&ServicePort> = service.ports.iter().filter(|port| parent.takes(port)).collect();
        if ports.is_empty() {
            let which = match (parent.port, &parent.port_name) {
                (None, None) => String::new(),
                (Some(port), None) => format!(" {port}"),
                (None, Some(name)) => format!(" named {name:?}"),
                (Some(port), Some(name)) => format!(" {port} named {name:?}"),
            };
            return not("NoMatchingParent", format!("Service {id} has no port{which}"));
        }
        if service.vips.is_empty() {
            let message =
                format!("Service {id} has no cluster address, so that no request is addressed to it");
            return not("UnsupportedValue", message);
        }
        let ports: Vec<&ServicePort> =
            ports.into_iter().filter(|port| port.app_protocol != AppProtocol::Tcp).collect();
        if ports.is_empty() {
            let message = format!("the protocol of Service {id} is declared as tcp: there are no requests");
            return not("UnsupportedValue", message);
        }
        if kind == RouteKind::Grpc {
            return Ok(String::new());
        }
        let taken: Vec<(u16, &NamespacedName)> = ports
            .iter()
            .filter_map(|port| Some((port.port, self.grpc_route_of(namespace, id, port)?)))
            .collect();
        match taken.first() {
            None => Ok(String::new()),
            Some((_, by)) if taken.len() == ports.len() => {
                not("Conflicted", format!("GRPCRoute {by} comes first at Service {id}"))
            }
            Some((port, by)) => Ok(format!("except for port {port}, where GRPCRoute {by} comes first")),
        }
    }

    /// A GRPCRoute for the same clients, those of a namespace of consumers or all others, at a Service's port.
    fn grpc_route_of(
        &self,
        namespace: &str,
        service: &NamespacedName,
        port: &ServicePort,
    ) -> Option<&NamespacedName> {
        let routes = self.objects.routes_naming(service);
        let mut grpc = routes.filter(|(id, kind)| *kind == RouteKind::Grpc && *id.namespace == *namespace);
        let attached = |name: &RouteName| {
            self.objects.routes.get(name).is_some_and(|route| route.attaches(service, port))
        };
        grpc.find(|name| attached(name)).map(|(id, _)| id)
    }
}
