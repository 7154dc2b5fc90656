//! Kubernetes objects of each kind reduced to [`Object`]s.
//!
//! Core kinds: unknown fields are warnings, since Kubernetes gets new ones. Weft's own kinds and those of the Gateway API: unknown
//! fields are errors, since a misspelt policy must not be taken for a weaker one. Of every kind: unknown fields beside and in
//! `metadata` are errors, since labels that are not seen take what they stand on out of the mesh.

mod bounds;
mod core;
pub mod crds;
mod edge;
mod grant;
mod pod;
pub mod policy;
mod probes;
mod route;
mod secret;
pub mod traffic;

use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::IgnoredAny;
use weft_proto::identity::NamespacedName;

use super::manifest::{Document, Refused};
use super::object::Object;

pub use self::pod::PodStatus;
pub(crate) use self::pod::{STATIC_HASH, STATIC_MIRROR};

/// What a document holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Parsed {
    Object(Object),
    /// Addresses and readiness of a Pod that stands elsewhere.
    PodStatus(PodStatus),
}

/// Reads a document of the given kind. None: not of interest, and a warning says so.
pub fn read(
    document: &Document<'_>,
    api_version: &str,
    kind: &str,
    warn: &mut dyn FnMut(usize, String),
) -> Result<Option<Parsed>, Refused> {
    let object = match (api_version, kind) {
        ("v1", "Namespace") => Some(core::namespace(document, warn)?),
        ("v1", "Node") => Some(core::node(document, warn)?),
        ("v1", "ServiceAccount") => Some(core::service_account(document, warn)?),
        ("v1", "Pod") => Some(pod::pod(document, warn)?),
        ("v1", "Service") => Some(core::service(document, warn)?),
        ("discovery.k8s.io/v1", "EndpointSlice") => core::endpoint_slice(document, warn)?,
        ("v1", "Secret") => secret::secret(document, warn)?,
        ("gateway.networking.k8s.io/v1", "HTTPRoute") => route::http_route(document, warn)?,
        ("gateway.networking.k8s.io/v1", "GRPCRoute") => route::grpc_route(document, warn)?,
        ("gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1beta1", "ReferenceGrant") => {
            grant::reference_grant(document)?
        }
        ("weft.dev/v1alpha1", "AuthorizationPolicy") => Some(policy::authorization_policy(document, warn)?),
        ("weft.dev/v1alpha1", "TrafficPolicy") => Some(traffic::traffic_policy(document)?),
        ("weft.dev/v1alpha1", "PodStatus") => {
            return pod::pod_status(document).map(Parsed::PodStatus).map(Some);
        }
        ("weft.dev/v1alpha1", other) => {
            return Err(document.refuse("kind", format!("weft.dev/v1alpha1 has no kind {other:?}")));
        }
        ("", _) | (_, "") => return Err(document.refuse("kind", "apiVersion and kind must be given")),
        (version, other) => {
            if let Some((field, wrong)) = misspelt(version, other) {
                return Err(document.refuse(field, wrong));
            }
            warn(
                document.line_of("kind"),
                format!("kind {other} of {version} is not used by Weft and ignored"),
            );
            None
        }
    };
    Ok(object.map(Parsed::Object))
}

/// The kinds of core objects: the list is closed, so that any other is a slip of the pen.
const CORE_KINDS: &[&str] = &[
    "Binding",
    "ComponentStatus",
    "ConfigMap",
    "Endpoints",
    "Event",
    "LimitRange",
    "Namespace",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "Service",
    "ServiceAccount",
];

/// Those of the Gateway API's own group, standard and experimental channel, as of its version 1.6.
const GATEWAY_KINDS: &[&str] = &[
    "BackendTLSPolicy",
    "Gateway",
    "GatewayClass",
    "GRPCRoute",
    "HTTPRoute",
    "ListenerSet",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "UDPRoute",
];

/// The field and why what is meant for Weft is not what it says. Taken for somebody else's, it would not be in force, and neither
/// would the last good version of it.
fn misspelt(api_version: &str, kind: &str) -> Option<(&'static str, String)> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let is_one_of = |kinds: &[&str]| kinds.contains(&kind.strip_suffix("List").unwrap_or(kind));
    let read_as =
        |at: &str| Some(("apiVersion", format!("{kind} of {api_version:?} is not read, but of {at}")));
    match (group, kind) {
        ("weft.dev", _) => Some(("apiVersion", format!("weft.dev has no version {version:?}, but v1alpha1"))),
        ("", _) if version != "v1" => {
            Some(("apiVersion", format!("apiVersion {version:?} has no group and is not v1")))
        }
        ("", _) if !is_one_of(CORE_KINDS) => Some(("kind", format!("v1 has no kind {kind:?}"))),
        ("gateway.networking.k8s.io", "HTTPRoute" | "GRPCRoute" | "ReferenceGrant") => {
            read_as("gateway.networking.k8s.io/v1")
        }
        ("gateway.networking.k8s.io", _) if !is_one_of(GATEWAY_KINDS) => {
            Some(("kind", format!("{group} has no kind {kind:?}")))
        }
        ("discovery.k8s.io", "EndpointSlice") => read_as("discovery.k8s.io/v1"),
        _ => None,
    }
}

/// What a strict kind is wrapped in; a field beside these is an error.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Envelope<S> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: ObjectMeta,
    spec: S,
    #[serde(rename = "status")]
    _status: Option<IgnoredAny>,
}

/// A core object, its unknown fields reported as warnings.
fn read_core<T: serde::de::DeserializeOwned>(
    document: &Document<'_>,
    warn: &mut dyn FnMut(usize, String),
) -> Result<T, Refused> {
    read_with(document, |path, line| warn(line, format!("field {path} is not known and ignored")))
}

/// An object whose type itself refuses unknown fields.
fn read_strict<T: serde::de::DeserializeOwned>(document: &Document<'_>) -> Result<T, Refused> {
    read_with(document, |_, _| {})
}

/// What all objects have is known to the last field, and none of it is left out: as kubectl has it too.
fn read_with<T: serde::de::DeserializeOwned>(
    document: &Document<'_>,
    mut unknown: impl FnMut(String, usize),
) -> Result<T, Refused> {
    let mut misspelt = None;
    let read = document.read(|path, line| match path.as_str() {
        "apiVersion" | "kind" => {}
        _ if path.starts_with("metadata.") || !path.contains('.') => {
            let message = format!("there is no field {path}");
            misspelt.get_or_insert(Refused { line, message });
        }
        _ => unknown(path, line),
    })?;
    misspelt.map_or(Ok(read), Err)
}

/// Namespace (default: `default`) and name.
fn id_of(document: &Document<'_>, metadata: &ObjectMeta) -> Result<NamespacedName, Refused> {
    let namespace = metadata.namespace.as_deref().unwrap_or("default");
    let name = metadata.name.as_deref().unwrap_or_default();
    NamespacedName::new(namespace, name).map_err(|e| document.refuse("metadata", format!("metadata: {e}")))
}

/// Label or annotation of Weft's own.
fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(name).map(String::as_str)
}

/// Warns of each label and annotation that has Weft's name and is none of these (`weft.dev/` left out).
fn warn_of_unknown(
    document: &Document<'_>,
    metadata: &ObjectMeta,
    labels: &[&str],
    annotations: &[&str],
    warn: &mut dyn FnMut(usize, String),
) {
    for (what, of_object, known) in
        [("label", &metadata.labels, labels), ("annotation", &metadata.annotations, annotations)]
    {
        let own = of_object.iter().flatten().filter_map(|(key, _)| key.strip_prefix("weft.dev/"));
        for key in own.filter(|key| !known.contains(key)) {
            let line = document.line_of(&format!("metadata.{what}s"));
            warn(line, format!("{what} weft.dev/{} is not known here and ignored", shown(key)));
        }
    }
}

/// What is shown of a wrong value: an annotation may be 256 KiB.
const SHOWN_CHARS_MAX: usize = 64;

fn shown(value: &str) -> String {
    value.chars().take(SHOWN_CHARS_MAX).collect()
}

/// The comma-separated values of an annotation, `what` each. Err: what is wrong.
fn listed<T: FromStr>(metadata: &ObjectMeta, name: &str, what: &str) -> Result<Vec<T>, String> {
    annotation(metadata, name)
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|element| !element.is_empty())
        .map(|element| {
            element.parse().map_err(|_| format!("annotation {name}: {:?} is not {what}", shown(element)))
        })
        .collect()
}
