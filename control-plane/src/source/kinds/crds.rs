//! The CustomResourceDefinitions of Weft's own kinds, made from the Rust types. `weft-control crds` prints them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResourceExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::policy::AuthorizationPolicy;
use super::traffic::TrafficPolicy;

/// What Weft says of a policy. Conditions: `Accepted`, and `Programmed` (which nodes have it).
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// The generation that the conditions are about.
    pub observed_generation: Option<i64>,
    /// `Accepted`: whether it is in force, and why not or not for all. `Programmed`: whether all nodes that need it have it.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"], "maxItems" = 8))]
    pub conditions: Vec<Condition>,
}

/// File name and content, of each.
pub fn files() -> Result<Vec<(&'static str, String)>, serde_yaml_ng::Error> {
    [
        ("authorizationpolicies.yaml", AuthorizationPolicy::crd()),
        ("trafficpolicies.yaml", TrafficPolicy::crd()),
    ]
    .into_iter()
    .map(|(file, crd)| {
        let mut value = serde_yaml_ng::to_value(crd)?;
        tidy(&mut value);
        Ok((file, serde_yaml_ng::to_string(&value)?))
    })
    .collect()
}

/// Takes away what the API server would warn of (formats of Rust's integers) and what would make a `null` of an absent
/// field (an Option is optional, not nullable).
fn tidy(value: &mut serde_yaml_ng::Value) {
    use serde_yaml_ng::Value as Yaml;
    match value {
        Yaml::Mapping(map) => {
            map.remove("nullable");
            if map.get("format").and_then(Yaml::as_str).is_some_and(|format| format.starts_with("uint")) {
                map.remove("format");
            }
            // An absent list is an empty one; there is no need to write it into everybody's objects.
            if map.get("default").is_some_and(|default| *default == Yaml::Sequence(Vec::new())) {
                map.remove("default");
            }
            map.values_mut().for_each(tidy);
        }
        Yaml::Sequence(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// All of them as one YAML text.
pub fn text() -> Result<String, serde_yaml_ng::Error> {
    Ok(files()?.into_iter().map(|(_, text)| format!("---\n{text}")).collect())
}

/// An entry of `from` or `to` has to say something: one whose fields were all misspelt, and dropped by the API server,
/// would match everything.
pub(super) fn some_field(fields: &[&str]) -> Value {
    let any: Vec<String> = fields.iter().map(|f| format!("(has(self.{f}) && size(self.{f}) > 0)")).collect();
    serde_json::json!([{
        "rule": any.join(" || "),
        "message": "an entry without any value would match everything; leave the list out instead",
    }])
}

#[cfg(test)]
mod tests {
    use serde_yaml_ng::Value as Yaml;

    use super::*;

    /// What `kubectl explain` has nothing to say of.
    fn undescribed(at: &str, schema: &Yaml, found: &mut Vec<String>) {
        for (name, field) in schema.get("properties").and_then(Yaml::as_mapping).into_iter().flatten() {
            let path = format!("{at}.{}", name.as_str().unwrap());
            let description = field.get("description").and_then(Yaml::as_str).unwrap_or_default();
            if description.is_empty() {
                found.push(path.clone());
            }
            undescribed(&path, field, found);
        }
        if let Some(items) = schema.get("items") {
            undescribed(at, items, found);
        }
    }

    #[test]
    fn every_field_and_the_kind_itself_is_described() {
        for (file, text) in files().unwrap() {
            let crd: Yaml = serde_yaml_ng::from_str(&text).unwrap();
            let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            let kind = schema["description"].as_str().unwrap();
            assert!(kind.starts_with("Says "), "{file}: {kind}");
            let mut found = Vec::new();
            undescribed(file, schema, &mut found);
            assert!(found.is_empty(), "without a description: {found:?}");
        }
    }

    /// Who looks at a list asks whether it counts, why not, and where.
    #[test]
    fn a_list_shows_the_reason_and_the_nodes_without_being_asked() {
        for (file, text) in files().unwrap() {
            let crd: Yaml = serde_yaml_ng::from_str(&text).unwrap();
            let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_sequence().unwrap();
            let shown = columns
                .iter()
                .filter(|column| column.get("priority").is_none_or(|at| at.as_i64() == Some(0)));
            let names: Vec<&str> = shown.map(|column| column["name"].as_str().unwrap()).collect();
            assert!(
                names.ends_with(&["Accepted", "Reason", "Programmed", "Nodes", "Age"]),
                "{file}: {names:?}"
            );
        }
    }

    /// `weft-control crds` writes what should be there.
    #[test]
    fn the_crds_that_are_checked_in_are_what_the_types_say() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/weft/crds");
        for (file, text) in files().unwrap() {
            let found = std::fs::read_to_string(directory.join(file)).unwrap_or_default();
            assert!(
                found == text,
                "{file} differs: run `weft-control crds --directory deploy/helm/weft/crds`"
            );
        }
    }
}
