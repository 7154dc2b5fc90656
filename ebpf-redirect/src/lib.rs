//! The user side of the kernel programs: load, probe, attach, and reconcile the maps with the desired state.
//!
//! Everything is callable from many threads; map access is a short system call. Links and maps are pinned and outlive
//! the process: hooks without a proxy fail closed (`docs/kernel.md`). Start with [`Kernel`].

mod btf;
mod counters;
mod kernel;
mod object;
mod pins;
mod pods;
mod probe;
mod sys;
mod table;

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

pub use counters::Counters;
pub use kernel::Kernel;
pub use object::BUILT;
pub use pins::detach_all;
pub use probe::{Feature, ProbeReport};
pub use weft_ebpf_common::abi::{EXCLUDED_CIDRS_PER_POD_MAX, EXCLUDED_PORTS_PER_POD_MAX, UNREAD_BYTES_MAX};
pub use weft_ebpf_common::count::Outcome;

/// Intercepted connections of a node at a time, unless set otherwise.
pub const FLOWS_MAX_DEFAULT: u32 = weft_ebpf_common::abi::FLOWS_MAX;

/// Where and how to attach.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory on a bpffs for this node's pins, such as `/sys/fs/bpf/weft`. Made if missing.
    pub pin_dir: PathBuf,
    /// The cgroup v2 directory at which the cgroup programs are attached: the node's root.
    pub cgroup_root: PathBuf,
    /// The proxy's own cgroup v2 directory: its connections are left alone.
    pub proxy_cgroup: PathBuf,
    /// The cgroup v2 directory that all pods of the node are below (the kubelet's `kubepods`): a process there is not the
    /// node's, though it may share the node's network namespace. None: all processes in that namespace are the node's.
    pub pods_cgroup: Option<PathBuf>,
    /// Use sk_msg acceleration where the probe passes.
    pub redirect: bool,
    /// Intercepted connections at a time ([`FLOWS_MAX_DEFAULT`]). When they are that many, further connects of
    /// enrolled pods are refused and counted.
    pub flows_max: u32,
}

/// An enrolled pod, as the kernel shall see it.
#[derive(Debug, Clone, Copy)]
pub struct PodState<'a> {
    pub netns: BorrowedFd<'a>,
    pub netns_cookie: u64,
    pub addresses: &'a [IpAddr],
    /// Port of the proxy's outbound listener inside the pod.
    pub outbound_port: u16,
    /// The proxy's listeners for inbound connections, made inside the pod. Without one, inbound is refused.
    pub inbound_v4: Option<BorrowedFd<'a>>,
    pub inbound_v6: Option<BorrowedFd<'a>>,
    /// Inbound connections to these ports are not steered. The tunnel's port must be among them.
    pub excluded_inbound_ports: &'a [u16],
    /// Ports of this pod that the kubelet probes: connections to them from processes of the node reach the application
    /// directly, in the clear. The node is the network namespace that called [`Kernel::load`].
    pub probe_ports: &'a [u16],
    pub excluded_outbound_ports: &'a [u16],
    /// Address and prefix length.
    pub excluded_outbound_cidrs: &'a [(IpAddr, u8)],
    pub redirect: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("kernel programs were not built: run make setup")]
    NotBuilt,
    #[error("Linux {kernel} is too old: it has {lacks}; 5.15 or later is needed")]
    TooOld { kernel: String, lacks: &'static str },
    #[error("no program {0} in the kernel object")]
    NoProgram(&'static str),
    #[error("the kernel object cannot be loaded")]
    Object(#[from] aya::EbpfError),
    #[error("the kernel does not accept program {name} (Linux 5.15 or later is needed)")]
    Program { name: &'static str, source: Box<aya::programs::ProgramError> },
    #[error("{name} cannot be attached")]
    Attach { name: String, source: io::Error },
    #[error("a pod may have {most} {what}, and this one wants {wanted}")]
    TooMany { what: &'static str, wanted: usize, most: u32 },
    #[error("map {name} cannot be used")]
    Map { name: &'static str, source: io::Error },
    #[error("{0} is not on a BPF file system")]
    NotBpffs(PathBuf),
    #[error("pins in {path} cannot be used")]
    Pins { path: PathBuf, source: io::Error },
    #[error("cgroup {path} cannot be used")]
    Cgroup { path: PathBuf, source: io::Error },
}
