//! The only way between the generated messages ([`v1`]) and the validated types ([`model`](crate::model)).
//!
//! From the wire everything is checked: names, addresses, ports, headers, methods, statuses, enum values, regular
//! expressions and the lengths of lists; an [`Invalid`] names the field and the value. Towards the wire nothing can
//! fail. One file per resource; the checks of single values are in `field`. Start reading at [`resource`].

mod field;
mod policy;
mod route;
mod service;
#[cfg(test)]
mod tests;
mod traffic;
mod workload;

use std::sync::Arc;

use prost::Message;

pub use self::field::{
    DURATION_MS_MAX, Invalid, LIST_LENGTH_MAX, PATTERN_BYTES_MAX, TEXT_BYTES_MAX, pattern, pattern_text,
};
/// Routes, `AuthorizationPolicy` and `TrafficPolicy` by themselves: the control plane checks what it reads from
/// manifests with the very code that the nodes will check it with.
pub use self::policy::authorization_policy;
pub use self::route::{grpc_route, http_route};
pub use self::traffic::traffic_policy;
use crate::identity::NamespacedName;
use crate::model::{Resource, ResourceKey, RouteKind, Version};
use crate::v1;

/// Validates one resource of a delta.
pub fn resource(wire: v1::Resource) -> Result<(ResourceKey, Version, Resource), Invalid> {
    let version = Version(wire.version);
    let named = wire.key.ok_or_else(|| Invalid::new("key", "", "is missing"))?;
    let key = resource_key(&named)?;
    let body =
        wire.body.ok_or_else(|| Invalid::new("body", &named.name, "is missing or of an unknown kind"))?;
    let resource = body_from_wire(body).map_err(|invalid| invalid.of(&key))?;
    if key_of(&resource) != key {
        return Err(Invalid::new("key", &named.name, "does not name the resource it comes with"));
    }
    Ok((key, version, resource))
}

fn body_from_wire(body: v1::resource::Body) -> Result<Resource, Invalid> {
    use v1::resource::Body;
    Ok(match body {
        Body::Mesh(wire) => Resource::Mesh(Arc::new(workload::mesh(wire)?)),
        Body::Workload(wire) => Resource::Workload(Arc::new(workload::workload(wire)?)),
        Body::Service(wire) => Resource::Service(Arc::new(service::service(wire)?)),
        Body::Endpoint(wire) => Resource::Endpoint(Arc::new(service::endpoint(wire)?)),
        Body::HttpRoute(wire) => Resource::HttpRoute(Arc::new(http_route(wire)?)),
        Body::GrpcRoute(wire) => Resource::HttpRoute(Arc::new(grpc_route(wire)?)),
        Body::AuthorizationPolicy(wire) => {
            Resource::AuthorizationPolicy(Arc::new(authorization_policy(wire)?))
        }
        Body::TrafficPolicy(wire) => Resource::TrafficPolicy(Arc::new(traffic_policy(wire)?)),
    })
}

/// The message for a resource, its version computed from its content.
pub fn resource_to_wire(resource: &Resource) -> v1::Resource {
    use v1::resource::Body;
    let body = match resource {
        Resource::Mesh(mesh) => Body::Mesh(workload::mesh_to_wire(mesh)),
        Resource::Workload(pod) => Body::Workload(workload::workload_to_wire(pod)),
        Resource::Service(service) => Body::Service(service::service_to_wire(service)),
        Resource::Endpoint(endpoint) => Body::Endpoint(service::endpoint_to_wire(endpoint)),
        Resource::HttpRoute(route) => match route.kind {
            RouteKind::Http => Body::HttpRoute(route::route_to_wire(route)),
            RouteKind::Grpc => Body::GrpcRoute(route::route_to_wire(route)),
        },
        Resource::AuthorizationPolicy(policy) => {
            Body::AuthorizationPolicy(policy::authorization_policy_to_wire(policy))
        }
        Resource::TrafficPolicy(policy) => Body::TrafficPolicy(traffic::traffic_policy_to_wire(policy)),
    };
    let key = Some(resource_key_to_wire(&key_of(resource)));
    let mut wire = v1::Resource { key, version: 0, body: Some(body) };
    wire.version = fnv1a_64(&wire.encode_to_vec());
    wire
}

/// The version that [`resource_to_wire`] gives to this content.
pub fn version_of(resource: &Resource) -> Version {
    Version(resource_to_wire(resource).version)
}

/// FNV-1a, 64 bit: fixed for ever, because versions are compared across restarts and releases.
pub fn fnv1a_64(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The key under which a resource is held.
pub fn key_of(resource: &Resource) -> ResourceKey {
    match resource {
        Resource::Mesh(_) => ResourceKey::Mesh,
        Resource::Workload(pod) => ResourceKey::Workload(pod.uid.clone()),
        Resource::Service(service) => ResourceKey::Service(service.id.clone()),
        Resource::Endpoint(endpoint) => {
            ResourceKey::Endpoint { service: endpoint.service.clone(), ip: endpoint.ip }
        }
        Resource::HttpRoute(route) => route.kind.key(route.id.clone()),
        Resource::AuthorizationPolicy(policy) => ResourceKey::AuthorizationPolicy(policy.id.clone()),
        Resource::TrafficPolicy(policy) => ResourceKey::TrafficPolicy(policy.id.clone()),
    }
}

/// Name of the one Mesh resource.
const MESH: &str = "mesh";

/// Validates a key, as it stands in removals, in the Hello and in refusals.
pub fn resource_key(wire: &v1::ResourceKey) -> Result<ResourceKey, Invalid> {
    let kind = v1::Kind::try_from(wire.kind)
        .map_err(|_| Invalid::new("key.kind", wire.kind, "is not a known kind of resource"))?;
    let name = wire.name.as_str();
    let namespaced = || {
        name.parse::<NamespacedName>().map_err(|_| Invalid::new("key.name", name, "is not namespace/name"))
    };
    Ok(match kind {
        v1::Kind::Unspecified => {
            return Err(Invalid::new("key.kind", wire.kind, "is not a known kind of resource"));
        }
        v1::Kind::Mesh if name == MESH => ResourceKey::Mesh,
        v1::Kind::Mesh => return Err(Invalid::new("key.name", name, "is not \"mesh\"")),
        v1::Kind::Workload => ResourceKey::Workload(field::pod_uid("key.name", name)?),
        v1::Kind::Service => ResourceKey::Service(namespaced()?),
        v1::Kind::Endpoint => {
            let (service, ip) = name
                .rsplit_once('/')
                .ok_or_else(|| Invalid::new("key.name", name, "is not namespace/service/ip"))?;
            let service =
                service.parse().map_err(|_| Invalid::new("key.name", name, "is not namespace/service/ip"))?;
            ResourceKey::Endpoint { service, ip: field::ip("key.name", ip)? }
        }
        v1::Kind::HttpRoute => ResourceKey::HttpRoute(namespaced()?),
        v1::Kind::GrpcRoute => ResourceKey::GrpcRoute(namespaced()?),
        v1::Kind::AuthorizationPolicy => ResourceKey::AuthorizationPolicy(namespaced()?),
        v1::Kind::TrafficPolicy => ResourceKey::TrafficPolicy(namespaced()?),
    })
}

pub fn resource_key_to_wire(key: &ResourceKey) -> v1::ResourceKey {
    let (kind, name) = match key {
        ResourceKey::Mesh => (v1::Kind::Mesh, MESH.to_owned()),
        ResourceKey::Workload(uid) => (v1::Kind::Workload, uid.to_string()),
        ResourceKey::Service(id) => (v1::Kind::Service, id.to_string()),
        ResourceKey::Endpoint { service, ip } => (v1::Kind::Endpoint, format!("{service}/{ip}")),
        ResourceKey::HttpRoute(id) => (v1::Kind::HttpRoute, id.to_string()),
        ResourceKey::GrpcRoute(id) => (v1::Kind::GrpcRoute, id.to_string()),
        ResourceKey::AuthorizationPolicy(id) => (v1::Kind::AuthorizationPolicy, id.to_string()),
        ResourceKey::TrafficPolicy(id) => (v1::Kind::TrafficPolicy, id.to_string()),
    };
    v1::ResourceKey { kind: kind.into(), name }
}
