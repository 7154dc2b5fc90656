//! Several replicas of weft-control, seen as one: each hears only the nodes that are connected to it.
//!
//! Pure: answers of `/status` in. Each node of each replica learns under `elsewhere` which other replica has it, if one does.

use std::collections::BTreeMap;

use serde_json::Value;

/// Tells each replica's nodes that are not connected there where they are, and whether they are in sync there.
pub(crate) fn join<'a>(answers: impl IntoIterator<Item = (&'a str, &'a mut Value)>) {
    let mut controls: Vec<(&str, &mut Value)> =
        answers.into_iter().filter(|(_, answer)| answer["nodes"].is_object()).collect();
    let mut homes: BTreeMap<String, (String, bool)> = BTreeMap::new();
    for (replica, answer) in &controls {
        for (node, state) in answer["nodes"].as_object().into_iter().flatten() {
            if state["connected"] == true {
                homes.insert(node.clone(), ((*replica).to_owned(), state["in_sync"] == true));
            }
        }
    }
    for (_, answer) in &mut controls {
        for (node, state) in answer["nodes"].as_object_mut().into_iter().flatten() {
            let home = homes.get(node).filter(|_| state["connected"] != true);
            if let (Some((replica, in_sync)), Some(fields)) = (home, state.as_object_mut()) {
                let elsewhere = serde_json::json!({ "replica": replica, "in_sync": in_sync });
                fields.insert("elsewhere".to_owned(), elsewhere);
            }
        }
    }
}

/// Whether a node of a replica is at another one: what this one last knew of it is history.
pub(crate) fn is_elsewhere(state: &Value) -> bool {
    state["elsewhere"].is_object()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_that_went_to_another_replica_is_found_there() {
        let mut one = json!({"nodes": {
            "n1": {"connected": true, "in_sync": true}, "n2": {"connected": false, "in_sync": false},
            "n3": {"connected": false, "in_sync": false}}});
        let mut two = json!({"nodes": {
            "n1": {"connected": false, "in_sync": false}, "n2": {"connected": true, "in_sync": false}}});
        let mut node = json!({"node": "n1"});
        join([("one", &mut one), ("two", &mut two), ("n1", &mut node)]);
        assert_eq!(one["nodes"]["n2"]["elsewhere"], json!({"replica": "two", "in_sync": false}));
        assert_eq!(two["nodes"]["n1"]["elsewhere"], json!({"replica": "one", "in_sync": true}));
        assert!(!is_elsewhere(&one["nodes"]["n1"]) && !is_elsewhere(&one["nodes"]["n3"]));
    }
}
