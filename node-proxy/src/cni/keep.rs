//! Keeps the plugin in the container runtime's configuration: others write there too, whenever they like.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::inotify;
use serde::Serialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use weft_cni::entry::{Entry, TYPE};

use super::install::{self, Host};
use crate::node::Node;

/// Where the image has files that are for the host.
const IMAGE_DIR: &str = "/opt/weft/bin";
/// Without word of a change. For file systems that tell of none.
const LOOK: Duration = Duration::from_secs(30);
/// After something went wrong.
const RETRY: Duration = Duration::from_secs(2);
/// Whoever writes the file writes it in several steps: looked at when that is likely over.
const SETTLE: Duration = Duration::from_millis(50);
/// The same after something went wrong: a write that fails half-way is a change of the directory too, and must not be tried again at once.
const SETTLE_FAILED: Duration = Duration::from_millis(500);

/// How things stand with the plugin: for status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CniStatus {
    /// New pods wait for this agent.
    pub installed: bool,
    /// The configuration that has the entry.
    pub configuration: Option<PathBuf>,
    /// The types of all plugins there, in the order in which the runtime calls them.
    pub plugins: Vec<String>,
    /// Times that the plugin or its entry had to be put (back) in place.
    pub written: u64,
    /// Why it is not installed.
    pub error: Option<String>,
}

impl CniStatus {
    /// Why new pods would start without the mesh.
    pub(crate) fn unready(&self) -> Option<String> {
        match &self.error {
            _ if self.installed => None,
            Some(error) => {
                Some(format!("the CNI plugin is not installed, new pods start outside the mesh: {error}"))
            }
            None => Some("the CNI plugin is not installed yet".to_owned()),
        }
    }
}

/// Installs the plugin as soon as this agent can answer it, and keeps it there until the node drains. A pod that starts before its node
/// ever had a configuration starts outside the mesh, as if Weft were not there yet; on a node that had one, the entry is there already.
pub async fn install_once_in_sync(node: Arc<Node>) {
    let Some((host, settings)) = node.settings.cni.as_ref().and_then(|it| Some((it.host.clone()?, it)))
    else {
        return;
    };
    let entry = Entry {
        kind: TYPE.into(),
        socket: settings.socket.display().to_string(),
        exclude_namespaces: settings.exclude_namespaces.clone(),
    };
    // They are of one build: side by side, or where the image has what is for the host.
    let beside = std::env::current_exe().map(|own| own.with_file_name(TYPE)).ok();
    let plugin = beside.filter(|plugin| plugin.exists()).unwrap_or_else(|| Path::new(IMAGE_DIR).join(TYPE));
    let mut control = node.control.subscribe();
    let end = &node.drain.draining;
    tokio::select! {
        in_sync = control.wait_for(|status| status.synced) => drop(in_sync),
        () = end.cancelled() => return,
    }
    keep(host, plugin, entry, &node.cni, end).await;
}

/// Until `end`: installs the plugin, and again whenever it is not there. When it returns, nothing is being written any more.
async fn keep(
    host: Host,
    plugin: PathBuf,
    entry: Entry,
    status: &watch::Sender<CniStatus>,
    end: &CancellationToken,
) {
    let mut watched = Watched::new(&host);
    while !end.is_cancelled() {
        watched.watch();
        let (target, source, wanted) = (host.clone(), plugin.clone(), entry.clone());
        let installed = move || {
            let (configuration, written) =
                target.install(&source, &wanted).map_err(|error| error.to_string())?;
            let plugins = install::order(&configuration);
            Ok(Done { configuration, written, plugins })
        };
        let done = tokio::task::spawn_blocking(installed).await;
        let done = done.unwrap_or_else(|error| Err(error.to_string()));
        // The first installation makes directories.
        watched.watch();
        let (pause, settle) = if done.is_ok() { (LOOK, SETTLE) } else { (RETRY, SETTLE_FAILED) };
        note(status, done);
        tokio::select! {
            () = watched.changed() => tokio::time::sleep(settle).await,
            () = tokio::time::sleep(pause) => {}
            () = end.cancelled() => {}
        }
    }
}

/// What a look found, or put in place.
struct Done {
    configuration: PathBuf,
    written: bool,
    plugins: Vec<String>,
}

fn note(status: &watch::Sender<CniStatus>, done: Result<Done, String>) {
    status.send_if_modified(|status| {
        let before = status.clone();
        match done {
            Ok(Done { configuration, written, plugins }) => {
                if written {
                    info!(configuration = %configuration.display(), "the CNI plugin is in place");
                    status.written += 1;
                }
                (status.installed, status.configuration, status.error) = (true, Some(configuration), None);
                status.plugins = plugins;
            }
            Err(reason) => {
                if status.error.as_ref() != Some(&reason) {
                    error!(
                        reason,
                        "the CNI plugin cannot be installed: new pods start without waiting for the mesh"
                    );
                }
                (status.installed, status.error) = (false, Some(reason));
            }
        }
        *status != before
    });
}

/// The directories of the configuration and of the plugin: the runtime needs both for every pod.
struct Watched {
    /// None: they are looked at only.
    changes: Option<AsyncFd<OwnedFd>>,
    directories: [PathBuf; 2],
    /// Which of them cannot be watched; told once.
    failed: [bool; 2],
}

impl Watched {
    fn new(host: &Host) -> Self {
        let open = || -> io::Result<AsyncFd<OwnedFd>> {
            let changes = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
            // SAFETY: the descriptor is owned by what is returned, and nobody else closes it.
            Ok(unsafe { AsyncFd::register_with_interest(changes, Interest::READABLE) }?)
        };
        let changes = open()
            .inspect_err(
                |error| warn!(%error, "the CNI plugin and its configuration are not watched, only looked at"),
            )
            .ok();
        let directories = [host.conf_dir.clone(), host.bin_dir.clone()];
        Self { changes, directories, failed: [false; 2] }
    }

    /// Again and again: a directory may be made, or made anew, at any time. One that is watched already stays so.
    fn watch(&mut self) {
        let Some(changes) = &self.changes else { return };
        let wanted = inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::MOVED_FROM
            | inotify::WatchFlags::DELETE;
        for (directory, failed) in self.directories.iter().zip(&mut self.failed) {
            let watched = inotify::add_watch(changes.get_ref(), directory, wanted);
            if let (Err(error), false) = (&watched, *failed) {
                warn!(directory = %directory.display(), %error, "a directory of CNI is not watched, only looked at");
            }
            *failed = watched.is_err();
        }
    }

    /// Returns when something happened in a directory; without a watch never.
    async fn changed(&self) {
        let Some(changes) = &self.changes else { return std::future::pending().await };
        let Ok(mut ready) = changes.readable().await else { return std::future::pending().await };
        // What happened is all the same: everything is looked at again.
        let mut events = [0_u8; 4096];
        while rustix::io::read(changes.get_ref(), &mut events).is_ok_and(|bytes| bytes > 0) {}
        ready.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn what_others_write_is_repaired_and_what_is_broken_is_told_until_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let host = Host { bin_dir: at("bin"), conf_dir: at("net.d") };
        fs::create_dir(&host.conf_dir).unwrap();
        fs::write(at("weft-cni"), "binary").unwrap();
        let entry = Entry { kind: "weft-cni".into(), socket: "/s".into(), exclude_namespaces: Vec::new() };
        let (sender, mut status) = watch::channel(CniStatus::default());
        let plugin = at("weft-cni");
        let end = CancellationToken::new();
        let until = end.clone();
        let kept = tokio::spawn(async move { keep(host, plugin, entry, &sender, &until).await });
        let list = r#"{"name":"k8s","cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}"#;
        let file = at("net.d/10-a.conflist");

        assert_eq!(status.borrow().unready().as_deref(), Some("the CNI plugin is not installed yet"));
        let empty = status.wait_for(|it| it.error.is_some()).await.unwrap().clone();
        assert!(empty.unready().unwrap().contains("new pods start outside the mesh"));
        assert!(empty.error.unwrap().contains("no network configuration"));
        fs::write(&file, list).unwrap();
        let written = status.wait_for(|it| it.installed).await.unwrap().clone();
        assert_eq!(written.unready(), None);
        assert_eq!(written.plugins, ["bridge", "weft-cni"]);
        let written = written.written;
        assert!(fs::read_to_string(&file).unwrap().contains("weft-cni"));

        fs::write(&file, list).unwrap();
        status.wait_for(|it| it.written > written).await.unwrap();
        assert!(fs::read_to_string(&file).unwrap().contains("weft-cni"));

        // The runtime calls it for every pod: it must be back before a look without word would find that out. More than once, because a
        // look after the repair above finds the first time.
        for _ in 0..3 {
            let (written, removed) = (status.borrow().written, tokio::time::Instant::now());
            fs::remove_file(at("bin/weft-cni")).unwrap();
            status.wait_for(|it| it.written > written).await.unwrap();
            assert!(at("bin/weft-cni").exists() && removed.elapsed() < LOOK / 2, "{:?}", removed.elapsed());
        }

        fs::write(&file, &list[..20]).unwrap();
        let broken = status.wait_for(|it| !it.installed).await.unwrap().error.clone().unwrap();
        assert!(broken.contains("10-a.conflist") && broken.contains("not JSON"), "{broken}");
        fs::write(&file, list).unwrap();
        status.wait_for(|it| it.installed && it.error.is_none()).await.unwrap();
        // An image without the plugin.
        fs::rename(at("weft-cni"), at("elsewhere")).unwrap();
        fs::write(&file, list).unwrap();
        let missing = status.wait_for(|it| !it.installed).await.unwrap().unready().unwrap();
        assert!(missing.contains("weft-cni: No such file"), "{missing}");
        end.cancel();
        kept.await.unwrap();
    }
}
