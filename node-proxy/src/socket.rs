//! The only place where sockets are made: in which namespace, with which options. A socket made elsewhere may loop.
//!
//! A socket belongs for ever to the network namespace of the thread that made it. So the calling thread steps into the
//! pod's namespace, makes the socket, and steps back, with no await between. Everything else (bind, connect) works on
//! the descriptor from anywhere. Start reading at [`in_netns`], then [`connect_from`] and [`bind`].

pub mod accept;
pub mod leg;
pub mod places;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::enrol::Netns;

/// The proxy's listener for connections that leave a pod.
pub const OUTBOUND_PORT: u16 = 15001;
/// The proxy's listener for plaintext that comes into a pod.
pub const INBOUND_PORT: u16 = 15006;
/// The proxy's listener for tunnels that come into a pod; the port of HBONE.
pub const TUNNEL_PORT: u16 = 15008;

/// Connections that the kernel queues before the proxy accepts: a burst of a few thousand short connections must not
/// lose a SYN. The kernel caps it at `net.core.somaxconn` of the namespace (4096 since Linux 5.4).
const LISTEN_BACKLOG: i32 = 4096;
/// A silent peer that vanished is noticed after `KEEPALIVE_IDLE + KEEPALIVE_PROBES × KEEPALIVE_INTERVAL` = 3 minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_PROBES: u32 = 3;
/// Data that nobody acknowledged for so long: the path is dead. As long as the tunnel's PING time-out, so that a
/// connection with data in flight is not kept longer than an idle one.
const TUNNEL_USER_TIMEOUT: Duration = Duration::from_secs(20);

/// A port that only the proxy itself serves inside a pod: never a target.
pub fn is_proxy_port(port: u16) -> bool {
    matches!(port, OUTBOUND_PORT | INBOUND_PORT | TUNNEL_PORT)
}

/// The namespace of the process itself, opened before any thread left it.
fn home() -> io::Result<BorrowedFd<'static>> {
    static HOME: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(fd) = HOME.get() {
        return Ok(fd.as_fd());
    }
    // Threads leave home only inside `in_netns`, which calls this first: whichever thread gets here is at home.
    let fd = OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net")?);
    Ok(HOME.get_or_init(|| fd).as_fd())
}

/// Brings the thread back. A thread that stays behind would make sockets of one pod in the namespace of another, so a
/// failure ends the process: the pods then fail closed and a fresh proxy takes over.
struct Return(BorrowedFd<'static>);

impl Drop for Return {
    fn drop(&mut self) {
        if let Err(error) = move_into_link_name_space(self.0, Some(LinkNameSpaceType::Network)) {
            eprintln!("weft-node: a thread cannot leave a pod's network namespace: {error}");
            std::process::abort();
        }
    }
}

/// Runs `make` with the calling thread inside `netns`. `make` must not block and must not spawn threads.
pub fn in_netns<T>(netns: BorrowedFd<'_>, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let home = home()?;
    move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
    let _return = Return(home);
    make()
}

/// A fresh TCP socket inside `netns`, non-blocking.
fn tcp_in(netns: BorrowedFd<'_>, address: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking();
    let socket = in_netns(netns, || Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP)))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// One listener inside a pod. Must be called in a tokio runtime.
pub fn listen(netns: &Netns, address: SocketAddr) -> io::Result<TcpListener> {
    let socket = tcp_in(netns.fd.as_fd(), address)?;
    // A new process must be able to listen while connections of the old one are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    // Accepted sockets inherit them: five system calls fewer per connection.
    socket.set_tcp_nodelay(true)?;
    keep_alive(&socket)?;
    socket.listen(LISTEN_BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The listeners of both families on `port`. A namespace without IPv6 gets the IPv4 one only.
pub fn listen_dual(netns: &Netns, port: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners = vec![listen(netns, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?];
    match listen(netns, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
        Ok(listener) => listeners.push(listener),
        Err(error) if no_ipv6(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(listeners)
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// What a connection is for: decides its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// To another node's proxy.
    Tunnel,
    /// Bytes of applications, as they are.
    Plain,
}

/// Connects from inside a pod's namespace, with `from` as the source address (None: the kernel chooses).
///
/// Cancel-safe: dropping the future gives the attempt up.
pub async fn connect_from(
    netns: &Netns,
    from: Option<IpAddr>,
    to: SocketAddr,
    usage: Use,
    time_out: Duration,
) -> io::Result<TcpStream> {
    let Unconnected(socket) = match from {
        Some(from) => bind(netns, from)?,
        None => Unconnected(tcp_in(netns.fd.as_fd(), to)?),
    };
    if usage == Use::Tunnel {
        socket.set_tcp_user_timeout(Some(TUNNEL_USER_TIMEOUT))?;
    }
    keep_alive(&socket)?;
    connect(socket, to, time_out).await
}

/// A socket with a source address and no port yet.
pub struct Unconnected(Socket);

impl Unconnected {
    /// To somebody of the same kernel, who cannot vanish in silence: without keep-alive.
    pub async fn connect(self, to: SocketAddr, time_out: Duration) -> io::Result<TcpStream> {
        connect(self.0, to, time_out).await
    }
}

impl AsFd for Unconnected {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Binds to `local` inside a pod. The port is chosen at connect, where it needs to be free only towards that
/// destination: a bind would take one out of the ephemeral range for all.
pub fn bind(netns: &Netns, local: IpAddr) -> io::Result<Unconnected> {
    let local = SocketAddr::new(local, 0);
    let socket = tcp_in(netns.fd.as_fd(), local)?;
    bind_address_no_port(&socket)?;
    socket.bind(&local.into())?;
    Ok(Unconnected(socket))
}

/// Where the proxy connects to a pod's own application, at `address`, from. The hooks know both by being the pod's.
///
/// IPv4: loopback, because its ports in TIME_WAIT are used again after a second. IPv6: the same address, because the
/// kernel does not get a reset from an address of a device to `::1`, so that a closed port would look like a dead one.
pub fn towards_application(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => address,
    }
}

async fn connect(socket: Socket, to: SocketAddr, time_out: Duration) -> io::Result<TcpStream> {
    socket.set_tcp_nodelay(true)?;
    let socket = TcpSocket::from_std_stream(socket.into());
    tokio::time::timeout(time_out, socket.connect(to))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn keep_alive(socket: &Socket) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// Makes the coming close a reset: the peer sees ECONNRESET instead of an orderly end. Unsent data is discarded.
pub fn reset_on_close(stream: &TcpStream) {
    // Fails only on a socket that is closed already; then there is nobody to tell.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

fn bind_address_no_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).expect("an int is small");
    // SAFETY: the descriptor is open for the whole call, and `on` outlives it with the length that is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            // Also for IPv6 sockets: the kernel hands SOL_IP of a non-raw one on to the IPv4 code.
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
