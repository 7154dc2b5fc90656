//! Bytes that go through the stack without sk_msg seeing them are never overtaken by redirected ones.

mod world;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use weft_ebpf::{Feature, Outcome};
use world::{PEER4, World, at, close, counted, wait_for};

/// Is this thread of ours asleep in the kernel?
fn asleep(thread: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('S'))
}

#[test]
fn a_send_that_waited_for_the_connect_is_not_overtaken() {
    let world = World::new();
    let kernel = world.kernel();
    assert_eq!(kernel.probe_report().redirect, Feature::Available, "this kernel cannot redirect");
    let proxy = world.enrol(&kernel);
    // Room for one connection: the next SYN is dropped and comes again a second later.
    rustix::net::listen(&proxy.outbound4, 0).unwrap();
    let filler = world.run("pod", &world.pod, || TcpStream::connect(at(PEER4, 80)).unwrap());
    let app = world.run("pod", &world.pod, || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.connect(&at(PEER4, 80).into()).unwrap_err();
        socket.set_nonblocking(false).unwrap();
        TcpStream::from(socket)
    });
    let (announce, thread) = std::sync::mpsc::channel();
    let mut sender = app.try_clone().unwrap();
    let waiting = world.start("pod", &world.pod, move || {
        announce.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        sender.write_all(b"first ").unwrap();
    });
    let thread = thread.recv().unwrap();
    wait_for("a send that waits", || asleep(thread));
    close((proxy.outbound4.accept().unwrap(), filler));
    let (mut accepted, _) = proxy.outbound4.accept().unwrap();
    waiting.join().unwrap();
    // The filler's two ends and the client's. The proxy's end is not, where it was later than the first bytes.
    assert!(counted(&kernel, Outcome::SocketInserted) >= 3, "nothing was tested");
    (&app).write_all(b"second").unwrap();
    let mut text = [0; 12];
    accepted.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    accepted.read_exact(&mut text).unwrap();
    assert_eq!(std::str::from_utf8(&text).unwrap(), "first second");
    assert_eq!(counted(&kernel, Outcome::BytesRedirected), 0);
}

#[test]
fn data_in_the_syn_is_not_overtaken() {
    let world = World::new();
    let kernel = world.kernel();
    let proxy = world.enrol(&kernel);
    world.run("agent", &world.pod, || {
        // Client and server, and without a cookie: the first connection already carries data.
        std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", (0x1 | 0x2 | 0x4 | 0x200).to_string()).unwrap();
    });
    let queue: libc::c_int = 16;
    // SAFETY: the option is an int.
    let result = unsafe {
        libc::setsockopt(
            proxy.outbound4.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN,
            (&raw const queue).cast(),
            4,
        )
    };
    assert_eq!(result, 0);
    let mut app = world.run("pod", &world.pod, || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let on: libc::c_int = 1;
        // SAFETY: the option is an int.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_FASTOPEN_CONNECT,
                (&raw const on).cast(),
                4,
            )
        };
        assert_eq!(result, 0);
        socket.connect(&at(PEER4, 80).into()).unwrap();
        let mut stream = TcpStream::from(socket);
        // This makes the SYN.
        stream.write_all(b"first ").unwrap();
        stream
    });
    let (mut accepted, client) = proxy.outbound4.accept().unwrap();
    assert_eq!(kernel.original_destination(world.pod.cookie, client), Some(at(PEER4, 80)));
    wait_for("the client's end", || counted(&kernel, Outcome::SocketSkippedSent) == 1);
    app.write_all(b"second").unwrap();
    accepted.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut text = [0; 12];
    accepted.read_exact(&mut text).unwrap();
    assert_eq!(std::str::from_utf8(&text).unwrap(), "first second");
    // The other direction too.
    accepted.write_all(b"answer").unwrap();
    app.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    app.read_exact(&mut text[..6]).unwrap();
    assert_eq!(&text[..6], b"answer");
}
