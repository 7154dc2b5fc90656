//! New pods: the CNI plugin holds a pod's start up until it is in the mesh, or known to stay out.
//!
//! `server` takes the plugin's requests, [`Agent`] answers them (by the control plane's [`word`] on the pod, then by setting it up through
//! `enrol`), `install` and `conflist` put the plugin into the container runtime's configuration, `keep` keeps it there, and `notice` says
//! what counts while nobody answers.

mod conflist;
mod install;
mod keep;
mod notice;
mod server;
mod word;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use weft_cni::notice::Notice;
use weft_cni::wire::{Answer, Command, Sandbox as Told};
use weft_proto::identity::PodUid;

pub use install::{Host, InstallError};
pub use keep::{CniStatus, install_once_in_sync};
pub use notice::keep_notice;

use self::server::Answers;
use self::word::Word;
use crate::enrol::{ADDRESSES_MAX, Enroller, Sandbox};
use crate::node::Node;
use weft_admin::open_unix;

/// How long a pod waits for the control plane's word of it: that takes some milliseconds, unless the control plane is away. The kubelet
/// tries again.
const WORD_WAIT: Duration = Duration::from_secs(20);
/// How long a pod waits of which nothing is known and whose namespace is not enrolled, in case that it opts in itself.
const OPT_IN_WAIT: Duration = Duration::from_secs(1);
/// Longest text of a request: a path.
const TEXT_BYTES_MAX: usize = 4_096;

/// Answers the plugin.
pub struct Agent {
    node: Arc<Node>,
    enroller: Arc<Mutex<Enroller>>,
    /// A predecessor's, for as long as there is no configuration.
    notice: Option<Notice>,
}

/// Opens the socket; what is returned serves until the node drains: spawn it.
pub fn serve(
    path: &Path,
    node: &Arc<Node>,
    enroller: &Arc<Mutex<Enroller>>,
) -> io::Result<impl Future<Output = ()> + Send + 'static + use<>> {
    let listener = open_unix(path, server::BACKLOG)?;
    let end: CancellationToken = node.drain.draining.clone();
    let notice = Notice::read(path).ok();
    let agent = Arc::new(Agent { node: Arc::clone(node), enroller: Arc::clone(enroller), notice });
    Ok(server::serve(listener, agent, end))
}

impl Answers for Agent {
    async fn answer(&self, command: Command) -> Answer {
        let done = match command {
            Command::Add(pod) => self.add(pod).await,
            Command::Check(pod) => self.check(pod).await,
            Command::Del { container_id } => {
                self.forget(move |_, ended| ended == container_id).await.map(|()| false)
            }
            Command::Gc { container_ids } => {
                let node = Arc::clone(&self.node);
                let ended = move |uid: &PodUid, container: &str| {
                    !container_ids.iter().any(|valid| valid == container)
                        && word::is_over(&node.snapshot.load(), uid)
                };
                self.forget(ended).await.map(|()| false)
            }
        };
        match done {
            Ok(enrolled) => Answer { error: None, enrolled },
            Err(error) => Answer { error: Some(error), enrolled: false },
        }
    }
}

impl Agent {
    /// Returns when the pod may start: whether it is in the mesh.
    async fn add(&self, told: Told) -> Result<bool, String> {
        check_lengths(&told)?;
        let pod = format!("{}/{}", told.namespace, told.name);
        let uid = match self.word(&told).await {
            Ok(Some(uid)) => uid,
            Ok(None) => {
                self.remember(told).await;
                return Ok(false);
            }
            Err(reason) => {
                warn!(pod, reason, "a pod is kept from starting");
                return Err(reason);
            }
        };
        let node = Arc::clone(&self.node);
        let set_up = self.with_enroller(move |enroller| {
            let now = Instant::now();
            let sandbox = opened(&told, now)?;
            enroller.attach(&uid, sandbox).map_err(|error| error.to_string())?;
            enroller.set_up_now(&uid, &node.snapshot.load(), &node.pods, now)
        });
        match set_up.await {
            Ok(()) => Ok(true),
            Err(reason) => {
                warn!(pod, reason, "a pod is kept from starting");
                Err(format!("pod {pod} cannot be set up: {reason}"))
            }
        }
    }

    /// Waits for the control plane's word: the pod's UID if it belongs into the mesh.
    async fn word(&self, told: &Told) -> Result<Option<PodUid>, String> {
        let mut news = self.node.snapshot.subscribe();
        let started = tokio::time::Instant::now();
        loop {
            let (word, configured) = self.known(told);
            let connected = self.node.control.borrow().connected;
            let (wait, then) = match word {
                Word::Enrol(uid) => return Ok(Some(uid)),
                Word::Outside => return Ok(None),
                // Nothing new can come.
                Word::Unheard if !connected => return Ok(None),
                Word::Unheard => (OPT_IN_WAIT, Ok(None)),
                Word::Awaited(_) if !configured && self.was_outside(told) => (WORD_WAIT, Ok(None)),
                Word::Awaited(reason) => (WORD_WAIT, Err(reason)),
            };
            if tokio::time::timeout_at(started + wait, news.changed()).await.is_ok() {
                continue;
            }
            return then.map_err(|reason: String| {
                let control = match self.node.control.borrow().last_error.as_deref() {
                    Some(error) => format!("not connected to weft-control: {error}"),
                    None => "connected to weft-control".to_owned(),
                };
                format!("{reason} (waited {} s; {control})", wait.as_secs())
            });
        }
    }

    /// What is known about the pod, and whether anything is.
    fn known(&self, told: &Told) -> (Word, bool) {
        let snapshot = self.node.snapshot.load();
        (word::of(&snapshot, &self.node.settings.node_name, told), snapshot.mesh().is_some())
    }

    /// By what this agent's predecessor last knew of the pod's namespace.
    fn was_outside(&self, told: &Told) -> bool {
        self.notice.as_ref().is_some_and(|notice| !notice.must_wait(&told.namespace))
    }

    /// A pod that stays out may be labelled later; then it is found at once, wherever its processes are.
    async fn remember(&self, told: Told) {
        let Some(uid) = told.uid.as_deref().and_then(|uid| uid.parse().ok()) else { return };
        let kept = self.with_enroller(move |enroller| {
            let sandbox = opened(&told, Instant::now())?;
            enroller.attach(&uid, sandbox).map_err(|error| error.to_string())
        });
        if let Err(reason) = kept.await {
            // It will be looked for by its processes.
            info!(reason, "the sandbox of a pod outside the mesh is not remembered");
        }
    }

    async fn check(&self, told: Told) -> Result<bool, String> {
        check_lengths(&told)?;
        let word = word::of(&self.node.snapshot.load(), &self.node.settings.node_name, &told);
        let Word::Enrol(uid) = word else { return Ok(false) };
        self.with_enroller(move |enroller| {
            let sandbox = opened(&told, Instant::now())?;
            let set_up = enroller.is_set_up(&uid, &sandbox);
            set_up
                .then_some(true)
                .ok_or_else(|| format!("pod {}/{} is not set up", told.namespace, told.name))
        })
        .await
    }

    async fn forget(&self, ended: impl Fn(&PodUid, &str) -> bool + Send + 'static) -> Result<(), String> {
        let node = Arc::clone(&self.node);
        self.with_enroller(move |enroller| {
            enroller.detach(ended, &node.pods);
            Ok(())
        })
        .await
    }

    /// On a blocking thread: the file system, setns and bpf are no business of those that carry connections.
    async fn with_enroller<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Enroller) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let enroller = Arc::clone(&self.enroller);
        let done = tokio::task::spawn_blocking(move || work(&mut enroller.lock())).await;
        done.unwrap_or_else(|error| Err(format!("weft-node failed at it: {error}")))
    }
}

fn opened(told: &Told, now: Instant) -> Result<Sandbox, String> {
    Sandbox::open(told.container_id.clone(), &told.netns, told.addresses.clone(), now)
        .map_err(|error| error.to_string())
}

/// Only the runtime can connect; a mistake of its, or of a plugin before this one, must not fill tables all the same.
fn check_lengths(told: &Told) -> Result<(), String> {
    let texts = [&told.container_id, &told.netns, &told.namespace, &told.name];
    if texts.iter().any(|text| text.is_empty() || text.len() > TEXT_BYTES_MAX) {
        return Err(format!("a name or path of the request is empty or longer than {TEXT_BYTES_MAX} bytes"));
    }
    if told.addresses.len() > ADDRESSES_MAX {
        return Err(format!("the pod has more than {ADDRESSES_MAX} addresses"));
    }
    Ok(())
}
