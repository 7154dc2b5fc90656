//! The next build of Weft, without compiling anything again: this build's binaries in which the text of the version is another one. So
//! what an upgrade goes by differs: the images' content, the tag and the labels that `weft install` gives, and what each part says of itself.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::weft::TAG;
use super::{Cluster, DATA_DIRECTORY};

/// Those that say their version.
const CHANGED: [&str; 3] = ["weft", "weft-control", "weft-node"];
const SAME: [&str; 2] = ["weft-cni", "weft-echo"];

/// A directory of binaries, and the version that they say.
#[derive(Debug)]
pub struct Build {
    pub binaries: PathBuf,
    pub version: String,
}

impl Cluster {
    /// Makes the next build out of a directory of binaries, and imports its images on every node.
    pub fn next_build(&self, binaries: &Path) -> Result<Build> {
        let version = successor(TAG);
        let directory = Path::new(DATA_DIRECTORY).join(self.name()).join("next");
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        for name in CHANGED {
            let to = directory.join(name);
            change(&binaries.join(name), &to, &version)?;
            let says =
                Command::new(&to).arg("--version").output().with_context(|| to.display().to_string())?;
            let says = String::from_utf8_lossy(&says.stdout).trim_end().to_owned();
            ensure!(says == format!("{name} {version}"), "{} says {says:?}", to.display());
        }
        for name in SAME {
            fs::copy(binaries.join(name), directory.join(name)).context(name)?;
        }
        self.load_weft_images(&directory, &version)?;
        Ok(Build { binaries: directory, version })
    }
}

/// The descriptor that is written to is closed when this returns: a file that is open for writing cannot be run.
fn change(from: &Path, to: &Path, version: &str) -> Result<()> {
    let into = File::create(to).with_context(|| to.display().to_string())?;
    into.set_permissions(Permissions::from_mode(0o755))?;
    let changed = Command::new("sed")
        .arg(format!("s/{}/{version}/g", TAG.replace('.', "\\.")))
        .arg(from)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(into)
        .status()?;
    ensure!(changed.success(), "sed {}: {changed}", from.display());
    Ok(())
}

/// Another version of the same length.
fn successor(version: &str) -> String {
    let mut next = version.to_owned();
    let last = next.pop().and_then(|digit| digit.to_digit(10)).map_or(0, |digit| (digit + 1) % 10);
    format!("{next}{last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_version_is_as_long_and_another() {
        for (version, next) in [("0.1.0", "0.1.1"), ("1.2.9", "1.2.0"), (TAG, &successor(TAG))] {
            assert_eq!(successor(version), next);
            assert!(next != version && next.len() == version.len());
        }
    }
}
