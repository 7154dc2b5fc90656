//! One process at a time makes or changes a lab: a lock per name, which the kernel takes back when its holder ends.
//!
//! Taking a lab down needs no claim: that must work in every state, and whoever is at work on the lab meets errors then.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Held while a lab is made or changed.
#[derive(Debug)]
#[must_use]
pub struct Claim {
    path: PathBuf,
    _locked: File,
}

impl Claim {
    /// Claims the lab `name` of those that note themselves in `directory`; an error if another process has it.
    pub(crate) fn take(directory: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let path = file(directory, name);
        let context = || path.display().to_string();
        loop {
            let mut options = OpenOptions::new();
            let file = options.create(true).truncate(false).read(true).write(true).open(&path);
            let mut file = file.with_context(context)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let holder = fs::read_to_string(&path).unwrap_or_default();
                    bail!(
                        "another `weft lab up`, `apply` or `restart` is at work on lab {name} (process {})",
                        holder.trim()
                    );
                }
                Err(TryLockError::Error(error)) => return Err(error).with_context(context),
            }
            // An earlier holder may have removed the file after it was opened here: then this is the lock of nothing.
            let opened = file.metadata().with_context(context)?.ino();
            if fs::metadata(&path).is_ok_and(|found| found.ino() == opened) {
                // Of a holder that was killed.
                file.set_len(0).with_context(context)?;
                writeln!(file, "{}", std::process::id()).with_context(context)?;
                return Ok(Self { path, _locked: file });
            }
        }
    }
}

/// The dot: no lab can be called so.
pub(crate) fn file(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!(".{name}.lock"))
}

/// Removes what a holder that was killed left. The claim of one that lives stays.
pub(crate) fn sweep(directory: &Path, name: &str) {
    if file(directory, name).exists() {
        // An error: somebody is at work.
        drop(Claim::take(directory, name));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // While it is locked still, so that nobody's file is removed but this one.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_is_claimed_by_one_at_a_time_and_nothing_is_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let claim = |name: &str| Claim::take(directory.path(), name);
        let first = claim("a").unwrap();
        let said = claim("a").unwrap_err().to_string();
        assert!(said.contains(&format!("at work on lab a (process {})", std::process::id())), "{said}");
        let _other = claim("b").unwrap();
        drop(first);
        drop(claim("a").unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "b alone");
    }

    #[test]
    fn what_a_killed_holder_left_is_swept_and_a_living_ones_claim_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let left = || fs::read_dir(directory.path()).unwrap().count();
        sweep(directory.path(), "a");
        assert_eq!(left(), 0);
        fs::write(file(directory.path(), "a"), "1\n").unwrap();
        sweep(directory.path(), "a");
        assert_eq!(left(), 0);
        let _claim = Claim::take(directory.path(), "a").unwrap();
        sweep(directory.path(), "a");
        assert_eq!(left(), 1);
        Claim::take(directory.path(), "a").unwrap_err();
    }
}
