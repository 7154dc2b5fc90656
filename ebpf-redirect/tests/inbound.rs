//! Connections into an enrolled pod: steered to the proxy with their original destination, except the pod's own and
//! excluded ports; refused when the proxy's listener is gone. What the application then sees is in `peer.rs`.

mod world;

use std::io;
use std::net::{IpAddr, TcpStream};

use weft_ebpf::Outcome;
use world::{PEER4, PEER6, POD4, POD6, TUNNEL, World, at, close, counted};

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
    close(world.enrol(&kernel));
    let app = world.listen("pod", &world.pod, POD4, 8080);
    let refused = world.run("agent", &world.peer, || TcpStream::connect(at(POD4, 8080)).unwrap_err());
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(counted(&kernel, Outcome::LookupDropped), 1);
    kernel.release(world.pod.cookie).unwrap();
    let _client = world.run("agent", &world.peer, || TcpStream::connect(at(POD4, 8080)).unwrap());
    app.accept().unwrap();
}
