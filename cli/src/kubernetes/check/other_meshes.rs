//! By what a namespace is in another mesh. Pure: pods that are in one by themselves are not looked at.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;

/// Labels that put all pods of a namespace into a mesh, and with which values.
const LABELS: [(&str, &[&str]); 3] = [
    ("istio-injection", &["enabled"]),
    ("kuma.io/sidecar-injection", &["enabled", "true"]),
    ("appmesh.k8s.aws/sidecarInjectorWebhook", &["enabled"]),
];
/// Annotations, likewise.
const ANNOTATIONS: [(&str, &[&str]); 3] = [
    ("linkerd.io/inject", &["enabled", "ingress"]),
    // Of older releases.
    ("kuma.io/sidecar-injection", &["enabled", "true"]),
    ("openservicemesh.io/sidecar-injection", &["enabled", "yes", "true"]),
];

/// As `label istio.io/rev=stable`; None: the namespace is in no mesh that is known.
pub(super) fn mark(namespace: &Namespace) -> Option<String> {
    let none = BTreeMap::new();
    let labels = namespace.metadata.labels.as_ref().unwrap_or(&none);
    let annotations = namespace.metadata.annotations.as_ref().unwrap_or(&none);
    by_revision(labels)
        .or_else(|| found("label", labels, &LABELS))
        .or_else(|| found("annotation", annotations, &ANNOTATIONS))
}

fn found(what: &str, of: &BTreeMap<String, String>, marks: &[(&str, &[&str])]) -> Option<String> {
    marks.iter().find_map(|(key, values)| {
        let value = of.get(*key)?;
        values.contains(&value.as_str()).then(|| format!("{what} {key}={value}"))
    })
}

/// Istio's, with any value: the name of a mode or of a control plane. That of a control plane does not count beside `istio-injection`.
fn by_revision(labels: &BTreeMap<String, String>) -> Option<String> {
    let mode = labels.get("istio.io/dataplane-mode").filter(|mode| *mode != "none");
    if let Some(mode) = mode {
        return Some(format!("label istio.io/dataplane-mode={mode}"));
    }
    let revision = labels.get("istio.io/rev").filter(|_| !labels.contains_key("istio-injection"))?;
    (!revision.is_empty()).then(|| format!("label istio.io/rev={revision}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_namespace_is_in_another_mesh_by_that_meshs_own_labels_and_annotations() {
        type Pairs = &'static [(&'static str, &'static str)];
        let cases: [(Pairs, Pairs, Option<&str>); 17] = [
            (&[], &[], None),
            (&[("weft.dev/mesh", "enabled")], &[("team", "shop")], None),
            (&[("istio-injection", "enabled")], &[], Some("label istio-injection=enabled")),
            (&[("istio-injection", "disabled")], &[], None),
            (&[("istio.io/rev", "stable")], &[], Some("label istio.io/rev=stable")),
            (&[("istio.io/rev", "stable"), ("istio-injection", "disabled")], &[], None),
            (&[("istio.io/dataplane-mode", "ambient")], &[], Some("label istio.io/dataplane-mode=ambient")),
            (&[("istio.io/dataplane-mode", "none")], &[], None),
            (
                &[("istio.io/dataplane-mode", "none"), ("istio.io/rev", "1-28")],
                &[],
                Some("label istio.io/rev=1-28"),
            ),
            (&[], &[("linkerd.io/inject", "enabled")], Some("annotation linkerd.io/inject=enabled")),
            (&[], &[("linkerd.io/inject", "ingress")], Some("annotation linkerd.io/inject=ingress")),
            (&[], &[("linkerd.io/inject", "disabled")], None),
            (&[("linkerd.io/inject", "enabled")], &[], None),
            (
                &[("kuma.io/sidecar-injection", "enabled")],
                &[],
                Some("label kuma.io/sidecar-injection=enabled"),
            ),
            (&[("kuma.io/sidecar-injection", "disabled")], &[], None),
            (
                &[],
                &[("openservicemesh.io/sidecar-injection", "yes")],
                Some("annotation openservicemesh.io/sidecar-injection=yes"),
            ),
            (
                &[("appmesh.k8s.aws/sidecarInjectorWebhook", "enabled")],
                &[],
                Some("label appmesh.k8s.aws/sidecarInjectorWebhook=enabled"),
            ),
        ];
        for (labels, annotations, expected) in cases {
            let map = |pairs: Pairs| pairs.iter().copied().collect::<BTreeMap<_, _>>();
            let metadata = json!({"labels": map(labels), "annotations": map(annotations)});
            let namespace: Namespace = serde_json::from_value(json!({ "metadata": metadata })).unwrap();
            assert_eq!(mark(&namespace).as_deref(), expected, "{labels:?} {annotations:?}");
        }
    }
}
