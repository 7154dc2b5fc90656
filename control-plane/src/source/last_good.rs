//! The last good text of each manifest, kept in the state directory: a restart while a file is broken must not lose its objects.
//!
//! Mirrors the absolute paths of the manifests. One text for each file that is there, each no larger than a manifest may be. Join
//! tokens are among them: only their owner may read them. Start at [`LastGood::load`] and [`LastGood::keep`].

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Begins with a dot: a state directory within a directory of manifests is no manifest.
const DIRECTORY: &str = ".last-good";
/// Before the length of the text, in the first line. What a crash of the machine cut short is not used, so that nothing has to be
/// synced to the disk for each of some thousand files.
const HEAD: &str = "weft-last-good ";
/// Of the first line.
const HEAD_BYTES_MAX: u64 = 64;

pub(super) struct LastGood {
    directory: PathBuf,
    text_bytes_max: u64,
}

/// A text as it was kept, and since when.
pub(super) struct Kept {
    pub(super) text: String,
    pub(super) age: Duration,
}

impl LastGood {
    pub(super) fn new(state_directory: &Path, text_bytes_max: u64) -> Self {
        Self { directory: state_directory.join(DIRECTORY), text_bytes_max }
    }

    fn place(&self, manifest: &Path) -> io::Result<PathBuf> {
        let mut place = self.directory.clone();
        for component in std::path::absolute(manifest)?.components() {
            match component {
                Component::Normal(name) => place.push(name),
                // Must not lead out of the directory; no manifest has this name.
                Component::ParentDir => place.push("..."),
                _ => {}
            }
        }
        Ok(place)
    }

    /// None: nothing was kept, or it is not whole.
    pub(super) fn load(&self, manifest: &Path) -> Option<Kept> {
        let place = self.place(manifest).ok()?;
        let metadata = fs::symlink_metadata(&place).ok()?;
        if !metadata.is_file() || metadata.len() > self.text_bytes_max + HEAD_BYTES_MAX {
            return None;
        }
        let whole = fs::read_to_string(&place).ok()?;
        let (head, text) = whole.split_once('\n')?;
        let bytes: usize = head.strip_prefix(HEAD)?.parse().ok()?;
        // A clock that went back makes it new.
        let age = SystemTime::now().duration_since(metadata.modified().ok()?).unwrap_or_default();
        (bytes == text.len()).then(|| Kept { text: text.to_owned(), age })
    }

    /// Whole or not at all. The same text stays as it is, with its age.
    pub(super) fn keep(&self, manifest: &Path, text: &str) -> io::Result<()> {
        if self.load(manifest).is_some_and(|kept| kept.text == text) {
            return Ok(());
        }
        let place = self.place(manifest)?;
        let parent = place.parent().unwrap_or(&self.directory);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        let mut next = place.clone().into_os_string();
        next.push(".next");
        let _ = fs::remove_file(&next);
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
        write!(out, "{HEAD}{}\n{text}", text.len())?;
        fs::rename(&next, &place)
    }

    /// Of a manifest that was deleted.
    pub(super) fn forget(&self, manifest: &Path) {
        if let Ok(place) = self.place(manifest) {
            remove(&place);
        }
    }

    /// All but those of these manifests: the others were deleted while nobody looked.
    pub(super) fn forget_others<'a>(&self, manifests: impl Iterator<Item = &'a PathBuf>) {
        let wanted: BTreeSet<PathBuf> = manifests.filter_map(|path| self.place(path).ok()).collect();
        forget_below(&self.directory, &wanted);
    }
}

fn forget_below(directory: &Path, wanted: &BTreeSet<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        // Not of what a link leads to.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            forget_below(&path, wanted);
            // Succeeds where it is empty.
            let _ = fs::remove_dir(&path);
        } else if !wanted.contains(&path) {
            remove(&path);
        }
    }
}

fn remove(place: &Path) {
    if let Err(error) = fs::remove_file(place)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(file = %place.display(), %error, "the last good text of a deleted manifest stays");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_not_whole_is_not_used_and_only_the_owner_reads() {
        let directory = tempfile::tempdir().unwrap();
        let kept = LastGood::new(directory.path(), 100);
        let manifest = Path::new("/etc/../weft/a.yaml");
        assert!(kept.load(manifest).is_none());
        kept.keep(manifest, "kind: X\n").unwrap();
        assert_eq!(kept.load(manifest).unwrap().text, "kind: X\n");
        let place = directory.path().join(".last-good/etc/.../weft/a.yaml");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&place), mode(place.parent().unwrap())), (0o600, 0o700));
        let whole = fs::read_to_string(&place).unwrap();
        for broken in [&whole[..whole.len() - 1], "", "kind: X\n", &(whole.clone() + &" ".repeat(200))] {
            fs::write(&place, broken).unwrap();
            assert!(kept.load(manifest).is_none(), "{broken:?}");
        }
        kept.keep(manifest, "kind: Y\n").unwrap();
        assert_eq!(kept.load(manifest).unwrap().text, "kind: Y\n");
    }

    #[test]
    fn only_manifests_that_are_there_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let kept = LastGood::new(directory.path(), 100);
        let of = |name: &str| PathBuf::from("/m").join(name);
        for name in ["a.yaml", "b.yaml", "deep/c.yaml"] {
            kept.keep(&of(name), "kind: X\n").unwrap();
        }
        kept.forget(&of("b.yaml"));
        kept.forget(&of("b.yaml"));
        assert!(kept.load(&of("b.yaml")).is_none());
        kept.forget_others([of("a.yaml")].iter());
        assert!(kept.load(&of("a.yaml")).is_some());
        assert!(!directory.path().join(".last-good/m/deep").exists());
    }
}
