//! What a lab is, as noted in `/run/weft-lab/<lab>/state.json`, so that another process can go on with it.
//!
//! Cleaning up does not depend on this file: all names begin with the lab's name, and all processes are in its cgroup.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::Options;

pub(crate) const RUN_DIRECTORY: &str = "/run/weft-lab";
/// Longest name of a lab: it becomes part of file names, and of Unix socket paths (108 bytes at most).
const NAME_CHARS_MAX: usize = 24;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    pub name: String,
    pub options: Options,
    /// Directories that `weft-control` reads: the user's, and the lab's own.
    pub manifests: Vec<PathBuf>,
    pub pods: Vec<PodState>,
}

/// A pod that runs.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct PodState {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub node: String,
    pub netns: String,
    /// IPv4, then IPv6.
    pub ips: Vec<IpAddr>,
    /// Last part of its addresses; unique on its node.
    pub slot: u16,
    /// Those it was started with.
    #[serde(default)]
    pub containers: Vec<String>,
}

impl PodState {
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

pub(crate) fn check_name(name: &str) -> Result<()> {
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.bytes().all(valid) {
        bail!("a lab's name is 1 to {NAME_CHARS_MAX} of a-z, 0-9 and '-', not {name:?}");
    }
    Ok(())
}

pub(crate) fn run_directory(name: &str) -> PathBuf {
    Path::new(RUN_DIRECTORY).join(name)
}

/// Names of all labs that left a directory.
pub fn labs() -> Vec<String> {
    let Ok(entries) = fs::read_dir(RUN_DIRECTORY) else { return Vec::new() };
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| check_name(name).is_ok()).collect();
    names.sort();
    names
}

/// What to say where a lab is named that there is not.
pub fn no_lab(name: &str) -> String {
    let up = labs();
    let others = if up.is_empty() { "none is up".into() } else { format!("up: {}", up.join(", ")) };
    format!("no lab {name:?} ({others}); `weft lab up -f DIR` makes one")
}

impl State {
    pub(crate) fn load(name: &str) -> Result<Self> {
        check_name(name)?;
        let file = run_directory(name).join("state.json");
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                bail!("lab {name} is root's: run this as root");
            }
            Err(error) if error.kind() == ErrorKind::NotFound => bail!("{}", no_lab(name)),
            other => other.with_context(|| file.display().to_string())?,
        };
        serde_json::from_str(&text).with_context(|| file.display().to_string())
    }

    pub(crate) fn save(&self) -> Result<()> {
        write_whole(&run_directory(&self.name).join("state.json"), &serde_json::to_string_pretty(self)?)
    }
}

/// Writes a file so that readers see either the old text or the new, whole.
pub(crate) fn write_whole(file: &Path, text: &str) -> Result<()> {
    let context = || format!("writing {}", file.display());
    let name = file.file_name().with_context(context)?.to_string_lossy();
    let next = file.with_file_name(format!(".{name}.next"));
    fs::write(&next, text).with_context(context)?;
    fs::rename(&next, file).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_labs_own_directories_are_refused() {
        for bad in ["", "..", "a/b", "A", "a b", &"x".repeat(25)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_name("demo-1").is_ok());
    }
}
