//! A map with typed keys and values, open to all threads by shared reference. Start with [`Table`].

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use weft_ebpf_common::abi::{
    End, ExcludedCidr, ExcludedPort, Flow, InboundKey, Leg, NodeConfig, Peer, PodConfig, PodUse,
    SocketAddress, SocketKey,
};

use crate::sys::{self, MapInfo};

/// A type that may be copied from and to the kernel byte by byte.
///
/// # Safety
/// No implicit padding, and every bit pattern is a value.
pub(crate) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($kind:ty),*) => {
        // SAFETY: integers, or `repr(C)` of integers with explicit padding (sizes asserted in weft-ebpf-common).
        $(unsafe impl Plain for $kind {})*
    };
}
plain!(u8, i32, u32, u64, End, ExcludedPort, Flow, InboundKey, Leg, NodeConfig, PodConfig, SocketAddress);
plain!(SocketKey, CidrKey, Peer, PodUse);

/// What the kernel sees of a value.
pub(crate) fn bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: a `Plain` type has no padding, so all its bytes are initialised.
    unsafe { std::slice::from_raw_parts((&raw const *value).cast(), size_of::<T>()) }
}

/// Key of the LPM trie `EXCLUDED_CIDRS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CidrKey {
    pub(crate) prefix_bits: u32,
    pub(crate) data: ExcludedCidr,
}
const _: () = assert!(size_of::<CidrKey>() == 28);

/// What the kernel calls a map.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    fd: OwnedFd,
    info: MapInfo,
    kind: PhantomData<fn(K, V)>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let info = sys::map_info(&fd)?;
        if info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
            let text = format!("a map has layout {info:?}, which is not that of this version");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Self { fd, info, kind: PhantomData })
    }

    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::new(sys::open_pin(path)?)
    }

    pub(crate) fn find(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        // SAFETY: sizes were checked in `new`.
        match unsafe { sys::lookup(&self.fd, (&raw const *key).cast(), value.as_mut_ptr().cast()) } {
            // SAFETY: the kernel has filled it, and any bytes are a value of a `Plain` type.
            Ok(()) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        // SAFETY: sizes were checked in `new`.
        unsafe { sys::update(&self.fd, (&raw const *key).cast(), (&raw const *value).cast()) }
    }

    /// True if there was none before; one that is there stays as it is.
    pub(crate) fn insert_new(&self, key: &K, value: &V) -> io::Result<bool> {
        // SAFETY: sizes were checked in `new`.
        match unsafe { sys::update_new(&self.fd, (&raw const *key).cast(), (&raw const *value).cast()) } {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// True if there was one.
    pub(crate) fn remove(&self, key: &K) -> io::Result<bool> {
        // SAFETY: sizes were checked in `new`.
        match unsafe { sys::delete(&self.fd, (&raw const *key).cast()) } {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All keys. Bounded by the map's capacity, so that a table which changes meanwhile cannot hold us for ever.
    pub(crate) fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys: Vec<K> = Vec::new();
        let mut next = MaybeUninit::<K>::uninit();
        while keys.len() < self.info.max_entries as usize {
            let from = keys.last().map_or(std::ptr::null(), |key| (&raw const *key).cast());
            // SAFETY: sizes were checked in `new`.
            match unsafe { sys::next_key(&self.fd, from, next.as_mut_ptr().cast()) } {
                // SAFETY: the kernel has filled it, and any bytes are a value of a `Plain` type.
                Ok(()) => keys.push(unsafe { next.assume_init() }),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(keys)
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.info.max_entries
    }
}

impl<K, V> AsFd for Table<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
