//! What enrolment promises about pods that come, fail, move and go: with real processes in real network namespaces, and
//! a list in the place of the kernel's maps. Needs root, as the whole kernel side does.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use weft_ebpf::PodState;
use weft_proto::model::{Mesh, Resource, ResourceKey, Revision};

use super::*;
use crate::identity::{SignError, Signer};
use crate::snapshot::{Change, fixtures::workload};

/// What the kernel would do with a pod's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// Refused.
    Shut,
    /// To the proxy's listeners.
    Mesh,
}

#[derive(Default)]
struct Maps {
    pods: Mutex<BTreeMap<u64, Kernel>>,
    full: AtomicBool,
}

impl Steering for Maps {
    fn enrol(&self, pod: &PodState<'_>) -> Result<(), KernelError> {
        if self.full.load(Ordering::Relaxed) {
            return Err(KernelError::NotBuilt);
        }
        let listens = pod.inbound_v4.is_some() && pod.outbound_port == socket::OUTBOUND_PORT;
        let state = if listens { Kernel::Mesh } else { Kernel::Shut };
        self.pods.lock().insert(pod.netns_cookie, state);
        Ok(())
    }
    fn release(&self, netns_cookie: u64) -> Result<(), KernelError> {
        self.pods.lock().remove(&netns_cookie);
        Ok(())
    }
    fn enrolled(&self) -> Result<Vec<u64>, KernelError> {
        Ok(self.pods.lock().keys().copied().collect())
    }
}

/// Certificates are no part of this: they never come.
struct Silent;

impl Signer for Silent {
    fn sign(
        &self,
        _: PodUid,
        _: Vec<u8>,
    ) -> futures_util::future::BoxFuture<'static, Result<Vec<CertificateDer<'static>>, SignError>> {
        std::future::pending().boxed()
    }
}

/// A process alone in a namespace; ends when dropped.
struct Sandbox(Child);

impl Sandbox {
    fn start() -> Self {
        let mut command = Command::new("sleep");
        command.arg("1000");
        // SAFETY: only a system call between fork and exec.
        unsafe {
            command.pre_exec(|| match libc::unshare(libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        Self(command.spawn().expect("needs root"))
    }
    fn netns(&self) -> Netns {
        Netns::of_process(&self.0.id().to_string()).unwrap().0
    }
    fn cookie(&self) -> u64 {
        self.netns().cookie
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A node with a tree of cgroups, which the kubelet would have made.
struct Node {
    cgroups: tempfile::TempDir,
    maps: Arc<Maps>,
    enroller: Enroller,
    pods: Pods,
    identities: Identities,
    snapshot: Snapshot,
    now: Instant,
}

impl Node {
    fn new() -> Self {
        Self::after(Arc::default())
    }

    /// One that finds what an earlier process left.
    fn after(maps: Arc<Maps>) -> Self {
        let cgroups = tempfile::tempdir().unwrap();
        let start: Start = Box::new(|pod, listeners| {
            let pod = Arc::clone(pod);
            vec![tokio::spawn(async move {
                pod.released.cancelled().await;
                drop(listeners);
            })]
        });
        let root = cgroups.path().to_owned();
        let enroller = Enroller::new("n1".into(), root, Arc::clone(&maps) as _, start).unwrap();
        let mesh = Mesh {
            trust_domain: "cluster.local".parse().unwrap(),
            roots: vec![vec![1]],
            enrolled_namespaces: Vec::new(),
        };
        let (pods, identities) = (Pods::default(), Identities::new(Arc::new(Silent)));
        let snapshot = Snapshot::default().apply(Revision(1), [upsert(Resource::Mesh(Arc::new(mesh)))]);
        Self { cgroups, maps, enroller, pods, identities, snapshot, now: Instant::now() }
    }

    /// The kubelet starts, or restarts, the pod's sandbox.
    fn place(&self, uid: &str, sandbox: &Sandbox) {
        let container = self.cgroups.path().join(format!("kubepods/besteffort/pod{uid}/c1"));
        fs::create_dir_all(&container).unwrap();
        fs::write(container.join("cgroup.procs"), format!("{}\n", sandbox.0.id())).unwrap();
    }

    fn say(&mut self, uid: &str, change: impl FnOnce(&mut Workload)) {
        let mut workload = workload(uid, "10.0.0.1", "n1", false);
        change(&mut workload);
        let change = upsert(Resource::Workload(Arc::new(workload)));
        self.snapshot = self.snapshot.apply(Revision(2), [change]);
    }

    fn forget(&mut self, uid: &str) {
        let change = Change::Remove(ResourceKey::Workload(uid.parse().unwrap()));
        self.snapshot = self.snapshot.apply(Revision(3), [change]);
    }

    /// A pass after all pauses.
    fn pass(&mut self) {
        self.now += Duration::from_millis(RECHECK_MS);
        self.enroller.pass(&self.snapshot, &self.pods, &self.identities, self.now);
    }

    /// The container runtime made a sandbox, and no process of the pod runs yet. The error is for people.
    fn attach(
        &mut self,
        uid: &str,
        container: &str,
        sandbox: &Sandbox,
        addresses: &[&str],
    ) -> Result<(), String> {
        self.remember(uid, container, sandbox, addresses)?;
        self.enroller.set_up_now(&uid.parse().unwrap(), &self.snapshot, &self.pods, self.now)
    }

    /// As of a pod that starts outside of the mesh.
    fn remember(
        &mut self,
        uid: &str,
        container: &str,
        sandbox: &Sandbox,
        addresses: &[&str],
    ) -> Result<(), String> {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let path = format!("/proc/{}/ns/net", sandbox.0.id());
        let told = crate::enrol::Sandbox::open(container.into(), &path, addresses, self.now).unwrap();
        self.enroller.attach(&uid.parse().unwrap(), told).map_err(|error| error.to_string())
    }

    fn detach(&mut self, container: &str) {
        self.enroller.detach(|_, ended| ended == container, &self.pods);
    }

    fn events(&self, uid: &str) -> Vec<String> {
        let events = self.pods.events();
        let of_pod = events.get(&uid.parse().unwrap()).into_iter().flatten();
        of_pod.map(|event| event.text.clone()).collect()
    }

    fn local(&self, uid: &str) -> Option<Arc<LocalPod>> {
        self.pods.by_uid(&uid.parse().unwrap())
    }
    fn failure(&self, uid: &str) -> Option<Failure> {
        self.pods.failures().get(&uid.parse().unwrap()).cloned()
    }
    fn kernel(&self, cookie: u64) -> Option<Kernel> {
        self.maps.pods.lock().get(&cookie).copied()
    }
}

fn upsert(resource: Resource) -> Change {
    let key = weft_proto::convert::key_of(&resource);
    let version = weft_proto::convert::version_of(&resource);
    Change::Upsert(key, version, resource)
}

#[tokio::test]
async fn two_pods_with_one_address_are_told_apart_by_their_namespaces() {
    let mut node = Node::new();
    let (one, two) = (Sandbox::start(), Sandbox::start());
    for (uid, sandbox) in [("aaaa-1", &one), ("aaaa-2", &two)] {
        node.place(uid, sandbox);
        node.say(uid, |workload| workload.service_account = uid.into());
    }
    node.pass();
    for (uid, sandbox) in [("aaaa-1", &one), ("aaaa-2", &two)] {
        let local = node.local(uid).unwrap();
        assert_eq!(local.netns.cookie, sandbox.cookie());
        assert!(local.identity.to_string().ends_with(uid));
        assert_eq!(node.kernel(sandbox.cookie()), Some(Kernel::Mesh));
    }
}

#[tokio::test]
async fn a_pod_that_leaves_the_mesh_keeps_its_connections_and_one_that_is_deleted_does_not() {
    for (deleted, ended) in [(false, false), (true, true)] {
        let mut node = Node::new();
        let sandbox = Sandbox::start();
        node.place("bbbb-1", &sandbox);
        node.say("bbbb-1", |_| {});
        node.pass();
        let local = node.local("bbbb-1").unwrap();
        if deleted {
            node.forget("bbbb-1");
        } else {
            node.say("bbbb-1", |workload| workload.enrolled = false);
        }
        node.pass();
        assert!(node.local("bbbb-1").is_none());
        assert_eq!(node.kernel(sandbox.cookie()), None, "new connections bypass the mesh");
        assert!(local.released.is_cancelled(), "nothing is accepted any more");
        assert_eq!(local.gone.is_cancelled(), ended, "deleted: {deleted}");
        // Back again, in the same namespace.
        node.say("bbbb-1", |_| {});
        settle(&mut node, "bbbb-1").await;
        assert_eq!(node.kernel(sandbox.cookie()), Some(Kernel::Mesh));
    }
}

/// What makes its tunnels say GOAWAY, at once: it need not be gone, and goes on serving.
#[tokio::test]
async fn a_pod_that_is_told_to_end_is_known_to_be_ending_and_stays_in_the_mesh() {
    for from_the_start in [false, true] {
        let mut node = Node::new();
        let sandbox = Sandbox::start();
        node.place("bbbb-2", &sandbox);
        node.say("bbbb-2", |workload| workload.terminating = from_the_start);
        node.pass();
        let local = node.local("bbbb-2").unwrap();
        assert_eq!(local.ending.is_cancelled(), from_the_start);
        node.say("bbbb-2", |workload| workload.terminating = true);
        node.pass();
        assert!(local.ending.is_cancelled());
        assert!(!local.released.is_cancelled() && node.local("bbbb-2").is_some());
        assert_eq!(node.kernel(sandbox.cookie()), Some(Kernel::Mesh));
    }
}

/// Passes until the pod is set up: the listeners of its earlier life close in their own time.
async fn settle(node: &mut Node, uid: &str) {
    // A child that another test is making has copies of listeners' descriptors, too, until it becomes another program.
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        node.pass();
        if node.local(uid).is_some() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("not set up: {:?}", node.failure(uid));
}

#[tokio::test]
async fn a_pod_whose_ports_are_taken_is_shut_and_set_up_once_they_are_free_and_the_others_do_not_wait() {
    for port in [socket::OUTBOUND_PORT, socket::INBOUND_PORT, socket::TUNNEL_PORT] {
        let mut node = Node::new();
        let (sandbox, beside) = (Sandbox::start(), Sandbox::start());
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let taken = socket::listen(&sandbox.netns(), any).unwrap();
        for (uid, sandbox) in [("cccc-1", &sandbox), ("cccc-2", &beside)] {
            node.place(uid, sandbox);
            node.say(uid, |_| {});
        }
        node.pass();
        assert_eq!(node.kernel(sandbox.cookie()), Some(Kernel::Shut));
        assert!(node.local("cccc-1").is_none());
        assert_eq!((node.kernel(beside.cookie()), node.failure("cccc-2")), (Some(Kernel::Mesh), None));
        let failure = node.failure("cccc-1").unwrap();
        assert!(failure.shut);
        assert!(failure.reason.contains(&port.to_string()), "{}", failure.reason);
        drop(taken);
        settle(&mut node, "cccc-1").await;
        assert_eq!(node.kernel(sandbox.cookie()), Some(Kernel::Mesh));
        assert_eq!(node.failure("cccc-1"), None);
    }
}

#[tokio::test]
async fn a_pod_that_was_only_shut_is_let_go_with_its_label() {
    let mut node = Node::new();
    let sandbox = Sandbox::start();
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, socket::OUTBOUND_PORT));
    let _taken = socket::listen(&sandbox.netns(), any).unwrap();
    node.place("dddd-1", &sandbox);
    node.say("dddd-1", |_| {});
    node.pass();
    assert_eq!(node.kernel(sandbox.cookie()), Some(Kernel::Shut));
    node.say("dddd-1", |workload| workload.enrolled = false);
    node.pass();
    assert_eq!(node.kernel(sandbox.cookie()), None);
    assert_eq!(node.failure("dddd-1"), None);
}

#[tokio::test]
async fn a_kernel_that_takes_no_entry_is_reported_and_tried_again() {
    let mut node = Node::new();
    let sandbox = Sandbox::start();
    node.place("eeee-1", &sandbox);
    node.say("eeee-1", |_| {});
    node.maps.full.store(true, Ordering::Relaxed);
    node.pass();
    assert!(node.failure("eeee-1").unwrap().reason.contains("kernel"));
    node.maps.full.store(false, Ordering::Relaxed);
    settle(&mut node, "eeee-1").await;
    assert_eq!(node.kernel(sandbox.cookie()), Some(Kernel::Mesh));
}

#[tokio::test]
async fn pods_of_an_earlier_process_stay_shut_until_found_and_strangers_are_released_last() {
    let (known, late) = (Sandbox::start(), Sandbox::start());
    let stranger = 4_711;
    let maps = Arc::new(Maps::default());
    for cookie in [known.cookie(), late.cookie(), stranger] {
        maps.pods.lock().insert(cookie, Kernel::Shut);
    }
    let mut node = Node::after(Arc::clone(&maps));
    node.place("ffff-1", &known);
    for uid in ["ffff-1", "ffff-2"] {
        node.say(uid, |workload| workload.service_account = uid.into());
    }
    node.pass();
    assert_eq!(node.kernel(known.cookie()), Some(Kernel::Mesh));
    assert_eq!(node.kernel(late.cookie()), Some(Kernel::Shut), "its processes were not found yet");
    assert_eq!(node.kernel(stranger), Some(Kernel::Shut), "it may be the missing pod's");
    assert!(!node.failure("ffff-2").unwrap().shut, "nobody knows that it is");
    node.place("ffff-2", &late);
    node.pass();
    assert_eq!(node.kernel(late.cookie()), Some(Kernel::Mesh));
    assert_eq!(node.kernel(stranger), None);
}

#[tokio::test]
async fn a_new_sandbox_under_the_same_uid_is_set_up_and_the_old_one_released() {
    let mut node = Node::new();
    let old = Sandbox::start();
    let old_cookie = old.cookie();
    node.place("9999-1", &old);
    node.say("9999-1", |_| {});
    node.pass();
    let before = node.local("9999-1").unwrap();
    let ended = node.enroller.ended();
    drop(old);
    // At once, not at the next regular look.
    tokio::time::timeout(Duration::from_secs(10), ended.notified()).await.unwrap();
    node.enroller.recheck_next();
    let next = node.enroller.pass(&node.snapshot, &node.pods, &node.identities, node.now);
    assert!(node.local("9999-1").is_some(), "between two sandboxes the namespace stays enrolled");
    assert_eq!(next, Duration::from_millis(SEARCH_MS), "and the new one is looked for often");
    let new = Sandbox::start();
    node.place("9999-1", &new);
    node.enroller.pass(&node.snapshot, &node.pods, &node.identities, node.now);
    let after = node.local("9999-1").unwrap();
    assert!(before.released.is_cancelled());
    assert_eq!(after.netns.cookie, new.cookie());
    assert_eq!(node.kernel(new.cookie()), Some(Kernel::Mesh));
    assert_eq!(node.kernel(old_cookie), None);
}

#[tokio::test]
async fn two_pods_cannot_share_a_namespace() {
    let mut node = Node::new();
    let sandbox = Sandbox::start();
    for uid in ["8888-1", "8888-2"] {
        node.place(uid, &sandbox);
        node.say(uid, |_| {});
    }
    node.pass();
    let set_up = ["8888-1", "8888-2"].map(|uid| node.local(uid).is_some());
    assert!(set_up == [true, false] || set_up == [false, true]);
    assert_eq!(node.kernel(sandbox.cookie()), Some(Kernel::Mesh), "the other one changes nothing");
}

#[tokio::test]
async fn a_pod_is_in_the_mesh_before_its_first_process_and_stays_the_same_pod() {
    let mut node = Node::new();
    let sandbox = Sandbox::start();
    node.say("7777-1", |workload| workload.ips.clear());
    node.pass();
    assert!(node.local("7777-1").is_none(), "scheduled: there is no sandbox yet");
    node.attach("7777-1", "c1", &sandbox, &["10.0.0.7"]).unwrap();
    let local = node.local("7777-1").unwrap();
    assert_eq!(node.kernel(sandbox.cookie()), Some(Kernel::Mesh));
    assert_eq!(local.workload.load().ips, ["10.0.0.7".parse::<std::net::IpAddr>().unwrap()]);
    // Its status becomes known, and its processes appear: nothing is set up twice.
    node.say("7777-1", |workload| workload.ips = vec!["10.0.0.7".parse().unwrap()]);
    node.place("7777-1", &sandbox);
    node.enroller.recheck_next();
    node.pass();
    node.attach("7777-1", "c1", &sandbox, &["10.0.0.7"]).unwrap();
    assert!(Arc::ptr_eq(&node.local("7777-1").unwrap(), &local));
    assert!(!local.released.is_cancelled());
    assert_eq!(node.maps.pods.lock().len(), 1);
    let events = node.events("7777-1");
    assert!(events.iter().any(|text| text.contains("before its first process")), "{events:?}");
}

#[tokio::test]
async fn of_a_pod_that_started_outside_of_the_mesh_nobody_says_it_was_in_it_before_its_first_process() {
    let mut node = Node::new();
    let sandbox = Sandbox::start();
    node.remember("7777-2", "c1", &sandbox, &["10.0.0.7"]).unwrap();
    node.pass();
    assert!(node.local("7777-2").is_none(), "it is not wanted yet");
    node.say("7777-2", |_| {});
    node.pass();
    assert!(node.local("7777-2").is_some());
    let events = node.events("7777-2");
    assert!(events.iter().any(|text| text.contains("enrolled while it runs")), "{events:?}");
}

#[tokio::test]
async fn a_sandbox_that_is_taken_down_releases_its_pod_and_not_the_one_after_it() {
    let mut node = Node::new();
    let (old, new) = (Sandbox::start(), Sandbox::start());
    node.say("6666-1", |_| {});
    node.attach("6666-1", "c1", &old, &["10.0.0.1"]).unwrap();
    let before = node.local("6666-1").unwrap();
    node.attach("6666-1", "c2", &new, &["10.0.0.2"]).unwrap();
    assert!(before.released.is_cancelled());
    assert_eq!((node.kernel(old.cookie()), node.kernel(new.cookie())), (None, Some(Kernel::Mesh)));
    // The end of the old one is told late.
    node.detach("c1");
    let after = node.local("6666-1").unwrap();
    assert_eq!(after.workload.load().ips, ["10.0.0.2".parse::<std::net::IpAddr>().unwrap()]);
    node.detach("c2");
    assert!(node.local("6666-1").is_none() && after.gone.is_cancelled());
    assert_eq!(node.kernel(new.cookie()), None);
    node.detach("c2");
}

#[tokio::test]
async fn what_the_runtime_says_of_a_sandbox_counts_more_than_where_a_process_of_the_pod_is() {
    let mut node = Node::new();
    let (sandbox, nested) = (Sandbox::start(), Sandbox::start());
    node.say("5555-1", |_| {});
    node.attach("5555-1", "c1", &sandbox, &["10.0.0.1"]).unwrap();
    // A process that made a namespace of its own.
    node.place("5555-1", &nested);
    node.enroller.recheck_next();
    node.pass();
    assert_eq!(node.local("5555-1").unwrap().netns.cookie, sandbox.cookie());
    assert_eq!(node.kernel(nested.cookie()), None);
}

#[tokio::test]
async fn a_pod_without_an_address_is_shut_and_the_nodes_own_namespace_is_never_touched() {
    let mut node = Node::new();
    let sandbox = Sandbox::start();
    node.say("4444-1", |workload| workload.ips.clear());
    node.place("4444-1", &sandbox);
    node.pass();
    assert_eq!(node.kernel(sandbox.cookie()), Some(Kernel::Shut), "{:?}", node.failure("4444-1"));
    let own = crate::enrol::Sandbox::open("c".into(), "/proc/self/ns/net", Vec::new(), node.now).unwrap();
    let refused = node.enroller.attach(&"4444-1".parse().unwrap(), own).unwrap_err();
    assert!(refused.to_string().contains("of the node"), "{refused}");
    // Nor if a hostNetwork pod is told to be enrolled.
    let container = node.cgroups.path().join("kubepods/besteffort/pod4444-2/c1");
    fs::create_dir_all(&container).unwrap();
    fs::write(container.join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
    node.say("4444-2", |_| {});
    node.pass();
    assert!(node.failure("4444-2").unwrap().reason.contains("hostNetwork"));
    let host = Netns::of_process("self").unwrap().0.cookie;
    assert_eq!(node.kernel(host), None);
}

#[tokio::test]
async fn a_pod_outside_the_mesh_is_found_by_its_sandbox_once_it_is_labelled() {
    let mut node = Node::new();
    let sandbox = Sandbox::start();
    node.say("3333-1", |workload| workload.enrolled = false);
    let refused = node.attach("3333-1", "c1", &sandbox, &["10.0.0.1"]).unwrap_err();
    assert!(refused.contains("no more"), "{refused}");
    node.pass();
    node.say("3333-1", |_| {});
    node.pass();
    assert_eq!(node.kernel(sandbox.cookie()), Some(Kernel::Mesh));
    node.forget("3333-1");
    node.pass();
    assert_eq!(node.kernel(sandbox.cookie()), None);
}
