//! Pods that are set up, looked at again: a pod may have another sandbox, hence another namespace, under the same UID.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tracing::warn;
use weft_proto::identity::PodUid;

use super::super::Pods;
use super::super::cgroup;
use super::super::exit::ExitWatch;
use super::super::netns::NetnsId;
use super::{Enroller, Held, STARTING_MS_MAX};

impl Enroller {
    /// Finds pods that have another namespace by now, or whose listeners ended: they are set up anew.
    pub(super) fn recheck(&mut self, pods: &Pods, now: Instant) {
        self.recheck_due = false;
        let suspects: Vec<PodUid> = self
            .held
            .iter()
            .filter(|(uid, held)| !self.unchanged(uid, held))
            .map(|(uid, _)| uid.clone())
            .collect();
        if suspects.is_empty() {
            return;
        }
        let directories = cgroup::pods(&self.cgroup_root);
        for uid in suspects {
            let sandbox = self.sandboxes.of(&uid).map(|sandbox| (None, sandbox.id));
            let found = match sandbox {
                Some(sandbox) => Ok(sandbox),
                None => cgroup::find(&self.cgroup_root, directories.get(&uid), &self.node_netns)
                    .map(|found| (found.pid, found.id)),
            };
            let Some(held) = self.held.get_mut(&uid) else { continue };
            let listening = !held.tasks.iter().any(JoinHandle::is_finished);
            match found {
                Ok((pid, id)) if id == held.netns && listening => {
                    held._exit = pid.as_ref().map(|pid| ExitWatch::new(pid, &self.ended));
                    held.pid = pid;
                    held.lost_since = None;
                }
                // The namespace stays ours until there is another.
                Err(_) if listening => {
                    let since = *held.lost_since.get_or_insert(now);
                    self.recheck_due |= now.duration_since(since) < Duration::from_millis(STARTING_MS_MAX);
                }
                found => {
                    let replaced = found.is_ok_and(|(_, id)| id != held.netns);
                    warn!(pod = %uid, new_namespace = replaced, "setting the pod up anew");
                    let why = if replaced { "it has another network namespace" } else { "a listener ended" };
                    self.journal.note(&uid, format!("set up anew: {why}"));
                    self.let_go(&uid, pods, replaced);
                }
            }
        }
    }

    /// The sandbox that the runtime told of counts; without one, the process through which the pod was found.
    fn unchanged(&self, uid: &PodUid, held: &Held) -> bool {
        let same_namespace = match (self.sandboxes.of(uid), &held.pid) {
            (Some(sandbox), _) => sandbox.id == held.netns,
            (None, Some(pid)) => NetnsId::of_process(pid).is_ok_and(|now| now == held.netns),
            (None, None) => false,
        };
        same_namespace && !held.tasks.iter().any(JoinHandle::is_finished)
    }
}
