//! Acceleration of the local legs: every byte arrives in order with redirect on and off, both halves close by
//! themselves, a slow reader loses nothing, and the counters say which way the bytes went.
#![expect(clippy::unwrap_used, reason = "test code outside of a #[test] function")]

mod world;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use weft_ebpf::{Feature, Kernel, Outcome};
use weft_ebpf_common::abi::REDIRECT_BYTES_MAX;
use world::{PEER4, POD4, Proxy, World, at, connect_named, counted, used, wait_for};

const TRANSFER_BYTES: usize = 256 << 20;
/// A reader that never hangs a test.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The application's end of an intercepted connection and the proxy's.
fn outbound_leg(world: &World, proxy: &Proxy) -> (TcpStream, TcpStream) {
    let app = world.run("pod", &world.pod, || TcpStream::connect(at(PEER4, 80)).unwrap());
    let (accepted, _) = proxy.outbound4.accept().unwrap();
    for stream in [&app, &accepted] {
        stream.set_read_timeout(Some(READ_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(READ_TIMEOUT)).unwrap();
    }
    (app, accepted)
}

/// Bytes that do not repeat in step with any buffer (xorshift). The receiver makes them again and compares every one,
/// which is stricter than a checksum.
struct Pattern {
    state: u64,
}

impl Pattern {
    fn new() -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15 }
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_exact_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            word.copy_from_slice(&self.state.to_ne_bytes());
        }
    }
}

fn send(mut to: TcpStream, bytes: usize) -> TcpStream {
    let (mut pattern, mut buffer) = (Pattern::new(), vec![0; 64 << 10]);
    for _ in 0..bytes / buffer.len() {
        pattern.fill(&mut buffer);
        to.write_all(&buffer).unwrap();
    }
    to.shutdown(Shutdown::Write).unwrap();
    to
}

fn receive(mut from: TcpStream, bytes: usize) -> TcpStream {
    let mut pattern = Pattern::new();
    let (mut expected, mut buffer) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    for block in 0..bytes / buffer.len() {
        pattern.fill(&mut expected);
        from.read_exact(&mut buffer).unwrap();
        assert!(expected == buffer, "block {block} differs");
    }
    assert_eq!(from.read(&mut buffer).unwrap(), 0, "bytes after the end");
    from
}

/// One way after the other, so that each direction is seen to close by itself.
fn transfer(from: TcpStream, to: TcpStream) -> (TcpStream, TcpStream) {
    let reader = std::thread::spawn(move || receive(to, TRANSFER_BYTES));
    let from = send(from, TRANSFER_BYTES);
    (from, reader.join().unwrap())
}

fn both_ways(world: &World, proxy: &Proxy) {
    let (app, accepted) = outbound_leg(world, proxy);
    let (app, accepted) = transfer(app, accepted);
    transfer(accepted, app);
}

fn redirects(kernel: &Kernel) {
    assert_eq!(kernel.probe_report().redirect, Feature::Available, "this kernel cannot redirect");
}

#[test]
fn every_byte_arrives_each_way_and_is_counted_by_its_path() {
    let world = World::new();
    let kernel = world.kernel();
    redirects(&kernel);
    let proxy = world.enrol(&kernel);
    both_ways(&world, &proxy);
    // Each direction starts past the stack and goes on through it at the bound, with no byte out of place.
    let redirected = counted(&kernel, Outcome::BytesRedirected);
    let message_max = 1 << 20;
    assert!(
        (2 * REDIRECT_BYTES_MAX..=2 * (REDIRECT_BYTES_MAX + message_max)).contains(&redirected),
        "{redirected}"
    );
    assert_eq!(redirected + counted(&kernel, Outcome::BytesStack), 2 * TRANSFER_BYTES as u64);
    assert_eq!(counted(&kernel, Outcome::SocketInserted), 2);
    for map in ["sockets", "legs", "original_by_cookie", "original_destinations"] {
        wait_for("freed entries", || used(&kernel, map) == 0);
    }
}

#[test]
fn every_byte_arrives_with_redirect_off_for_the_node_or_the_pod() {
    let world = World::new();
    let kernel = world.kernel();
    let proxy = world.enrol(&kernel);
    assert!(!kernel.set_redirect(false).unwrap());
    both_ways(&world, &proxy);
    kernel.set_redirect(true).unwrap();
    drop(proxy);
    let proxy = world.enrol_with(&kernel, |pod| pod.redirect = false);
    both_ways(&world, &proxy);
    assert_eq!(counted(&kernel, Outcome::SocketInserted), 0);
    assert_eq!(counted(&kernel, Outcome::BytesRedirected), 0);
}

#[test]
fn the_applications_leg_is_redirected_too() {
    let world = World::new();
    let kernel = world.kernel();
    redirects(&kernel);
    let _proxy = world.enrol(&kernel);
    let app = world.listen("pod", &world.pod, POD4, 8080);
    let handle = Arc::clone(&kernel);
    let mut upstream = world.run("agent", &world.pod, move || {
        connect_named(&handle, at(POD4, 8080), at("10.99.0.1", 1)).unwrap()
    });
    let (mut accepted, _) = app.accept().unwrap();
    upstream.write_all(b"ping").unwrap();
    let mut buffer = [0; 4];
    accepted.read_exact(&mut buffer).unwrap();
    accepted.write_all(&buffer).unwrap();
    upstream.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"ping");
    assert_eq!(counted(&kernel, Outcome::BytesRedirected), 8);
}

#[test]
fn fionread_counts_redirected_bytes_and_partial_reads() {
    let world = World::new();
    let kernel = world.kernel();
    redirects(&kernel);
    let proxy = world.enrol(&kernel);
    let (mut app, mut accepted) = outbound_leg(&world, &proxy);
    accepted.write_all(&[7; 1000]).unwrap();
    assert_eq!(rustix::io::ioctl_fionread(&app).unwrap(), 1000);
    app.read_exact(&mut [0; 400]).unwrap();
    assert_eq!(rustix::io::ioctl_fionread(&app).unwrap(), 600);
}

#[test]
fn a_reset_reaches_the_other_end() {
    let world = World::new();
    let kernel = world.kernel();
    let proxy = world.enrol(&kernel);
    let (mut app, accepted) = outbound_leg(&world, &proxy);
    app.write_all(b"unread").unwrap();
    SockRef::from(&accepted).set_linger(Some(Duration::ZERO)).unwrap();
    drop(accepted);
    let error = app.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    drop(app);
    wait_for("freed entries", || used(&kernel, "legs") == 0);
}

#[test]
fn a_slow_reader_gets_all_and_holds_its_sender_back() {
    let world = World::new();
    let kernel = world.kernel();
    let proxy = world.enrol(&kernel);
    let (mut app, accepted) = outbound_leg(&world, &proxy);
    app.set_nonblocking(true).unwrap();
    let mut queued = 0;
    let chunk = vec![1u8; 64 << 10];
    let error = loop {
        match app.write(&chunk) {
            Ok(written) => queued += written,
            Err(error) => break error,
        }
        assert!(queued < 128 << 20, "nothing holds the sender back");
    };
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    app.shutdown(Shutdown::Write).unwrap();
    let mut received = 0;
    let mut accepted = accepted;
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = accepted.read(&mut buffer) {
        received += read;
    }
    assert_eq!(received, queued);
}
