//! A pod's network namespace: opened through one of its processes, and known by its cookie.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use socket2::{Domain, Socket, Type};

use crate::socket;

/// A network namespace, held open.
#[derive(Debug)]
pub struct Netns {
    pub fd: OwnedFd,
    pub cookie: u64,
}

/// Which namespace it is, as the file system says: comparable without entering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NetnsId {
    device: u64,
    inode: u64,
}

impl NetnsId {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }

    /// The namespace that a process is in now.
    pub(super) fn of_process(pid: &str) -> io::Result<Self> {
        Self::of(&File::open(format!("/proc/{pid}/ns/net"))?)
    }
}

impl Netns {
    /// Opens the namespace of a process.
    pub(super) fn of_process(pid: &str) -> io::Result<(Self, NetnsId)> {
        let file = File::open(format!("/proc/{pid}/ns/net"))?;
        let id = NetnsId::of(&file)?;
        Ok((Self::new(file.into())?, id))
    }

    /// The same namespace, held once more.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, cookie: self.cookie })
    }

    /// `fd`: an open `ns/net` file.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let socket = socket::in_netns(fd.as_fd(), || Socket::new(Domain::IPV4, Type::DGRAM, None))?;
        Ok(Self { cookie: cookie_of(&socket)?, fd })
    }
}

/// The cookie of the namespace that a socket belongs to: Linux 5.14.
fn cookie_of(socket: &Socket) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).expect("8 fits");
    // SAFETY: the descriptor is open for the length of the call; `cookie` and `length` are live, and the kernel writes
    // at most `length` = 8 bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
