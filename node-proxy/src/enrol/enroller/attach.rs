//! Sandboxes that come and go by the word of the CNI plugin. What it says is kept beside what the control plane says, and a pod that
//! belongs into the mesh is set up at once: the runtime waits for it, before the pod's first process.

use std::time::Instant;

use tracing::info;
use weft_proto::identity::PodUid;

use super::super::sandbox::SandboxError;
use super::super::{Pods, Sandbox};
use super::Enroller;
use crate::snapshot::Snapshot;

impl Enroller {
    /// The pod has this sandbox from now on.
    pub fn attach(&mut self, uid: &PodUid, sandbox: Sandbox) -> Result<(), SandboxError> {
        if self.node_netns.contains(&sandbox.id) {
            return Err(SandboxError::HostNetwork(sandbox.container_id));
        }
        let text = format!("the container runtime made its sandbox {}", sandbox.container_id);
        self.sandboxes.insert(uid.clone(), sandbox)?;
        self.journal.note(uid, text);
        Ok(())
    }

    /// Sets up a pod whose sandbox is known, if the snapshot wants it in the mesh. The error is for people.
    pub fn set_up_now(
        &mut self,
        uid: &PodUid,
        snapshot: &Snapshot,
        pods: &Pods,
        now: Instant,
    ) -> Result<(), String> {
        let workload = snapshot.workload(uid).filter(|workload| *workload.node == *self.node_name);
        let wanted = workload
            .zip(snapshot.mesh())
            .and_then(|(workload, mesh)| self.wanted(&mesh.trust_domain, workload));
        let (identity, workload) = wanted.ok_or("weft-control wants it in the mesh of this node no more")?;
        let sandbox = self.sandboxes.of(uid).map(|sandbox| sandbox.id).ok_or("its sandbox was taken down")?;
        if self.held.get(uid).is_some_and(|held| held.netns != sandbox) {
            info!(pod = %uid, "the pod has a new sandbox");
            self.let_go(uid, pods, true);
        }
        let set_up = match self.held.contains_key(uid) {
            true => Ok(()),
            false => match self.set_up(&identity, &workload, None, pods) {
                Ok(held) => {
                    self.hold(uid, held, true);
                    Ok(())
                }
                Err(reason) => {
                    self.note_failure(uid, &workload, &reason, now);
                    Err(reason.to_string())
                }
            },
        };
        self.report(pods);
        set_up
    }

    /// Whether the pod is set up in this very sandbox.
    pub fn is_set_up(&self, uid: &PodUid, sandbox: &Sandbox) -> bool {
        self.held.get(uid).is_some_and(|held| held.netns == sandbox.id)
    }

    /// These sandboxes are taken down: their pods are released, and live connections end. A sandbox that came after is not touched.
    pub fn detach(&mut self, ended: impl Fn(&PodUid, &str) -> bool, pods: &Pods) {
        for (uid, sandbox) in self.sandboxes.remove(ended) {
            self.journal
                .note(&uid, format!("the container runtime took its sandbox {} down", sandbox.container_id));
            info!(pod = %uid, container = sandbox.container_id, "the pod's sandbox is gone");
            if let Some(held) = self.held.get(&uid).filter(|held| held.netns == sandbox.id) {
                let pod = std::sync::Arc::clone(&held.pod);
                self.let_go(&uid, pods, true);
                pod.gone.cancel();
            } else if self.shut.get(&uid) == Some(&sandbox.netns.cookie) {
                self.shut.remove(&uid);
                self.release(&uid, sandbox.netns.cookie);
            }
        }
        self.report(pods);
    }
}
