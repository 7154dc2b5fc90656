//! Crash, take-over, replacement and removal: hooks outlive the process and fail closed, a new process takes them over,
//! and `detach_all` leaves nothing.
#![expect(clippy::unwrap_used, reason = "test code outside of a #[test] function")]

mod world;

use std::collections::BTreeSet;
use std::io;
use std::net::TcpStream;

use aya::maps::MapData;
use aya::programs::{loaded_links, loaded_programs};
use weft_ebpf::{Kernel, Options, Outcome};
use world::{PEER4, POD4, World, at, close, counted, wait_for};

#[test]
fn a_crash_fails_closed_and_the_next_process_takes_over() {
    let world = World::new();
    let server = world.listen("agent", &world.peer, PEER4, 9001);
    let kernel = world.kernel();
    close(world.enrol(&kernel));
    close(kernel);
    let connect = || TcpStream::connect(at(PEER4, 9001)).map(drop).map_err(|error| error.kind());
    assert_eq!(world.run("pod", &world.pod, connect), Err(io::ErrorKind::ConnectionRefused));
    let inbound = || TcpStream::connect(at(POD4, 8080)).map(drop).map_err(|error| error.kind());
    assert_eq!(world.run("agent", &world.peer, inbound), Err(io::ErrorKind::ConnectionRefused));

    let kernel = world.kernel();
    assert_eq!(kernel.enrolled().unwrap(), [world.pod.cookie]);
    // The maps are the same: what was counted before is still there.
    assert_eq!(counted(&kernel, Outcome::ConnectRedirected), 1);
    assert_eq!(world.run("pod", &world.pod, connect), Err(io::ErrorKind::ConnectionRefused));
    let proxy = world.enrol(&kernel);
    assert_eq!(world.run("pod", &world.pod, connect), Ok(()));
    proxy.outbound4.accept().unwrap();
    assert_eq!(world.run("agent", &world.peer, inbound), Ok(()));
    proxy.inbound4.accept().unwrap();
    kernel.release(world.pod.cookie).unwrap();
    assert_eq!(world.run("pod", &world.pod, connect), Ok(()));
    server.accept().unwrap();
}

#[test]
fn maps_of_another_size_are_replaced_and_pods_stay_enrolled() {
    let world = World::new();
    let kernel = world.kernel();
    close(world.enrol(&kernel));
    close(kernel);
    let kernel = Kernel::load(&Options { flows_max: 64, ..world.options() }).unwrap();
    assert_eq!(kernel.enrolled().unwrap(), [world.pod.cookie]);
    let refused = world.run("pod", &world.pod, || TcpStream::connect(at(PEER4, 9001)).unwrap_err());
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    let proxy = world.enrol(&kernel);
    let _app = world.run("pod", &world.pod, || TcpStream::connect(at(PEER4, 9001)).unwrap());
    proxy.outbound4.accept().unwrap();
}

/// The kernel's own list of links, as far as their programs use this world's maps.
fn links_of(world: &World) -> BTreeSet<u32> {
    let maps: BTreeSet<u32> = std::fs::read_dir(world.pins.join("maps"))
        .unwrap()
        .map(|pin| MapData::from_pin(pin.unwrap().path()).unwrap().info().unwrap().id())
        .collect();
    // Other tests' programs and links come and go meanwhile.
    let programs: BTreeSet<u32> = loaded_programs()
        .filter_map(Result::ok)
        .filter(|program| {
            program.map_ids().ok().flatten().is_some_and(|ids| ids.iter().any(|id| maps.contains(id)))
        })
        .map(|program| program.id())
        .collect();
    let links = loaded_links().filter_map(Result::ok);
    links.filter(|link| programs.contains(&link.program_id())).map(|link| link.id()).collect()
}

#[test]
fn detaching_leaves_nothing_and_the_pod_is_free() {
    let world = World::new();
    let server = world.listen("agent", &world.peer, PEER4, 9001);
    let kernel = world.kernel();
    let _proxy = world.enrol(&kernel);
    close(kernel);
    let links = links_of(&world);
    assert_eq!(links.len(), 7, "six hooks of the cgroup and one of the pod");
    weft_ebpf::detach_all(&world.pins).unwrap();
    assert!(!world.pins.exists());
    wait_for("links gone from the kernel", || {
        loaded_links().filter_map(Result::ok).all(|link| !links.contains(&link.id()))
    });
    let _app = world.run("pod", &world.pod, || TcpStream::connect(at(PEER4, 9001)).unwrap());
    server.accept().unwrap();
    let app = world.listen("pod", &world.pod, POD4, 8080);
    let _client = world.run("agent", &world.peer, || TcpStream::connect(at(POD4, 8080)).unwrap());
    app.accept().unwrap();
    // Again, with nothing there.
    weft_ebpf::detach_all(&world.pins).unwrap();
}
