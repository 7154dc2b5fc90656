//! What `weft install` applies: the chart as rendered with its default values, compiled into the binary.
//!
//! Pure but for the embedded text. The order within is the one to apply in: kinds of its own first, workloads last.

use anyhow::{Context as _, Result, ensure};
use kube::api::DynamicObject;
use kube::core::{ApiResource, GroupVersionKind};
use serde::Deserialize as _;

const TEXT: &str = include_str!("../../../deploy/manifests/weft.yaml");
/// As the chart's default values name them.
const REGISTRY: &str = "weft.local";
const TAG: &str = env!("CARGO_PKG_VERSION");

/// Where the images come from.
#[derive(Debug, Clone)]
pub(super) struct Images {
    pub(super) registry: String,
    pub(super) tag: String,
}

impl Default for Images {
    fn default() -> Self {
        Self { registry: REGISTRY.into(), tag: TAG.into() }
    }
}

/// The manifest with the images put in.
pub(super) fn text(images: &Images) -> Result<String> {
    let usable = |text: &str, also: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
    };
    ensure!(usable(&images.registry, ".:_/-"), "--registry {:?} is not a registry", images.registry);
    ensure!(usable(&images.tag, "._-"), "--tag {:?} is not a tag", images.tag);
    let mut text = TEXT.to_owned();
    for name in [super::CONTROL, super::NODE] {
        let (from, to) =
            (format!("{REGISTRY}/{name}:{TAG}"), format!("{}/{name}:{}", images.registry, images.tag));
        text = text.replace(&from, &to);
    }
    Ok(text)
}

/// The objects of a manifest, in its order.
pub(super) fn objects(text: &str) -> Result<Vec<DynamicObject>> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(serde_yaml_ng::Value::deserialize)
        .filter(|document| !matches!(document, Ok(serde_yaml_ng::Value::Null)))
        .map(|document| Ok(serde_yaml_ng::from_value(document?)?))
        .collect::<Result<_>>()
        .context("the embedded manifest")
}

/// How the API server serves an object's kind. The kinds are those of the manifest: their plurals are regular.
pub(super) fn resource(object: &DynamicObject) -> Result<ApiResource> {
    let types = object.types.as_ref().context("an object without a kind")?;
    let (group, version) = types.api_version.split_once('/').unwrap_or(("", &types.api_version));
    Ok(ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &types.kind)))
}

pub(super) fn kind(object: &DynamicObject) -> &str {
    object.types.as_ref().map_or("", |types| &types.kind)
}

pub(super) fn name(object: &DynamicObject) -> &str {
    object.metadata.name.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kubernetes::{CONTROL, NAMESPACE, NODE, VERSION_LABEL};

    fn embedded() -> Vec<DynamicObject> {
        objects(&text(&Images::default()).unwrap()).unwrap()
    }

    fn container(object: &DynamicObject) -> &serde_json::Value {
        &object.data["spec"]["template"]["spec"]["containers"][0]
    }

    #[test]
    fn the_embedded_manifest_is_of_this_version() {
        for object in embedded().iter().filter(|object| kind(object) != "CustomResourceDefinition") {
            let labels = object.metadata.labels.as_ref().unwrap();
            assert_eq!(labels[VERSION_LABEL], TAG, "{} {}", kind(object), name(object));
            assert_eq!(labels["app.kubernetes.io/part-of"], "weft", "{} {}", kind(object), name(object));
            assert!(object.metadata.namespace.as_deref().is_none_or(|namespace| namespace == NAMESPACE));
        }
    }

    #[test]
    fn images_are_replaced_in_both_workloads() {
        let images = Images { registry: "mirror:5000/mesh".into(), tag: "next".into() };
        let objects = objects(&text(&images).unwrap()).unwrap();
        for name_of in [CONTROL, NODE] {
            let found = objects.iter().find(|object| {
                name(object) == name_of && ["Deployment", "DaemonSet"].contains(&kind(object))
            });
            assert_eq!(container(found.unwrap())["image"], format!("mirror:5000/mesh/{name_of}:next"));
        }
        assert!(text(&Images { tag: "a b".into(), ..images }).is_err());
    }

    #[test]
    fn definitions_come_before_what_needs_them() {
        let objects = embedded();
        let rank = |object: &DynamicObject| match kind(object) {
            "CustomResourceDefinition" => 0,
            "Namespace" => 1,
            "DaemonSet" | "Deployment" => 3,
            _ => 2,
        };
        assert!(objects.is_sorted_by_key(rank));
        assert!(objects.iter().any(|object| kind(object) == "DaemonSet"));
    }

    /// Word for word: what is added to it, or taken away, is a decision. docs/kubernetes.md says what each is for.
    #[test]
    fn each_of_wefts_pods_has_exactly_the_privileges_that_the_documentation_names() {
        let confined = json!({"type": "RuntimeDefault"});
        let of_node = json!({
            "runAsUser": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"]},
        });
        let of_nodes_pod = json!({
            "seccompProfile": confined, "appArmorProfile": {"type": "Unconfined"}, "seLinuxOptions": {"type": "spc_t"},
        });
        let of_control = json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        });
        let of_controls_pod = json!({
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532, "seccompProfile": confined,
        });
        let host_paths =
            ["/etc/cni/net.d", "/opt/cni/bin", "/run/netns", "/run/weft", "/sys/fs/bpf", "/sys/fs/cgroup"];
        let objects = embedded();
        for (of_kind, own, of_pod, of_host, paths) in [
            ("DaemonSet", of_node, of_nodes_pod, json!(true), &host_paths[..]),
            ("Deployment", of_control, of_controls_pod, json!(null), &[]),
        ] {
            let workload = objects.iter().find(|object| kind(object) == of_kind).unwrap();
            let pod = &workload.data["spec"]["template"]["spec"];
            assert_eq!(container(workload)["securityContext"], own, "{of_kind}");
            assert_eq!(pod["securityContext"], of_pod, "{of_kind}");
            assert_eq!(pod["containers"].as_array().unwrap().len(), 1, "{of_kind}");
            assert!(pod["initContainers"].is_null() && pod["hostIPC"].is_null(), "{of_kind}");
            assert_eq!((&pod["hostNetwork"], &pod["hostPID"]), (&of_host, &of_host), "{of_kind}");
            let volumes = pod["volumes"].as_array().unwrap();
            let mut mounted: Vec<_> =
                volumes.iter().filter_map(|volume| volume["hostPath"]["path"].as_str()).collect();
            mounted.sort_unstable();
            assert_eq!(mounted, paths, "{of_kind}");
        }
        let kinds = objects.iter().map(kind);
        assert_eq!(kinds.filter(|kind| ["DaemonSet", "Deployment"].contains(kind)).count(), 2);
    }
}
