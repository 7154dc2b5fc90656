//! What a pod's manifest excludes has a bound for each pod: the node's tables always have room for the next one, and a
//! pod that cannot be had is shut rather than let past the mesh.

mod world;

use std::io::ErrorKind;
use std::net::{IpAddr, TcpStream};

use weft_ebpf::{EXCLUDED_CIDRS_PER_POD_MAX, EXCLUDED_PORTS_PER_POD_MAX, KernelError, PodState};
use world::{PEER4, POD4, Proxy, TUNNEL, World, at, close, used};

/// One more than a pod may have, in both directions together; none of them is used by the test.
fn too_many() -> Vec<u16> {
    (20_000..=20_000 + EXCLUDED_PORTS_PER_POD_MAX as u16).collect()
}

#[test]
fn a_pod_that_excludes_more_than_it_may_is_told_and_shut_and_another_is_enrolled() {
    let world = World::new();
    let kernel = world.kernel();
    let outside = world.listen("agent", &world.peer, PEER4, 80);
    let proxy = Proxy::listen(&world, &world.pod);
    let addresses: [IpAddr; 1] = [POD4.parse().unwrap()];
    let state = proxy.state(&world.pod, &addresses);
    let ports = too_many();
    let cidrs: Vec<(IpAddr, u8)> =
        (0..=EXCLUDED_CIDRS_PER_POD_MAX).map(|n| (IpAddr::from([10, 200, n as u8, 0]), 24)).collect();
    let probes: Vec<u16> = (1..=200).collect();
    for (wants, what) in [
        (PodState { excluded_outbound_ports: &ports, ..state }, "excluded ports"),
        (PodState { excluded_inbound_ports: &ports, ..state }, "excluded ports"),
        (PodState { excluded_outbound_cidrs: &cidrs, ..state }, "excluded prefixes"),
        (PodState { probe_ports: &probes, ..state }, "probed ports"),
    ] {
        let refused = kernel.enrol(&wants).unwrap_err();
        assert!(matches!(refused, KernelError::TooMany { what: told, .. } if told == what), "{refused}");
        // Neither out of it past the mesh nor into it.
        let out = world.run("pod", &world.pod, || TcpStream::connect(at(PEER4, 80)));
        assert_eq!(out.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{what}");
        let app = world.listen("pod", &world.pod, POD4, 8080);
        let into = world.run("agent", &world.peer, || TcpStream::connect(at(POD4, 8080)));
        assert_eq!(into.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{what}");
        close(app);
        assert_eq!((used(&kernel, "excluded_ports"), used(&kernel, "excluded_cidrs")), (0, 0));
        kernel.release(world.pod.cookie).unwrap();
    }
    // As many as it may, the tunnel's among them; and another pod beside it.
    let most = [&[TUNNEL][..], &ports[..EXCLUDED_PORTS_PER_POD_MAX as usize - 1]].concat();
    let (inbound, outbound) = most.split_at(33);
    kernel
        .enrol(&PodState { excluded_inbound_ports: inbound, excluded_outbound_ports: outbound, ..state })
        .unwrap();
    let other = world.another_pod();
    let _others = world.enrol_other(&kernel, &other);
    close(outside);
}
