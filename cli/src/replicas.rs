//! Several replicas of weft-control, seen as one: each hears only the nodes that are connected to it.
//!
//! Pure: answers of `/status` in. Each replica learns under `nodes.<node>.elsewhere` which nodes another one has, and each node under
//! `control` how far behind it is.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The replica that a node is connected to, and what that one knows of it.
struct Home {
    replica: String,
    in_sync: bool,
    revisions_behind: Value,
}

/// Tells each replica of the nodes that are connected to another one, and each node what its own replica says of it.
pub(crate) fn join<'a>(answers: impl IntoIterator<Item = (&'a str, &'a mut Value)>) {
    let (mut controls, others): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(_, answer)| answer["nodes"].is_object());
    let mut homes: BTreeMap<String, Home> = BTreeMap::new();
    for (replica, answer) in &controls {
        for (node, state) in answer["nodes"].as_object().into_iter().flatten() {
            if state["connected"] == true {
                let in_sync = state["in_sync"] == true;
                // What does not concern a node is not sent to it.
                let behind = if in_sync { json!(0) } else { state["revisions_behind"].clone() };
                let home = Home { replica: (*replica).to_owned(), in_sync, revisions_behind: behind };
                homes.insert(node.clone(), home);
            }
        }
    }
    for (name, answer) in &mut controls {
        let Some(nodes) = answer["nodes"].as_object_mut() else { continue };
        for (node, home) in homes.iter().filter(|(_, home)| home.replica != *name) {
            let state =
                nodes.entry(node.clone()).or_insert_with(|| json!({"connected": false, "in_sync": false}));
            if state["connected"] != true {
                state["elsewhere"] = json!({ "replica": home.replica, "in_sync": home.in_sync });
            }
        }
    }
    for (_, answer) in others {
        let home = answer["node"].as_str().and_then(|node| homes.get(node));
        if let (Some(home), Some(control)) = (home, answer["control"].as_object_mut()) {
            control.insert("in_sync".to_owned(), home.in_sync.into());
            control.insert("revisions_behind".to_owned(), home.revisions_behind.clone());
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
    fn a_node_that_is_at_another_replica_is_found_there() {
        let mut one = json!({"nodes": {
            "n1": {"connected": true, "in_sync": true}, "n2": {"connected": false, "in_sync": false},
            "n3": {"connected": false, "in_sync": false}}});
        let mut two = json!({"nodes": {"n2": {"connected": true, "in_sync": false, "revisions_behind": 3}}});
        let mut none = json!({"nodes": {}});
        join([("one", &mut one), ("two", &mut two), ("none", &mut none)]);
        assert_eq!(one["nodes"]["n2"]["elsewhere"], json!({"replica": "two", "in_sync": false}));
        assert!(!is_elsewhere(&one["nodes"]["n1"]) && !is_elsewhere(&one["nodes"]["n3"]));
        // One that it never had counts too: all replicas tell of the same nodes.
        assert_eq!(two["nodes"]["n1"]["elsewhere"], json!({"replica": "one", "in_sync": true}));
        assert!(is_elsewhere(&none["nodes"]["n1"]) && is_elsewhere(&none["nodes"]["n2"]));
    }

    #[test]
    fn a_node_learns_how_far_behind_it_is() {
        let mut replica = json!({"nodes": {
            "n1": {"connected": true, "in_sync": true, "revisions_behind": 7},
            "n2": {"connected": true, "in_sync": false, "revisions_behind": 3}}});
        let of = |name: &str| json!({"node": name, "control": {"revision": 5}});
        let (mut n1, mut n2, mut n3) = (of("n1"), of("n2"), of("n3"));
        join([("r", &mut replica), ("n1", &mut n1), ("n2", &mut n2), ("n3", &mut n3)]);
        assert_eq!(n1["control"], json!({"revision": 5, "in_sync": true, "revisions_behind": 0}));
        assert_eq!(n2["control"], json!({"revision": 5, "in_sync": false, "revisions_behind": 3}));
        assert_eq!(n3["control"], json!({"revision": 5}));
    }
}
