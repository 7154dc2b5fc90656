//! The plugin's place on the host: its file in the directory of plugins, its entry in the network configuration that the container runtime
//! uses. Everything is written whole or not at all; what belongs to others stays as it is. Blocking.
//!
//! The runtime takes the first file by name. A list (`.conflist`) gets the entry; a single network (`.conf`, `.json`) is set aside and
//! replaced by a list of the same name, because only a list has room for two plugins.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;
use weft_cni::entry::{Entry, TYPE};

use super::conflist::{self, ConfError};

/// Files that runtimes read.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// Appended to the name of a single network's file while a list takes its place. No runtime reads it.
const SET_ASIDE: &str = "weft-saved";
/// Largest configuration: the largest known have some KiB.
const CONF_BYTES_MAX: u64 = 1024 * 1024;
const PLUGIN_MODE: u32 = 0o755;

/// Where the plugin goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub bin_dir: PathBuf,
    pub conf_dir: PathBuf,
}

/// Why the plugin is not installed, or not removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("{0} has no network configuration yet (*.conflist, *.conf, *.json)")]
    NoConfiguration(PathBuf),
    #[error("{path} cannot be used: {reason}")]
    Unusable { path: PathBuf, reason: String },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

fn file(path: &Path) -> impl Fn(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File { path: path.clone(), source }
}

fn unusable(path: &Path) -> impl Fn(ConfError) -> InstallError {
    let path = path.to_owned();
    move |error| InstallError::Unusable { path: path.clone(), reason: error.to_string() }
}

impl Host {
    /// Puts the plugin and its entry in place where they are not. Returns the configuration that has the entry, and whether anything
    /// was written.
    pub fn install(&self, plugin: &Path, entry: &Entry) -> Result<(PathBuf, bool), InstallError> {
        let entry = serde_json::to_value(entry).expect("strings and lists of strings");
        // First: an entry without the plugin would keep every pod of the node from starting.
        let copied = self.copy(plugin)?;
        let path = self
            .configurations()?
            .into_iter()
            .next()
            .ok_or_else(|| InstallError::NoConfiguration(self.conf_dir.clone()))?;
        let (path, edited) = if is_list(&path) {
            (path.clone(), add(&path, &entry)?)
        } else {
            (set_aside(&path, &entry)?, true)
        };
        Ok((path, copied || edited))
    }

    /// Takes the entry out of every configuration, then the plugin away. What cannot be edited is told at the end.
    pub fn remove(&self) -> Result<(), InstallError> {
        let mut failed = None;
        for path in self.configurations()?.iter().filter(|path| is_list(path)) {
            if let Err(error) = take_out(path) {
                failed = Some(error);
            }
        }
        if let Some(error) = failed {
            // The plugin stays: an entry without it would keep pods from starting.
            return Err(error);
        }
        let plugin = self.bin_dir.join(TYPE);
        match fs::remove_file(&plugin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file(&plugin)(error)),
            _ => Ok(()),
        }
    }

    /// In the order in which the runtime looks at them.
    fn configurations(&self) -> Result<Vec<PathBuf>, InstallError> {
        let entries = match fs::read_dir(&self.conf_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(file(&self.conf_dir)(error)),
        };
        let known = |path: &PathBuf| {
            path.extension().and_then(OsStr::to_str).is_some_and(|it| EXTENSIONS.contains(&it))
        };
        let mut paths: Vec<PathBuf> =
            entries.filter_map(Result::ok).map(|entry| entry.path()).filter(known).collect();
        paths.sort_unstable();
        Ok(paths)
    }

    fn copy(&self, plugin: &Path) -> Result<bool, InstallError> {
        let target = self.bin_dir.join(TYPE);
        let wanted = fs::read(plugin).map_err(file(plugin))?;
        if fs::read(&target).is_ok_and(|there| there == wanted)
            && fs::metadata(&target).is_ok_and(|it| it.permissions().mode() & 0o777 == PLUGIN_MODE)
        {
            return Ok(false);
        }
        fs::create_dir_all(&self.bin_dir).map_err(file(&self.bin_dir))?;
        write_whole(&target, &wanted, PLUGIN_MODE).map_err(file(&target))?;
        Ok(true)
    }
}

/// The types of a list's plugins, in their order; of one that cannot be read just now, none.
pub(super) fn order(list: &Path) -> Vec<String> {
    read(list).ok().and_then(|text| conflist::types(&text).ok()).unwrap_or_default()
}

fn is_list(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("conflist"))
}

fn read(path: &Path) -> Result<String, InstallError> {
    let length = fs::metadata(path).map_err(file(path))?.len();
    if length > CONF_BYTES_MAX {
        let reason = format!("it has {length} bytes, more than {CONF_BYTES_MAX}");
        return Err(InstallError::Unusable { path: path.to_owned(), reason });
    }
    fs::read_to_string(path).map_err(file(path))
}

fn add(path: &Path, entry: &Value) -> Result<bool, InstallError> {
    let text = read(path)?;
    let Some(edited) = conflist::with_entry(&text, entry).map_err(unusable(path))? else { return Ok(false) };
    replace(path, &text, &edited)?;
    Ok(true)
}

/// Replaces a single network's file by a list. Both are never there by names that the runtime reads, but for a moment in which it reads
/// the old one.
fn set_aside(path: &Path, entry: &Value) -> Result<PathBuf, InstallError> {
    let text = read(path)?;
    let list = path.with_extension("conflist");
    let wrapped = conflist::wrapped(&text, entry).map_err(unusable(path))?;
    write_whole(&list, wrapped.as_bytes(), mode(path)).map_err(file(&list))?;
    fs::rename(path, saved(path)).map_err(file(path))?;
    Ok(list)
}

/// Where a single network's file is while a list is in its place.
fn saved(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(SET_ASIDE);
    name.into()
}

fn take_out(list: &Path) -> Result<(), InstallError> {
    let text = read(list)?;
    let Some(edited) = conflist::without_entry(&text, TYPE).map_err(unusable(list))? else { return Ok(()) };
    let originals = ["conf", "json"].map(|extension| list.with_extension(extension));
    let Some(original) = originals.into_iter().find(|original| saved(original).exists()) else {
        return replace(list, &text, &edited);
    };
    // Ours, unless somebody has changed it since: then the changed list stays.
    let ours = read(&saved(&original))
        .ok()
        .and_then(|conf| conflist::wrapped(&conf, &serde_json::json!({"type": TYPE})).ok())
        .and_then(|wrapped| conflist::without_entry(&wrapped, TYPE).ok().flatten());
    if ours.is_some_and(|ours| ours == edited) {
        fs::rename(saved(&original), &original).map_err(file(&original))?;
        fs::remove_file(list).map_err(file(list))
    } else {
        replace(list, &text, &edited)?;
        fs::remove_file(saved(&original)).map_err(file(&original))
    }
}

/// Puts `edited` in the place of `text`, unless the file has changed meanwhile: then the next look sees that.
fn replace(path: &Path, text: &str, edited: &str) -> Result<(), InstallError> {
    // A symbolic link stays one.
    let real = fs::canonicalize(path).map_err(file(path))?;
    if read(&real)? != text {
        let reason = "somebody writes it just now; trying again".to_owned();
        return Err(InstallError::Unusable { path: path.to_owned(), reason });
    }
    write_whole(&real, edited.as_bytes(), mode(&real)).map_err(file(path))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).map_or(0o644, |it| it.permissions().mode() & 0o777)
}

/// The file is there whole or as it was, also after a crash: written beside it, synced, renamed.
pub(super) fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // No extension that a runtime reads; one that a dead process left is taken over.
    let beside = directory.join(format!(".{TYPE}.{}.tmp", std::process::id()));
    let written = (|| {
        let mut new = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        new.set_permissions(Permissions::from_mode(mode))?;
        new.write_all(bytes)?;
        new.sync_all()?;
        drop(new);
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        // Best effort: what failed is what the caller is told.
        let _ = fs::remove_file(&beside);
    }
    written?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "{\"cniVersion\":\"1.0.0\",\"name\":\"k8s\",\"plugins\":[{\"type\":\"bridge\"}]}\n";
    const CONF: &str = "{\"cniVersion\":\"0.4.0\",\"name\":\"k8s\",\"type\":\"bridge\"}\n";

    struct Bed {
        _directory: tempfile::TempDir,
        host: Host,
        plugin: PathBuf,
        entry: Entry,
    }

    impl Bed {
        fn new(files: &[(&str, &str)]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let at = |name: &str| directory.path().join(name);
            let host = Host { bin_dir: at("bin"), conf_dir: at("net.d") };
            fs::create_dir(&host.conf_dir).unwrap();
            for (name, text) in files {
                fs::write(host.conf_dir.join(name), text).unwrap();
            }
            let plugin = at("weft-cni");
            fs::write(&plugin, "binary").unwrap();
            let entry =
                Entry { kind: TYPE.into(), socket: "/s".into(), exclude_namespaces: vec!["a".into()] };
            Self { _directory: directory, host, plugin, entry }
        }

        fn install(&self) -> Result<(PathBuf, bool), InstallError> {
            self.host.install(&self.plugin, &self.entry)
        }

        /// Name and text of every file.
        fn files(&self) -> Vec<(String, String)> {
            let mut all: Vec<_> = fs::read_dir(&self.host.conf_dir)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| {
                    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                    (name, fs::read_to_string(path).unwrap())
                })
                .collect();
            all.sort();
            all
        }
    }

    #[test]
    fn the_file_that_the_runtime_uses_gets_the_entry_and_loses_it_again() {
        for files in [
            &[("10-a.conflist", LIST)][..],
            &[("20-b.conflist", LIST), ("10-a.conflist", LIST), ("05-readme.txt", "x")],
            &[("10-a.conf", CONF)],
            &[("10-a.json", CONF), ("20-b.conflist", LIST)],
        ] {
            let bed = Bed::new(files);
            let before = bed.files();
            let (path, written) = bed.install().unwrap();
            assert!(written && path.ends_with("10-a.conflist"), "{path:?}");
            assert!(fs::read_to_string(&path).unwrap().contains(TYPE));
            let plugin = bed.host.bin_dir.join(TYPE);
            assert_eq!(fs::metadata(&plugin).unwrap().permissions().mode() & 0o777, PLUGIN_MODE);
            let after = bed.files();
            assert_eq!(bed.install().unwrap(), (path.clone(), false), "again: nothing to do");
            assert_eq!(bed.files(), after);
            bed.host.remove().unwrap();
            assert_eq!(bed.files(), before);
            assert!(!plugin.exists());
            bed.host.remove().unwrap();
        }
    }

    #[test]
    fn a_rewritten_file_gets_the_entry_again() {
        for (name, text) in [("10-a.conflist", LIST), ("10-a.conf", CONF)] {
            let bed = Bed::new(&[(name, text)]);
            bed.install().unwrap();
            // The network plugin's own installer starts again.
            fs::write(bed.host.conf_dir.join(name), text).unwrap();
            let (path, written) = bed.install().unwrap();
            assert!(written && fs::read_to_string(path).unwrap().contains(TYPE));
            bed.host.remove().unwrap();
            assert_eq!(bed.files(), [(name.to_owned(), text.to_owned())]);
        }
    }

    #[test]
    fn a_changed_plugin_or_entry_is_replaced() {
        let mut bed = Bed::new(&[("10-a.conflist", LIST)]);
        bed.install().unwrap();
        fs::write(&bed.plugin, "next binary").unwrap();
        bed.entry.socket = "/t".into();
        let (path, written) = bed.install().unwrap();
        assert!(written && fs::read_to_string(path).unwrap().contains("\"/t\""));
        assert_eq!(fs::read_to_string(bed.host.bin_dir.join(TYPE)).unwrap(), "next binary");
    }

    #[test]
    fn what_cannot_be_used_is_told_and_left_as_it_is() {
        for (text, told) in [("", "not JSON"), (&LIST[..30], "not JSON"), ("{}", "no list \"plugins\"")] {
            // Not the next one instead: the runtime would not take that either.
            let bed = Bed::new(&[("10-a.conflist", text), ("20-b.conflist", LIST)]);
            let before = bed.files();
            let error = bed.install().unwrap_err().to_string();
            assert!(error.contains(told) && error.contains("10-a.conflist"), "{error}");
            assert_eq!(bed.files(), before);
        }
        let bed = Bed::new(&[]);
        assert!(matches!(bed.install(), Err(InstallError::NoConfiguration(_))));
    }

    #[test]
    fn while_an_entry_cannot_be_taken_out_the_plugin_stays() {
        let bed = Bed::new(&[("10-a.conflist", LIST)]);
        let (path, _) = bed.install().unwrap();
        fs::write(&path, "{").unwrap();
        assert!(bed.host.remove().is_err());
        assert!(bed.host.bin_dir.join(TYPE).exists());
    }

    #[test]
    fn a_list_that_somebody_changed_since_is_kept() {
        let bed = Bed::new(&[("10-a.conf", CONF)]);
        let (path, _) = bed.install().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"type\":\"bridge\"", "\"type\":\"ptp\"")).unwrap();
        bed.host.remove().unwrap();
        let files = bed.files();
        assert_eq!(files.len(), 1);
        assert!(files[0].1.contains("ptp") && !files[0].1.contains(TYPE), "{files:?}");
    }

    #[test]
    fn a_link_stays_a_link() {
        let bed = Bed::new(&[("real", LIST)]);
        let link = bed.host.conf_dir.join("10-a.conflist");
        std::os::unix::fs::symlink(bed.host.conf_dir.join("real"), &link).unwrap();
        bed.install().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read_to_string(&link).unwrap().contains(TYPE));
    }
}
