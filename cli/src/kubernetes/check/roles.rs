//! Whether the rights that Weft's own workloads and the users of its kinds have in the cluster are those of the manifest. More is not
//! looked for: less is what breaks.

use anyhow::Result;
use kube::api::DynamicObject;
use kube::{Api, Client};
use serde_json::Value;

use super::super::manifest::{self, Images, kind, name};
use super::super::words::{Words as _, is_missing};

/// A role or binding of the manifest, and what it lacks in the cluster, in words; None: nothing.
pub(super) type Lacking = (String, Option<String>);

/// Of a role that becomes part of the cluster's own, for users: the chart can leave these out.
const FOR_USERS: &str = "rbac.authorization.k8s.io/aggregate-to-";

/// Those that the user may not read are left out: the check of permissions names them.
pub(super) async fn lacking(client: &Client) -> Result<Vec<Lacking>> {
    let mut all = Vec::new();
    for own in manifest::objects(&manifest::text(&Images::default())?)? {
        let resource = manifest::resource(&own)?;
        if resource.group != "rbac.authorization.k8s.io" {
            continue;
        }
        let api: Api<DynamicObject> = match own.metadata.namespace.as_deref() {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let shown = format!("{} {}", kind(&own), name(&own));
        let found = match api.get(name(&own)).await {
            Ok(found) => Some(found.data),
            Err(error) if is_missing(&error) && is_for_users(&own) => continue,
            Err(error) if is_missing(&error) => None,
            Err(kube::Error::Api(status)) if status.code == 403 => continue,
            Err(error) => return Err(error).doing(&format!("read {shown}")),
        };
        all.push((shown, compare(&own.data, found.as_ref())));
    }
    Ok(all)
}

fn is_for_users(role: &DynamicObject) -> bool {
    role.metadata.labels.iter().flatten().any(|(label, _)| label.starts_with(FOR_USERS))
}

/// Pure.
fn compare(own: &Value, found: Option<&Value>) -> Option<String> {
    let Some(found) = found else { return Some("is not there".to_owned()) };
    if own["roleRef"].is_object() {
        let has = |subject: &&Value| !list(&found["subjects"]).any(|other| other == *subject);
        let unbound = list(&own["subjects"]).find(has);
        return match unbound {
            _ if own["roleRef"] != found["roleRef"] => {
                Some(format!("gives another role: {}", found["roleRef"]["name"]))
            }
            Some(subject) => {
                Some(format!("does not name {} {}", text(&subject["kind"]), text(&subject["name"])))
            }
            None => None,
        };
    }
    let missing: Vec<String> = list(&own["rules"])
        .flat_map(single)
        .filter(|right| !list(&found["rules"]).any(|rule| right.is_in(rule)))
        .map(|right| right.in_words())
        .collect();
    (!missing.is_empty()).then(|| format!("lacks: {}", missing.join(", ")))
}

/// One verb on one resource, and perhaps one name.
struct Single<'a> {
    group: &'a str,
    resource: &'a str,
    name: Option<&'a str>,
    verb: &'a str,
}

/// All that a rule allows.
fn single(rule: &Value) -> Vec<Single<'_>> {
    let names: Vec<Option<&str>> = list(&rule["resourceNames"]).map(Value::as_str).collect();
    let names = if names.is_empty() { vec![None] } else { names };
    let mut all = Vec::new();
    for group in list(&rule["apiGroups"]).map(text) {
        for resource in list(&rule["resources"]).map(text) {
            for name in &names {
                let of = |verb| Single { group, resource, name: *name, verb };
                all.extend(list(&rule["verbs"]).map(text).map(of));
            }
        }
    }
    all
}

impl Single<'_> {
    fn is_in(&self, rule: &Value) -> bool {
        let has = |field: &str, wanted: &str| list(&rule[field]).any(|one| one == wanted || one == "*");
        let named = match self.name {
            _ if list(&rule["resourceNames"]).next().is_none() => true,
            Some(name) => list(&rule["resourceNames"]).any(|one| one == name),
            None => false,
        };
        has("apiGroups", self.group) && has("resources", self.resource) && has("verbs", self.verb) && named
    }

    fn in_words(&self) -> String {
        match self.name {
            Some(name) => format!("{} {} {name}", self.verb, self.resource),
            None => format!("{} {}", self.verb, self.resource),
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::{block_on, fake};
    use super::*;

    #[test]
    fn roles_for_users_may_be_left_out_and_those_of_the_workloads_not() {
        let lacking = block_on(async {
            let (nothing, _) = fake::cluster(fake::bare);
            lacking(&nothing.client).await
        });
        let shown: Vec<String> = lacking.unwrap().into_iter().map(|(shown, _)| shown).collect();
        assert!(shown.contains(&"ClusterRole weft-control".to_owned()), "{shown:?}");
        assert!(!shown.iter().any(|one| one.contains("weft-edit") || one.contains("weft-view")), "{shown:?}");
    }

    #[test]
    fn what_a_role_lacks_is_named_and_more_or_otherwise_written_is_no_fault() {
        let own = json!({"rules": [
            {"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["list", "watch"]},
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["weft-ca"], "verbs": ["get"]},
        ]});
        let rule = |resources: Value, verbs: Value| json!({"apiGroups": [""], "resources": resources, "verbs": verbs});
        let split = json!([
            rule(json!(["services"]), json!(["watch"])),
            rule(json!(["pods"]), json!(["*"])),
            rule(json!(["services", "secrets"]), json!(["get", "list"])),
        ]);
        let of_another = json!([own["rules"][0],
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["other"], "verbs": ["get"]}]);
        let of_another_group =
            json!([{"apiGroups": ["apps"], "resources": ["*"], "verbs": ["*"]}, own["rules"][1]]);
        for (rules, told) in [
            (own["rules"].clone(), None),
            (split, None),
            (json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]), None),
            (json!([own["rules"][0]]), Some("lacks: get secrets weft-ca")),
            (of_another, Some("lacks: get secrets weft-ca")),
            (of_another_group, Some("lacks: list pods, watch pods, list services, watch services")),
            (
                Value::Null,
                Some("lacks: list pods, watch pods, list services, watch services, get secrets weft-ca"),
            ),
        ] {
            let found = json!({ "rules": rules });
            assert_eq!(compare(&own, Some(&found)).as_deref(), told, "{found}");
        }
        assert_eq!(compare(&own, None).as_deref(), Some("is not there"));
    }

    #[test]
    fn a_binding_gives_the_role_to_the_workload() {
        let own = json!({"roleRef": {"kind": "Role", "name": "weft-node"},
            "subjects": [{"kind": "ServiceAccount", "name": "weft-node", "namespace": "weft-system"}]});
        let of = |change: fn(&mut Value)| {
            let mut found = own.clone();
            change(&mut found);
            compare(&own, Some(&found))
        };
        assert_eq!(of(|_| ()), None);
        assert_eq!(
            of(|found| found["roleRef"]["name"] = "view".into()).as_deref(),
            Some("gives another role: \"view\"")
        );
        let elsewhere = of(|found| found["subjects"][0]["namespace"] = "default".into());
        assert_eq!(elsewhere.as_deref(), Some("does not name ServiceAccount weft-node"));
    }
}
