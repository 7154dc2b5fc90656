//! The user side of the kernel programs: load, probe, attach, and reconcile the maps with the desired state.
//!
//! Everything is callable from many threads; map access is a short system call.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// Where and how to attach.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory on a bpffs for this node's pins, such as `/sys/fs/bpf/weft`. Made if missing.
    pub pin_dir: PathBuf,
    /// The cgroup v2 directory at which the cgroup programs are attached: the node's root.
    pub cgroup_root: PathBuf,
    /// The proxy's own cgroup v2 directory: its connections are left alone.
    pub proxy_cgroup: PathBuf,
    /// Use sk_msg acceleration where the probe passes.
    pub redirect: bool,
}

/// An enrolled pod, as the kernel shall see it.
#[derive(Debug, Clone, Copy)]
pub struct PodState<'a> {
    pub netns: BorrowedFd<'a>,
    pub netns_cookie: u64,
    pub addresses: &'a [IpAddr],
    /// Port of the proxy's outbound listener inside the pod.
    pub outbound_port: u16,
    /// The proxy's listeners for inbound connections, made inside the pod.
    pub inbound_v4: Option<BorrowedFd<'a>>,
    pub inbound_v6: Option<BorrowedFd<'a>>,
    /// Inbound connections to these ports are not steered. The tunnel's port must be among them.
    pub excluded_inbound_ports: &'a [u16],
    pub excluded_outbound_ports: &'a [u16],
    /// Address and prefix length.
    pub excluded_outbound_cidrs: &'a [(IpAddr, u8)],
    pub redirect: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("not implemented")]
    Todo,
}

/// The loaded programs and their maps.
pub struct Kernel {
    _private: (),
}

impl Kernel {
    /// Probes, loads (or takes over what an earlier process pinned) and attaches.
    pub fn load(_options: &Options) -> Result<Self, KernelError> {
        todo!()
    }
    /// Enrols a pod or updates it. Add before remove: never a moment without steering.
    pub fn enrol(&self, _pod: &PodState<'_>) -> Result<(), KernelError> {
        todo!()
    }
    /// Releases a pod: its new connections bypass the mesh. Live ones are not touched.
    pub fn release(&self, _netns_cookie: u64) -> Result<(), KernelError> {
        todo!()
    }
    /// Cookies of the pods that the kernel holds enrolled now, also from an earlier process.
    pub fn enrolled(&self) -> Result<Vec<u64>, KernelError> {
        todo!()
    }
    /// Where the client of an accepted outbound connection wanted to go.
    pub fn original_destination(&self, _netns_cookie: u64, _client: SocketAddr) -> Option<SocketAddr> {
        todo!()
    }
    /// From now until the guard is dropped, an application that accepts a connection from `proxy_end` sees `client`
    /// as its peer. To be called after bind and before connect.
    pub fn name_peer(
        self: &Arc<Self>,
        _netns_cookie: u64,
        _proxy_end: SocketAddr,
        _client: SocketAddr,
    ) -> Result<PeerName, KernelError> {
        todo!()
    }
}

/// Keeps an entry of the peer name map; removes it when dropped.
pub struct PeerName {
    _private: (),
}
