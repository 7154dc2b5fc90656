//! Acceleration of the local legs: every byte arrives in order with redirect on and off, both halves close by
//! themselves, a slow reader loses nothing, and the counters say which way the bytes went.
#![expect(clippy::unwrap_used, reason = "test code outside of a #[test] function")]

mod world;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use weft_ebpf::{Feature, Kernel, Outcome};
use weft_ebpf_common::abi::{UNREAD_BYTES_BREAK, UNREAD_BYTES_MAX};
use world::{
    PEER4, POD4, Proxy, World, at, close, connect_named, counted, redirects_accepted,
    redirects_to_applications, scaled, used, wait_for,
};

/// Both are scaled, and a sixteenth is still more than what a reader may leave unread.
const TRANSFER_BYTES: usize = 256 << 20;
const EDGES_BYTES: usize = 160 << 20;
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
    /// Bytes of the last word that were not taken.
    rest: Vec<u8>,
}

impl Pattern {
    fn new() -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15, rest: Vec::new() }
    }

    /// Any number of bytes.
    fn next(&mut self, buffer: &mut [u8]) {
        let rest = self.rest.len().min(buffer.len());
        let (first, whole) = buffer.split_at_mut(rest);
        first.copy_from_slice(&self.rest[..rest]);
        self.rest.drain(..rest);
        let words = whole.len() / 8 * 8;
        let (whole, last) = whole.split_at_mut(words);
        self.fill(whole);
        if !last.is_empty() {
            let mut word = [0; 8];
            self.fill(&mut word);
            last.copy_from_slice(&word[..last.len()]);
            self.rest = word[last.len()..].to_vec();
        }
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

/// As the proxy writes: it waits while the reader is behind.
fn write_patiently(kernel: &Kernel, to: &mut TcpStream, bytes: &[u8]) {
    let deadline = Instant::now() + READ_TIMEOUT;
    while kernel.unread(to).is_some_and(|unread| u64::from(unread) > UNREAD_BYTES_MAX) {
        assert!(Instant::now() < deadline, "held for ever");
        std::thread::yield_now();
    }
    to.write_all(bytes).unwrap();
}

fn send(kernel: &Kernel, mut to: TcpStream, bytes: usize) -> TcpStream {
    let (mut pattern, mut buffer) = (Pattern::new(), vec![0; 64 << 10]);
    for _ in 0..bytes / buffer.len() {
        pattern.fill(&mut buffer);
        write_patiently(kernel, &mut to, &buffer);
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
fn transfer(kernel: &Kernel, from: TcpStream, to: TcpStream) -> (TcpStream, TcpStream) {
    let bytes = scaled(TRANSFER_BYTES);
    let reader = std::thread::spawn(move || receive(to, bytes));
    let from = send(kernel, from, bytes);
    (from, reader.join().unwrap())
}

fn both_ways(world: &World, kernel: &Kernel, proxy: &Proxy) {
    let (app, accepted) = outbound_leg(world, proxy);
    let (app, accepted) = transfer(kernel, app, accepted);
    transfer(kernel, accepted, app);
}

fn redirects(kernel: &Kernel) {
    assert_eq!(kernel.probe_report().redirect, Feature::Available, "this kernel cannot redirect");
}

#[test]
fn what_is_off_on_this_kernel_has_a_reason() {
    let world = World::new();
    let kernel = world.kernel();
    let report = kernel.probe_report();
    for (name, feature) in [
        ("redirect", &report.redirect),
        ("towards applications", &report.redirect_to_applications),
        ("of accepted sockets", &report.redirect_accepted),
    ] {
        // Not by a macro, whose output a passing test would swallow: `tests/kernels/run.sh` shows it.
        writeln!(io::stderr(), "probe: {name}: {feature:?}").unwrap();
        assert!(!matches!(feature, Feature::Off(reason) if reason.is_empty()), "{name}");
    }
}

#[test]
fn every_byte_arrives_each_way_and_is_counted_by_its_path() {
    let world = World::new();
    let kernel = world.kernel();
    redirects(&kernel);
    let proxy = world.enrol(&kernel);
    both_ways(&world, &kernel, &proxy);
    let redirected = counted(&kernel, Outcome::BytesRedirected);
    let bytes = scaled(TRANSFER_BYTES) as u64;
    // Towards the application all of it, where the kernel can. Towards the proxy until that is behind.
    let to_application = if redirects_to_applications(&kernel) { bytes } else { 0 };
    assert!(redirected >= to_application + UNREAD_BYTES_MAX, "{redirected}");
    assert_eq!(redirected + counted(&kernel, Outcome::BytesStack), 2 * bytes);
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
    both_ways(&world, &kernel, &proxy);
    kernel.set_redirect(true).unwrap();
    close(proxy);
    let proxy = world.enrol_with(&kernel, |pod| pod.redirect = false);
    both_ways(&world, &kernel, &proxy);
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
    let redirected = match (redirects_accepted(&kernel), redirects_to_applications(&kernel)) {
        (true, true) => 8,
        // The answer only.
        (true, false) => 4,
        (false, _) => 0,
    };
    assert_eq!(counted(&kernel, Outcome::BytesRedirected), redirected);
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
    close(accepted);
    let error = app.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    close(app);
    wait_for("freed entries", || used(&kernel, "legs") == 0);
}

#[test]
fn a_proxy_that_does_not_read_holds_its_client_back_and_loses_nothing() {
    let world = World::new();
    let kernel = world.kernel();
    let proxy = world.enrol(&kernel);
    let (mut app, mut accepted) = outbound_leg(&world, &proxy);
    app.set_nonblocking(true).unwrap();
    let mut queued = 0;
    let chunk = vec![1u8; 64 << 10];
    let error = loop {
        match app.write(&chunk) {
            Ok(written) => queued += written,
            Err(error) => break error,
        }
        assert!(queued < 64 << 20, "nothing holds the sender back");
    };
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    app.shutdown(Shutdown::Write).unwrap();
    let mut received = 0;
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = accepted.read(&mut buffer) {
        received += read;
    }
    assert_eq!(received, queued);
}

#[test]
fn what_an_application_has_not_read_is_known_and_bounded() {
    let world = World::new();
    let kernel = world.kernel();
    redirects(&kernel);
    let proxy = world.enrol(&kernel);
    let (mut app, mut accepted) = outbound_leg(&world, &proxy);
    if !redirects_to_applications(&kernel) {
        return held_back_by_the_stack(&kernel, &app, accepted);
    }
    // A proxy that asks knows.
    assert_eq!(kernel.unread(&accepted), None, "nothing was sent");
    accepted.write_all(&[1; 1000]).unwrap();
    assert_eq!(kernel.unread(&accepted), Some(1000));
    app.read_exact(&mut [0; 400]).unwrap();
    assert_eq!(kernel.unread(&accepted), Some(600));
    // One that does not is stopped in the end.
    let (mut queued, chunk) = (600, vec![1u8; 64 << 10]);
    let error = loop {
        match accepted.write(&chunk) {
            Ok(written) => queued += written,
            Err(error) => break error,
        }
        assert!(queued < 64 << 20, "nothing stops the proxy");
    };
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    assert!((UNREAD_BYTES_BREAK as usize..2 * UNREAD_BYTES_BREAK as usize).contains(&queued), "{queued}");
    assert_eq!(counted(&kernel, Outcome::MessageBroken), 1);
    app.read_exact(&mut vec![0; queued]).unwrap();
    assert_eq!(kernel.unread(&accepted), Some(0));
}

/// Where the kernel does not tell what is unread, nothing is redirected towards an application.
fn held_back_by_the_stack(kernel: &Kernel, _app: &TcpStream, mut accepted: TcpStream) {
    accepted.set_nonblocking(true).unwrap();
    let (mut queued, chunk) = (0, vec![1u8; 64 << 10]);
    let error = loop {
        match accepted.write(&chunk) {
            Ok(written) => queued += written,
            Err(error) => break error,
        }
        assert!(queued < 64 << 20, "nothing holds the proxy back");
    };
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(kernel.unread(&accepted), None);
    assert_eq!(counted(kernel, Outcome::BytesRedirected), 0);
}

/// How an application reads.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reader {
    /// Takes a read that did not fill its buffer for the last of what is there (tokio).
    ShortReadIsTheEnd,
    /// Asks FIONREAD after a read that did, and takes nothing for nothing (nginx).
    TrustsFionread,
}

/// Reads edge-triggered, and without answering, `bytes` of the pattern; stops a while now and then, so that the sender
/// gets ahead. True if all came.
fn read_by_edges(mut from: TcpStream, bytes: usize, reader: Reader) -> bool {
    use rustix::event::{Timespec, epoll};
    from.set_nonblocking(true).unwrap();
    let edges = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
    epoll::add(&edges, &from, epoll::EventData::new_u64(0), flags).unwrap();
    let (mut pattern, mut received) = (Pattern::new(), 0);
    let (mut buffer, mut expected) = (vec![0; 48 << 10], vec![0; 48 << 10]);
    let patience = Timespec::try_from(READ_TIMEOUT).unwrap();
    while received < bytes {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        if epoll::wait(&edges, events.as_mut_slice(), Some(&patience)).unwrap() == 0 {
            return false;
        }
        loop {
            // The pattern is made in words of eight bytes.
            let read = match from.read(&mut buffer) {
                Ok(0) => return false,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            };
            pattern.next(&mut expected[..read]);
            assert!(expected[..read] == buffer[..read], "bytes differ after {received}");
            received += read;
            if received % 7 == 0 {
                std::thread::yield_now();
            }
            let last = match reader {
                _ if read < buffer.len() => true,
                Reader::ShortReadIsTheEnd => false,
                Reader::TrustsFionread => rustix::io::ioctl_fionread(&from).unwrap() == 0,
            };
            if last {
                break;
            }
        }
    }
    true
}

#[test]
fn an_edge_triggered_application_that_never_answers_gets_the_last_byte() {
    for reader in [Reader::ShortReadIsTheEnd, Reader::TrustsFionread] {
        let world = World::new();
        let kernel = world.kernel();
        let proxy = world.enrol(&kernel);
        let (app, accepted) = outbound_leg(&world, &proxy);
        let bytes = scaled(EDGES_BYTES);
        let reading = std::thread::spawn(move || read_by_edges(app, bytes, reader));
        let (mut to, mut pattern, mut buffer) = (accepted, Pattern::new(), vec![0; 64 << 10]);
        for _ in 0..bytes / buffer.len() {
            pattern.next(&mut buffer);
            write_patiently(&kernel, &mut to, &buffer);
        }
        // The connection stays open: no end of file comes to wake anybody.
        assert!(reading.join().unwrap(), "{reader:?}: the last bytes were never seen");
        // All one way, whichever it is.
        let other_way =
            if redirects_to_applications(&kernel) { Outcome::BytesStack } else { Outcome::BytesRedirected };
        assert_eq!(counted(&kernel, other_way), 0);
    }
}
