//! Probes of the node reach the application of a pod whose proxy would otherwise get them: by who connects and to which
//! port, never by a source address. The world's other side is the node here: its agent is the kubelet.
#![expect(clippy::unwrap_used, reason = "test code outside of a #[test] function")]

mod world;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use weft_ebpf::{Kernel, Options, Outcome};
use world::{PEER4, POD4, POD6, Proxy, World, at, close, counted, forge, used, wait_for};

const PROBED: u16 = 8080;
const OTHER: u16 = 8081;

/// The node is where the kernel side is loaded, and its processes are in the cgroup above all others; pods are in `pod`.
fn kernel(world: &World, flows_max: u32) -> Arc<Kernel> {
    let options = Options { flows_max, pods_cgroup: Some(world.root.join("pod")), ..world.options() };
    world.run("agent", &world.peer, move || Arc::new(Kernel::load(&options).unwrap()))
}

struct Pod {
    proxy: Proxy,
    apps: Vec<TcpListener>,
}

fn enrol(world: &World, kernel: &Kernel) -> Pod {
    let proxy = world.enrol_with(kernel, |pod| pod.probe_ports = &[PROBED]);
    let listen = |address, port| world.listen("pod", &world.pod, address, port);
    let apps = vec![listen(POD4, PROBED), listen(POD6, PROBED), listen(POD4, OTHER)];
    for listener in apps.iter().chain([&proxy.inbound4, &proxy.inbound6]) {
        listener.set_nonblocking(true).unwrap();
    }
    Pod { proxy, apps }
}

#[derive(Debug, PartialEq)]
enum Reached {
    Application,
    Proxy,
}

impl Pod {
    /// Who has accepted the one connection that was made.
    fn reached(&self) -> (TcpStream, Reached) {
        let mut found = None;
        wait_for("a connection", || {
            let of = |listener: &TcpListener| listener.accept().ok().map(|(stream, _)| stream);
            let app = self.apps.iter().find_map(of).map(|stream| (stream, Reached::Application));
            let proxies = [&self.proxy.inbound4, &self.proxy.inbound6];
            found = app.or_else(|| proxies.into_iter().find_map(of).map(|stream| (stream, Reached::Proxy)));
            found.is_some()
        });
        found.unwrap()
    }
}

fn connect(world: &World, cgroup: &str, to: SocketAddr) -> TcpStream {
    world.run(cgroup, &world.peer, move || TcpStream::connect(to).unwrap())
}

#[test]
fn a_probe_of_the_node_reaches_the_application_in_each_family_and_leaves_nothing() {
    let world = World::new();
    let kernel = kernel(&world, 256);
    let pod = enrol(&world, &kernel);
    for (number, to) in
        [at(POD4, PROBED), at("::ffff:10.77.0.5", PROBED), at(POD6, PROBED)].into_iter().enumerate()
    {
        let mut probe = connect(&world, "kubelet", to);
        let (mut accepted, reached) = pod.reached();
        assert_eq!(reached, Reached::Application, "{to}");
        probe.write_all(b"GET /").unwrap();
        let mut text = [0; 5];
        accepted.set_nonblocking(false).unwrap();
        accepted.read_exact(&mut text).unwrap();
        assert_eq!(used(&kernel, "probes"), 1);
        close((probe, accepted));
        wait_for("freed entries", || {
            ["probes", "probes_by_cookie"].into_iter().all(|map| used(&kernel, map) == 0)
        });
        assert_eq!(counted(&kernel, Outcome::LookupProbe), number as u64 + 1);
    }
    assert_eq!(counted(&kernel, Outcome::LookupSteered), 0);
}

#[test]
fn other_ports_and_other_processes_go_to_the_proxy() {
    let world = World::new();
    let kernel = kernel(&world, 256);
    let pod = enrol(&world, &kernel);
    // The proxy itself, and a pod that shares the node's network namespace.
    for (cgroup, to, not_node) in
        [("kubelet", at(POD4, OTHER), 0), ("agent", at(POD4, PROBED), 1), ("pod", at(POD6, PROBED), 2)]
    {
        let _client = connect(&world, cgroup, to);
        assert_eq!(pod.reached().1, Reached::Proxy, "{cgroup} to {to}");
        assert_eq!(counted(&kernel, Outcome::ProbeNotNode), not_node);
    }
    assert_eq!(counted(&kernel, Outcome::ProbeFiled), 0);
}

#[test]
fn a_process_of_another_namespace_is_not_the_node_whatever_its_cgroup_and_address() {
    let world = World::new();
    // The node is elsewhere: what comes from the peer's address comes from a namespace that is not the node's.
    let node = world.another_pod();
    let options = world.options();
    let kernel = world.run("agent", &node, move || Kernel::load(&options).unwrap());
    let pod = enrol(&world, &kernel);
    let _client = connect(&world, "kubelet", at(POD4, PROBED));
    assert_eq!(pod.reached().1, Reached::Proxy);
    assert_eq!(counted(&kernel, Outcome::ProbeFiled), 0);
}

#[test]
fn a_forged_source_address_is_no_probe() {
    let world = World::new();
    let kernel = kernel(&world, 256);
    let pod = enrol(&world, &kernel);
    let _live = connect(&world, "kubelet", at(POD4, PROBED));
    pod.reached();
    // The node's own address, from outside of any connect; the live probe's port is not the forged one's.
    let steered = counted(&kernel, Outcome::LookupSteered);
    world.run("kubelet", &world.peer, || forge(PEER4, POD4, PROBED));
    wait_for("the forged SYN", || counted(&kernel, Outcome::LookupSteered) > steered);
    assert_eq!(counted(&kernel, Outcome::LookupProbe), 1);
}

#[test]
fn a_full_map_lets_no_probe_pass_and_counts_it() {
    let world = World::new();
    // One probe at a time.
    let kernel = kernel(&world, 8);
    let pod = enrol(&world, &kernel);
    let first = connect(&world, "kubelet", at(POD4, PROBED));
    assert_eq!(pod.reached().1, Reached::Application);
    let _second = connect(&world, "kubelet", at(POD4, PROBED));
    assert_eq!(pod.reached().1, Reached::Proxy);
    assert_eq!(counted(&kernel, Outcome::ProbeRefusedFull), 1);
    close(first);
    // A probe whose connect fails holds no place either.
    wait_for("room", || used(&kernel, "probes_by_cookie") == 0);
    let gone = pod.apps.into_iter().next().unwrap();
    close(gone);
    let refused = world.run("kubelet", &world.peer, || TcpStream::connect(at(POD4, PROBED)).unwrap_err());
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    wait_for("room", || used(&kernel, "probes_by_cookie") == 0 && used(&kernel, "probes") == 0);
}

#[test]
fn a_port_that_is_no_longer_probed_and_a_released_pod_leave_nothing() {
    let world = World::new();
    let kernel = kernel(&world, 256);
    let pod = enrol(&world, &kernel);
    assert_eq!(used(&kernel, "probe_ports"), 2);
    let addresses: [IpAddr; 2] = [POD4.parse().unwrap(), POD6.parse().unwrap()];
    kernel.enrol(&pod.proxy.state(&world.pod, &addresses)).unwrap();
    assert_eq!(used(&kernel, "probe_ports"), 0);
    let _client = connect(&world, "kubelet", at(POD4, PROBED));
    assert_eq!(pod.reached().1, Reached::Proxy);
    let mut state = pod.proxy.state(&world.pod, &addresses);
    state.probe_ports = &[PROBED];
    kernel.enrol(&state).unwrap();
    kernel.release(world.pod.cookie).unwrap();
    assert_eq!(used(&kernel, "probe_ports"), 0);
}

#[test]
fn what_an_earlier_process_let_through_is_taken_over() {
    let world = World::new();
    let first = kernel(&world, 256);
    let pod = enrol(&world, &first);
    let live = connect(&world, "kubelet", at(POD4, PROBED));
    let (_accepted, reached) = pod.reached();
    assert_eq!(reached, Reached::Application);
    close(first);
    let kernel = kernel(&world, 256);
    let _probe = connect(&world, "kubelet", at(POD4, PROBED));
    assert_eq!(pod.reached().1, Reached::Application);
    live.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    kernel.release(world.pod.cookie).unwrap();
    assert_eq!(used(&kernel, "probe_ports"), 0);
}
