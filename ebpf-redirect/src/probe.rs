//! The start-up probe: does sk_msg acceleration behave on this kernel? Real sockets in a namespace of their own, once
//! redirected and once only present in the map, which some kernels get wrong. What fails turns redirect off, no more.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use weft_ebpf_common::abi::{Leg, SocketKey};

use crate::btf;
use crate::kernel::from_std;
use crate::object::{self, SK_MSG};
use crate::sys::{self, AttachType};
use crate::table::Table;

/// How long one step may take. A lost wake-up shows as this time-out; a healthy kernel needs microseconds.
const STEP: Duration = Duration::from_secs(2);
/// Enough for the probe's two sockets.
const PROBE_FLOWS: u32 = 4;

/// Whether something can be used, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feature {
    Available,
    Off(String),
}

impl Feature {
    pub fn available(&self) -> bool {
        *self == Feature::Available
    }
}

/// What the start-up probe found. What Weft cannot do without is not listed: without it loading fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    pub kernel: String,
    /// sk_msg acceleration.
    pub redirect: Feature,
    /// The same towards applications; without it only what goes towards the proxy is redirected.
    pub redirect_to_applications: Feature,
    /// The same for sockets that applications accept.
    pub redirect_accepted: Feature,
    /// What is known to be wrong and is tolerated: FIONREAD on an application's socket in the map to which the proxy sends through the
    /// stack, because it began to in the very moment of the insert.
    pub caveat: Option<String>,
}

/// Runs the probe in a thread and a network namespace of its own.
pub(crate) fn run() -> ProbeReport {
    let kernel = kernel_release();
    let result = if mptcp() && !object::has_mptcp_helper() {
        // One of them in a socket map has never been tried.
        Err("kernels before 5.19 do not tell which sockets belong to MPTCP".to_owned())
    } else {
        std::thread::spawn(behaviour).join().unwrap_or_else(|_| Err("the probe panicked".to_owned()))
    };
    let (redirect, caveat) = match result {
        Ok(caveat) => (Feature::Available, caveat),
        Err(reason) => (Feature::Off(reason), None),
    };
    let but = |other: fn() -> Feature| if redirect.available() { other() } else { redirect.clone() };
    ProbeReport {
        redirect_to_applications: but(towards_applications),
        redirect_accepted: but(accepted_sockets),
        kernel,
        redirect,
        caveat,
    }
}

/// Nothing but the proxy holds a sender back whose messages are redirected, and it must know how far behind the reader is.
fn towards_applications() -> Feature {
    match btf::unread_offsets() {
        Some(_) => Feature::Available,
        None => Feature::Off("the kernel does not tell what is unread".to_owned()),
    }
}

pub(crate) fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Does this kernel have MPTCP?
fn mptcp() -> bool {
    fs::exists("/proc/sys/net/mptcp/enabled").unwrap_or(true)
}

/// A plain TCP child of an MPTCP listener (Go's default) must not be in a socket map on kernels before 6.18: `accept()`
/// then takes it for an MPTCP socket. The hook cannot tell such a child from others.
fn accepted_sockets() -> Feature {
    if mptcp() && !object::kernel_at_least(6, 18) {
        return Feature::Off("kernels before 6.18 confuse accepted sockets with MPTCP".to_owned());
    }
    Feature::Available
}

fn behaviour() -> Result<Option<String>, String> {
    // SAFETY: only this thread changes its namespace, and it ends with the probe.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
        .map_err(|error| format!("no namespace to probe in: {error}"))?;
    loopback_up().map_err(|error| format!("no loopback to probe on: {error}"))?;
    let redirected = Exchange { redirected: true, fionread: None }
        .run()
        .map_err(|reason| format!("redirected sockets: {reason}"))?;
    let present = Exchange { redirected: false, fionread: None }
        .run()
        .map_err(|reason| format!("sockets only in the map: {reason}"))?;
    // Towards an application everything is redirected, or nothing: `decide::way`. The proxy does not use FIONREAD.
    let held_back = btf::unread_offsets().is_some();
    match (held_back, redirected, present) {
        (true, Some(wrong), _) => Err(format!("redirected sockets: {wrong}")),
        (false, _, Some(wrong)) => Err(format!("sockets only in the map: {wrong}")),
        (true, None, wrong) => Ok(wrong.map(|wrong| format!("sockets only in the map: {wrong}"))),
        (false, _, None) => Ok(None),
    }
}

fn loopback_up() -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: an all-zero ifreq is valid; the call reads and writes only that.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// One pair of sockets: sends both ways, looks at readiness and FIONREAD, and closes each half.
struct Exchange {
    redirected: bool,
    /// The first wrong answer of FIONREAD.
    fionread: Option<String>,
}

impl Exchange {
    /// What FIONREAD got wrong, if all else behaves.
    fn run(mut self) -> Result<Option<String>, String> {
        let mut object = object::open(None, PROBE_FLOWS, 0).map_err(|error| chain(&error))?;
        let program = object::load(&mut object, SK_MSG).map_err(|error| chain(&error))?;
        let sockets: Table<SocketKey, u32> = Table::new(map_fd(&object, "SOCKETS")?).map_err(text)?;
        let legs: Table<SocketKey, Leg> = Table::new(map_fd(&object, "LEGS")?).map_err(text)?;
        sys::attach_to_map(&program, &sockets, AttachType::SkMsgVerdict)
            .map_err(|error| format!("sk_msg cannot be attached: {error}"))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(text)?;
        let to = listener.local_addr().map_err(text)?;
        let mut one = TcpStream::connect(to).map_err(text)?;
        let (mut other, _) = listener.accept().map_err(text)?;
        for stream in [&one, &other] {
            stream.set_read_timeout(Some(STEP)).map_err(text)?;
            stream.set_write_timeout(Some(STEP)).map_err(text)?;
            let key = key(stream).map_err(text)?;
            sockets.insert(&key, &(stream.as_raw_fd() as u32)).map_err(text)?;
            if self.redirected {
                legs.insert(&key, &Leg::new(true, 0)).map_err(text)?;
            }
        }
        self.direction(&mut one, &mut other)?;
        self.direction(&mut other, &mut one)?;
        end(&one, &mut other)?;
        // The other half still works.
        self.direction(&mut other, &mut one)?;
        end(&other, &mut one)?;
        Ok(self.fionread)
    }

    /// One message: readiness, FIONREAD before and after a partial read, and the bytes.
    fn direction(&mut self, from: &mut TcpStream, to: &mut TcpStream) -> Result<(), String> {
        let sent: Vec<u8> = (0..4096u32).map(|index| (index % 251) as u8).collect();
        let wake = Wake::on(to)?;
        from.write_all(&sent).map_err(|error| format!("send: {error}"))?;
        wake.wait("data")?;
        self.expect_readable(to, sent.len())?;
        let mut received = vec![0; sent.len()];
        to.read_exact(&mut received[..1000]).map_err(|error| format!("partial read: {error}"))?;
        self.expect_readable(to, sent.len() - 1000)?;
        to.read_exact(&mut received[1000..]).map_err(|error| format!("read: {error}"))?;
        if received == sent { Ok(()) } else { Err("bytes differ".to_owned()) }
    }

    fn expect_readable(&mut self, stream: &TcpStream, expected: usize) -> Result<(), String> {
        let seen = rustix::io::ioctl_fionread(stream).map_err(|error| format!("FIONREAD: {error}"))?;
        if seen != expected as u64 {
            self.fionread.get_or_insert_with(|| format!("FIONREAD says {seen}, not {expected}"));
        }
        Ok(())
    }
}

fn end(from: &TcpStream, to: &mut TcpStream) -> Result<(), String> {
    let wake = Wake::on(to)?;
    from.shutdown(Shutdown::Write).map_err(|error| format!("shutdown: {error}"))?;
    wake.wait("end of file")?;
    match to.read(&mut [0; 16]) {
        Ok(0) => Ok(()),
        Ok(more) => Err(format!("{more} bytes after the end")),
        Err(error) => Err(format!("end of file: {error}")),
    }
}

/// An edge-triggered registration, as the proxy's runtime makes them: it sees wake-ups, not levels.
struct Wake(OwnedFd);

impl Wake {
    fn on(stream: &TcpStream) -> Result<Self, String> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| format!("epoll: {error}"))?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&epoll, stream, epoll::EventData::new_u64(0), flags)
            .map_err(|error| format!("epoll: {error}"))?;
        Ok(Self(epoll))
    }

    fn wait(&self, what: &str) -> Result<(), String> {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        let timeout = rustix::event::Timespec { tv_sec: STEP.as_secs() as i64, tv_nsec: 0 };
        match epoll::wait(&self.0, events.as_mut_slice(), Some(&timeout)) {
            Ok(1..) => Ok(()),
            Ok(_) => Err(format!("no wake-up for {what}")),
            Err(error) => Err(format!("epoll: {error}")),
        }
    }
}

/// The 4-tuple of a connected socket.
pub(crate) fn key(stream: &impl AsFd) -> io::Result<SocketKey> {
    let socket = socket2::SockRef::from(stream);
    let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
    let remote = socket.peer_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
    let netns_cookie = sys::netns_cookie(stream)?;
    Ok(SocketKey { netns_cookie, local: from_std(local), remote: from_std(remote) })
}

fn map_fd(object: &aya::Ebpf, name: &str) -> Result<OwnedFd, String> {
    use aya::maps::Map;
    let data = match object.map(name) {
        Some(Map::SockHash(data) | Map::HashMap(data)) => data,
        _ => return Err(format!("no map {name} in the object")),
    };
    data.fd().as_fd().try_clone_to_owned().map_err(text)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn text(error: io::Error) -> String {
    error.to_string()
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
