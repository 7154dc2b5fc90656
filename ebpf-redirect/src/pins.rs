//! What is pinned where, and removing all of it. Works from the directory alone, also after a crash.
//!
//! `<pin_dir>/maps/<map>`, `<pin_dir>/links/<program>`, `<pin_dir>/lookup/<netns cookie>`. Nothing else lives there.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::MountFlags;

use crate::{KernelError, sys};

/// Where the file system of pins is expected, and mounted if it is not there.
const BPFFS: &str = "/sys/fs/bpf";
const BPFFS_MAGIC: u64 = 0xcafe_4a11;

/// The directories of one node.
#[derive(Debug, Clone)]
pub(crate) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Names the directories without touching them.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Makes the directories, and mounts the file system if need be.
    pub(crate) fn create(root: &Path) -> Result<Self, KernelError> {
        let pins = Self::at(root);
        let failed = |source| KernelError::Pins { path: root.to_owned(), source };
        mount_bpffs().map_err(failed)?;
        for directory in [pins.maps(), pins.links(), pins.lookups()] {
            fs::create_dir_all(&directory).map_err(failed)?;
        }
        if !is_bpffs(root).map_err(failed)? {
            return Err(KernelError::NotBpffs(root.to_owned()));
        }
        Ok(pins)
    }

    pub(crate) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub(crate) fn lookups(&self) -> PathBuf {
        self.root.join("lookup")
    }

    pub(crate) fn lookup(&self, netns_cookie: u64) -> PathBuf {
        self.lookups().join(netns_cookie.to_string())
    }

    /// Names of the hooks whose links are pinned, sorted.
    pub(crate) fn pinned_links(&self) -> io::Result<Vec<String>> {
        let mut names = names(&self.links())?;
        names.sort_unstable();
        Ok(names)
    }

    /// Links of namespaces that an earlier process pinned.
    pub(crate) fn pinned_lookups(&self) -> io::Result<Vec<u64>> {
        Ok(names(&self.lookups())?.iter().filter_map(|name| name.parse().ok()).collect())
    }
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(rustix::fs::statfs(path)?.f_type as u64 == BPFFS_MAGIC)
}

fn mount_bpffs() -> io::Result<()> {
    let path = Path::new(BPFFS);
    if is_bpffs(path)? {
        return Ok(());
    }
    // Two processes that start together must not mount one over the other: both lock the directory below.
    let below = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::flock(&below, FlockOperation::LockExclusive)?;
    if !is_bpffs(path)? {
        rustix::mount::mount("bpf", path, "bpf", MountFlags::empty(), None)?;
    }
    Ok(())
}

/// File names in a directory; none if there is no such directory.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Replaces what is pinned at `path`.
pub(crate) fn pin_again(link: &OwnedFd, path: &Path) -> io::Result<()> {
    remove(path)?;
    sys::pin(link, path)
}

pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Detaches a pinned link at once and removes the pin.
pub(crate) fn detach_link(path: &Path) -> io::Result<()> {
    match sys::open_pin(path) {
        Ok(link) => {
            // A link whose namespace or cgroup has gone is detached already; removing the pin is what is left.
            let _ = sys::link_detach(&link);
            remove(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => remove(path),
    }
}

/// Removes every link, map and pin of a node: for uninstalling, and for taking a lab down. Needs no [`crate::Kernel`].
/// Connections that are redirected at that moment may lose bytes.
pub fn detach_all(pin_dir: &Path) -> Result<(), KernelError> {
    let pins = Pins::at(pin_dir);
    let failed = |source| KernelError::Pins { path: pin_dir.to_owned(), source };
    // In the reverse order of attaching: first nothing new is intercepted.
    for (name, _) in crate::object::CGROUP_PROGRAMS.iter().rev() {
        detach_link(&pins.links().join(name)).map_err(failed)?;
    }
    for directory in [pins.links(), pins.lookups()] {
        for name in names(&directory).map_err(failed)? {
            detach_link(&directory.join(name)).map_err(failed)?;
        }
    }
    for name in names(&pins.maps()).map_err(failed)? {
        remove(&pins.maps().join(name)).map_err(failed)?;
    }
    for directory in [pins.maps(), pins.links(), pins.lookups(), pin_dir.to_owned()] {
        match fs::remove_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    Ok(())
}
