//! What sockets promise. The namespace tests need root, as the whole kernel side does.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// The namespace of the test process itself.
fn own() -> Netns {
    let fd = OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap());
    Netns { fd, cookie: 0 }
}

/// A fresh namespace with nothing in it; it goes away with its last descriptor, so nothing has to be removed.
fn fresh() -> Netns {
    let fd = std::thread::spawn(|| {
        // SAFETY: unshare of the network namespace changes only this thread, which ends right after.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "needs root");
        OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
    })
    .join()
    .unwrap();
    Netns { fd, cookie: 0 }
}

fn here() -> std::path::PathBuf {
    std::fs::read_link("/proc/thread-self/ns/net").unwrap()
}

#[test]
fn the_thread_is_inside_during_the_call_and_home_after_it() {
    let netns = fresh();
    let home = here();
    let inside = in_netns(netns.fd.as_fd(), || Ok(here())).unwrap();
    assert_ne!(inside, home);
    assert_eq!(here(), home);
    let failed: io::Result<()> = in_netns(netns.fd.as_fd(), || Err(ErrorKind::Other.into()));
    assert!(failed.is_err());
    assert_eq!(here(), home, "also after an error");
    let panicked =
        std::panic::catch_unwind(|| in_netns(netns.fd.as_fd(), || -> io::Result<()> { panic!("x") }));
    assert!(panicked.is_err());
    assert_eq!(here(), home, "also after a panic");
}

#[tokio::test]
async fn a_listener_lives_in_the_namespace_that_was_named() {
    let (one, two) = (fresh(), fresh());
    // The same address and port twice: possible only in two namespaces.
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, OUTBOUND_PORT));
    let _first = listen(&one, address).unwrap();
    let _second = listen(&two, address).unwrap();
    assert_eq!(listen(&one, address).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert_eq!(listen_dual(&fresh(), TUNNEL_PORT).unwrap().len(), 2, "IPv4 and IPv6");
}

#[tokio::test]
async fn an_accepted_connection_has_the_listeners_options() {
    let listener = listen(&own(), SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let connect = TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, _client) = tokio::join!(listener.accept(), connect);
    let (accepted, _) = accepted.unwrap();
    assert!(accepted.nodelay().unwrap());
    let options = SockRef::from(&accepted);
    assert!(options.keepalive().unwrap());
    assert_eq!(options.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
    assert_eq!(options.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
    assert_eq!(options.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
}

#[tokio::test]
async fn one_port_serves_two_destinations() {
    let netns = fresh();
    in_netns(netns.fd.as_fd(), || {
        assert!(std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success());
        // One ephemeral port in all.
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40000")
    })
    .unwrap();
    let mut clients = Vec::new();
    for port in [8080, 8081] {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = listen(&netns, to).unwrap();
        let client =
            bind(&netns, towards_application(to.ip())).unwrap().connect(to, Duration::from_secs(5)).await;
        clients.push((client.unwrap(), listener));
    }
    assert!(clients.iter().all(|(client, _)| client.local_addr().unwrap().port() == 40000));
}

#[tokio::test]
async fn the_source_address_is_the_one_asked_for() {
    let netns = own();
    let listener = listen(&netns, "127.0.0.1:0".parse().unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    let from: IpAddr = "127.0.0.77".parse().unwrap();
    let client = connect_from(&netns, Some(from), to, Use::Tunnel, Duration::from_secs(5)).await.unwrap();
    assert_eq!(client.local_addr().unwrap().ip(), from);
    assert!(client.nodelay().unwrap());
}

#[tokio::test]
async fn nobody_listening_is_refused() {
    let netns = own();
    // A port that is taken, so that nobody else gets it, and not listened at.
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let taken = tcp_in(netns.fd.as_fd(), any).unwrap();
    taken.bind(&any.into()).unwrap();
    let to = taken.local_addr().unwrap().as_socket().unwrap();
    let error = connect_from(&netns, None, to, Use::Plain, Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn an_address_without_a_route_fails_at_once() {
    // A fresh namespace has no route at all.
    let to = "192.0.2.1:80".parse().unwrap();
    let error = connect_from(&fresh(), None, to, Use::Plain, Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
}

#[tokio::test]
async fn reset_on_close_is_seen_as_a_reset() {
    let netns = own();
    let listener = listen(&netns, "127.0.0.1:0".parse().unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    let mut client = connect_from(&netns, None, to, Use::Plain, Duration::from_secs(5)).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    client.write_all(b"x").await.unwrap();
    accepted.read_exact(&mut [0]).await.unwrap();
    reset_on_close(&accepted);
    drop(accepted);
    assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// A pod and its listener on loopback; the sender gets each connection that is served, with its place.
struct Served {
    address: SocketAddr,
    served: tokio::sync::mpsc::UnboundedReceiver<(TcpStream, places::Place)>,
    limited: crate::telemetry::metrics::Counter,
    _accepting: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn start(name: &str, places: &places::Places, telemetry: &crate::telemetry::Telemetry) -> Self {
        use crate::telemetry::metrics::names;
        let workload = crate::snapshot::fixtures::workload(name, "127.0.0.1", "n1", false);
        let identity = "spiffe://cluster.local/ns/shop/sa/default".parse().unwrap();
        let pod = crate::enrol::LocalPod::new(identity, own(), std::sync::Arc::new(workload));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, served) = tokio::sync::mpsc::unbounded_channel();
        let limited = telemetry.counter(&names::ACCEPT_LIMITED, &[("listener", name)]);
        let (counter, share) = (limited.clone(), places.of(&pod.uid));
        let _accepting = tokio::spawn(async move {
            let serve = |tcp, _, place| drop(tell.send((tcp, place)));
            accept::each(listener, std::future::pending(), &pod, &share.inbound, counter, serve).await;
        });
        Self { address, served, limited, _accepting }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn next(&mut self) -> (TcpStream, places::Place) {
        tokio::time::timeout(Duration::from_secs(20), self.served.recv()).await.expect("in time").unwrap()
    }
}

/// A pod that has as many connections as it may waits; nobody else does, and nothing is lost.
#[tokio::test]
async fn a_pod_with_all_its_connections_waits_and_another_does_not() {
    const MOST: u32 = 3;
    let telemetry =
        crate::telemetry::Telemetry::start(&crate::telemetry::TelemetrySettings::default()).unwrap();
    let places = places::Places::new(MOST);
    let (mut greedy, mut other) = (
        Served::start("greedy", &places, &telemetry).await,
        Served::start("other", &places, &telemetry).await,
    );
    // A second listener of the same pod takes from the same share, and one that only waits takes nothing.
    let mut second = Served::start("greedy", &places, &telemetry).await;
    let (mut clients, mut held) = (Vec::new(), Vec::new());
    for n in 0..MOST {
        let of = if n == 0 { &mut second } else { &mut greedy };
        clients.push(of.connect().await);
        held.push(of.next().await);
    }
    clients.push(greedy.connect().await);
    clients.push(greedy.connect().await);
    for _ in 0..=MOST {
        let one = other.connect().await;
        drop((one, other.next().await));
    }
    assert!(greedy.served.try_recv().is_err(), "beyond its share");
    // Each one that ends lets one in.
    for _ in 0..2 {
        held.pop();
        held.push(greedy.next().await);
    }
    assert!(greedy.served.try_recv().is_err());
    assert!(greedy.limited.value() >= 1);
}
