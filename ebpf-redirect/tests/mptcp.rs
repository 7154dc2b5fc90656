//! Applications that use MPTCP (Go's listeners do by default): they go through the proxy like all others, as plain TCP,
//! because the proxy does not speak MPTCP; they keep their names, and nothing of them passes the mesh by.
#![expect(clippy::unwrap_used, reason = "test code outside of a #[test] function")]

mod world;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use weft_ebpf::Outcome;
use world::{PEER4, PEER6, POD4, POD6, World, at, close, connect_named, counted, used, wait_for};

fn socket(domain: Domain) -> Socket {
    Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP)).expect("a kernel with MPTCP")
}

fn connect(domain: Domain, to: SocketAddr) -> TcpStream {
    let socket = socket(domain);
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// One message each way.
fn exchange(one: &mut TcpStream, other: &mut TcpStream) {
    send(one, other);
    send(other, one);
}

fn send(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"some bytes").unwrap();
    let mut text = [0; 10];
    to.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"some bytes");
}

#[test]
fn a_client_goes_through_the_proxy_and_sees_the_destination_it_asked_for() {
    let world = World::new();
    let kernel = world.kernel();
    let proxy = world.enrol(&kernel);
    // They would get what goes past the mesh.
    let direct = [PEER4, PEER6].map(|peer| world.listen("agent", &world.peer, peer, 8080));
    for (domain, to, listener, pod) in [
        (Domain::IPV4, at(PEER4, 8080), &proxy.outbound4, POD4),
        (Domain::IPV6, at(PEER6, 8080), &proxy.outbound6, POD6),
        (Domain::IPV6, at("::ffff:10.77.0.6", 8080), &proxy.outbound4, POD4),
    ] {
        let mut app = world.run("pod", &world.pod, move || connect(domain, to));
        let (mut accepted, client) = listener.accept().unwrap();
        let original = kernel.original_destination(world.pod.cookie, client).unwrap();
        assert_eq!(original, SocketAddr::new(to.ip().to_canonical(), to.port()));
        exchange(&mut app, &mut accepted);
        assert_eq!(app.local_addr().unwrap().ip().to_canonical(), pod.parse::<IpAddr>().unwrap());
        assert_eq!(world.run("pod", &world.pod, move || app.peer_addr().unwrap()), to);
    }
    assert_eq!(counted(&kernel, Outcome::ConnectRedirected), 3);
    assert_eq!(counted(&kernel, Outcome::ConnectNotTcp), 0);
    for listener in direct {
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "past the mesh");
    }
    for map in ["original_by_cookie", "original_destinations", "legs", "sockets"] {
        wait_for("freed entries", || used(&kernel, map) == 0);
    }
}

#[test]
fn without_the_proxy_a_client_is_refused() {
    let world = World::new();
    let kernel = world.kernel();
    close(world.enrol(&kernel));
    let _direct = world.listen("agent", &world.peer, PEER4, 8080);
    let refused =
        world.run("pod", &world.pod, || socket(Domain::IPV4).connect(&at(PEER4, 8080).into()).unwrap_err());
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_client_outside_is_steered_to_the_proxy_and_the_application_behind_it_sees_its_name() {
    let world = World::new();
    let kernel = world.kernel();
    let proxy = world.enrol(&kernel);
    let app = world.run("pod", &world.pod, || {
        let socket = socket(Domain::IPV4);
        socket.bind(&at(POD4, 8080).into()).unwrap();
        socket.listen(16).unwrap();
        TcpListener::from(socket)
    });
    let mut outside = world.run("agent", &world.peer, || connect(Domain::IPV4, at(POD4, 8080)));
    let (mut inbound, client) = proxy.inbound4.accept().unwrap();
    exchange(&mut outside, &mut inbound);
    let handle = Arc::clone(&kernel);
    let mut upstream =
        world.run("agent", &world.pod, move || connect_named(&handle, at(POD4, 8080), client).unwrap());
    let (mut accepted, by_accept, by_name) = world.run("pod", &world.pod, move || {
        let (accepted, by_accept) = app.accept().unwrap();
        let by_name = accepted.peer_addr().unwrap();
        (accepted, by_accept, by_name)
    });
    assert_eq!((by_accept, by_name), (client, client));
    exchange(&mut accepted, &mut upstream);
}
