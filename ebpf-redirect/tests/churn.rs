//! Many short connections of the proxy into one pod: more than there are ports, the client closing first, none refused,
//! nothing left behind. A binary of its own, because it counts the process's descriptors.
#![expect(clippy::unwrap_used, reason = "test code outside of a #[test] function")]

mod world;

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_ebpf::{Kernel, Options};
use world::{POD4, World, at, close, connect_named, scaled, used, wait_for};

/// The ephemeral range, and twice as many connections within the minute that TIME_WAIT lasts. Both are scaled.
const PORTS: usize = 28_232;
const CONNECTIONS: usize = 60_000;
const TIME_MAX: Duration = Duration::from_secs(60);

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn more_short_connections_than_ports_are_made_within_a_minute_and_none_is_refused() {
    let world = World::new();
    // One pod's share is more than what waits to be accepted (512) and to be closed.
    let kernel = Arc::new(Kernel::load(&Options { flows_max: 4 * 1024, ..world.options() }).unwrap());
    let _proxy = world.enrol(&kernel);
    let app = world.listen("pod", &world.pod, POD4, 8080);
    let before = descriptors();
    let connections = scaled(CONNECTIONS);
    world.run("agent", &world.pod, || {
        let range = format!("32768 {}", 32_767 + scaled(PORTS));
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap();
    });
    let started = Instant::now();
    let application = world.start("pod", &world.pod, move || {
        for _ in 0..connections {
            let (mut stream, peer) = app.accept().unwrap();
            assert_eq!(peer, at("10.99.0.1", 5555));
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
        app
    });
    let handle = Arc::clone(&kernel);
    world.run("agent", &world.pod, move || {
        for number in 0..connections {
            connect_named(&handle, at(POD4, 8080), at("10.99.0.1", 5555))
                .unwrap_or_else(|error| panic!("connection {number}: {error}"));
        }
    });
    let app = application.join().unwrap();
    let took = started.elapsed();
    println!("{connections} connections in {took:?}");
    assert!(took < TIME_MAX, "{took:?}: too slow to prove anything about TIME_WAIT");
    for map in ["peer_by_cookie", "peer_names", "accepted_peers", "legs", "sockets"] {
        wait_for("freed entries", || used(&kernel, map) == 0);
    }
    let share = kernel.pod_use(world.pod.cookie).unwrap().unwrap();
    assert_eq!(share.entries, [0; 5], "the pod's share is free again");
    close(app);
    assert!(descriptors() <= before, "{} descriptors, {before} before", descriptors());
}
