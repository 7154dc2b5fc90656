//! What the control plane's word means for a pod that is about to start. Pure.

use weft_cni::wire::Sandbox;
use weft_proto::identity::PodUid;

use crate::snapshot::Snapshot;

/// What is known about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// It belongs into the mesh.
    Enrol(PodUid),
    /// It does not.
    Outside,
    /// Nobody told of it, and its namespace is not enrolled: it belongs into the mesh only if it asks for that itself.
    Unheard,
    /// It must not start before more is known. The text says what is waited for.
    Awaited(String),
}

pub(super) fn of(snapshot: &Snapshot, node: &str, pod: &Sandbox) -> Word {
    let name = format!("{}/{}", pod.namespace, pod.name);
    let Some(mesh) = snapshot.mesh() else {
        return Word::Awaited(format!("node {node} has no configuration from weft-control yet"));
    };
    let known = match pod.uid.as_deref().map(str::parse::<PodUid>) {
        Some(Ok(uid)) => snapshot.workload(&uid),
        // What cannot be a UID is nobody's.
        Some(Err(_)) => None,
        // Its predecessor of the same name may be here still.
        None => snapshot.workloads_of_node(node).find(|workload| {
            *workload.namespace == *pod.namespace && *workload.name == *pod.name && !workload.terminating
        }),
    };
    match known {
        Some(workload) if !workload.enrolled => Word::Outside,
        Some(workload) if *workload.node != *node => {
            let elsewhere = &workload.node;
            Word::Awaited(format!(
                "weft-control says that pod {name} is on node {elsewhere}, and this is {node}"
            ))
        }
        Some(workload) => Word::Enrol(workload.uid.clone()),
        None if mesh.enrolled_namespaces.binary_search_by(|it| (**it).cmp(&pod.namespace)).is_err() => {
            Word::Unheard
        }
        None => Word::Awaited(format!(
            "weft-control has not told node {node} of pod {name} yet, whose namespace is enrolled"
        )),
    }
}

/// Whether a sandbox may be forgotten that a GC does not name. Its list is of one network: where a list of another name has the plugin too,
/// as one has that was outranked, the pods of that one are not in it, and must not lose the mesh by it.
pub(super) fn is_over(snapshot: &Snapshot, uid: &PodUid) -> bool {
    snapshot.workload(uid).is_none_or(|workload| workload.terminating)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_proto::convert;
    use weft_proto::model::{Mesh, Resource, Revision, Workload};

    use super::*;
    use crate::snapshot::{Change, fixtures};

    fn upsert(resource: Resource) -> Change {
        Change::Upsert(convert::key_of(&resource), convert::version_of(&resource), resource)
    }

    fn snapshot(workloads: Vec<Workload>) -> Snapshot {
        let mesh = Mesh {
            trust_domain: "cluster.local".parse().unwrap(),
            roots: vec![vec![1]],
            enrolled_namespaces: vec!["bank".into(), "shop".into()],
        };
        let workloads = workloads.into_iter().map(|workload| Resource::Workload(Arc::new(workload)));
        let resources = std::iter::once(Resource::Mesh(Arc::new(mesh))).chain(workloads);
        Snapshot::default().apply(Revision(1), resources.map(upsert))
    }

    fn pod(namespace: &str, uid: Option<&str>) -> Sandbox {
        Sandbox {
            container_id: "c".into(),
            netns: "/n".into(),
            namespace: namespace.into(),
            name: "web".into(),
            uid: uid.map(Into::into),
            addresses: Vec::new(),
        }
    }

    fn workload(uid: &str, change: impl FnOnce(&mut Workload)) -> Workload {
        let mut workload = fixtures::workload(uid, "10.0.0.1", "n1", false);
        (workload.namespace, workload.name) = ("shop".into(), "web".into());
        change(&mut workload);
        workload
    }

    #[test]
    fn a_pod_waits_only_if_it_may_belong_into_the_mesh() {
        let enrolled = |uid: &str| Word::Enrol(uid.parse().unwrap());
        let over = |snapshot: &Snapshot, uid: &str| is_over(snapshot, &uid.parse().unwrap());
        let known = snapshot(vec![
            workload("u-1", |_| {}),
            workload("u-2", |it| (it.enrolled, it.name) = (false, "other".into())),
            workload("u-3", |it| it.terminating = true),
            workload("u-4", |it| (it.node, it.name) = ("n2".into(), "far".into())),
        ]);
        assert_eq!(["u-1", "u-2", "u-3", "u-9"].map(|uid| over(&known, uid)), [false, false, true, true]);
        for (snapshot, pod, expected) in [
            (&known, pod("shop", Some("u-1")), enrolled("u-1")),
            (&known, pod("shop", Some("u-2")), Word::Outside),
            (&known, pod("shop", Some("u-3")), enrolled("u-3")),
            // By name, past the one that ends.
            (&known, pod("shop", None), enrolled("u-1")),
            (&known, pod("other", Some("u-9")), Word::Unheard),
            (&known, pod("other", None), Word::Unheard),
        ] {
            assert_eq!(of(snapshot, "n1", &pod), expected, "{pod:?}");
        }
        for (snapshot, pod, told) in [
            (&Snapshot::default(), pod("shop", Some("u-1")), "no configuration"),
            (&Snapshot::default(), pod("other", Some("u-9")), "no configuration"),
            (&known, pod("shop", Some("u-9")), "of pod shop/web yet"),
            (&known, pod("bank", None), "of pod bank/web yet"),
            (&known, pod("shop", Some("u-4")), "on node n2"),
            // A UID that cannot be is nobody's.
            (&known, pod("shop", Some("../x")), "of pod shop/web yet"),
        ] {
            match of(snapshot, "n1", &pod) {
                Word::Awaited(text) => assert!(text.contains(told), "{text}"),
                other => panic!("{pod:?}: {other:?}"),
            }
        }
    }
}
