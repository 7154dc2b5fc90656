//! The proxy's connection to an application: the application sees the client and never the proxy's loopback address,
//! whoever closes first; a full map refuses; and nothing remains in the maps.
#![expect(clippy::unwrap_used, reason = "test code outside of a #[test] function")]

mod world;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use socket2::{Domain, Socket, Type};
use weft_ebpf::{Kernel, Options, Outcome};
use world::{PEER4, PEER6, POD4, POD6, World, at, close, connect_named, counted, forge, used, wait_for};

const CLIENT4: &str = "10.99.0.1";
const CLIENT6: &str = "fd99::1";

fn proxy_connects(world: &World, kernel: &Arc<Kernel>, to: SocketAddr, client: SocketAddr) -> TcpStream {
    let kernel = Arc::clone(kernel);
    world.run("agent", &world.pod, move || connect_named(&kernel, to, client).unwrap())
}

/// What `accept()` and `getpeername()` tell the application.
fn application_sees(world: &World, app: &TcpListener) -> (TcpStream, SocketAddr) {
    let app = app.try_clone().unwrap();
    let (stream, by_accept, by_name) = world.run("pod", &world.pod, move || {
        let (stream, peer) = app.accept().unwrap();
        let by_name = stream.peer_addr().unwrap();
        (stream, peer, by_name)
    });
    assert_eq!(by_accept, by_name);
    (stream, by_accept)
}

fn none_left(kernel: &Kernel) {
    for map in ["peer_by_cookie", "peer_names", "accepted_peers", "legs", "sockets"] {
        wait_for(&format!("no entry in {map}"), || used(kernel, map) == 0);
    }
}

#[test]
fn the_application_sees_the_client_in_each_family() {
    let world = World::new();
    let kernel = world.kernel();
    let _proxy = world.enrol(&kernel);
    let dual = world.run("pod", &world.pod, || {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        socket.set_only_v6(false).unwrap();
        socket.bind(&at("::", 8081).into()).unwrap();
        socket.listen(16).unwrap();
        TcpListener::from(socket)
    });
    let (v4, v6) = (world.listen("pod", &world.pod, POD4, 8080), world.listen("pod", &world.pod, POD6, 8080));
    for (to, app, client, seen) in [
        (at(POD4, 8080), &v4, at(CLIENT4, 5555), at(CLIENT4, 5555)),
        (at(POD6, 8080), &v6, at(CLIENT6, 5555), at(CLIENT6, 5555)),
        (at(POD4, 8081), &dual, at(CLIENT4, 5555), at("::ffff:10.99.0.1", 5555)),
        (at(POD6, 8081), &dual, at(CLIENT6, 5555), at(CLIENT6, 5555)),
    ] {
        let upstream = proxy_connects(&world, &kernel, to, client);
        assert!(upstream.local_addr().unwrap().ip().is_loopback());
        let (mut accepted, peer) = application_sees(&world, app);
        assert_eq!(peer, seen);
        // The application closes first here.
        accepted.write_all(b"bye").unwrap();
        close(accepted);
        let mut text = String::new();
        (&upstream).read_to_string(&mut text).unwrap();
        assert_eq!(text, "bye");
    }
    none_left(&kernel);
}

#[test]
fn a_client_that_is_gone_before_the_accept_is_still_named() {
    let world = World::new();
    let kernel = world.kernel();
    let _proxy = world.enrol(&kernel);
    let app = world.listen("pod", &world.pod, POD4, 8080);
    let mut upstream = proxy_connects(&world, &kernel, at(POD4, 8080), at(CLIENT4, 5555));
    upstream.write_all(b"all there is").unwrap();
    close(upstream);
    wait_for("the proxy's socket gone", || used(&kernel, "peer_by_cookie") == 0);
    assert_eq!(used(&kernel, "peer_names"), 0);
    let (mut accepted, peer) = application_sees(&world, &app);
    assert_eq!(peer, at(CLIENT4, 5555));
    let mut text = String::new();
    accepted.read_to_string(&mut text).unwrap();
    assert_eq!(text, "all there is");
    close(accepted);
    none_left(&kernel);
}

#[test]
fn a_client_that_is_reset_before_the_accept_is_still_named() {
    let world = World::new();
    let kernel = world.kernel();
    let _proxy = world.enrol(&kernel);
    let app = world.listen("pod", &world.pod, POD4, 8080);
    let upstream = proxy_connects(&world, &kernel, at(POD4, 8080), at(CLIENT4, 5555));
    wait_for("the application's end", || used(&kernel, "accepted_peers") == 1);
    socket2::SockRef::from(&upstream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    close(upstream);
    wait_for("the reset", || used(&kernel, "accepted_peers") == 0);
    let (stream, peer) = world.run("pod", &world.pod, move || app.accept().unwrap());
    assert_eq!(peer, at(CLIENT4, 5555));
    close(stream);
    none_left(&kernel);
    wait_for("freed entries", || used(&kernel, "closed_peers") == 0);
}

#[test]
fn an_unnamed_connection_shows_the_pods_address_and_not_loopback() {
    let world = World::new();
    let kernel = world.kernel();
    let _proxy = world.enrol(&kernel);
    let connect = |to: SocketAddr, from: &'static str| {
        world.run("agent", &world.pod, move || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            socket.bind(&at(from, 0).into()).unwrap();
            socket.connect(&to.into()).unwrap();
            socket
        })
    };
    for (own, loopback) in [(POD4, "127.0.0.1"), (POD6, "::1")] {
        let app = world.listen("pod", &world.pod, own, 8080);
        let _unnamed = connect(at(own, 8080), loopback);
        assert_eq!(application_sees(&world, &app).1.ip(), at(own, 0).ip());
        // Loopback to loopback is the pod's own affair.
        let local = world.listen("pod", &world.pod, loopback, 8082);
        let _local = connect(at(loopback, 8082), loopback);
        assert_eq!(application_sees(&world, &local).1.ip(), at(loopback, 0).ip());
    }
}

#[test]
fn failed_connects_leave_nothing_and_a_full_share_refuses() {
    let world = World::new();
    let kernel = Arc::new(Kernel::load(&Options { flows_max: 4 * 4, ..world.options() }).unwrap());
    let _proxy = world.enrol(&kernel);
    let handle = Arc::clone(&kernel);
    world.run("agent", &world.pod, move || {
        // Nobody listens: a reset. No route to it: not even a SYN.
        let refused = connect_named(&handle, at(POD4, 8080), at(CLIENT4, 1)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        connect_named(&handle, at("192.0.2.1", 8080), at(CLIENT4, 1)).unwrap_err();
    });
    none_left(&kernel);
    let _app = world.listen("pod", &world.pod, POD4, 8080);
    let held: Vec<_> =
        (0..4).map(|_| proxy_connects(&world, &kernel, at(POD4, 8080), at(CLIENT4, 1))).collect();
    let handle = Arc::clone(&kernel);
    let connect = move || connect_named(&handle, at(POD4, 8080), at(CLIENT4, 1)).map(drop);
    world.run("agent", &world.pod, connect).unwrap_err();
    assert_eq!(counted(&kernel, Outcome::PeerRefusedShare), 1);
    // The refused one is not left behind either.
    wait_for("freed entries", || used(&kernel, "peer_by_cookie") == 4);
    close(held);
    wait_for("freed entries", || used(&kernel, "peer_by_cookie") == 0);
    proxy_connects(&world, &kernel, at(POD4, 8080), at(CLIENT4, 1));
}

fn sysctl(world: &World, name: &'static str, value: &'static str) {
    world.run("agent", &world.pod, move || {
        // What is below sys/net is that of the thread's namespace.
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}"), value).unwrap();
    });
}

#[test]
fn nobody_outside_can_come_from_loopback_even_where_route_localnet_is_on() {
    let world = World::new();
    let kernel = world.kernel();
    let _proxy = world.enrol(&kernel);
    let _app = world.listen("pod", &world.pod, POD4, 8080);
    let inbound = |kernel: &Kernel| {
        [Outcome::LookupLocal, Outcome::LookupSteered].map(|outcome| counted(kernel, outcome))
    };
    // Each forged SYN is followed by an honest one: when that has arrived, the forged one had its chance.
    let sent = |from: &'static str| {
        let [local, steered] = inbound(&kernel);
        world.run("agent", &world.peer, move || {
            forge(from, POD4, 8080);
            forge(PEER4, POD4, 8080);
        });
        wait_for("the honest SYN", || inbound(&kernel)[1] > steered);
        let [local_after, steered_after] = inbound(&kernel);
        (local_after - local, steered_after - steered - 1)
    };
    assert_eq!(sent("10.77.0.9"), (0, 1), "a forged packet as such does arrive");
    for localnet in ["0", "1"] {
        sysctl(&world, "all/route_localnet", localnet);
        sysctl(&world, "eth0/route_localnet", localnet);
        for source in ["127.0.0.1", POD4] {
            assert_eq!(sent(source), (0, 0), "{source} with route_localnet={localnet}");
        }
    }
    // The rest of 127/8 does get in then, and is steered to the proxy like any other stranger. (The reply stays in the
    // pod and counts as local.)
    sysctl(&world, "all/rp_filter", "0");
    sysctl(&world, "eth0/rp_filter", "0");
    assert_eq!(sent("127.0.0.2").1, 1);
}

/// IPv6 packets that the pod's network stack took for malformed.
fn dropped_by_the_kernel(world: &World) -> u64 {
    let counters = world.run("agent", &world.pod, || std::fs::read_to_string("/proc/thread-self/net/snmp6"));
    let counters = counters.unwrap();
    let line = counters.lines().find(|line| line.starts_with("Ip6InHdrErrors")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn nobody_outside_can_come_from_loopback_or_a_mapped_address_over_ipv6() {
    let world = World::new();
    let kernel = world.kernel();
    let _proxy = world.enrol(&kernel);
    let app = world.listen("pod", &world.pod, POD6, 8080);
    app.set_nonblocking(true).unwrap();
    let inbound = |kernel: &Kernel| {
        [Outcome::LookupLocal, Outcome::LookupSteered].map(|outcome| counted(kernel, outcome))
    };
    let sent = |from: &'static str| {
        let [local, steered] = inbound(&kernel);
        world.run("agent", &world.peer, move || {
            forge(from, POD6, 8080);
            forge(PEER6, POD6, 8080);
        });
        wait_for("the honest SYN", || inbound(&kernel)[1] > steered);
        let [local_after, steered_after] = inbound(&kernel);
        (local_after - local, steered_after - steered - 1)
    };
    assert_eq!(
        (sent("fd77::9"), dropped_by_the_kernel(&world)),
        ((0, 1), 0),
        "a forged packet as such arrives"
    );
    assert_eq!((sent("::1"), dropped_by_the_kernel(&world)), ((0, 0), 1));
    // The kernel drops a mapped address too, but only after the look-up: it must not pass for the IPv4 address there.
    let mapped = ["::ffff:127.0.0.1", "::ffff:10.77.0.5", "::ffff:10.77.0.9"];
    for (number, source) in mapped.into_iter().enumerate() {
        assert_eq!((sent(source).0, dropped_by_the_kernel(&world)), (0, number as u64 + 2), "{source}");
    }
    // The pod's own address does arrive, other than in IPv4, and passes for the pod's own call. The answer stays in the pod,
    // which refuses it: no connection comes of it.
    let (local, steered) = sent(POD6);
    assert!(local >= 1, "{local}");
    assert_eq!(steered, 0);
    assert_eq!(app.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}
