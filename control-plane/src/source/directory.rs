//! Directories of manifests as a source: reads, watches, merges.
//!
//! A file that cannot be used keeps its last good objects, beyond a restart too ([`last_good`](super::last_good)). inotify tells at
//! once; a full read every ten seconds is the safety net for what it does not see. Names that start with a dot are not read
//! (editors' files, a ConfigMap's `..data`).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::kinds::{Parsed, PodStatus};
use super::last_good::LastGood;
use super::manifest::{self, Located};
use super::{Event, Object, ObjectKey, PROBLEMS_SHOWN_MAX, Problem, Read, Report, Sink, Source};

/// A save is several events; this long after one everything is read.
const DEBOUNCE: Duration = Duration::from_millis(40);
const RESCAN_INTERVAL: Duration = Duration::from_secs(10);
/// Larger than any manifest that a person writes.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
const FILES_MAX: usize = 20_000;
/// Of one root: its text is kept to see what changed, and parsing takes several times as much for a moment.
const BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Symbolic links could make a circle.
const DEPTH_MAX: usize = 16;
/// Directories of one root, counted as often as links lead to them: links that fan out must not multiply for ever.
const DIRECTORIES_MAX: usize = 10_000;

pub struct Directory {
    roots: Vec<PathBuf>,
    state_directory: PathBuf,
}

impl Directory {
    pub fn new(roots: Vec<PathBuf>, state_directory: PathBuf) -> Self {
        Self { roots, state_directory }
    }

    fn scanner(&self) -> Scanner {
        Scanner::new(self.roots.clone()).keeping(&self.state_directory)
    }
}

impl Source for Directory {
    async fn run(self, sink: Sink, stop: CancellationToken) {
        let (changed, mut changes) = mpsc::channel(1);
        let mut state = self.scanner();
        let mut watcher = None;
        let mut whole = true;
        loop {
            if watcher.is_none() {
                watcher = watch(&self.roots, changed.clone());
            }
            // Reading files blocks; the scanner goes to a blocking thread and comes back.
            let scan = tokio::task::spawn_blocking(move || {
                let events = state.scan(whole);
                (state, events)
            });
            let (back, events) = match scan.await {
                Ok(done) => done,
                Err(error) => {
                    tracing::error!(%error, "reading the manifests panicked; starting over");
                    (self.scanner(), Vec::new())
                }
            };
            state = back;
            sink.report.send_if_modified(|report| {
                let next = state.report();
                let differs = **report != next;
                if differs {
                    next.errors.iter().for_each(|e| tracing::error!("{e}"));
                    next.warnings.iter().for_each(|w| tracing::warn!("{w}"));
                    if state.waits() {
                        tracing::error!("nodes are not served until this is mended");
                    }
                    *report = Arc::new(next);
                }
                differs
            });
            if !events.is_empty() && sink.batches.send(events).await.is_err() {
                return;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = changes.recv() => {
                    tokio::time::sleep(DEBOUNCE).await;
                    while changes.try_recv().is_ok() {}
                    whole = false;
                }
                () = tokio::time::sleep(RESCAN_INTERVAL) => {
                    // A directory that was replaced is another inode: watch anew.
                    watcher = None;
                    whole = true;
                }
            }
        }
    }
}

fn watch(roots: &[PathBuf], changed: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let tell = move |event: notify::Result<notify::Event>| {
        // Reading a file is an event too, and would make the scanner wake itself for ever.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            // Full: somebody is told already.
            let _ = changed.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(tell)
        .inspect_err(
            |error| tracing::warn!(%error, "no inotify; changes are seen by the periodic read alone"),
        )
        .ok()?;
    for root in roots {
        if let Err(error) = watcher.watch(root, RecursiveMode::Recursive) {
            tracing::warn!(directory = %root.display(), %error, "cannot be watched; the periodic read goes on");
        }
    }
    Some(watcher)
}

/// Length, time and inode: equal means unread since.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    inode: u64,
}

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    /// None: it could not be read.
    text: Option<Arc<str>>,
    /// The last good content. None: there never was any.
    good: Option<Vec<Located>>,
    /// The last good text has its place for the next start.
    kept: bool,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// Reads the directories once: the text of every file that this source reads, by path, or everything that is wrong with them.
/// For the lab, which must not differ from it (`weft-e2e`).
pub fn read_once(roots: Vec<PathBuf>) -> Result<Vec<(PathBuf, Arc<str>)>, Vec<Problem>> {
    let mut scanner = Scanner::new(roots);
    scanner.scan(true);
    let errors = scanner.report().errors;
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(scanner.files.into_iter().filter_map(|(path, file)| Some((path, file.text?))).collect())
}

/// The files as last read and the objects as last sent. No watching, no waiting.
pub struct Scanner {
    roots: Vec<PathBuf>,
    files: BTreeMap<PathBuf, File>,
    /// None: nothing yet, and nothing will be before everything is known.
    sent: Option<BTreeMap<ObjectKey, (Object, PathBuf)>>,
    last_good: Option<LastGood>,
    directory_errors: Vec<Problem>,
    duplicates: Vec<Problem>,
    not_kept: Vec<Problem>,
}

impl Scanner {
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self {
            roots,
            files: BTreeMap::new(),
            sent: None,
            last_good: None,
            directory_errors: Vec::new(),
            duplicates: Vec::new(),
            not_kept: Vec::new(),
        }
    }

    /// Keeps the last good texts there, and starts with them.
    #[must_use]
    pub fn keeping(mut self, state_directory: &Path) -> Self {
        self.last_good = Some(LastGood::new(state_directory, FILE_BYTES_MAX));
        self
    }

    /// Something is not known, and was not before the start either: served without it, nodes would take it for removed, and be open
    /// where a policy was.
    pub fn waits(&self) -> bool {
        self.sent.is_none()
    }

    /// Reads what changed (`whole`: everything) and says what that changes.
    pub fn scan(&mut self, whole: bool) -> Vec<Event> {
        let mut found = BTreeMap::new();
        self.directory_errors.clear();
        let mut unreadable = Vec::new();
        for root in self.roots.clone() {
            if let Err(problem) = list(&root, 0, &mut Counted::default(), &mut found) {
                unreadable.push(root);
                self.directory_errors.push(problem);
            }
        }
        // Files of a directory that cannot be listed are not gone for certain: their last good objects stay.
        self.files.retain(|path, _| {
            let stays = found.contains_key(path) || unreadable.iter().any(|root| path.starts_with(root));
            if let Some(last_good) = self.last_good.as_ref().filter(|_| !stays) {
                last_good.forget(path);
            }
            stays
        });
        for (path, stamp) in found {
            let file = self.files.entry(path.clone()).or_default();
            if whole || file.stamp.as_ref() != Some(&stamp) {
                file.read(&path, stamp);
            }
        }
        if let Some(last_good) = self.last_good.as_ref().filter(|_| self.sent.is_none()) {
            let broken = self.files.iter_mut().filter(|(_, file)| file.good.is_none());
            broken.for_each(|(path, file)| file.restore(path, last_good));
        }
        let merged = self.merge();
        let events = match &self.sent {
            None if self.is_incomplete() => return Vec::new(),
            None => {
                if let Some(last_good) = &self.last_good {
                    last_good.forget_others(self.files.keys());
                }
                vec![Event::Reset(merged.values().map(|(object, _)| object.clone()).collect())]
            }
            Some(sent) => difference(sent, &merged),
        };
        self.sent = Some(merged);
        self.keep();
        events
    }

    /// Of an object in two files nobody knows any more which had it first.
    fn is_incomplete(&self) -> bool {
        let known = self.files.values().all(|file| file.good.is_some());
        !(known && self.directory_errors.is_empty() && self.duplicates.is_empty())
    }

    /// Before what is good is used, so that no end of the process comes between.
    fn keep(&mut self) {
        self.not_kept.clear();
        let Some(last_good) = &self.last_good else { return };
        for (path, file) in self.files.iter_mut().filter(|(_, file)| !file.kept && file.errors.is_empty()) {
            let Some(text) = &file.text else { continue };
            match last_good.keep(path, text) {
                Ok(()) => file.kept = true,
                Err(error) => self.not_kept.push(Problem {
                    file: path.display().to_string(),
                    line: 1,
                    message: format!("cannot be kept in the state directory for the next start: {error}"),
                }),
            }
        }
    }

    /// All files' objects, one of each name; the file that had a name first keeps it.
    fn merge(&mut self) -> BTreeMap<ObjectKey, (Object, PathBuf)> {
        let mut merged: BTreeMap<ObjectKey, (Object, PathBuf)> = BTreeMap::new();
        let mut statuses: HashMap<_, &PodStatus> = HashMap::new();
        self.duplicates.clear();
        for (path, file) in &self.files {
            for located in file.good.iter().flatten() {
                let object = match &located.parsed {
                    Parsed::Object(object) => object,
                    Parsed::PodStatus(status) => {
                        statuses.insert(status.id.clone(), status);
                        continue;
                    }
                };
                let key = object.key();
                let Some((_, other)) = merged.get(&key) else {
                    merged.insert(key, (object.clone(), path.clone()));
                    continue;
                };
                let owner = self.sent.as_ref().and_then(|sent| sent.get(&key)).map(|(_, owner)| owner);
                let message = format!("{key} is also in {}", other.display());
                self.duplicates.push(Problem {
                    file: path.display().to_string(),
                    line: located.line,
                    message,
                });
                if owner == Some(path) && other != path {
                    merged.insert(key, (object.clone(), path.clone()));
                }
            }
        }
        for (object, _) in merged.values_mut() {
            if let Object::Pod(pod) = object
                && let Some(status) = statuses.get(&pod.id)
            {
                *object = Object::Pod(Arc::new(status.onto(pod)));
            }
        }
        merged
    }

    pub fn report(&self) -> Report {
        let errors = self.directory_errors.iter().chain(&self.duplicates);
        Report {
            read: Read::Files(self.files.len()),
            errors: errors
                .chain(self.files.values().flat_map(|file| &file.errors))
                .take(PROBLEMS_SHOWN_MAX)
                .cloned()
                .collect(),
            warnings: self
                .not_kept
                .iter()
                .chain(self.files.values().flat_map(|file| &file.warnings))
                .take(PROBLEMS_SHOWN_MAX)
                .cloned()
                .collect(),
        }
    }
}

impl File {
    fn read(&mut self, path: &Path, stamp: Stamp) {
        let name = path.display().to_string();
        let problem = |message: String| vec![Problem { file: name.clone(), line: 1, message }];
        if stamp.bytes > FILE_BYTES_MAX {
            self.errors = problem(format!("is larger than {FILE_BYTES_MAX} bytes"));
            (self.text, self.stamp) = (None, Some(stamp));
            return;
        }
        let text = match std::fs::read(path).map(String::from_utf8) {
            Ok(Ok(text)) => text,
            Ok(Err(_)) => {
                self.errors = problem("is not UTF-8".to_owned());
                (self.text, self.stamp) = (None, Some(stamp));
                return;
            }
            Err(error) => {
                // Gone between listing and reading, or no permission: the next scan tries again.
                self.errors = problem(error.to_string());
                self.stamp = None;
                return;
            }
        };
        if self.stamp.is_some() && self.text.as_deref() == Some(&*text) {
            self.stamp = Some(stamp);
            return;
        }
        match manifest::parse(&name, &text) {
            Ok(manifest) => {
                self.good = Some(manifest.objects);
                self.kept = false;
                self.warnings = manifest.warnings;
                self.errors.clear();
            }
            Err(errors) => self.errors = errors,
        }
        self.text = Some(text.into());
        self.stamp = Some(stamp);
    }

    /// Takes up the content that was good before the start.
    fn restore(&mut self, path: &Path, last_good: &LastGood) {
        let name = path.display().to_string();
        let Some(kept) = last_good.load(path) else { return };
        let Ok(manifest) = manifest::parse(&name, &kept.text) else { return };
        self.good = Some(manifest.objects);
        let line = self.errors.first().map_or(1, |error| error.line);
        let message = format!(
            "its last good content stays in use: {} min old at the start of weft-control",
            kept.age.as_secs() / 60
        );
        self.warnings = vec![Problem { file: name, line, message }];
    }
}

/// What listing a root has met with.
#[derive(Debug, Default)]
struct Counted {
    directories: usize,
    bytes: u64,
}

fn list(
    directory: &Path,
    depth: usize,
    counted: &mut Counted,
    found: &mut BTreeMap<PathBuf, Stamp>,
) -> Result<(), Problem> {
    use std::os::unix::fs::MetadataExt;
    let problem = |message: String| Problem { file: directory.display().to_string(), line: 1, message };
    if depth > DEPTH_MAX {
        return Err(problem(format!("is more than {DEPTH_MAX} directories deep")));
    }
    counted.directories += 1;
    if counted.directories > DIRECTORIES_MAX {
        return Err(problem(format!("more than {DIRECTORIES_MAX} directories")));
    }
    for entry in std::fs::read_dir(directory).map_err(|e| problem(e.to_string()))? {
        let entry = entry.map_err(|e| problem(e.to_string()))?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        // Follows links; one that dangles (or a file just removed) is not there.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        if metadata.is_dir() {
            list(&path, depth + 1, counted, found)?;
        } else if metadata.is_file()
            && matches!(path.extension().and_then(|e| e.to_str()), Some("yaml" | "yml" | "json"))
        {
            if found.len() >= FILES_MAX {
                return Err(problem(format!("more than {FILES_MAX} files")));
            }
            // A file that is too large by itself is not read.
            counted.bytes += metadata.len().min(FILE_BYTES_MAX);
            if counted.bytes > BYTES_MAX {
                return Err(problem(format!("more than {BYTES_MAX} bytes of manifests")));
            }
            let stamp =
                Stamp { bytes: metadata.len(), modified: metadata.modified().ok(), inode: metadata.ino() };
            found.insert(path, stamp);
        }
    }
    Ok(())
}

fn difference(
    before: &BTreeMap<ObjectKey, (Object, PathBuf)>,
    after: &BTreeMap<ObjectKey, (Object, PathBuf)>,
) -> Vec<Event> {
    let gone = before.keys().filter(|key| !after.contains_key(key)).cloned().map(Event::Delete);
    let changed = after
        .iter()
        .filter(|(key, (object, _))| before.get(key).is_none_or(|(old, _)| old != object))
        .map(|(_, (object, _))| Event::Apply(object.clone()));
    gone.chain(changed).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
