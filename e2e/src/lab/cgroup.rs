//! The lab's part of the cgroup v2 tree.
//!
//! Every process of a lab lives below `<v2 root>/weft-lab/<lab>`, so that one write to `cgroup.kill` ends all of them,
//! whoever started them and whether or not that process still lives.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

/// Killed processes leave their group as soon as the kernel has torn them down; longer than this is a stuck one.
const EMPTY_WAIT_MAX: Duration = Duration::from_secs(10);

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid systems.
pub fn v2_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    v2_mount(&mounts).ok_or_else(|| anyhow!("no cgroup v2 is mounted: `make setup` mounts one"))
}

fn v2_mount(mounts: &str) -> Option<PathBuf> {
    let mut fields = mounts.lines().map(|l| l.split(' '));
    fields.find_map(|mut f| {
        let (at, kind) = (f.nth(1)?, f.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    })
}

pub(crate) fn create(group: &Path) -> Result<()> {
    fs::create_dir_all(group).with_context(|| format!("cgroup {}", group.display()))
}

/// Pids of the living processes in one group, without its descendants.
pub fn pids(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|l| l.parse().ok()).collect()
}

/// Pids of the living processes in a group and below it.
pub fn pids_below(group: &Path) -> Vec<i32> {
    let mut all = pids(group);
    for child in children(group) {
        all.extend(pids_below(&child));
    }
    all
}

fn children(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    let directories = entries.filter_map(Result::ok).filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    directories.map(|e| e.path()).collect()
}

/// Kills everything in the group and below it, and waits until it is gone. A missing group is an empty one.
pub(crate) fn kill(group: &Path) -> Result<()> {
    match fs::write(group.join("cgroup.kill"), "1") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("cgroup.kill of {} (Linux 5.14)", group.display()))?,
    }
    wait_empty(group, EMPTY_WAIT_MAX)
}

pub(crate) fn wait_empty(group: &Path, wait_max: Duration) -> Result<()> {
    let deadline = Instant::now() + wait_max;
    loop {
        let left = pids_below(group);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("processes {left:?} of {} still live after {wait_max:?}", group.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Kills and removes the group and all below it.
pub(crate) fn remove(group: &Path) -> Result<()> {
    kill(group)?;
    remove_empty(group)
}

fn remove_empty(group: &Path) -> Result<()> {
    for child in children(group) {
        remove_empty(&child)?;
    }
    // A group whose last process was just reaped can be busy for a moment.
    let deadline = Instant::now() + EMPTY_WAIT_MAX;
    loop {
        match fs::remove_dir(group) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other.with_context(|| format!("removing cgroup {}", group.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_v2_is_found_on_pure_and_hybrid_systems() {
        let pure = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(v2_mount(pure), Some("/sys/fs/cgroup".into()));
        assert_eq!(v2_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(v2_mount("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"), None);
    }
}
