//! Finds pods in the cgroup tree by their UID, in the layouts of both of the kubelet's drivers:
//! `kubepods/<qos>/pod<uid>/<container>` and `kubepods.slice/kubepods-<qos>.slice/kubepods-<qos>-pod<uid_>.slice/….scope`,
//! at any depth below the root (a kubelet may itself be in a cgroup).
//!
//! A pod cannot forge its cgroup. Found by looking, not by inotify: a directory is made before a process is in it, and
//! the file system tells nobody when one enters.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use weft_proto::identity::PodUid;

use super::netns::{Netns, NetnsId};

/// How deep below the root `kubepods` may lie, and a pod below that.
const DEPTH_MAX: usize = 6;
/// Most directories looked at in one search: a node's whole tree has some thousand.
const DIRECTORIES_MAX: usize = 20_000;

/// Why no namespace can be had for a pod.
#[derive(Debug, thiserror::Error)]
pub(super) enum FindError {
    #[error("no cgroup of this pod under {0}")]
    NoCgroup(PathBuf),
    #[error("no process in {0} yet")]
    NoProcess(PathBuf),
    #[error("the pod is in the network namespace of the node (hostNetwork), which cannot be enrolled")]
    HostNetwork,
    #[error("cannot open the network namespace of process {pid}: {source}")]
    Open { pid: String, source: io::Error },
}

/// The processes of a pod that were found, and their namespace.
#[derive(Debug)]
pub(super) struct Found {
    /// None: none runs yet, and the namespace is known from the container runtime.
    pub(super) pid: Option<String>,
    pub(super) netns: Netns,
    pub(super) id: NetnsId,
}

/// The directories of all pods, from one walk. Directories of pods are not entered.
pub(super) fn pods(root: &Path) -> HashMap<PodUid, PathBuf> {
    let mut found = HashMap::new();
    let mut queue = VecDeque::from([(root.to_path_buf(), 0_usize, false)]);
    let mut looked_at = 0;
    while let Some((directory, depth, inside)) = queue.pop_front() {
        for (name, path) in subdirectories(&directory) {
            looked_at += 1;
            if looked_at > DIRECTORIES_MAX {
                tracing::warn!(root = %root.display(), "the cgroup tree is too large: not all of it was searched");
                return found;
            }
            let inside = inside || name.starts_with("kubepods") || name.contains("-kubepods");
            match pod_uid(&name).filter(|_| inside) {
                Some(uid) => drop(found.insert(uid, path)),
                None if depth < DEPTH_MAX => queue.push_back((path, depth + 1, inside)),
                None => {}
            }
        }
    }
    found
}

/// The UID in a directory's name. systemd's names have `_` for the `-` of a UID, since `-` means nesting there.
fn pod_uid(name: &str) -> Option<PodUid> {
    if let Some(slice) = name.strip_suffix(".slice") {
        let at = slice.rfind("-pod").map(|at| at + 1).or_else(|| slice.starts_with("pod").then_some(0))?;
        return slice[at + 3..].replace('_', "-").parse().ok();
    }
    name.strip_prefix("pod")?.parse().ok()
}

fn subdirectories(directory: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
}

/// The namespace of a pod, through any of its processes; those of the outer directories first, since a container may
/// have namespaces of its own further down.
pub(super) fn find(root: &Path, directory: Option<&PathBuf>, node: &[NetnsId]) -> Result<Found, FindError> {
    let directory = directory.ok_or_else(|| FindError::NoCgroup(root.to_path_buf()))?;
    let mut queue = VecDeque::from([(directory.clone(), 0_usize)]);
    let mut failed = None;
    while let Some((current, depth)) = queue.pop_front() {
        for pid in processes(&current) {
            match Netns::of_process(&pid) {
                // It may have ended meanwhile, and its number may be another's by now.
                Ok(_) if !processes(&current).contains(&pid) => {}
                Ok((_, id)) if node.contains(&id) => return Err(FindError::HostNetwork),
                Ok((netns, id)) => return Ok(Found { pid: Some(pid), netns, id }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => failed = Some(FindError::Open { pid, source }),
            }
        }
        if depth < DEPTH_MAX {
            let inner = subdirectories(&current).filter(|(name, _)| !of_the_node(name));
            queue.extend(inner.map(|(_, path)| (path, depth + 1)));
        }
    }
    Err(failed.unwrap_or_else(|| FindError::NoProcess(directory.clone())))
}

/// CRI-O may put a container's monitor into the pod's cgroup (`conmon_cgroup = "pod"`): a process of the node, in its network namespace.
fn of_the_node(name: &str) -> bool {
    name.starts_with("crio-conmon-")
}

/// Processes of a cgroup. `0` is one that this namespace of processes does not see.
fn processes(directory: &Path) -> Vec<String> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter(|pid| *pid != "0").map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0a1b2c3d-1111-2222-3333-444455556666";

    fn tree(paths: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for path in paths {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        root
    }

    #[test]
    fn a_pod_is_found_in_every_layout_of_the_kubelet() {
        let uid: PodUid = UID.parse().unwrap();
        let below = UID.replace('-', "_");
        for path in [
            format!("kubepods/pod{UID}/c1"),
            format!("kubepods/besteffort/pod{UID}/c1"),
            format!("kubelet/kubepods/burstable/pod{UID}/c1"),
            // containerd with runc; CRI-O with runc and with crun, which makes a directory more; cri-dockerd.
            format!("kubepods.slice/kubepods-pod{below}.slice/cri-containerd-1.scope"),
            format!(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{below}.slice/crio-1.scope"
            ),
            format!(
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{below}.slice/crio-1.scope/container"
            ),
            format!("kubepods/burstable/pod{UID}/crio-1"),
            format!("kubepods.slice/kubepods-pod{below}.slice/docker-1.scope"),
            // kind and other nodes in containers.
            format!(
                "system.slice/docker-1.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{below}.slice/c"
            ),
            // k3s and MicroK8s: below the service.
            format!("system.slice/k3s.service/kubepods/besteffort/pod{UID}/c1"),
            format!(
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{below}.slice/c"
            ),
        ] {
            let root = tree(&[&path, "system.slice/cron.service"]);
            let found = pods(root.path());
            assert_eq!(found.keys().collect::<Vec<_>>(), [&uid], "{path}");
            assert!(root.path().join(&path).starts_with(&found[&uid]), "{path}: {found:?}");
        }
    }

    #[test]
    fn a_static_pod_is_found_by_the_hash_that_is_its_uid() {
        let uid = "0a1b2c3d111122223333444455556666";
        for path in [
            format!("kubepods/burstable/pod{uid}/c1"),
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice/crio-1.scope"),
        ] {
            let root = tree(&[&path]);
            assert!(pods(root.path()).contains_key(&uid.parse().unwrap()), "{path}");
        }
    }

    #[test]
    fn the_monitor_of_a_container_is_no_process_of_the_pod() {
        let root = tree(&["pod1/crio-conmon-1.scope", "pod1/crio-1.scope"]);
        let own = std::process::id().to_string();
        fs::write(root.path().join("pod1/crio-conmon-1.scope/cgroup.procs"), &own).unwrap();
        let host = NetnsId::of_process("self").unwrap();
        let directory = root.path().join("pod1");
        assert!(matches!(find(root.path(), Some(&directory), &[host]), Err(FindError::NoProcess(_))));
    }

    #[test]
    fn what_only_looks_like_a_pod_is_not_one() {
        let root = tree(&[
            "system.slice/podman.service",
            "machine.slice/pod1234/x",
            "kubepods/besteffort/POD",
            "kubepods/besteffort/pod",
        ]);
        assert!(pods(root.path()).is_empty());
    }

    #[test]
    fn the_deepest_pod_of_a_name_counts_not_a_prefix_of_it() {
        // A namespace of systemd names may itself contain "-pod".
        assert_eq!(pod_uid("kubepods-podlike-pod12_34.slice").unwrap().as_str(), "12-34");
        assert_eq!(pod_uid("podabc").unwrap().as_str(), "abc");
    }

    #[test]
    fn a_process_of_the_nodes_own_namespace_is_refused() {
        let root = tree(&["pod1/c"]);
        let own = std::process::id().to_string();
        fs::write(root.path().join("pod1/c/cgroup.procs"), format!("0\n{own}\n")).unwrap();
        fs::write(root.path().join("pod1/cgroup.procs"), "").unwrap();
        let directory = root.path().join("pod1");
        let host = NetnsId::of_process("self").unwrap();
        assert!(matches!(find(root.path(), Some(&directory), &[host]), Err(FindError::HostNetwork)));
        let empty = tree(&["pod1/c"]);
        let directory = empty.path().join("pod1");
        assert!(matches!(find(empty.path(), Some(&directory), &[host]), Err(FindError::NoProcess(_))));
        assert!(matches!(find(empty.path(), None, &[host]), Err(FindError::NoCgroup(_))));
    }
}
