//! The embedded kernel programs: parsing them, loading one, and where their maps are pinned. Attaching is elsewhere.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::programs::{
    CgroupSock, CgroupSockAddr, Program, ProgramError, SkLookup, SkMsg, SockOps, SocketFilter,
};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use weft_ebpf_common::abi::{ENDS_PER_FLOW, FLOWS_PER_PROBE, SOCKETS_PER_FLOW};

use crate::KernelError;
use crate::btf::{self, UnreadOffsets};
use crate::sys::AttachType;

/// The ELF parser wants its file aligned.
#[repr(C, align(8))]
struct Aligned<T>(T);

/// The object file; empty if the eBPF tools were missing at build time.
static OBJECT: Aligned<[u8; include_bytes!(concat!(env!("OUT_DIR"), "/weft.o")).len()]> =
    Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/weft.o")));

/// Are the kernel programs in this build?
pub const BUILT: bool = !include_bytes!(concat!(env!("OUT_DIR"), "/weft.o")).is_empty();

/// All maps, by the name in the object, which is also the name of the pin.
pub(crate) const MAPS: [&str; 18] = [
    "CONFIG",
    "PODS",
    "POD_USE",
    "EXCLUDED_PORTS",
    "EXCLUDED_CIDRS",
    "ORIGINAL_BY_COOKIE",
    "ORIGINAL_DESTINATIONS",
    "PEER_BY_COOKIE",
    "PEER_NAMES",
    "ACCEPTED_PEERS",
    "CLOSED_PEERS",
    "PROBE_PORTS",
    "PROBES_BY_COOKIE",
    "PROBES",
    "INBOUND_LISTENERS",
    "SOCKETS",
    "LEGS",
    "COUNTERS",
];

/// The programs attached to the node's cgroup, in the order of attaching: those that others rely on come first, so that
/// no connect is intercepted before its destination can be published and removed again.
pub(crate) const CGROUP_PROGRAMS: [(&str, AttachType); 6] = [
    ("weft_sock_ops", AttachType::SockOps),
    ("weft_release", AttachType::SockRelease),
    ("weft_peer_name4", AttachType::GetPeerName4),
    ("weft_peer_name6", AttachType::GetPeerName6),
    ("weft_connect4", AttachType::Connect4),
    ("weft_connect6", AttachType::Connect6),
];
pub(crate) const SK_MSG: &str = "weft_sk_msg";
pub(crate) const UNREAD: &str = "weft_unread";
pub(crate) const SK_LOOKUP: &str = "weft_sk_lookup";

/// `bpf_skc_to_mptcp_sock` exists from 5.19 on.
pub(crate) fn has_mptcp_helper() -> bool {
    kernel_at_least(5, 19)
}

pub(crate) fn kernel_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(major, minor, 0))
}

/// Sizes of the maps that grow with connections.
pub(crate) fn flow_maps(flows_max: u32) -> [(&'static str, u32); 9] {
    let probes = (flows_max / FLOWS_PER_PROBE).max(1);
    [
        ("ORIGINAL_BY_COOKIE", flows_max),
        ("ORIGINAL_DESTINATIONS", flows_max.saturating_mul(ENDS_PER_FLOW)),
        ("PEER_BY_COOKIE", flows_max),
        ("PEER_NAMES", flows_max),
        ("ACCEPTED_PEERS", flows_max.saturating_mul(ENDS_PER_FLOW)),
        ("PROBES_BY_COOKIE", probes),
        ("PROBES", probes),
        ("SOCKETS", flows_max.saturating_mul(SOCKETS_PER_FLOW)),
        ("LEGS", flows_max.saturating_mul(SOCKETS_PER_FLOW)),
    ]
}

/// Parses the object and makes its maps; with a directory, those pinned there are used, and new ones are pinned.
pub(crate) fn open(maps: Option<&Path>, flows_max: u32, netns_cookie: u64) -> Result<Ebpf, KernelError> {
    if !BUILT {
        return Err(KernelError::NotBuilt);
    }
    let has_mptcp = u32::from(has_mptcp_helper());
    let mut loader = EbpfLoader::new();
    loader.override_global("NETNS_COOKIE", &netns_cookie, true);
    let unread = btf::unread_offsets().unwrap_or(UnreadOffsets { user_data: 0, unread: 0 });
    loader.override_global("SOCK_USER_DATA", &unread.user_data, true);
    loader.override_global("PSOCK_UNREAD", &unread.unread, true);
    loader.override_global("HAS_MPTCP_HELPER", &has_mptcp, true);
    for (name, size) in flow_maps(flows_max) {
        loader.map_max_entries(name, size);
    }
    if let Some(directory) = maps {
        for name in MAPS {
            loader.map_pin_path(name, directory.join(name));
        }
    }
    Ok(loader.load(&OBJECT.0)?)
}

/// Hands one program to the verifier.
pub(crate) fn load(object: &mut Ebpf, name: &'static str) -> Result<OwnedFd, KernelError> {
    let program = object.program_mut(name).ok_or(KernelError::NoProgram(name))?;
    let loaded = load_any(program).and_then(|()| program.fd());
    let fd = loaded.map_err(|source| KernelError::Program { name, source: Box::new(source) })?;
    fd.as_fd().try_clone_to_owned().map_err(|source| KernelError::Attach { name: name.into(), source })
}

fn load_any(program: &mut Program) -> Result<(), ProgramError> {
    if let Ok(program) = <&mut CgroupSockAddr>::try_from(&mut *program) {
        return program.load();
    }
    if let Ok(program) = <&mut CgroupSock>::try_from(&mut *program) {
        return program.load();
    }
    if let Ok(program) = <&mut SockOps>::try_from(&mut *program) {
        return program.load();
    }
    if let Ok(program) = <&mut SocketFilter>::try_from(&mut *program) {
        return program.load();
    }
    if let Ok(program) = <&mut SkMsg>::try_from(&mut *program) {
        return program.load();
    }
    <&mut SkLookup>::try_from(program)?.load()
}
