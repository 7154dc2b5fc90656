//! What is promised of [`Ledger`]: a change is counted where it is, and after any changes all is as if counted anew.

use serde_json::Value;
use weft_proto::identity::NamespacedName;

use super::*;
use crate::source::kinds::Parsed;
use crate::source::object::Kind;
use crate::source::{Event, Object, manifest};

fn policy(at: usize) -> ObjectKey {
    ObjectKey {
        kind: Kind::AuthorizationPolicy,
        id: NamespacedName::new("shop", &format!("deny-{at}")).unwrap(),
    }
}

fn subject(at: usize, generation: i64) -> Subject {
    Subject {
        uid: format!("uid-{at}"),
        generation,
        resource_version: generation.to_string(),
        refused: None,
        warnings: Vec::new(),
        parents: Vec::new(),
        backends: Vec::new(),
        status: Value::Null,
    }
}

/// A pod, and the policy that selects it.
fn application(at: usize, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{at}, namespace: shop, uid: pod-{at}, labels: {{app: app-{at}}}}}\nspec: \
         {{nodeName: {node}, containers: []}}\nstatus: {{podIPs: [{{ip: 10.0.0.1}}]}}\n---\napiVersion: weft.dev/v1alpha1\nkind: \
         AuthorizationPolicy\nmetadata: {{name: deny-{at}, namespace: shop}}\nspec: {{selector: {{matchLabels: {{app: app-{at}}}}}, \
         action: DENY, rules: [{{to: [{{ports: [1]}}]}}]}}\n---\n"
    )
}

fn objects(text: &str) -> Vec<Object> {
    let parsed = manifest::parse("t.yaml", text).unwrap().objects.into_iter().map(|located| located.parsed);
    parsed.filter_map(|p| if let Parsed::Object(object) = p { Some(object) } else { None }).collect()
}

#[derive(Default)]
struct Mesh {
    subjects: Subjects,
    hub: Hub,
    ledger: Ledger,
}

impl Mesh {
    /// What a round looks at.
    fn round(&mut self, index: &Index) -> News {
        let mut which = self.subjects.stale.take();
        which.merge(self.hub.stale.take());
        self.ledger.due.clear();
        self.ledger.recount(which, &self.subjects, index, &self.hub)
    }

    fn apply(&self, index: &mut Index, text: &str) {
        self.hub.changed(index.apply(objects(text).into_iter().map(Event::Apply).collect()));
    }
}

#[test]
fn a_round_looks_at_what_changed_however_much_there_is() {
    for applications in [10, 200] {
        let (mut index, mut mesh) = (crate::index::tests::index(), Mesh::default());
        let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {weft.dev/mesh: \
                         enabled}}\n---\n";
        let text: String = (0..applications).map(|at| application(at, "n1")).collect();
        (0..applications).for_each(|at| mesh.subjects.set(&policy(at), subject(at, 1)));
        mesh.apply(&mut index, &(namespace.to_owned() + &text));
        mesh.hub.stale.add_all();
        assert_eq!(mesh.round(&index).len(), applications);
        assert_eq!(mesh.round(&index), []);

        // The pod moves: one policy is needed elsewhere.
        mesh.apply(&mut index, &application(4, "n2"));
        let one = |generation| vec![("uid-4".to_owned(), Some((generation, Held::default())))];
        assert_eq!(mesh.round(&index), one(1));
        assert_eq!(mesh.ledger.due, [policy(4)].into());
        let counted = mesh.ledger.of(&policy(4)).unwrap();
        let nodes = mesh.ledger.nodes(&index, &policy(4), counted, &Others::default());
        assert_eq!(nodes.to_string(), "0 of 1 nodes have it, not n2 (not connected)");

        mesh.subjects.set(&policy(4), subject(4, 2));
        assert_eq!(mesh.round(&index), one(2));
        mesh.ledger.due.clear();
        mesh.ledger.others_differ(Differs::Objects(["uid-4".to_owned(), "uid-of-before".to_owned()].into()));
        assert_eq!(mesh.ledger.due, [policy(4)].into());
        mesh.ledger.others_differ(Differs::All);
        assert_eq!(mesh.ledger.due.len(), applications);

        mesh.subjects.forget(&policy(4));
        assert_eq!(mesh.round(&index), [("uid-4".to_owned(), None)]);
        assert!(mesh.ledger.of(&policy(4)).is_none() && mesh.ledger.due.is_empty());
        // Another one of the same name.
        mesh.subjects.set(&policy(5), Subject { uid: "other".to_owned(), ..subject(5, 1) });
        assert_eq!(
            mesh.round(&index),
            [("uid-5".to_owned(), None), ("other".to_owned(), Some((1, Held::default())))]
        );
    }
}
