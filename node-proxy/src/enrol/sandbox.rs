//! Sandboxes as the CNI plugin told of them: a pod's namespace and addresses before any process of it runs. While one is known, it is
//! the truth about where the pod is, and no process of the pod can say otherwise.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use weft_proto::identity::PodUid;

use super::netns::{Netns, NetnsId};

/// Most sandboxes that are remembered: as many as pods that the kernel's maps can hold.
const SANDBOXES_MAX: usize = 1_024;
/// How long a sandbox is remembered whose pod the control plane never mentioned.
const UNMENTIONED: Duration = Duration::from_secs(60);
/// Most addresses of a pod: two families, and some networks more.
pub const ADDRESSES_MAX: usize = 64;
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Why a sandbox cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("{0:?} is not an absolute path")]
    Path(String),
    #[error("{path:?} is not a network namespace: {source}")]
    NotNetns { path: String, source: io::Error },
    #[error("sandbox {0} has the network namespace of the node, which cannot be enrolled")]
    HostNetwork(String),
    #[error("there are {SANDBOXES_MAX} sandboxes already")]
    TooMany,
}

/// A pod's sandbox.
#[derive(Debug)]
pub struct Sandbox {
    pub container_id: String,
    pub(super) netns: Netns,
    pub(super) id: NetnsId,
    /// What the network plugins gave it. Empty: they did not say.
    pub addresses: Vec<IpAddr>,
    since: Instant,
}

impl Sandbox {
    /// Opens the namespace, which from now on cannot be taken for another's. Blocking.
    pub fn open(
        container_id: String,
        path: &str,
        mut addresses: Vec<IpAddr>,
        now: Instant,
    ) -> Result<Self, SandboxError> {
        let not_netns = |source| SandboxError::NotNetns { path: path.to_owned(), source };
        if !Path::new(path).is_absolute() {
            return Err(SandboxError::Path(path.to_owned()));
        }
        let missing = Err(io::Error::from(io::ErrorKind::NotFound));
        let opened = candidates(path).iter().fold(missing, |opened, candidate| match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => open_netns(candidate),
            // Something is there that is not it.
            Err(error) => open_netns(candidate).map_err(|_| error),
            found => found,
        });
        let file = opened.map_err(not_netns)?;
        let id = NetnsId::of(&file).map_err(not_netns)?;
        let netns = Netns::new(file.into()).map_err(not_netns)?;
        addresses.truncate(ADDRESSES_MAX);
        Ok(Self { container_id, netns, id, addresses, since: now })
    }
}

/// Where a path of the host is seen from here: as it is; without the symbolic link `/var/run`, which an image need not have; through the
/// node's first process, where our own mounts do not show it.
fn candidates(path: &str) -> Vec<PathBuf> {
    let mut all = vec![PathBuf::from(path)];
    if let Some(rest) = path.strip_prefix("/var/run/") {
        all.push(Path::new("/run").join(rest));
    }
    all.push(PathBuf::from(format!("/proc/1/root{path}")));
    all
}

/// Opens the file if it is a network namespace; whatever else lies there neither blocks nor is used.
fn open_netns(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if rustix::fs::fstatfs(&file)?.f_type != NSFS_MAGIC {
        return Err(io::Error::other("the file is of another kind"));
    }
    // SAFETY: the descriptor is open for the length of the call; this request takes no argument and writes nothing.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) };
    if kind != libc::CLONE_NEWNET {
        return Err(io::Error::other("it is a namespace of another kind"));
    }
    Ok(file)
}

/// All that are known, by pod.
#[derive(Default)]
pub(super) struct Sandboxes(HashMap<PodUid, Sandbox>);

impl Sandboxes {
    pub(super) fn of(&self, uid: &PodUid) -> Option<&Sandbox> {
        self.0.get(uid)
    }

    /// The pod's sandbox is this one now.
    pub(super) fn insert(&mut self, uid: PodUid, sandbox: Sandbox) -> Result<(), SandboxError> {
        if self.0.len() >= SANDBOXES_MAX && !self.0.contains_key(&uid) {
            return Err(SandboxError::TooMany);
        }
        self.0.insert(uid, sandbox);
        Ok(())
    }

    /// Forgets the sandboxes of these pods and containers, and says whose they were.
    pub(super) fn remove(&mut self, ended: impl Fn(&PodUid, &str) -> bool) -> Vec<(PodUid, Sandbox)> {
        self.0.extract_if(|uid, sandbox| ended(uid, &sandbox.container_id)).collect()
    }

    /// Forgets those whose pods are unknown, but not one whose pod may yet be told of.
    pub(super) fn retain_known(&mut self, known: impl Fn(&PodUid) -> bool, now: Instant) {
        self.0.retain(|uid, sandbox| known(uid) || now.duration_since(sandbox.since) < UNMENTIONED);
    }

    pub(super) fn uids(&self) -> BTreeSet<PodUid> {
        self.0.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &str) -> Result<Sandbox, SandboxError> {
        Sandbox::open("c1".into(), path, Vec::new(), Instant::now())
    }

    #[test]
    fn only_a_network_namespace_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let fifo = directory.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for wrong in [
            file.to_str().unwrap(),
            fifo.to_str().unwrap(),
            directory.path().to_str().unwrap(),
            "/proc/self/ns/mnt",
            "/run/netns/that-is-not-there",
            "proc/self/ns/net",
            "",
            "/proc/self/ns/net\0x",
        ] {
            let error = open(wrong).unwrap_err();
            assert!(
                matches!(error, SandboxError::NotNetns { .. } | SandboxError::Path(_)),
                "{wrong:?}: {error}"
            );
        }
        let sandbox = open("/proc/self/ns/net").unwrap();
        assert_eq!(sandbox.id, NetnsId::of_process("self").unwrap());
    }

    #[test]
    fn a_path_of_the_host_is_looked_for_where_a_container_sees_it() {
        let paths = candidates("/var/run/netns/cni-1");
        assert_eq!(
            paths,
            ["/var/run/netns/cni-1", "/run/netns/cni-1", "/proc/1/root/var/run/netns/cni-1"]
                .map(PathBuf::from)
        );
    }

    #[test]
    fn a_sandbox_is_forgotten_with_its_pod_and_not_before_it_is_told_of() {
        let (known, unknown): (PodUid, PodUid) = ("k-1".parse().unwrap(), "u-1".parse().unwrap());
        let mut sandboxes = Sandboxes::default();
        for uid in [&known, &unknown] {
            sandboxes.insert(uid.clone(), open("/proc/self/ns/net").unwrap()).unwrap();
        }
        let now = Instant::now();
        sandboxes.retain_known(|uid| *uid == known, now);
        assert_eq!(sandboxes.uids().len(), 2);
        sandboxes.retain_known(|uid| *uid == known, now + UNMENTIONED);
        assert_eq!(sandboxes.uids(), [known].into());
        assert!(sandboxes.remove(|_, container| container == "c2").is_empty());
        assert_eq!(sandboxes.remove(|_, container| container == "c1").len(), 1);
    }
}
