//! The cgroup v2 directory of this process: the hooks leave its connections alone.

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
