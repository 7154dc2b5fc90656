//! A pod that is enrolled before the proxy listens in it: refused both ways, whatever ports its application has taken.

mod world;

use std::io::ErrorKind;
use std::net::{IpAddr, TcpStream};

use weft_ebpf::{Outcome, PodState};
use world::{INBOUND, OUTBOUND, PEER4, PEER6, POD4, POD6, TUNNEL, World, at, close, counted};

#[test]
fn a_shut_pod_reaches_nobody_and_is_reached_by_nobody() {
    let world = World::new();
    let kernel = world.kernel();
    let addresses: [IpAddr; 2] = [POD4.parse().unwrap(), POD6.parse().unwrap()];
    let proxy = world::Proxy::listen(&world, &world.pod);
    kernel
        .enrol(&PodState {
            outbound_port: 0,
            inbound_v4: None,
            inbound_v6: None,
            excluded_inbound_ports: &[9000],
            ..proxy.state(&world.pod, &addresses)
        })
        .unwrap();
    close(proxy);
    let mut apps = Vec::new();
    for port in [OUTBOUND, INBOUND, TUNNEL, 8080, 9000] {
        for address in ["0.0.0.0", "::"] {
            apps.push(world.listen("pod", &world.pod, address, port));
        }
    }
    let _servers = [PEER4, PEER6].map(|peer| world.listen("agent", &world.peer, peer, 80));
    for to in [PEER4, PEER6] {
        let error = world.run("pod", &world.pod, move || TcpStream::connect(at(to, 80)).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "to {to}");
    }
    for to in [POD4, POD6] {
        for port in [OUTBOUND, INBOUND, TUNNEL, 8080] {
            let error =
                world.run("agent", &world.peer, move || TcpStream::connect(at(to, port)).unwrap_err());
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "to {to}:{port}");
        }
        // What is excluded was never the mesh's.
        world.run("agent", &world.peer, move || TcpStream::connect(at(to, 9000)).unwrap());
    }
    assert_eq!(counted(&kernel, Outcome::ConnectRedirected), 2);
    assert_eq!(counted(&kernel, Outcome::LookupDropped), 8);
}
