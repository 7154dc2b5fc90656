//! Pod, and `weft.dev/v1alpha1` PodStatus (what a kubelet would report, where there is none).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use weft_proto::identity::{NamespacedName, PodUid};
use weft_proto::model::EXCLUSIONS_MAX;

use super::super::manifest::{Document, Refused};
use super::super::object::{Object, Pod};
use super::probes::probe_ports;
use super::{Envelope, annotation, id_of, label, listed, read_core, read_strict, shown, warn_of_unknown};

/// What a kubelet writes into the mirror of a static pod.
pub(crate) const STATIC_HASH: &str = "kubernetes.io/config.hash";
pub(crate) const STATIC_MIRROR: &str = "kubernetes.io/config.mirror";

/// Of Weft's own, on a Pod.
const ANNOTATIONS: &[&str] =
    &["exclude-inbound-ports", "exclude-outbound-ports", "exclude-outbound-cidrs", "redirect", "pod-ips"];

/// Addresses, place and readiness of a Pod of the same name. Overrides what the Pod's own manifest says.
#[derive(Debug, Clone, PartialEq)]
pub struct PodStatus {
    pub id: NamespacedName,
    pub uid: Option<PodUid>,
    pub node: Option<Arc<str>>,
    pub ips: Vec<IpAddr>,
    pub ready: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PodStatusSpec {
    uid: Option<String>,
    node_name: Option<String>,
    #[serde(rename = "podIPs", default)]
    pod_ips: Vec<IpAddr>,
    #[serde(default = "yes")]
    ready: bool,
}

fn yes() -> bool {
    true
}

pub(super) fn pod_status(document: &Document<'_>) -> Result<PodStatus, Refused> {
    let read: Envelope<PodStatusSpec> = read_strict(document)?;
    let spec = read.spec;
    Ok(PodStatus {
        id: id_of(document, &read.metadata)?,
        uid: spec.uid.map(|uid| uid_of(document, "spec.uid", &uid)).transpose()?,
        node: spec.node_name.filter(|node| !node.is_empty()).map(Into::into),
        ips: spec.pod_ips,
        ready: spec.ready,
    })
}

impl PodStatus {
    /// The Pod with this status in place of its own.
    pub fn onto(&self, pod: &Pod) -> Pod {
        Pod {
            uid: self.uid.clone().unwrap_or_else(|| pod.uid.clone()),
            node: self.node.clone().or_else(|| pod.node.clone()),
            ips: self.ips.clone(),
            ready: self.ready,
            ..pod.clone()
        }
    }
}

fn uid_of(document: &Document<'_>, path: &str, text: &str) -> Result<PodUid, Refused> {
    text.parse().map_err(|_| document.refuse(path, format!("{path}: {text:?} is not a pod UID")))
}

/// A static pod comes from a file of its kubelet, which knows it by the hash of that file; the API shows a mirror with a UID of its own.
/// A hash has 32 digits and no dash, so nobody can take an ordinary pod's place with it.
fn static_uid(metadata: &ObjectMeta) -> Option<PodUid> {
    let hash = annotation(metadata, STATIC_HASH)?;
    let is_hash = hash.len() == 32 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mirrored = annotation(metadata, STATIC_MIRROR) == Some(hash);
    let of_node = metadata.owner_references.iter().flatten().any(|owner| owner.kind == "Node");
    if is_hash && mirrored && of_node { hash.parse().ok() } else { None }
}

/// A stable UID for a Pod that has none: the same name always gives the same UID.
fn derived_uid(id: &NamespacedName) -> Option<PodUid> {
    let fnv = |basis: u64| {
        id.to_string().bytes().fold(basis, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    };
    let (high, low) = (fnv(0xcbf2_9ce4_8422_2325), fnv(0x9ae1_6a3b_2f90_404f));
    let text = format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    );
    text.parse().ok()
}

pub(super) fn pod(document: &Document<'_>, warn: &mut dyn FnMut(usize, String)) -> Result<Object, Refused> {
    let read: k8s::Pod = read_core(document, warn)?;
    let metadata = &read.metadata;
    let id = id_of(document, metadata)?;
    warn_of_unknown(document, metadata, &["mesh"], ANNOTATIONS, warn);
    let spec = read.spec.unwrap_or_default();
    let status = read.status.unwrap_or_default();
    let uid = match metadata.uid.as_deref() {
        Some(uid) => uid_of(document, "metadata.uid", uid)?,
        None => derived_uid(&id).ok_or_else(|| document.refuse("metadata", "no UID can be derived"))?,
    };
    let (uid, mirror_uid) = match static_uid(metadata) {
        Some(of_kubelet) => (of_kubelet, Some(uid)),
        None => (uid, None),
    };
    let mesh = match label(metadata, "weft.dev/mesh") {
        None => None,
        Some("enabled") => Some(true),
        Some("disabled") => Some(false),
        Some(other) => {
            let wrong = format!("label weft.dev/mesh: {other:?} is not enabled or disabled");
            document.wrong_metadata("metadata.labels", wrong, "the namespace decides", warn)?;
            None
        }
    };
    let (excluded_inbound_ports, excluded_outbound_ports) = (
        excluded_ports(document, metadata, "weft.dev/exclude-inbound-ports", warn)?,
        excluded_ports(document, metadata, "weft.dev/exclude-outbound-ports", warn)?,
    );
    let excluded_outbound_cidrs = exclusions(
        document,
        metadata,
        "weft.dev/exclude-outbound-cidrs",
        "a CIDR, such as 10.0.0.0/8",
        warn,
    )?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    // No Ready condition: ready in a directory of plain manifests; not yet where a kubelet reports it.
    let ready = conditions.iter().find(|c| c.type_ == "Ready");
    let ready = ready.map_or(!document.is_live(), |c| c.status == "True");
    let labels = metadata.labels.clone().unwrap_or_default();
    let (workload_name, workload_kind) = owner(metadata, &labels, &id.name);
    let zone = label(metadata, "topology.kubernetes.io/zone").unwrap_or_default();
    Ok(Object::Pod(Arc::new(Pod {
        uid,
        mirror_uid,
        mesh,
        service_account: spec.service_account_name.as_deref().unwrap_or("default").into(),
        node: spec.node_name.as_deref().filter(|node| !node.is_empty()).map(Into::into),
        ips: addresses(document, metadata, &status)?,
        host_network: spec.host_network.unwrap_or(false),
        terminal: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        terminating: metadata.deletion_timestamp.is_some(),
        ready,
        workload_name,
        workload_kind,
        zone: zone.into(),
        named_ports: named_ports(document, &spec)?,
        probe_ports: probe_ports(&spec),
        excluded_inbound_ports,
        excluded_outbound_ports,
        excluded_outbound_cidrs,
        redirect: redirect(document, metadata, warn),
        labels,
        id,
    })))
}

/// What an annotation takes out of the mesh, all of it or nothing. The node has room for so many and no more.
fn exclusions<T: FromStr>(
    document: &Document<'_>,
    metadata: &ObjectMeta,
    name: &str,
    what: &str,
    warn: &mut dyn FnMut(usize, String),
) -> Result<Vec<T>, Refused> {
    let wrong = match listed(metadata, name, what) {
        Ok(listed) if listed.len() <= EXCLUSIONS_MAX => return Ok(listed),
        Ok(listed) => format!("annotation {name}: {} entries are more than {EXCLUSIONS_MAX}", listed.len()),
        Err(wrong) => wrong,
    };
    document.wrong_metadata("metadata.annotations", wrong, "it excludes nothing", warn)?;
    Ok(Vec::new())
}

fn excluded_ports(
    document: &Document<'_>,
    metadata: &ObjectMeta,
    name: &str,
    warn: &mut dyn FnMut(usize, String),
) -> Result<Vec<u16>, Refused> {
    let ports: Vec<NonZeroU16> = exclusions(document, metadata, name, "a port from 1 to 65535", warn)?;
    Ok(ports.into_iter().map(NonZeroU16::get).collect())
}

fn redirect(document: &Document<'_>, metadata: &ObjectMeta, warn: &mut dyn FnMut(usize, String)) -> bool {
    match annotation(metadata, "weft.dev/redirect") {
        Some("disabled") => false,
        None | Some("enabled") => true,
        Some(other) => {
            let wrong =
                format!("annotation weft.dev/redirect: {:?} is not enabled or disabled", shown(other));
            warn(document.line_of("metadata.annotations"), format!("{wrong}; it counts as enabled"));
            true
        }
    }
}

/// `status.podIPs`, else `status.podIP`, else the annotation `weft.dev/pod-ips`: an address that a pod's author claims counts in a
/// directory of manifests, never where a kubelet reports the true one.
fn addresses(
    document: &Document<'_>,
    metadata: &ObjectMeta,
    status: &k8s::PodStatus,
) -> Result<Vec<IpAddr>, Refused> {
    let mut texts: Vec<String> = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
    if texts.is_empty() {
        texts.extend(status.pod_ip.clone());
    }
    if texts.is_empty() && !document.is_live() {
        return listed(metadata, "weft.dev/pod-ips", "an IP address")
            .map_err(|wrong| document.refuse("metadata.annotations", wrong));
    }
    texts
        .iter()
        .map(|text| {
            text.parse().map_err(|_| {
                document.refuse("status.podIPs", format!("status.podIPs: {text:?} is not an IP address"))
            })
        })
        .collect()
}

fn named_ports(document: &Document<'_>, spec: &k8s::PodSpec) -> Result<BTreeMap<String, u16>, Refused> {
    let mut named = BTreeMap::new();
    // Init containers with restartPolicy Always are sidecars, and may have ports of their own.
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        for port in container.ports.iter().flatten() {
            let (Some(name), "TCP") = (&port.name, port.protocol.as_deref().unwrap_or("TCP")) else {
                continue;
            };
            let number = u16::try_from(port.container_port).ok().filter(|n| *n != 0).ok_or_else(|| {
                let message = format!("containerPort: {} is not a port from 1 to 65535", port.container_port);
                document.refuse("spec.containers", message)
            })?;
            named.entry(name.clone()).or_insert(number);
        }
    }
    Ok(named)
}

/// Name and kind of the workload: the controlling owner, a ReplicaSet standing for its Deployment.
fn owner(metadata: &ObjectMeta, labels: &BTreeMap<String, String>, pod: &str) -> (Arc<str>, Arc<str>) {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let Some(owner) = owners.iter().find(|o| o.controller == Some(true)).or(owners.first()) else {
        return (pod.into(), "pod".into());
    };
    let kind = owner.kind.to_ascii_lowercase();
    if kind == "replicaset" {
        let suffix = labels.get("pod-template-hash").map(|hash| format!("-{hash}"));
        if let Some(name) = suffix.and_then(|suffix| owner.name.strip_suffix(&suffix)) {
            return (name.into(), "deployment".into());
        }
    }
    if kind == "job" {
        // A CronJob names its Jobs after itself and the minute they were due.
        if let Some((name, minute)) = owner.name.rsplit_once('-')
            && minute.len() >= 8
            && minute.bytes().all(|b| b.is_ascii_digit())
        {
            return (name.into(), "cronjob".into());
        }
    }
    (owner.name.as_str().into(), kind.into())
}
