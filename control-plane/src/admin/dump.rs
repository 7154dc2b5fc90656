//! What `/config_dump` answers: each resource that a node should hold. Its JSON is `weft_proto::dump`'s, as in the node's own dump.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_proto::model::Version;
use weft_proto::{convert, dump};

use crate::index::Sent;
use crate::world::World;

/// None: no such node.
pub(super) fn render(world: &World, node: &str) -> Option<Value> {
    let connected = world.hub.statuses().contains_key(node);
    let (revision, sent) = {
        let index = world.index.read();
        if !connected && !index.names_node(node) {
            return None;
        }
        let sent: Vec<Arc<Sent>> = index.all(node).into_iter().map(Arc::clone).collect();
        (index.revision(), sent)
    };
    let resources = sent.iter().map(|sent| resource(sent)).collect();
    Some(dump::of_node(node, revision, resources))
}

fn resource(sent: &Sent) -> Value {
    let version = Version(sent.version);
    match convert::resource(sent.resource()) {
        Ok((_, _, resource)) => dump::resource(&resource, version),
        Err(error) => json!({ "version": dump::version_text(version), "invalid": error.to_string() }),
    }
}
