//! A small world for the kernel tests: two namespaces joined by a veth pair, a cgroup for the pod and one for the proxy,
//! and a [`Kernel`] of its own. Nothing has a global name except the cgroup and the pins, which carry the process id
//! and are removed when the world is dropped.
#![allow(dead_code, reason = "each test binary uses a part")]
#![expect(clippy::unwrap_used, reason = "test code outside of a #[test] function")]
#![allow(clippy::assertions_on_constants, reason = "the constant differs between builds")]

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use weft_ebpf::{Kernel, Options, Outcome, PodState};

pub(crate) const OUTBOUND: u16 = 15001;
pub(crate) const INBOUND: u16 = 15006;
pub(crate) const TUNNEL: u16 = 15008;
/// The pod's and the other side's addresses.
pub(crate) const POD4: &str = "10.77.0.5";
pub(crate) const POD6: &str = "fd77::5";
pub(crate) const PEER4: &str = "10.77.0.6";
pub(crate) const PEER6: &str = "fd77::6";

pub(crate) struct Netns {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) cookie: u64,
}

pub(crate) struct World {
    pub(crate) root: PathBuf,
    pub(crate) pins: PathBuf,
    pub(crate) pod: Netns,
    pub(crate) peer: Netns,
}

/// Where cgroup v2 is mounted: alone, or beside v1.
pub(crate) fn cgroup_root() -> PathBuf {
    let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    places.into_iter().find(|place| place.join("cgroup.controllers").exists()).expect("cgroup v2 is mounted")
}

/// Held while there is a child. It begins with copies of all descriptors, those of other tests' sockets too, and lets go of
/// them a moment after it has become `ip`: whoever made it may go on before that. At its end it certainly has.
static CHILD: Mutex<()> = Mutex::new(());

/// Like `drop`, for what is to be closed when this returns, and not when a child of another test lets go.
pub(crate) fn close<T>(what: T) {
    drop(what);
    drop(CHILD.lock());
}

fn ip(arguments: &str) {
    let mut command = Command::new("ip");
    command.args(arguments.split_whitespace()).stdin(Stdio::null());
    let output = {
        let _only = CHILD.lock();
        command.output().unwrap()
    };
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn netns() -> Netns {
    std::thread::spawn(|| {
        // SAFETY: only this thread changes its namespace.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        ip("link set lo up");
        let fd = Arc::new(OwnedFd::from(fs::File::open("/proc/thread-self/ns/net").unwrap()));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let mut cookie = 0u64;
        let mut length = 8;
        // SAFETY: the kernel writes eight bytes.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                71,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0);
        Netns { fd, cookie }
    })
    .join()
    .unwrap()
}

impl World {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(weft_ebpf::BUILT, "the kernel programs are missing from this build: run make setup");
        // Threads of one process may sit in threaded cgroups below the one that the process is in. Once: it takes all
        // threads along, also those that another test of this process has put where its hooks are.
        static MOVED: Once = Once::new();
        MOVED.call_once(|| {
            fs::write(cgroup_root().join("cgroup.procs"), std::process::id().to_string()).unwrap();
        });
        let name = format!("weft-kt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = cgroup_root().join(&name);
        for part in ["", "agent", "pod", "kubelet"] {
            fs::create_dir(root.join(part)).unwrap();
            fs::write(root.join(part).join("cgroup.type"), "threaded").unwrap();
        }
        let world = Self { pins: Path::new("/sys/fs/bpf").join(&name), root, pod: netns(), peer: netns() };
        let other = format!("/proc/{}/fd/{}", std::process::id(), world.peer.fd.as_raw_fd());
        world.run("agent", &world.pod, move || {
            ip("link add eth0 type veth peer name eth1");
            ip(&format!("link set eth1 netns {other}"));
            ip(&format!("addr add {POD4}/24 dev eth0"));
            ip(&format!("addr add {POD6}/64 dev eth0 nodad"));
            ip("link set eth0 up");
        });
        world.run("agent", &world.peer, || {
            ip(&format!("addr add {PEER4}/24 dev eth1"));
            ip(&format!("addr add {PEER6}/64 dev eth1 nodad"));
            ip("link set eth1 up");
        });
        world
    }

    /// Another pod of the node, with the same addresses as the first and nobody to talk to but itself.
    pub(crate) fn another_pod(&self) -> Netns {
        let pod = netns();
        self.run("agent", &pod, || {
            ip(&format!("addr add {POD4}/32 dev lo"));
            ip(&format!("addr add {POD6}/128 dev lo nodad"));
        });
        pod
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            pin_dir: self.pins.clone(),
            cgroup_root: self.root.clone(),
            proxy_cgroup: self.root.join("agent"),
            pods_cgroup: None,
            redirect: true,
            flows_max: 256,
        }
    }

    pub(crate) fn kernel(&self) -> Arc<Kernel> {
        Arc::new(Kernel::load(&self.options()).unwrap_or_else(|error| panic!("{error}: {error:?}")))
    }

    /// Runs on a thread of its own, in a cgroup (`agent`, `pod`, `kubelet`) and a namespace.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        cgroup: &str,
        netns: &Netns,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        self.start(cgroup, netns, work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    pub(crate) fn start<T: Send + 'static>(
        &self,
        cgroup: &str,
        netns: &Netns,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let threads = self.root.join(cgroup).join("cgroup.threads");
        let netns = Arc::clone(&netns.fd);
        std::thread::spawn(move || {
            fs::write(threads, rustix::thread::gettid().as_raw_nonzero().to_string()).unwrap();
            rustix::thread::move_into_link_name_space(netns.as_fd(), None).unwrap();
            work()
        })
    }

    pub(crate) fn listen(&self, cgroup: &str, netns: &Netns, address: &str, port: u16) -> TcpListener {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        self.run(cgroup, netns, move || listen(address).unwrap())
    }

    /// Enrols a pod of [`World::another_pod`].
    pub(crate) fn enrol_other(&self, kernel: &Kernel, pod: &Netns) -> Proxy {
        let proxy = Proxy::listen(self, pod);
        kernel.enrol(&proxy.state(pod, &[POD4.parse().unwrap(), POD6.parse().unwrap()])).unwrap();
        proxy
    }

    /// Enrols the pod with proxy listeners of both families.
    pub(crate) fn enrol(&self, kernel: &Kernel) -> Proxy {
        self.enrol_with(kernel, |_| {})
    }

    pub(crate) fn enrol_with(&self, kernel: &Kernel, change: impl FnOnce(&mut PodState<'_>)) -> Proxy {
        let proxy = Proxy::listen(self, &self.pod);
        let addresses: [IpAddr; 2] = [POD4.parse().unwrap(), POD6.parse().unwrap()];
        let mut state = proxy.state(&self.pod, &addresses);
        change(&mut state);
        kernel.enrol(&state).unwrap();
        proxy
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let detached = weft_ebpf::detach_all(&self.pins);
        // A thread that has just ended may be in its cgroup a moment longer.
        for part in ["agent", "pod", "kubelet", ""] {
            wait_for("an empty cgroup", || fs::remove_dir(self.root.join(part)).is_ok());
        }
        if !std::thread::panicking() {
            detached.unwrap();
        }
    }
}

/// The proxy's listeners inside a pod.
pub(crate) struct Proxy {
    pub(crate) outbound4: TcpListener,
    pub(crate) outbound6: TcpListener,
    pub(crate) inbound4: TcpListener,
    pub(crate) inbound6: TcpListener,
}

impl Proxy {
    pub(crate) fn listen(world: &World, pod: &Netns) -> Self {
        Self {
            outbound4: world.listen("agent", pod, "0.0.0.0", OUTBOUND),
            outbound6: world.listen("agent", pod, "::", OUTBOUND),
            inbound4: world.listen("agent", pod, "0.0.0.0", INBOUND),
            inbound6: world.listen("agent", pod, "::", INBOUND),
        }
    }

    pub(crate) fn state<'a>(&'a self, pod: &'a Netns, addresses: &'a [IpAddr]) -> PodState<'a> {
        PodState {
            netns: pod.fd.as_fd(),
            netns_cookie: pod.cookie,
            addresses,
            outbound_port: OUTBOUND,
            inbound_v4: Some(self.inbound4.as_fd()),
            inbound_v6: Some(self.inbound6.as_fd()),
            excluded_inbound_ports: &[TUNNEL],
            probe_ports: &[],
            excluded_outbound_ports: &[],
            excluded_outbound_cidrs: &[],
            redirect: true,
        }
    }
}

/// As the proxy connects to an application: from loopback, no port before the connect, named.
pub(crate) fn connect_named(kernel: &Kernel, to: SocketAddr, client: SocketAddr) -> io::Result<TcpStream> {
    connect_named_by(&[kernel], to, client)
}

pub(crate) fn connect_named_by(
    kernels: &[&Kernel],
    to: SocketAddr,
    client: SocketAddr,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    let on: libc::c_int = 1;
    // SAFETY: the option is an int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            4,
        )
    };
    assert_eq!(result, 0);
    socket.bind(&at(if to.is_ipv4() { "127.0.0.1" } else { "::1" }, 0).into())?;
    for kernel in kernels {
        kernel.name_peer(&socket, client).map_err(|error| io::Error::other(format!("{error:?}")))?;
    }
    socket.connect(&to.into())?;
    Ok(socket.into())
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(512)?;
    // A connection that never comes is a failed test, not a hanging one.
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(socket.into())
}

/// A SYN with a forged source, from outside the pod.
pub(crate) fn forge(from: &str, to: &str, port: u16) {
    let mut tcp = vec![0x30, 0x39];
    tcp.extend(port.to_be_bytes());
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    let (domain, next_hop, header, ends) = match (from.parse().unwrap(), to.parse().unwrap()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
            (Domain::IPV4, POD4, header, [from.octets(), to.octets()].concat())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
            (Domain::IPV6, POD6, header, [from.octets(), to.octets()].concat())
        }
        mixed => panic!("{mixed:?}: two families"),
    };
    // Of the pseudo header only the sum counts, and that is the same in both families.
    let pseudo = [&ends[..], &[0, 6, 0, 20], &tcp].concat();
    let mut sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    tcp[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let raw = Socket::new(domain, Type::RAW, Some(socket2::Protocol::from(libc::IPPROTO_RAW))).unwrap();
    raw.send_to(&[header, ends, tcp].concat(), &at(next_hop, 0).into()).unwrap();
}

/// An amount of work, made smaller where the machine is much slower than the real one: `WEFT_TEST_DIVISOR`, which
/// `tests/kernels/run.sh` sets for its emulated machines. What a test shows does not depend on it.
pub(crate) fn scaled(amount: usize) -> usize {
    let divisor = std::env::var("WEFT_TEST_DIVISOR").map_or(1, |divisor| divisor.parse().unwrap());
    amount / divisor
}

/// Are messages towards applications redirected on this kernel? Else only those towards the proxy are.
pub(crate) fn redirects_to_applications(kernel: &Kernel) -> bool {
    kernel.probe_report().redirect_to_applications.available()
}

/// Are sockets redirected that applications accept?
pub(crate) fn redirects_accepted(kernel: &Kernel) -> bool {
    kernel.probe_report().redirect_accepted.available()
}

pub(crate) fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

pub(crate) fn counted(kernel: &Kernel, outcome: Outcome) -> u64 {
    kernel.counters().unwrap().of(outcome)
}

pub(crate) fn used(kernel: &Kernel, map: &str) -> usize {
    kernel.map_fill().unwrap().into_iter().find(|(name, ..)| *name == map).unwrap().1
}

/// Waits for a level. The time is the kernel's: what was dropped before is closed by then (see [`close`]).
pub(crate) fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    drop(CHILD.lock());
    let deadline = Instant::now() + Duration::from_secs(10);
    while !reached() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::yield_now();
    }
}
