//! Connections into an enrolled pod: steered to the proxy with their original destination, except the pod's own and
//! excluded ports; refused when the proxy's listener is gone; and the application sees its client's address.
#![allow(clippy::unwrap_used, reason = "test code outside of a #[test] function")]

mod world;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};
use weft_ebpf::Outcome;
use world::{PEER4, PEER6, POD4, POD6, TUNNEL, World, at, counted, used};

#[test]
fn inbound_of_each_family_is_steered_and_keeps_its_destination() {
    let world = World::new();
    let kernel = world.kernel();
    let proxy = world.enrol(&kernel);
    // The application listens on the port too: the proxy comes first.
    let _app = [world.listen("pod", &world.pod, POD4, 8080), world.listen("pod", &world.pod, POD6, 8080)];
    for (to, from, listener) in
        [(at(POD4, 8080), PEER4, &proxy.inbound4), (at(POD6, 8080), PEER6, &proxy.inbound6)]
    {
        let client = world.run("agent", &world.peer, move || TcpStream::connect(to).unwrap());
        let (accepted, peer) = listener.accept().unwrap();
        assert_eq!(accepted.local_addr().unwrap(), to);
        assert_eq!(peer.ip(), from.parse::<IpAddr>().unwrap());
        assert_eq!(client.peer_addr().unwrap(), to);
    }
    assert_eq!(counted(&kernel, Outcome::LookupSteered), 2);
}

#[test]
fn the_pods_own_calls_and_excluded_ports_reach_the_application() {
    let world = World::new();
    let kernel = world.kernel();
    let _proxy = world.enrol(&kernel);
    let app = world.listen("pod", &world.pod, POD4, 8080);
    let tunnel = world.listen("agent", &world.pod, POD4, TUNNEL);
    // From the proxy inside the pod: a loop if this came back to the proxy.
    for cgroup in ["agent", "pod"] {
        let _own = world.run(cgroup, &world.pod, || TcpStream::connect(at(POD4, 8080)).unwrap());
        app.accept().unwrap();
    }
    let _other = world.run("agent", &world.peer, || TcpStream::connect(at(POD4, TUNNEL)).unwrap());
    tunnel.accept().unwrap();
    assert_eq!(counted(&kernel, Outcome::LookupSteered), 0);
    assert_eq!(counted(&kernel, Outcome::LookupExcluded), 1);
    assert!(counted(&kernel, Outcome::LookupLocal) >= 2);
}

#[test]
fn without_the_proxys_listener_inbound_is_refused_though_the_application_listens() {
    let world = World::new();
    let kernel = world.kernel();
    drop(world.enrol(&kernel));
    let app = world.listen("pod", &world.pod, POD4, 8080);
    let refused = world.run("agent", &world.peer, || TcpStream::connect(at(POD4, 8080)).unwrap_err());
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(counted(&kernel, Outcome::LookupDropped), 1);
    kernel.release(world.pod.cookie).unwrap();
    let _client = world.run("agent", &world.peer, || TcpStream::connect(at(POD4, 8080)).unwrap());
    app.accept().unwrap();
}

#[test]
fn the_application_sees_the_client_that_the_proxy_names() {
    let world = World::new();
    let kernel = world.kernel();
    let _proxy = world.enrol(&kernel);
    for (pod, client, app) in [
        (POD4, "10.99.0.1", world.listen("pod", &world.pod, POD4, 8080)),
        (POD6, "fd99::1", world.listen("pod", &world.pod, POD6, 8080)),
    ] {
        let named: SocketAddr = at(client, 5555);
        let cookie = world.pod.cookie;
        let handle = std::sync::Arc::clone(&kernel);
        let (guard, _upstream) = world.run("agent", &world.pod, move || {
            let socket = Socket::new(Domain::for_address(at(pod, 0)), Type::STREAM, None).unwrap();
            socket.bind(&at(pod, 0).into()).unwrap();
            let own = socket.local_addr().unwrap().as_socket().unwrap();
            let guard = handle.name_peer(cookie, own, named).unwrap();
            socket.connect(&at(pod, 8080).into()).unwrap();
            (guard, socket)
        });
        let (by_accept, by_name) = world.run("pod", &world.pod, move || {
            let (stream, peer) = app.accept().unwrap();
            (peer, stream.peer_addr().unwrap())
        });
        assert_eq!((by_accept, by_name), (named, named));
        drop(guard);
        assert_eq!(used(&kernel, "peer_names"), 0);
    }
}
