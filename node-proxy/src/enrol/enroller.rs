//! One pass over this node's pods: what should be enrolled against what is. A pod that fails is reported and tried
//! again; it never keeps another one waiting. From the moment that its namespace is known it is shut in the kernel, and
//! it stays so until the proxy listens in it: it never speaks past the mesh because a later step failed.
//!
//! Blocking (file system, setns, bpf): runs on a blocking thread, never on one that carries connections.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};
use weft_ebpf::KernelError;
use weft_proto::identity::{PodUid, SpiffeId, TrustDomain};
use weft_proto::model::Workload;

use super::cgroup::{self, FindError, Found};
use super::exit::ExitWatch;
use super::journal::Journal;
use super::netns::{Netns, NetnsId};
use super::sandbox::Sandboxes;
use super::steering::{self, Inbound, Steering, kernel_facts};
use super::{Failure, LocalPod, Pods};
use crate::identity::Identities;
use crate::snapshot::Snapshot;
use crate::socket;

/// A pod whose container is just being started is looked for this often: its first connection should find the mesh,
/// and one look costs well under a millisecond.
const SEARCH_MS: u64 = 100;
/// Later, and after any other failure, this often.
const RETRY_MS: u64 = 1_000;
/// For so long a missing pod counts as just being started.
const STARTING_MS_MAX: u64 = 30_000;
/// How often pods that are set up are looked at: a new sandbox has another namespace under the same UID.
const RECHECK_MS: u64 = 2_000;

/// The proxy's listeners inside one pod, of both families where the pod has them.
pub struct Listeners {
    pub outbound: Vec<TcpListener>,
    pub inbound: Vec<TcpListener>,
    pub tunnel: Vec<TcpListener>,
}

/// Starts the tasks that accept on a pod's listeners.
pub type Start = Box<dyn Fn(&Arc<LocalPod>, Listeners) -> Vec<JoinHandle<()>> + Send + Sync>;

/// Why a pod is not set up.
#[derive(Debug, thiserror::Error)]
enum PodError {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("its namespace cannot be held: {0}")]
    Hold(io::Error),
    #[error("its address is not known yet")]
    NoAddress,
    #[error("its network namespace already belongs to pod {0}")]
    SharedNetns(PodUid),
    #[error("cannot listen on port {port} inside the pod: {source}")]
    Listen { port: u16, source: io::Error },
    #[error("cannot keep a listener: {0}")]
    Keep(io::Error),
    #[error("the kernel's maps: {0}")]
    Kernel(#[from] KernelError),
}

/// A pod that is set up.
struct Held {
    pod: Arc<LocalPod>,
    /// None: the namespace is known from its sandbox.
    pid: Option<String>,
    netns: NetnsId,
    inbound: Inbound,
    tasks: Vec<JoinHandle<()>>,
    /// Told to `ended`.
    _exit: Option<ExitWatch>,
    /// Its process ended, and no other was found: between two containers, ending, or a new sandbox is being made.
    lost_since: Option<Instant>,
}

/// A pod that is not, and when to try again.
struct Failed {
    since: Instant,
    next: Instant,
    reason: String,
    /// It may be one of the inherited ones.
    unknown_netns: bool,
}

/// What should be set up, and what is.
pub struct Enroller {
    node_name: String,
    cgroup_root: PathBuf,
    node_netns: Vec<NetnsId>,
    node_cookies: Vec<u64>,
    steering: Arc<dyn Steering>,
    start: Start,
    sandboxes: Sandboxes,
    held: HashMap<PodUid, Held>,
    /// Pods that are not held, by the cookie under which the kernel refuses their connections.
    shut: HashMap<PodUid, u64>,
    failed: HashMap<PodUid, Failed>,
    /// Cookies that an earlier process enrolled and nobody has claimed yet: they fail closed until then.
    inherited: BTreeSet<u64>,
    rechecked: Instant,
    recheck_due: bool,
    /// The process of some pod ended.
    ended: Arc<Notify>,
    journal: Journal,
}

/// The pods that should be set up.
type Desired = HashMap<PodUid, (SpiffeId, Arc<Workload>)>;

impl Enroller {
    pub fn new(
        node_name: String,
        cgroup_root: PathBuf,
        steering: Arc<dyn Steering>,
        start: Start,
    ) -> Result<Self, KernelError> {
        let inherited = steering.enrolled()?.into_iter().collect();
        // Our own, and that of the node's first process, should we run in a namespace of our own.
        let (node_netns, node_cookies) = ["self", "1"]
            .iter()
            .filter_map(|pid| Netns::of_process(pid).ok())
            .map(|(netns, id)| (id, netns.cookie))
            .unzip();
        Ok(Self {
            node_name,
            cgroup_root,
            node_netns,
            node_cookies,
            steering,
            start,
            sandboxes: Sandboxes::default(),
            held: HashMap::new(),
            shut: HashMap::new(),
            failed: HashMap::new(),
            inherited,
            rechecked: Instant::now(),
            recheck_due: false,
            ended: Arc::new(Notify::new()),
            journal: Journal::default(),
        })
    }

    /// Notified when a pass is due before its time.
    pub(super) fn ended(&self) -> Arc<Notify> {
        Arc::clone(&self.ended)
    }

    /// Makes the next pass look at the pods that are set up.
    pub(super) fn recheck_next(&mut self) {
        self.recheck_due = true;
    }

    /// Brings pods, sockets and kernel to what the snapshot says. Returns when to look again.
    pub fn pass(
        &mut self,
        snapshot: &Snapshot,
        pods: &Pods,
        identities: &Identities,
        now: Instant,
    ) -> Duration {
        let Some(mesh) = snapshot.mesh() else {
            return Duration::from_millis(RECHECK_MS);
        };
        let desired: Desired = snapshot
            .workloads_of_node(&self.node_name)
            .filter_map(|workload| Some((workload.uid.clone(), self.wanted(&mesh.trust_domain, workload)?)))
            .collect();
        // Certificates first: asked for while the sockets are made.
        let mut wanted: HashMap<SpiffeId, BTreeSet<PodUid>> = HashMap::new();
        for (uid, (identity, _)) in &desired {
            wanted.entry(identity.clone()).or_default().insert(uid.clone());
        }
        identities.want(&wanted);

        if self.recheck_due || now.duration_since(self.rechecked) >= Duration::from_millis(RECHECK_MS) {
            self.rechecked = now;
            self.recheck(pods, now);
        }
        for (uid, (identity, workload)) in &desired {
            self.update(uid, identity, workload, pods);
        }
        self.set_up_missing(&desired, pods, now);
        self.drop_undesired(&desired, snapshot, pods);
        self.drop_inherited(&desired);
        self.sandboxes.retain_known(|uid| snapshot.workload(uid).is_some(), now);
        let sandboxes = self.sandboxes.uids();
        self.journal.retain(|uid| snapshot.workload(uid).is_some() || sandboxes.contains(uid));
        self.report(pods);
        let next = self.failed.values().map(|failed| failed.next.saturating_duration_since(now)).min();
        let next = if self.recheck_due { Some(Duration::from_millis(SEARCH_MS)) } else { next };
        next.unwrap_or(Duration::from_millis(RECHECK_MS))
            .clamp(Duration::from_millis(SEARCH_MS / 2), Duration::from_millis(RECHECK_MS))
    }

    /// The pod's identity and facts, if it belongs into the mesh. Where its sandbox is known, the addresses are those that it was given:
    /// its status may still have none, or those of the sandbox before.
    fn wanted(
        &self,
        trust_domain: &TrustDomain,
        workload: &Arc<Workload>,
    ) -> Option<(SpiffeId, Arc<Workload>)> {
        if !workload.enrolled {
            return None;
        }
        let identity = SpiffeId::new(trust_domain.clone(), &workload.namespace, &workload.service_account)
            .inspect_err(|error| error!(pod = %workload.uid, %error, "the pod has no valid identity"))
            .ok()?;
        let given = self.sandboxes.of(&workload.uid).map(|sandbox| &sandbox.addresses);
        let given = given.filter(|given| {
            !given.is_empty() && given.iter().collect::<BTreeSet<_>>() != workload.ips.iter().collect()
        });
        let workload = match given {
            Some(given) => Arc::new(Workload { ips: given.clone(), ..Workload::clone(workload) }),
            None => Arc::clone(workload),
        };
        Some((identity, workload))
    }

    fn report(&mut self, pods: &Pods) {
        if let Some(events) = self.journal.news() {
            pods.events.store(Arc::new(events));
        }
        let failure = |(uid, failed): (&PodUid, &Failed)| {
            let failure = Failure { reason: failed.reason.clone(), shut: self.shut.contains_key(uid) };
            (uid.clone(), failure)
        };
        pods.failures.store(Arc::new(self.failed.iter().map(failure).collect()));
    }

    /// What changed about a pod that is set up.
    fn update(&mut self, uid: &PodUid, identity: &SpiffeId, workload: &Arc<Workload>, pods: &Pods) {
        let Some(held) = self.held.get(uid) else { return };
        if held.pod.identity != *identity {
            self.let_go(uid, pods, false);
            return;
        }
        let before = held.pod.workload.load_full();
        if before == *workload {
            return;
        }
        if workload.terminating {
            held.pod.ending.cancel();
        }
        held.pod.workload.store(Arc::clone(workload));
        if kernel_facts(&before) != kernel_facts(workload)
            && let Err(error) =
                steering::open(self.steering.as_ref(), &held.pod.netns, workload, &held.inbound)
        {
            error!(pod = %uid, %error, "the pod's change did not reach the kernel: setting it up anew");
            self.let_go(uid, pods, false);
        }
    }

    fn set_up_missing(&mut self, desired: &Desired, pods: &Pods, now: Instant) {
        self.failed.retain(|uid, _| desired.contains_key(uid));
        let missing: Vec<_> = desired
            .iter()
            .filter(|(uid, _)| !self.held.contains_key(*uid))
            .filter(|(uid, _)| self.failed.get(*uid).is_none_or(|failed| failed.next <= now))
            .collect();
        if missing.is_empty() {
            return;
        }
        let directories = cgroup::pods(&self.cgroup_root);
        for (uid, (identity, workload)) in missing {
            match self.set_up(identity, workload, directories.get(uid), pods) {
                Ok(held) => self.hold(uid, held, false),
                Err(reason) => self.note_failure(uid, workload, &reason, now),
            }
        }
    }

    /// `before_its_start`: the runtime waits for it with the pod's first process.
    fn hold(&mut self, uid: &PodUid, held: Held, before_its_start: bool) {
        let (cookie, identity) = (held.pod.netns.cookie, &held.pod.identity);
        let name = Arc::clone(&held.pod.workload.load().name);
        info!(pod = %uid, %name, %identity, cookie, before_its_start, "pod enrolled");
        let when = if before_its_start { "before its first process" } else { "while it runs" };
        self.journal.note(uid, format!("enrolled {when}, network namespace {cookie}"));
        self.failed.remove(uid);
        self.shut.remove(uid);
        self.held.insert(uid.clone(), held);
    }

    fn note_failure(&mut self, uid: &PodUid, workload: &Workload, reason: &PodError, now: Instant) {
        let text = reason.to_string();
        let old = self.failed.get(uid);
        let since = old.map_or(now, |failed| failed.since);
        if old.is_none_or(|failed| failed.reason != text) {
            let name = &workload.name;
            if workload.ips.is_empty() {
                info!(pod = %uid, %name, reason = text, "the pod is not set up: it is starting");
            } else {
                warn!(pod = %uid, %name, reason = text, "the pod is not set up");
            }
            self.journal.note(uid, format!("not set up: {text}"));
        }
        let soon = match reason {
            PodError::Find(FindError::NoCgroup(_) | FindError::NoProcess(_)) | PodError::NoAddress => true,
            // Our own listeners of a moment ago, in a pod that left and came back, are still being closed.
            PodError::Listen { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
            _ => false,
        };
        let starting = soon && now.duration_since(since) < Duration::from_millis(STARTING_MS_MAX);
        let pause = if starting { SEARCH_MS } else { RETRY_MS };
        let next = now + Duration::from_millis(pause);
        let unknown_netns =
            matches!(reason, PodError::Find(error) if !matches!(error, FindError::HostNetwork));
        self.failed.insert(uid.clone(), Failed { since, next, reason: text, unknown_netns });
    }

    /// Finds the pod, shuts it, opens the listeners inside, and tells the kernel to send connections there.
    fn set_up(
        &mut self,
        identity: &SpiffeId,
        workload: &Arc<Workload>,
        directory: Option<&PathBuf>,
        pods: &Pods,
    ) -> Result<Held, PodError> {
        let Found { pid, netns, id } = match self.sandboxes.of(&workload.uid) {
            Some(sandbox) => {
                Found { pid: None, netns: sandbox.netns.try_clone().map_err(PodError::Hold)?, id: sandbox.id }
            }
            None => cgroup::find(&self.cgroup_root, directory, &self.node_netns)?,
        };
        self.shut(workload, &netns)?;
        if workload.ips.is_empty() {
            return Err(PodError::NoAddress);
        }
        let open =
            |port| socket::listen_dual(&netns, port).map_err(|source| PodError::Listen { port, source });
        let listeners = Listeners {
            outbound: open(socket::OUTBOUND_PORT)?,
            inbound: open(socket::INBOUND_PORT)?,
            tunnel: open(socket::TUNNEL_PORT)?,
        };
        let keep = |v6: bool| -> Result<Option<OwnedFd>, PodError> {
            let of_family =
                |listener: &&TcpListener| listener.local_addr().is_ok_and(|at| at.is_ipv6() == v6);
            let listener = listeners.inbound.iter().find(of_family);
            listener.map(|it| it.as_fd().try_clone_to_owned()).transpose().map_err(PodError::Keep)
        };
        let inbound = Inbound { v4: keep(false)?, v6: keep(true)? };
        let pod = Arc::new(LocalPod::new(identity.clone(), netns, Arc::clone(workload)));
        if workload.terminating {
            pod.ending.cancel();
        }
        steering::open(self.steering.as_ref(), &pod.netns, workload, &inbound)?;
        // Known before the first connection is accepted.
        pods.insert(&pod);
        let tasks = (self.start)(&pod, listeners);
        let exit = pid.as_ref().map(|pid| ExitWatch::new(pid, &self.ended));
        Ok(Held { pod, pid, netns: id, inbound, tasks, _exit: exit, lost_since: None })
    }

    /// From now on the kernel refuses the connections of the pod, and whatever happens it is not forgotten.
    fn shut(&mut self, workload: &Workload, netns: &Netns) -> Result<(), PodError> {
        let (uid, cookie) = (&workload.uid, netns.cookie);
        if self.node_cookies.contains(&cookie) {
            return Err(FindError::HostNetwork.into());
        }
        let held = self.held.values().map(|held| (&held.pod.uid, held.pod.netns.cookie));
        let shut = self.shut.iter().map(|(other, cookie)| (other, *cookie));
        if let Some((other, _)) = held.chain(shut).find(|(other, its)| *its == cookie && *other != uid) {
            return Err(PodError::SharedNetns(other.clone()));
        }
        if let Some(old) = self.shut.insert(uid.clone(), cookie)
            && old != cookie
        {
            self.release(uid, old);
        }
        self.inherited.remove(&cookie);
        Ok(steering::shut(self.steering.as_ref(), netns, workload)?)
    }

    /// Lets a pod go: its listeners close. `from_kernel`: its new connections bypass the mesh; otherwise it is set
    /// up again at once and fails closed meanwhile.
    fn let_go(&mut self, uid: &PodUid, pods: &Pods, from_kernel: bool) {
        let Some(held) = self.held.remove(uid) else { return };
        let cookie = held.pod.netns.cookie;
        if from_kernel {
            self.release(uid, cookie);
        } else {
            self.shut.insert(uid.clone(), cookie);
        }
        pods.remove(uid);
        held.pod.released.cancel();
    }

    fn release(&mut self, uid: &PodUid, cookie: u64) {
        if let Err(error) = self.steering.release(cookie) {
            error!(pod = %uid, %error, "the kernel keeps the pod; trying again");
            self.inherited.insert(cookie);
        }
    }

    fn drop_undesired(&mut self, desired: &Desired, snapshot: &Snapshot, pods: &Pods) {
        let leaving: Vec<PodUid> =
            self.held.keys().filter(|uid| !desired.contains_key(*uid)).cloned().collect();
        for uid in leaving {
            let gone = snapshot.workload(&uid).is_none_or(|workload| workload.terminating);
            let pod = self.held.get(&uid).map(|held| Arc::clone(&held.pod));
            info!(pod = %uid, gone, "pod released");
            self.journal.note(&uid, "left the mesh");
            self.let_go(&uid, pods, true);
            if let Some(pod) = pod.filter(|_| gone) {
                pod.gone.cancel();
            }
        }
        let shut: Vec<PodUid> = self.shut.keys().filter(|uid| !desired.contains_key(*uid)).cloned().collect();
        for uid in shut {
            if let Some(cookie) = self.shut.remove(&uid) {
                self.journal.note(&uid, "left the mesh");
                info!(pod = %uid, "pod released that was not set up");
                self.release(&uid, cookie);
            }
        }
    }

    /// Cookies of an earlier process that belong to no pod of today. While a pod is missing, one of them may be its.
    fn drop_inherited(&mut self, desired: &Desired) {
        let unknown = |uid: &PodUid| {
            !self.held.contains_key(uid)
                && !self.shut.contains_key(uid)
                && self.failed.get(uid).is_none_or(|failed| failed.unknown_netns)
        };
        if desired.keys().any(unknown) {
            return;
        }
        let steering = Arc::clone(&self.steering);
        self.inherited.retain(|cookie| match steering.release(*cookie) {
            Ok(()) => false,
            Err(error) => {
                error!(cookie, %error, "the kernel keeps a pod of an earlier process");
                true
            }
        });
    }

    /// Closes every listener: the pods fail closed until the next process. Live connections go on.
    pub fn close(&mut self) {
        for held in self.held.drain().map(|(_, held)| held) {
            held.pod.released.cancel();
        }
    }
}

mod attach;
mod recheck;
#[cfg(test)]
mod tests;
