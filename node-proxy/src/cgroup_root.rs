//! Where the node's cgroup v2 tree is, and in it this process and the kubelet's pods: on a unified hierarchy, on a hybrid one, and in a
//! container that sees the host's tree through a mount. The hooks leave this process's connections alone, and take processes of pods for
//! the node's in no case.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

/// Where cgroup v2 is mounted: alone, or beside version 1 on a hybrid hierarchy.
const PLACES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// Most directories looked at for our own: a node's whole tree has some thousand.
const DIRECTORIES_MAX: usize = 20_000;

/// The root of the node's tree.
pub fn detect() -> Result<PathBuf, String> {
    let is_v2 = |path: &&Path| rustix::fs::statfs(*path).is_ok_and(|it| it.f_type == CGROUP2_MAGIC);
    let found = PLACES.iter().map(Path::new).find(is_v2);
    found.map(Path::to_path_buf).ok_or_else(|| {
        format!("no cgroup v2 file system at {}: is this a kernel with cgroup v2 only?", PLACES.join(" or "))
    })
}

/// The directory that this process is in. The kernel's word of it may be relative to a namespace of cgroups, and a container may see the
/// host's tree where its own was; so the word counts only if the directory lists us, and else we look for ourselves.
pub fn own_directory(root: &Path) -> Result<PathBuf, String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let (groups, mounts) = (read("/proc/self/cgroup")?, read("/proc/self/mountinfo")?);
    let pid = std::process::id().to_string();
    let told = locate(&groups, &mounts).filter(|path| lists(path, &pid));
    told.or_else(|| search(root, &pid)).ok_or_else(|| {
        format!("no directory of the cgroup v2 tree under {} lists this process ({pid})", root.display())
    })
}

/// How deep below the root the kubelet may have put its pods.
const PODS_DEPTH_MAX: usize = 4;
/// Directories looked at: those of the node's services, not of its pods, which lie below what is looked for.
const PODS_DIRECTORIES_MAX: usize = 4_096;

/// The kubelet's directory of all pods: `kubepods` or `kubepods.slice`, or, where the kubelet has a root of its own,
/// `<root>/kubepods` or `<root>.slice/<root>-kubepods.slice`. The outermost counts.
pub fn of_all_pods(root: &Path) -> Option<PathBuf> {
    let mut queue = VecDeque::from([(root.to_path_buf(), 0)]);
    let mut looked_at = 0;
    while let Some((directory, depth)) = queue.pop_front() {
        for entry in fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok) {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice") {
                return Some(entry.path());
            }
            looked_at += 1;
            if depth < PODS_DEPTH_MAX && looked_at < PODS_DIRECTORIES_MAX {
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

fn lists(directory: &Path, pid: &str) -> bool {
    fs::read_to_string(directory.join("cgroup.procs")).is_ok_and(|procs| procs.lines().any(|it| it == pid))
}

fn search(root: &Path, pid: &str) -> Option<PathBuf> {
    let mut queue = VecDeque::from([root.to_path_buf()]);
    for _ in 0..DIRECTORIES_MAX {
        let directory = queue.pop_front()?;
        if lists(&directory, pid) {
            return Some(directory);
        }
        let entries = fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok);
        let inner = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        queue.extend(inner.map(|entry| entry.path()));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";

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
            // In a container with a namespace of cgroups, and the host's tree mounted.
            ("0::/\n", "35 24 0:30 /../../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw", None),
            ("1:name=x:/\n", UNIFIED, None),
        ] {
            assert_eq!(locate(groups, mounts), expected.map(PathBuf::from), "{groups} {mounts}");
        }
    }

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
            fs::create_dir_all(root.path().join(made)).unwrap();
            assert_eq!(of_all_pods(root.path()), expected.map(|path| root.path().join(path)), "{made}");
        }
    }

    #[test]
    fn this_process_is_found_here() {
        let root = detect().unwrap();
        let own = own_directory(&root).unwrap();
        assert!(lists(&own, &std::process::id().to_string()));
        assert_eq!(
            search(&root, &std::process::id().to_string()),
            Some(own),
            "also without the kernel's word"
        );
    }

    #[test]
    fn a_directory_that_does_not_list_us_is_not_ours() {
        let root = tempfile::tempdir().unwrap();
        let container = root.path().join("kubepods/burstable/pod1/c");
        fs::create_dir_all(&container).unwrap();
        fs::write(root.path().join("cgroup.procs"), "1\n12\n").unwrap();
        assert_eq!(search(root.path(), "2"), None);
        fs::write(container.join("cgroup.procs"), "2\n").unwrap();
        assert_eq!(search(root.path(), "2"), Some(container));
    }
}
