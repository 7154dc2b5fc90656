//! The kinds that are watched: where the API server has them, and how much of them is needed.

use kube::api::ApiResource;
use kube::core::GroupVersionKind;

use crate::source::object::Kind;

#[derive(Debug, Clone, Copy)]
pub(super) struct Watched {
    pub(super) kind: Kind,
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    /// Only the metadata is asked for: a Node's list of images alone is larger than all that is needed of it.
    pub(super) metadata_only: bool,
    /// Comes with a CRD, which may not be installed.
    pub(super) from_crd: bool,
    /// Weft writes its status.
    pub(super) has_status: bool,
}

const fn core(kind: Kind, plural: &'static str, metadata_only: bool) -> Watched {
    let (group, version) = ("", "v1");
    Watched { kind, group, version, plural, metadata_only, from_crd: false, has_status: false }
}

const fn crd(kind: Kind, group: &'static str, version: &'static str, plural: &'static str) -> Watched {
    Watched { kind, group, version, plural, metadata_only: false, from_crd: true, has_status: true }
}

const GATEWAY_API: &str = "gateway.networking.k8s.io";

pub(super) const WATCHED: [Watched; 11] = [
    core(Kind::Namespace, "namespaces", true),
    core(Kind::Node, "nodes", true),
    core(Kind::ServiceAccount, "serviceaccounts", true),
    core(Kind::Pod, "pods", false),
    core(Kind::Service, "services", false),
    Watched { group: "discovery.k8s.io", ..core(Kind::EndpointSlice, "endpointslices", false) },
    crd(Kind::HttpRoute, GATEWAY_API, "v1", "httproutes"),
    crd(Kind::GrpcRoute, GATEWAY_API, "v1", "grpcroutes"),
    // Every release of the Gateway API serves this version; v1 came late.
    Watched { has_status: false, ..crd(Kind::ReferenceGrant, GATEWAY_API, "v1beta1", "referencegrants") },
    crd(Kind::AuthorizationPolicy, "weft.dev", "v1alpha1", "authorizationpolicies"),
    crd(Kind::TrafficPolicy, "weft.dev", "v1alpha1", "trafficpolicies"),
];

impl Watched {
    pub(super) fn resource(&self) -> ApiResource {
        let kind = GroupVersionKind::gvk(self.group, self.version, self.kind.name());
        ApiResource::from_gvk_with_plural(&kind, self.plural)
    }

    /// `httproutes.gateway.networking.k8s.io`, as kubectl names it.
    pub(super) fn name(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// Where Weft writes the status of a kind.
pub(crate) fn resource_of(kind: Kind) -> Option<ApiResource> {
    WATCHED.iter().find(|watched| watched.kind == kind && watched.has_status).map(Watched::resource)
}

/// Kinds that have no status of Weft's, and labels and annotations that mean something to it: what is wrong with these is told by an
/// event.
pub(super) fn is_told_by_event(kind: Kind) -> bool {
    matches!(kind, Kind::Namespace | Kind::Pod)
}
