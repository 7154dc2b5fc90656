//! More than one process or sk_msg user at a time: a take-over while the old process drains, maps of another version, and
//! a second owner of a socket.

mod world;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use aya::maps::{Array, Map, MapData};
use weft_ebpf::{Kernel, Options, Outcome};
use weft_ebpf_common::abi::ABI_VERSION;
use world::{
    PEER4, POD4, World, at, close, connect_named, connect_named_by, counted, redirects_accepted, used,
    wait_for,
};

/// A second set of pins, removed whatever happens.
struct OtherPins(PathBuf);

impl Drop for OtherPins {
    fn drop(&mut self) {
        let _ = weft_ebpf::detach_all(&self.0);
    }
}

#[test]
fn a_socket_that_another_sk_msg_user_holds_is_left_to_it_and_counted() {
    let world = World::new();
    let other_pins = OtherPins(world.pins.with_file_name(format!("weft-kt-other-{}", std::process::id())));
    let kernel = world.kernel();
    let other =
        Arc::new(Kernel::load(&Options { pin_dir: other_pins.0.clone(), ..world.options() }).unwrap());
    let proxy = world.enrol(&kernel);
    other.enrol(&proxy.state(&world.pod, &[POD4.parse().unwrap()])).unwrap();
    let app = world.listen("pod", &world.pod, POD4, 8080);
    let (one, two) = (Arc::clone(&kernel), Arc::clone(&other));
    let mut upstream = world.run("agent", &world.pod, move || {
        connect_named_by(&[&one, &two], at(POD4, 8080), at("10.99.0.1", 1)).unwrap()
    });
    let (mut accepted, _) = app.accept().unwrap();
    let both = |outcome| counted(&kernel, outcome) + counted(&other, outcome);
    // Where neither of them takes such sockets they do not meet.
    let taken = if redirects_accepted(&kernel) { 2 } else { 0 };
    wait_for("both ends", || both(Outcome::SocketRefusedBusy) == taken);
    assert_eq!(both(Outcome::SocketInserted), taken);
    upstream.write_all(b"ping").unwrap();
    let mut buffer = [0; 4];
    accepted.read_exact(&mut buffer).unwrap();
    accepted.write_all(b"pong").unwrap();
    upstream.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"pong");
}

#[test]
fn names_survive_a_take_over_and_the_draining_process_still_names() {
    let world = World::new();
    let old = world.kernel();
    let _proxy = world.enrol(&old);
    let app = world.listen("pod", &world.pod, POD4, 8080);
    let connect = |kernel: &Arc<Kernel>, port| {
        let kernel = Arc::clone(kernel);
        world.run("agent", &world.pod, move || {
            connect_named(&kernel, at(POD4, 8080), at("10.99.0.1", port)).unwrap()
        })
    };
    // Before the take-over and not accepted yet, during it by the old process, and by the new one.
    let before = connect(&old, 1);
    let new = world.kernel();
    let during = connect(&old, 2);
    let after = connect(&new, 3);
    let names = world.run("pod", &world.pod, move || {
        let accepted: Vec<TcpStream> = (0..3).map(|_| app.accept().unwrap().0).collect();
        accepted.iter().map(|stream| stream.peer_addr().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(names, [1, 2, 3].map(|port| at("10.99.0.1", port)));
    assert_eq!(used(&new, "peer_by_cookie"), 3);
    // The old process ends: what it held goes with its sockets, and nothing else.
    close((old, before, during));
    wait_for("freed entries", || used(&new, "peer_by_cookie") == 1);
    close(after);
    wait_for("freed entries", || used(&new, "accepted_peers") == 0 && used(&new, "peer_names") == 0);
}

#[test]
fn maps_of_another_version_are_replaced_and_pods_stay_enrolled() {
    let world = World::new();
    let kernel = world.kernel();
    close(world.enrol(&kernel));
    world.run("pod", &world.pod, || TcpStream::connect(at(PEER4, 9001)).unwrap_err());
    assert_eq!(counted(&kernel, Outcome::ConnectRedirected), 1);
    close(kernel);
    let open = || MapData::from_pin(world.pins.join("maps/CONFIG")).unwrap();
    let id = || open().info().unwrap().id();
    let old = id();
    let mut config: Array<MapData, [u32; 10]> = Array::try_from(Map::Array(open())).unwrap();
    let mut value = config.get(&0, 0).unwrap();
    assert_eq!(value[0], ABI_VERSION);
    value[0] += 1;
    config.set(0, value, 0).unwrap();

    let kernel = world.kernel();
    assert_ne!(id(), old);
    assert_eq!(kernel.enrolled().unwrap(), [world.pod.cookie]);
    assert_eq!(counted(&kernel, Outcome::ConnectRedirected), 0, "counters of the old maps");
    // Fails closed from the first moment; then works.
    world.run("pod", &world.pod, || TcpStream::connect(at(PEER4, 9001)).unwrap_err());
    assert_eq!(counted(&kernel, Outcome::ConnectRedirected), 1);
    let proxy = world.enrol(&kernel);
    world.run("pod", &world.pod, || TcpStream::connect(at(PEER4, 9001)).unwrap());
    proxy.outbound4.accept().unwrap();
}
