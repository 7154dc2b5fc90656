//! What the edge to the nodes refuses, said in the manifest's names and at its line. Pure.

use weft_proto::convert::Invalid;

use crate::source::manifest::{Document, Refused};

/// Fields of the wire that manifests call otherwise; all others differ by their case, and units.
const NAMES: &[(&str, &str)] = &[
    ("backends", "backendRefs"),
    ("base_ejection_ms", "baseEjectionTime"),
    ("budget_percent", "budget.percent"),
    ("grpc", "method"),
    ("mirror", "requestMirror"),
    ("parents", "parentRefs"),
    ("query", "queryParams"),
    ("redirect", "requestRedirect"),
    ("request_headers", "requestHeaderModifier"),
    ("response_headers", "responseHeaderModifier"),
    ("rewrite", "urlRewrite"),
    ("services", "targetRefs"),
];

pub(super) fn refused(document: &Document<'_>, invalid: &Invalid) -> Refused {
    let field = path(&invalid.field);
    let at = format!("spec.{}", field.replace('[', ".").replace(']', ""));
    document.refuse(&at, format!("spec.{}", Invalid { field, ..invalid.clone() }))
}

/// `retry.per_try_timeout_ms` is `retry.perTryTimeout`, `rules[0].backends[1].weight` is `rules[0].backendRefs[1].weight`.
fn path(wire: &str) -> String {
    let segments = wire.split('.').map(|segment| {
        let (name, item) = segment.split_at(segment.find('[').unwrap_or(segment.len()));
        let renamed = NAMES.iter().find(|(of_wire, _)| *of_wire == name);
        let name = renamed.map_or_else(|| camel_case(name), |(_, of_manifest)| (*of_manifest).to_owned());
        name + item
    });
    segments.collect::<Vec<_>>().join(".")
}

fn camel_case(name: &str) -> String {
    let mut words = name.strip_suffix("_ms").unwrap_or(name).split('_');
    let mut joined = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(word.len().min(1));
        joined.push_str(&first.to_ascii_uppercase());
        joined.push_str(rest);
    }
    joined
}

#[cfg(test)]
mod tests {
    use crate::source::manifest;

    #[test]
    fn a_field_is_called_what_the_manifest_calls_it_and_told_at_its_line() {
        let traffic = "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata:\n  name: slow\nspec:\n  targetRefs:\n  - kind: \
                       Service\n    name: a\n  retry:\n    attempts: 2\n    budget:\n      percent: 200\n";
        let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: r\nspec:\n  parentRefs:\n  - group: \
                     ''\n    kind: Service\n    name: a\n  rules:\n  - backendRefs:\n    - name: b\n      port: 80\n    - name: c\n      \
                     port: 80\n      weight: 2000000\n";
        let ejection = "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata:\n  name: slow\nspec:\n  targetRefs: [{kind: \
                        Service, name: a}]\n  ejection:\n    consecutiveFailures: 0\n";
        for (text, line, said) in [
            (traffic, 12, "spec.retry.budget.percent: \"200\""),
            (route, 16, "spec.rules[0].backendRefs[1].weight: \"2000000\""),
            (ejection, 8, "spec.ejection.consecutiveFailures: \"0\""),
        ] {
            let errors = manifest::parse("t.yaml", text).unwrap_err();
            let error = errors.first().expect(said);
            assert!(error.to_string().contains(said) && error.line == line, "{error:?}");
        }
    }

    #[test]
    fn names_differ_by_case_and_unit_or_are_in_the_list() {
        for (wire, of_manifest) in [
            ("retry.per_try_timeout_ms", "retry.perTryTimeout"),
            ("ejection.base_ejection_ms", "ejection.baseEjectionTime"),
            ("rules[2].to[0].not_paths[1].prefix", "rules[2].to[0].notPaths[1].prefix"),
            (
                "rules[0].filters[1].request_headers.set[0].name",
                "rules[0].filters[1].requestHeaderModifier.set[0].name",
            ),
            ("rules[0].timeouts.backend_request_ms", "rules[0].timeouts.backendRequest"),
            ("", ""),
        ] {
            assert_eq!(super::path(wire), of_manifest);
        }
    }
}
