//! Connects of an enrolled pod: what is intercepted, what the proxy and the application then see, and that a full map
//! or an absent proxy refuses instead of letting plaintext out.

mod world;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use socket2::{Domain, SockAddr, Socket, Type};
use weft_ebpf::{Outcome, PodState};
use world::{PEER4, PEER6, POD4, POD6, Proxy, World, at, close, counted, used, wait_for};

fn connect_as(domain: Domain, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.connect(&SockAddr::from(to))?;
    Ok(socket.into())
}

#[test]
fn a_connect_of_each_family_reaches_the_proxy_which_learns_where_it_was_going() {
    let world = World::new();
    let kernel = world.kernel();
    let proxy = world.enrol(&kernel);
    for (domain, to, listener, pod) in [
        (Domain::IPV4, at(PEER4, 8080), &proxy.outbound4, POD4),
        (Domain::IPV6, at(PEER6, 8080), &proxy.outbound6, POD6),
        (Domain::IPV6, at("::ffff:10.77.0.6", 8080), &proxy.outbound4, POD4),
    ] {
        let app = world.run("pod", &world.pod, move || connect_as(domain, to).unwrap());
        let (accepted, client) = listener.accept().unwrap();
        let original = kernel.original_destination(world.pod.cookie, client).unwrap();
        assert_eq!(original, SocketAddr::new(to.ip().to_canonical(), to.port()));
        // The application sees its own address and the destination it asked for; the proxy sees the truth.
        assert_eq!(app.local_addr().unwrap().ip().to_canonical(), pod.parse::<IpAddr>().unwrap());
        let peer = world.run("pod", &world.pod, move || app.peer_addr().unwrap());
        assert_eq!(peer, to);
        let (seen, real) = world.run("agent", &world.pod, move || (accepted.peer_addr().unwrap(), client));
        assert_eq!(seen, real);
    }
    wait_for("freed entries", || used(&kernel, "original_by_cookie") == 0);
    wait_for("freed entries", || used(&kernel, "original_destinations") == 0);
}

#[test]
fn the_proxy_udp_loopback_and_exclusions_are_left_alone() {
    let world = World::new();
    let kernel = world.kernel();
    let cidrs: [(IpAddr, u8); 2] = [(PEER6.parse().unwrap(), 128), ("192.0.2.0".parse().unwrap(), 24)];
    let addresses: [IpAddr; 2] = [POD4.parse().unwrap(), POD6.parse().unwrap()];
    let proxy = Proxy::listen(&world, &world.pod);
    let plain_state = proxy.state(&world.pod, &addresses);
    let excluding =
        PodState { excluded_outbound_ports: &[9001], excluded_outbound_cidrs: &cidrs, ..plain_state };
    kernel.enrol(&excluding).unwrap();
    let excluded_port = world.listen("agent", &world.peer, "0.0.0.0", 9001);
    let excluded_cidr = world.listen("agent", &world.peer, PEER6, 9002);
    let plain = world.listen("agent", &world.peer, "0.0.0.0", 9003);
    let local = world.listen("pod", &world.pod, "127.0.0.1", 9004);
    for (cgroup, to, listener, outcome) in [
        ("pod", at(PEER4, 9001), &excluded_port, Outcome::ConnectExcludedPort),
        ("pod", at(PEER6, 9002), &excluded_cidr, Outcome::ConnectExcludedCidr),
        ("agent", at(PEER4, 9003), &plain, Outcome::ConnectProxy),
        ("pod", at("127.0.0.1", 9004), &local, Outcome::ConnectLocal),
    ] {
        let before = counted(&kernel, outcome);
        let app = world.run(cgroup, &world.pod, move || TcpStream::connect(to).unwrap());
        listener.accept().unwrap();
        assert_eq!(app.peer_addr().unwrap(), to);
        assert_eq!(counted(&kernel, outcome), before + 1, "{to}");
    }
    let peer = world.run("agent", &world.peer, || UdpSocket::bind(at(PEER4, 9005)).unwrap());
    world.run("pod", &world.pod, || {
        let socket = UdpSocket::bind(at(POD4, 0)).unwrap();
        socket.connect(at(PEER4, 9005)).unwrap();
        socket.send(b"datagram").unwrap();
    });
    let mut buffer = [0; 16];
    assert_eq!(peer.recv(&mut buffer).unwrap(), 8);
    assert_eq!(counted(&kernel, Outcome::ConnectRedirected), 0);
    // An exclusion that is taken back no longer holds.
    kernel.enrol(&plain_state).unwrap();
    let _app = world.run("pod", &world.pod, || TcpStream::connect(at(PEER4, 9001)).unwrap());
    assert_eq!(counted(&kernel, Outcome::ConnectRedirected), 1);
}

#[test]
fn a_client_that_sends_and_closes_before_the_accept_is_still_known() {
    let world = World::new();
    let kernel = world.kernel();
    let proxy = world.enrol(&kernel);
    world.run("pod", &world.pod, || {
        TcpStream::connect(at(PEER4, 80)).unwrap().write_all(b"all there is").unwrap();
    });
    let (mut accepted, client) = proxy.outbound4.accept().unwrap();
    assert_eq!(kernel.original_destination(world.pod.cookie, client), Some(at(PEER4, 80)));
    let mut text = String::new();
    accepted.read_to_string(&mut text).unwrap();
    assert_eq!(text, "all there is");
    close(accepted);
    wait_for("freed entries", || used(&kernel, "original_destinations") == 0);
}

#[test]
fn two_pods_with_the_same_address_and_port_are_kept_apart() {
    let (one, two) = (World::new(), World::new());
    // One node: the second world's namespaces under the first one's hooks.
    let kernel = one.kernel();
    let proxies = [Proxy::listen(&one, &one.pod), Proxy::listen(&one, &two.pod)];
    let addresses: [IpAddr; 2] = [POD4.parse().unwrap(), POD6.parse().unwrap()];
    let mut apps = Vec::new();
    for ((proxy, netns), port) in proxies.iter().zip([&one.pod, &two.pod]).zip([81, 82]) {
        kernel.enrol(&proxy.state(netns, &addresses)).unwrap();
        apps.push(one.run("pod", netns, move || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&at(POD4, 40_000).into()).unwrap();
            socket.connect(&at(PEER4, port).into()).unwrap();
            socket
        }));
    }
    for ((proxy, netns), port) in proxies.iter().zip([&one.pod, &two.pod]).zip([81, 82]) {
        let (_accepted, client) = proxy.outbound4.accept().unwrap();
        assert_eq!(client, at(POD4, 40_000));
        assert_eq!(kernel.original_destination(netns.cookie, client), Some(at(PEER4, port)));
    }
    // Inbound too: each namespace's own listener gets what comes to the address that both have.
    for (world, proxy) in [(&one, &proxies[0]), (&two, &proxies[1])] {
        let _client = world.run("agent", &world.peer, || TcpStream::connect(at(POD4, 8080)).unwrap());
        let (accepted, _) = proxy.inbound4.accept().unwrap();
        assert_eq!(accepted.local_addr().unwrap(), at(POD4, 8080));
    }
}

#[test]
fn a_released_pod_connects_by_itself_and_no_proxy_means_refused() {
    let world = World::new();
    let kernel = world.kernel();
    let proxy = world.enrol(&kernel);
    let server = world.listen("agent", &world.peer, PEER4, 9001);
    close(proxy);
    let refused = world.run("pod", &world.pod, || TcpStream::connect(at(PEER4, 9001)).unwrap_err());
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(used(&kernel, "original_destinations"), 0);
    kernel.release(world.pod.cookie).unwrap();
    assert_eq!(kernel.enrolled().unwrap(), []);
    let _app = world.run("pod", &world.pod, || TcpStream::connect(at(PEER4, 9001)).unwrap());
    server.accept().unwrap();
}
