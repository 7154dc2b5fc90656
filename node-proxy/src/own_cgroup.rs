//! The cgroup v2 directories by which the hooks tell who connects: that of this process, whose connections they leave
//! alone, and that of all pods, whose processes are not the node's even where they share its network.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Where this process is in the mounted cgroup v2 tree.
pub(crate) fn own_cgroup() -> Result<PathBuf> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
    let mounts =
        std::fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let path = locate(&groups, &mounts).context("no cgroup v2 file system shows this process's cgroup")?;
    ensure!(path.is_dir(), "{} is not a directory", path.display());
    Ok(path)
}

/// How deep below the root the kubelet may have put its pods.
const DEPTH_MAX: usize = 4;
/// Directories looked at: those of the node's services, not of its pods, which lie below what is looked for.
const DIRECTORIES_MAX: usize = 4_096;

/// The kubelet's directory of all pods: `kubepods` or `kubepods.slice`, or, where the kubelet has a root of its own,
/// `<root>/kubepods` or `<root>.slice/<root>-kubepods.slice`. The outermost counts.
pub(crate) fn of_all_pods(root: &Path) -> Option<PathBuf> {
    let mut queue = VecDeque::from([(root.to_path_buf(), 0)]);
    let mut looked_at = 0;
    while let Some((directory, depth)) = queue.pop_front() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok) {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice") {
                return Some(entry.path());
            }
            looked_at += 1;
            if depth < DEPTH_MAX && looked_at < DIRECTORIES_MAX {
                queue.push_back((entry.path(), depth + 1));
            }
        }
    }
    None
}

/// Pure part: the line `0::<path>` under the mount point of the cgroup2 file system whose root it lies below.
fn locate(groups: &str, mounts: &str) -> Option<PathBuf> {
    let own = Path::new(groups.lines().find_map(|line| line.strip_prefix("0::"))?);
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        Some(Path::new(point).join(own.strip_prefix(root).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";

    #[test]
    fn the_directory_of_all_pods_is_found_for_both_drivers_and_below_a_kubelet() {
        for (made, expected) in [
            ("kubepods/besteffort/pod1", Some("kubepods")),
            ("kubepods.slice/kubepods-burstable.slice", Some("kubepods.slice")),
            ("kubelet/kubepods/pod1", Some("kubelet/kubepods")),
            ("kubelet.slice/kubelet-kubepods.slice/x", Some("kubelet.slice/kubelet-kubepods.slice")),
            ("system.slice/kubelet.service", None),
        ] {
            let root = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(root.path().join(made)).unwrap();
            assert_eq!(of_all_pods(root.path()), expected.map(|path| root.path().join(path)), "{made}");
        }
    }

    #[test]
    fn the_own_cgroup_is_found_under_any_mount() {
        for (groups, mounts, expected) in [
            ("0::/system.slice/weft.service\n", UNIFIED, Some("/sys/fs/cgroup/system.slice/weft.service")),
            (
                "4:memory:/x\n0::/weft/agent\n",
                "30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n42 30 0:39 / /sys/fs/cgroup/unified rw - cgroup2 none rw",
                Some("/sys/fs/cgroup/unified/weft/agent"),
            ),
            ("0::/a/b\n", "35 24 0:30 /a /mnt rw - cgroup2 cgroup2 rw", Some("/mnt/b")),
            ("0::/a/b\n", "35 24 0:30 /other /mnt rw - cgroup2 cgroup2 rw", None),
            ("1:name=x:/\n", UNIFIED, None),
        ] {
            assert_eq!(locate(groups, mounts), expected.map(PathBuf::from), "{groups} {mounts}");
        }
    }
}
