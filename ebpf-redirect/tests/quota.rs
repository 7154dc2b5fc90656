//! One pod cannot starve the others of the node's flow maps: it has a share, which is refused beyond it, counted, and
//! free again to the last entry whatever became of its connections.
#![expect(clippy::unwrap_used, reason = "test code outside of a #[test] function")]

mod world;

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::sync::Arc;

use weft_ebpf::{Kernel, Options, Outcome};
use world::{Netns, PEER4, POD4, World, at, close, connect_named, counted, used, wait_for};

/// A pod's share is a quarter.
const SHARE: usize = 4;
const FLOWS_MAX: u32 = 4 * SHARE as u32;

fn kernel(world: &World) -> Arc<Kernel> {
    Arc::new(Kernel::load(&Options { flows_max: FLOWS_MAX, ..world.options() }).unwrap())
}

fn connect(world: &World, pod: &Netns) -> io::Result<TcpStream> {
    world.run("pod", pod, || TcpStream::connect(at(PEER4, 80)))
}

fn share_of(kernel: &Kernel, pod: &Netns) -> [u64; 5] {
    kernel.pod_use(pod.cookie).unwrap().unwrap().entries
}

/// Takes connections until one is refused.
fn greedy(world: &World, pod: &Netns) -> (Vec<TcpStream>, io::Error) {
    let mut held = Vec::new();
    loop {
        match connect(world, pod) {
            Ok(stream) => held.push(stream),
            Err(error) => return (held, error),
        }
        assert!(held.len() < 4 * SHARE, "never refused");
    }
}

#[test]
fn a_pod_that_fills_its_share_is_refused_and_another_pod_is_not() {
    let world = World::new();
    let kernel = kernel(&world);
    let proxy = world.enrol(&kernel);
    let other = world.another_pod();
    let _others = world.enrol_other(&kernel, &other);
    let (held, refused) = greedy(&world, &world.pod);
    assert_eq!((held.len(), refused.kind()), (SHARE, ErrorKind::PermissionDenied));
    connect(&world, &world.pod).unwrap_err();
    assert_eq!(counted(&kernel, Outcome::ConnectRefusedShare), 2);
    assert_eq!(counted(&kernel, Outcome::ConnectRefusedFull), 0);
    for _ in 0..SHARE {
        connect(&world, &other).unwrap();
    }
    // A close makes room, once the proxy has let go too.
    close(held);
    for _ in 0..SHARE {
        close(proxy.outbound4.accept().unwrap());
    }
    wait_for("a free share", || share_of(&kernel, &world.pod) == [0; 5]);
    assert_eq!(greedy(&world, &world.pod).0.len(), SHARE);
}

#[test]
fn a_client_that_closes_before_the_proxy_accepts_stays_within_its_share() {
    let world = World::new();
    let kernel = kernel(&world);
    let proxy = world.enrol(&kernel);
    // Twice the share: the far end may outlive the one that counts. Then the proxy is not told any more, and closes.
    for _ in 0..2 * SHARE {
        close(connect(&world, &world.pod).unwrap());
    }
    assert_eq!(used(&kernel, "original_destinations"), 2 * SHARE);
    close(connect(&world, &world.pod).unwrap());
    assert_eq!(counted(&kernel, Outcome::FlowRefusedShare), 1);
    assert_eq!(used(&kernel, "original_destinations"), 2 * SHARE);
    for _ in 0..=2 * SHARE {
        close(proxy.outbound4.accept().unwrap());
    }
    wait_for("a free share", || share_of(&kernel, &world.pod) == [0; 5]);
}

#[test]
fn a_full_map_refuses_whoever_comes() {
    let world = World::new();
    let kernel = kernel(&world);
    let pods: Vec<Netns> = (0..4).map(|_| world.another_pod()).collect();
    let _proxies: Vec<_> = pods.iter().map(|pod| world.enrol_other(&kernel, pod)).collect();
    let held: Vec<_> = pods.iter().map(|pod| greedy(&world, pod).0).collect();
    assert!(held.iter().all(|held| held.len() == SHARE));
    let _proxy = world.enrol(&kernel);
    let refused = connect(&world, &world.pod).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    assert_eq!(counted(&kernel, Outcome::ConnectRefusedFull), 1);
    assert_eq!(share_of(&kernel, &world.pod), [0; 5], "what was refused does not count");
    // The kernel lets go of a connection when it has handled its last segments, which a busy machine does later.
    close(held);
    wait_for("room in the map", || connect(&world, &world.pod).is_ok());
}

#[test]
fn failed_connects_and_sockets_that_connect_again_do_not_use_up_the_share() {
    let world = World::new();
    let kernel = kernel(&world);
    close(world.enrol(&kernel));
    world.run("pod", &world.pod, || {
        for _ in 0..10 * SHARE {
            TcpStream::connect(at(PEER4, 80)).unwrap_err();
        }
        let again = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        for _ in 0..10 * SHARE {
            again.connect(&at(PEER4, 80).into()).unwrap_err();
        }
    });
    assert_eq!(share_of(&kernel, &world.pod), [0; 5]);
    assert_eq!(counted(&kernel, Outcome::ConnectRefusedShare), 0);
}

#[test]
fn an_application_that_never_closes_uses_up_its_own_share_only() {
    let world = World::new();
    let kernel = kernel(&world);
    let _proxy = world.enrol(&kernel);
    let other = world.another_pod();
    let _others = world.enrol_other(&kernel, &other);
    let app = world.listen("pod", &world.pod, POD4, 8080);
    let handle = Arc::clone(&kernel);
    let (held, refused) = world.run("agent", &world.pod, move || {
        let mut held = Vec::new();
        loop {
            match connect_named(&handle, at(POD4, 8080), at("10.99.0.1", 1)) {
                Ok(stream) => held.push(stream),
                Err(error) => return (held, error),
            }
        }
    });
    assert_eq!((held.len(), refused.kind()), (SHARE, ErrorKind::PermissionDenied));
    assert_eq!(counted(&kernel, Outcome::PeerRefusedShare), 1);
    let others_app = world.listen("pod", &other, POD4, 8080);
    let handle = Arc::clone(&kernel);
    world.run("agent", &other, move || {
        connect_named(&handle, at(POD4, 8080), at("10.99.0.1", 1)).unwrap();
    });
    close((app, others_app, held));
    for pod in [&world.pod, &other] {
        wait_for("a free share", || share_of(&kernel, pod) == [0; 5]);
    }
}

#[test]
fn a_share_outlives_the_proxy_and_the_enrolment_and_goes_with_the_last_connection() {
    let world = World::new();
    let first = kernel(&world);
    let proxy = world.enrol(&first);
    let (held, _) = greedy(&world, &world.pod);
    // Those ends of the proxy drain on while the next process is there.
    let draining: Vec<_> = (0..SHARE).map(|_| proxy.outbound4.accept().unwrap()).collect();
    close((first, proxy));
    // The next process, and a pod that leaves and comes back.
    let kernel = kernel(&world);
    let proxy = world.enrol(&kernel);
    connect(&world, &world.pod).unwrap_err();
    close(proxy);
    kernel.release(world.pod.cookie).unwrap();
    let proxy = world.enrol(&kernel);
    connect(&world, &world.pod).unwrap_err();
    assert_eq!(counted(&kernel, Outcome::ConnectRefusedShare), 3);
    close((held, draining, proxy));
    wait_for("a free share", || share_of(&kernel, &world.pod) == [0; 5]);
    kernel.release(world.pod.cookie).unwrap();
    let other = world.another_pod();
    let _others = world.enrol_other(&kernel, &other);
    assert_eq!(kernel.pod_use(world.pod.cookie).unwrap(), None, "nothing is kept of a pod that is gone");
}
