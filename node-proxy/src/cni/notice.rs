//! Leaves word beside the socket of whose pods have to wait while nobody answers there, for the plugin and for this agent's successor.
//!
//! Those are the pods of enrolled namespaces, and of every namespace in which a pod of this node has opted in by itself.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;
use weft_cni::notice::Notice;

use super::install::write_whole;
use crate::node::Node;
use crate::snapshot::Snapshot;

/// The owner's alone, as the socket is.
const MODE: u32 = 0o600;
/// Between looks: snapshots may follow each other fast.
const PAUSE: Duration = Duration::from_millis(100);
/// After the notice could not be written.
const RETRY: Duration = Duration::from_secs(2);

/// Until the node drains: from then on the last one counts. When it returns, nothing is being written any more.
pub async fn keep_notice(node: Arc<Node>) {
    let Some(settings) = &node.settings.cni else { return };
    let mut news = node.snapshot.subscribe();
    let (mut left, mut failed) = (None, false);
    while !node.drain.draining.is_cancelled() {
        let wanted = of(&node.snapshot.load(), &node.settings.node_name);
        if let Some(notice) = wanted.filter(|wanted| left.as_ref() != Some(wanted)) {
            let done = leave(settings.socket.clone(), notice.clone()).await;
            if let (Err(error), false) = (&done, failed) {
                let socket = settings.socket.display();
                warn!(%socket, %error, "no notice is left for the CNI plugin: without this agent all new pods wait");
            }
            failed = done.is_err();
            left = done.is_ok().then_some(notice);
        }
        let next = async {
            if failed {
                return tokio::time::sleep(RETRY).await;
            }
            // The sender lives as long as the node.
            let _ = news.changed().await;
            tokio::time::sleep(PAUSE).await;
        };
        tokio::select! {
            () = next => {}
            () = node.drain.draining.cancelled() => {}
        }
    }
}

async fn leave(socket: PathBuf, notice: Notice) -> io::Result<()> {
    let written = tokio::task::spawn_blocking(move || write(&socket, &notice)).await;
    written.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// None: nothing is known yet, and what a predecessor left stays.
fn of(snapshot: &Snapshot, node: &str) -> Option<Notice> {
    let mesh = snapshot.mesh()?;
    let opted_in = snapshot.workloads_of_node(node).filter(|pod| pod.enrolled).map(|pod| &*pod.namespace);
    let namespaces: BTreeSet<&str> =
        mesh.enrolled_namespaces.iter().map(|it| &**it).chain(opted_in).collect();
    Some(Notice::new(namespaces.into_iter().map(Into::into)))
}

fn write(socket: &Path, notice: &Notice) -> io::Result<()> {
    let path = Notice::path(socket);
    write_whole(&path, notice.to_json().as_bytes(), MODE).inspect_err(|_| {
        // None is better than one that is not true any more: it lets nobody pass.
        let _ = fs::remove_file(&path);
    })
}

#[cfg(test)]
mod tests {
    use weft_proto::convert;
    use weft_proto::model::{Mesh, Resource, Revision};

    use super::*;
    use crate::snapshot::{Change, fixtures};

    #[test]
    fn pods_wait_whose_namespace_is_enrolled_or_has_pods_here_that_opted_in() {
        assert_eq!(of(&Snapshot::default(), "n1"), None);
        let mesh = Mesh {
            trust_domain: "cluster.local".parse().unwrap(),
            roots: vec![vec![1]],
            enrolled_namespaces: vec!["bank".into()],
        };
        let pods = [("u-1", "shop", "n1", true), ("u-2", "far", "n2", true), ("u-3", "out", "n1", false)];
        let pods = pods.map(|(uid, namespace, node, enrolled)| {
            let mut pod = fixtures::workload(uid, "10.0.0.1", node, false);
            (pod.namespace, pod.enrolled) = (namespace.into(), enrolled);
            Resource::Workload(Arc::new(pod))
        });
        let resources = std::iter::once(Resource::Mesh(Arc::new(mesh))).chain(pods);
        let changes = resources.map(|it| Change::Upsert(convert::key_of(&it), convert::version_of(&it), it));
        let notice = of(&Snapshot::default().apply(Revision(1), changes), "n1").unwrap();
        let waits = ["bank", "shop", "far", "out"].map(|namespace| notice.must_wait(namespace));
        assert_eq!(waits, [true, true, false, false]);
    }

    #[test]
    fn a_notice_is_replaced_and_one_that_cannot_be_is_taken_away() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("cni.sock");
        for namespaces in [vec!["a".to_owned()], vec![]] {
            let notice = Notice::new(namespaces);
            write(&socket, &notice).unwrap();
            assert_eq!(Notice::read(&socket).unwrap(), notice);
        }
        let beside = directory.path().join(format!(".weft-cni.{}.tmp", std::process::id()));
        fs::create_dir(beside).unwrap();
        assert!(write(&socket, &Notice::new([])).is_err());
        assert!(!Notice::path(&socket).exists());
    }
}
