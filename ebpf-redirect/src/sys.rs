//! The `bpf(2)` system call, as far as the loader needs it beyond aya: links that can be updated in place, pins, and
//! map access by shared reference. Nothing here knows what Weft keeps in the maps.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `enum bpf_cmd`.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    Pin = 6,
    Open = 7,
    ProgAttach = 8,
    ProgRun = 10,
    Info = 15,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// `enum bpf_attach_type`, as far as Weft uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum AttachType {
    SockOps = 3,
    SkMsgVerdict = 7,
    Connect4 = 10,
    Connect6 = 11,
    GetPeerName4 = 29,
    GetPeerName6 = 30,
    SockRelease = 34,
    SkLookup = 36,
}

/// Size of `union bpf_attr` here: more than any member used, and zero where a member is shorter.
const ATTR_WORDS: usize = 16;
type Attr = [u64; ATTR_WORDS];

fn bpf(command: Command, attr: &mut Attr) -> io::Result<i32> {
    // SAFETY: the attribute outlives the call, and each caller keeps alive what the pointers in it point to.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as i32, attr.as_mut_ptr(), size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// Two 32-bit members that follow each other.
fn pair(first: u32, second: u32) -> u64 {
    let (a, b) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]])
}

fn number(fd: &impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd() as u32
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor to us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

pub(crate) fn pin(object: &impl AsFd, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = [0; ATTR_WORDS];
    attr[0] = path.as_ptr() as u64;
    attr[1] = pair(number(object), 0);
    bpf(Command::Pin, &mut attr).map(drop)
}

pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = [0; ATTR_WORDS];
    attr[0] = path.as_ptr() as u64;
    bpf(Command::Open, &mut attr).map(owned)
}

pub(crate) fn link_create(program: &impl AsFd, target: &impl AsFd, kind: AttachType) -> io::Result<OwnedFd> {
    let mut attr = [0; ATTR_WORDS];
    attr[0] = pair(number(program), number(target));
    attr[1] = pair(kind as u32, 0);
    bpf(Command::LinkCreate, &mut attr).map(owned)
}

/// Puts another program behind a link, atomically.
pub(crate) fn link_update(link: &impl AsFd, program: &impl AsFd) -> io::Result<()> {
    let mut attr = [0; ATTR_WORDS];
    attr[0] = pair(number(link), number(program));
    bpf(Command::LinkUpdate, &mut attr).map(drop)
}

/// Detaches at once, whoever else holds the link.
pub(crate) fn link_detach(link: &impl AsFd) -> io::Result<()> {
    let mut attr = [0; ATTR_WORDS];
    attr[0] = pair(number(link), 0);
    bpf(Command::LinkDetach, &mut attr).map(drop)
}

/// Attaches a program to a map of sockets; replaces the one that is there.
pub(crate) fn attach_to_map(program: &impl AsFd, map: &impl AsFd, kind: AttachType) -> io::Result<()> {
    let mut attr = [0; ATTR_WORDS];
    attr[0] = pair(number(map), number(program));
    attr[1] = pair(kind as u32, 0);
    bpf(Command::ProgAttach, &mut attr).map(drop)
}

/// Bytes of an Ethernet header, which a run of a program begins with and a socket filter does not see.
const LINK_HEADER_BYTES: usize = 14;
/// More than any key that programs are run with.
const RUN_BYTES_MAX: usize = 128;

/// Runs a socket filter once, with a packet of these bytes; what it answers.
pub(crate) fn run(program: &impl AsFd, bytes: &[u8]) -> io::Result<u32> {
    let mut packet = [0; RUN_BYTES_MAX];
    let length = LINK_HEADER_BYTES + bytes.len();
    let payload = packet.get_mut(LINK_HEADER_BYTES..length).ok_or(io::ErrorKind::InvalidInput)?;
    payload.copy_from_slice(bytes);
    let mut attr = [0; ATTR_WORDS];
    attr[0] = pair(number(program), 0);
    attr[1] = pair(length as u32, 0);
    attr[2] = packet.as_ptr() as u64;
    bpf(Command::ProgRun, &mut attr)?;
    // The second half of the first word.
    let [.., a, b, c, d] = attr[0].to_ne_bytes();
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

/// The head of `struct bpf_map_info`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

pub(crate) fn map_info(map: &impl AsFd) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    let mut attr = [0; ATTR_WORDS];
    attr[0] = pair(number(map), size_of::<MapInfo>() as u32);
    attr[1] = &raw mut info as u64;
    bpf(Command::Info, &mut attr)?;
    Ok(info)
}

fn element(map: &impl AsFd, key: *const u8, value: *mut u8, flags: u64) -> Attr {
    let mut attr = [0; ATTR_WORDS];
    attr[0] = pair(number(map), 0);
    attr[1] = key as u64;
    attr[2] = value as u64;
    attr[3] = flags;
    attr
}

/// # Safety
/// `key` and `value` point to as many bytes as the map's keys and values have (for a per-CPU map: values of all CPUs).
pub(crate) unsafe fn lookup(map: &impl AsFd, key: *const u8, value: *mut u8) -> io::Result<()> {
    bpf(Command::MapLookup, &mut element(map, key, value, 0)).map(drop)
}

/// # Safety
/// As for [`lookup`].
pub(crate) unsafe fn update(map: &impl AsFd, key: *const u8, value: *const u8) -> io::Result<()> {
    bpf(Command::MapUpdate, &mut element(map, key, value.cast_mut(), 0)).map(drop)
}

/// `BPF_NOEXIST`.
const ONLY_NEW: u64 = 1;

/// The same where there is none yet; else EEXIST.
///
/// # Safety
/// As for [`lookup`].
pub(crate) unsafe fn update_new(map: &impl AsFd, key: *const u8, value: *const u8) -> io::Result<()> {
    bpf(Command::MapUpdate, &mut element(map, key, value.cast_mut(), ONLY_NEW)).map(drop)
}

/// # Safety
/// `key` points to as many bytes as the map's keys have.
pub(crate) unsafe fn delete(map: &impl AsFd, key: *const u8) -> io::Result<()> {
    bpf(Command::MapDelete, &mut element(map, key, std::ptr::null_mut(), 0)).map(drop)
}

/// # Safety
/// `key` (null: from the start) and `next` point to as many bytes as the map's keys have.
pub(crate) unsafe fn next_key(map: &impl AsFd, key: *const u8, next: *mut u8) -> io::Result<()> {
    bpf(Command::MapNextKey, &mut element(map, key, next, 0)).map(drop)
}

/// The number by which the kernel knows a socket; never used again.
pub(crate) fn socket_cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// The cookie of this thread's network namespace.
pub(crate) fn own_netns_cookie() -> io::Result<u64> {
    netns_cookie(&socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?)
}

/// The cookie of the namespace that a socket was made in.
pub(crate) fn netns_cookie(socket: &impl AsFd) -> io::Result<u64> {
    /// Since 5.14; not yet in the libc crate for every target.
    const SO_NETNS_COOKIE: i32 = 71;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
