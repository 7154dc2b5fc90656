//! What `/config_dump` answers: each resource that this node holds. Its JSON is `weft_proto::dump`'s, as in the control plane's dump of
//! what the node should hold.

use serde_json::Value;
use weft_proto::dump;

use crate::node::Node;
use crate::snapshot::Snapshot;

impl Node {
    pub fn config_dump(&self) -> Value {
        render(&self.settings.node_name, &self.snapshot.load())
    }
}

fn render(node: &str, snapshot: &Snapshot) -> Value {
    let held = snapshot.held().map(|(resource, version)| dump::resource(&resource, version));
    dump::of_node(node, snapshot.revision(), held.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weft_proto::convert::{key_of, version_of};
    use weft_proto::identity::NamespacedName;
    use weft_proto::model::{Endpoint, Resource, Revision, Service};

    use super::*;
    use crate::snapshot::{Change, fixtures};

    #[test]
    fn every_resource_that_is_held_is_shown_with_the_version_that_was_sent() {
        let name = |namespace: &str, name: &str| NamespacedName::new(namespace, name).unwrap();
        let endpoint = |service: &str| Endpoint {
            service: name("shop", service),
            ip: "10.0.0.3".parse().unwrap(),
            workload: None,
            ports: [(80, 8080)].into(),
            ready: true,
            serving: true,
            terminating: false,
            node: "n2".into(),
            zone: "".into(),
        };
        let resources = [
            Resource::Workload(fixtures::workload("web-1", "10.0.0.2", "n1", false).into()),
            Resource::Service(
                Service { id: name("shop", "db"), vips: Vec::new(), ports: Vec::new(), node_local: false }
                    .into(),
            ),
            Resource::Endpoint(endpoint("db").into()),
            // Its Service is not known yet: held all the same.
            Resource::Endpoint(endpoint("early").into()),
        ];
        let changes = resources.iter().map(|it| Change::Upsert(key_of(it), version_of(it), it.clone()));
        let snapshot = Snapshot::default().apply(Revision(7), changes);

        let dump = render("n1", &snapshot);
        assert_eq!((&dump["node"], &dump["revision"]), (&json!("n1"), &json!(7)));
        let shown = dump["resources"].as_array().unwrap();
        let keys: Vec<String> =
            shown.iter().map(|one| format!("{} {}", one["kind"], one["key"]).replace('"', "")).collect();
        assert_eq!(
            keys,
            [
                "Endpoint shop/db/10.0.0.3",
                "Endpoint shop/early/10.0.0.3",
                "Service shop/db",
                "Workload web-1"
            ]
        );
        assert_eq!(shown[3]["version"], dump::version_text(version_of(&resources[0])));
        assert_eq!(shown[0]["content"]["ports"], json!({"80": 8080}));
    }
}
