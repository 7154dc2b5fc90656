//! [`Kernel`]: the loaded programs and their maps. Loading and taking over are here; pods in `pods.rs`.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use weft_ebpf_common::abi::{
    ABI_VERSION, Address, End, Flow, InboundKey, Leg, NODE_REDIRECT, NODE_REDIRECT_ACCEPTED, NOT_REDIRECTED,
    NodeConfig, PODS_TO_FILL_FLOWS, Peer, PodConfig, PodUse, SocketAddress, SocketKey, address_bytes,
    address_from_bytes, v4_mapped,
};
use weft_ebpf_common::count::Outcome;

use crate::counters::Counters;
use crate::object::{self, CGROUP_PROGRAMS, SK_MSG, UNREAD};
use crate::pins::{self, Pins};
use crate::pods::PodEntries;
use crate::probe::{self, ProbeReport};
use crate::sys::{self, AttachType};
use crate::table::{CidrKey, Table};
use crate::{KernelError, Options};

/// The loaded programs and their maps. Dropping it detaches nothing: see [`Kernel::detach_all`].
pub struct Kernel {
    pub(crate) pins: Pins,
    pub(crate) options: Options,
    pub(crate) maps: Maps,
    pub(crate) entries: Mutex<PodEntries>,
    report: ProbeReport,
    redirect: AtomicBool,
    node: NodeIds,
    cpus: usize,
    /// Names that this process could not write, the map being full.
    names_refused: AtomicU64,
    /// `weft_unread`, where sockets are redirected.
    unread: Option<OwnedFd>,
}

/// By what the hooks know who calls.
struct NodeIds {
    proxy_cgroup: u64,
    /// 0: not known.
    pods_cgroup: u64,
    netns_cookie: u64,
}

impl NodeIds {
    fn find(options: &Options, netns_cookie: u64) -> Result<Self, KernelError> {
        let id = |path: &Path| match std::fs::metadata(path) {
            Ok(directory) => Ok(directory.ino()),
            Err(source) => Err(KernelError::Cgroup { path: path.to_owned(), source }),
        };
        Ok(Self {
            proxy_cgroup: id(&options.proxy_cgroup)?,
            pods_cgroup: options.pods_cgroup.as_deref().map_or(Ok(0), id)?,
            netns_cookie,
        })
    }
}

/// Every map, typed.
pub(crate) struct Maps {
    pub(crate) config: Table<u32, NodeConfig>,
    pub(crate) pods: Table<u64, PodConfig>,
    pub(crate) pod_use: Table<u64, PodUse>,
    pub(crate) excluded_ports: Table<weft_ebpf_common::abi::ExcludedPort, u8>,
    pub(crate) excluded_cidrs: Table<CidrKey, u8>,
    pub(crate) original_by_cookie: Table<u64, SocketAddress>,
    pub(crate) original_destinations: Table<End, Flow>,
    pub(crate) peer_by_cookie: Table<u64, Peer>,
    pub(crate) peer_names: Table<SocketKey, SocketAddress>,
    pub(crate) accepted_peers: Table<u64, SocketAddress>,
    pub(crate) closed_peers: Table<u64, SocketAddress>,
    pub(crate) probe_ports: Table<SocketAddress, u64>,
    pub(crate) probes_by_cookie: Table<u64, u64>,
    pub(crate) probes: Table<SocketKey, u8>,
    pub(crate) inbound_listeners: Table<InboundKey, i32>,
    pub(crate) sockets: Table<SocketKey, u32>,
    pub(crate) legs: Table<SocketKey, Leg>,
    pub(crate) counters: OwnedFd,
}

impl Maps {
    fn open(directory: &Path) -> Result<Self, KernelError> {
        macro_rules! table {
            ($name:literal) => {
                Table::open(&directory.join($name))
                    .map_err(|source| KernelError::Map { name: $name, source })?
            };
        }
        Ok(Self {
            config: table!("CONFIG"),
            pods: table!("PODS"),
            pod_use: table!("POD_USE"),
            excluded_ports: table!("EXCLUDED_PORTS"),
            excluded_cidrs: table!("EXCLUDED_CIDRS"),
            original_by_cookie: table!("ORIGINAL_BY_COOKIE"),
            original_destinations: table!("ORIGINAL_DESTINATIONS"),
            peer_by_cookie: table!("PEER_BY_COOKIE"),
            peer_names: table!("PEER_NAMES"),
            accepted_peers: table!("ACCEPTED_PEERS"),
            closed_peers: table!("CLOSED_PEERS"),
            probe_ports: table!("PROBE_PORTS"),
            probes_by_cookie: table!("PROBES_BY_COOKIE"),
            probes: table!("PROBES"),
            inbound_listeners: table!("INBOUND_LISTENERS"),
            sockets: table!("SOCKETS"),
            legs: table!("LEGS"),
            counters: sys::open_pin(&directory.join("COUNTERS"))
                .map_err(|source| KernelError::Map { name: "COUNTERS", source })?,
        })
    }

    /// Made by this version with these sizes?
    fn fit(&self, flows_max: u32) -> bool {
        let sizes = [
            self.original_by_cookie.capacity(),
            self.original_destinations.capacity(),
            self.peer_by_cookie.capacity(),
            self.peer_names.capacity(),
            self.accepted_peers.capacity(),
            self.probes_by_cookie.capacity(),
            self.probes.capacity(),
            self.sockets.capacity(),
            self.legs.capacity(),
        ];
        let counters = sys::map_info(&self.counters).map(|info| info.max_entries).unwrap_or(0);
        let version = self.config.find(&0).ok().flatten().map(|config| config.abi_version);
        version == Some(ABI_VERSION)
            && counters == weft_ebpf_common::count::OUTCOMES
            && object::flow_maps(flows_max).iter().map(|(_, size)| *size).eq(sizes)
    }
}

impl Kernel {
    /// Probes, loads (or takes over what an earlier process pinned) and attaches.
    pub fn load(options: &Options) -> Result<Self, KernelError> {
        // First, because no error further on would name it: it is the youngest of what Weft cannot do without that can be
        // asked for.
        let netns_cookie = own_netns_cookie()?;
        let report = probe::run();
        let pins = Pins::create(&options.pin_dir)?;
        let cgroup = File::open(&options.cgroup_root)
            .map_err(|source| KernelError::Cgroup { path: options.cgroup_root.clone(), source })?;
        let node = NodeIds::find(options, netns_cookie)?;
        let carried = make_room(&pins, options.flows_max)?;
        let mut object = object::open(Some(&pins.maps()), options.flows_max, 0)?;
        let maps = Maps::open(&pins.maps())?;
        let mut kernel = Self {
            redirect: AtomicBool::new(options.redirect),
            entries: Mutex::default(),
            cpus: aya::util::nr_cpus()
                .map_err(|(_, source)| KernelError::Map { name: "COUNTERS", source })?,
            options: options.clone(),
            pins,
            maps,
            report,
            node,
            names_refused: AtomicU64::new(0),
            unread: None,
        };
        kernel.write_config()?;
        for (cookie, pod) in carried {
            kernel.allow_use(cookie)?;
            kernel.insert("PODS", &kernel.maps.pods, &cookie, &pod)?;
        }
        if kernel.report.redirect.available() {
            let program = object::load(&mut object, SK_MSG)?;
            sys::attach_to_map(&program, &kernel.maps.sockets, AttachType::SkMsgVerdict)
                .map_err(|source| KernelError::Attach { name: SK_MSG.into(), source })?;
            kernel.unread = Some(object::load(&mut object, UNREAD)?);
        }
        for (name, kind) in CGROUP_PROGRAMS {
            let program = object::load(&mut object, name)?;
            attach_pinned(&program, &cgroup, kind, &kernel.pins.links().join(name))
                .map_err(|source| KernelError::Attach { name: name.into(), source })?;
        }
        kernel.take_over_pods()?;
        Ok(kernel)
    }

    /// Where the client of an accepted outbound connection wanted to go.
    pub fn original_destination(&self, netns_cookie: u64, client: SocketAddr) -> Option<SocketAddr> {
        let end = End { netns_cookie, socket: from_std(client) };
        let flow = self.maps.original_destinations.find(&end).ok().flatten()?;
        Some(to_std(flow.original))
    }

    /// The application that accepts what this socket connects to sees `client` as its peer, for as long as its own
    /// socket lives. To be called before connect; on an error do not connect. Nothing has to be undone: the entry goes
    /// when the socket closes or its connect fails.
    pub fn name_peer(&self, socket: &impl AsFd, client: SocketAddr) -> Result<(), KernelError> {
        let name = "PEER_BY_COOKIE";
        let cookie = sys::socket_cookie(socket).map_err(|source| KernelError::Map { name, source })?;
        let peer = Peer { client: from_std(client), counted: 0, pad: [0; 4] };
        self.insert(name, &self.maps.peer_by_cookie, &cookie, &peer).inspect_err(|_| {
            self.names_refused.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// How many bytes that this socket of the proxy has sent lie unread in the application's queue, if they go there past
    /// the stack, which then holds nobody back: above [`UNREAD_BYTES_MAX`] the proxy must wait before it sends more.
    /// None: the stack does it. Some system calls: to be asked once in a few hundred KiB.
    pub fn unread(&self, socket: &impl AsFd) -> Option<u32> {
        let program = self.unread.as_ref()?;
        let key = probe::key(socket).ok()?;
        let answer = sys::run(program, crate::table::bytes(&key)).ok()?;
        (answer != NOT_REDIRECTED).then_some(answer)
    }

    /// What the hooks have counted since the maps were made.
    pub fn counters(&self) -> Result<Counters, KernelError> {
        let mut counters = Counters::read(&self.maps.counters, self.cpus)
            .map_err(|source| KernelError::Map { name: "COUNTERS", source })?;
        counters.add(Outcome::PeerRefusedFull, self.names_refused.load(Ordering::Relaxed));
        Ok(counters)
    }

    /// The hooks that are attached, and in how many pods' namespaces `sk_lookup` is: for status.
    pub fn attached(&self) -> Result<(Vec<String>, usize), KernelError> {
        let failed = |path: std::path::PathBuf| move |source| KernelError::Pins { path, source };
        let hooks = self.pins.pinned_links().map_err(failed(self.pins.links()))?;
        let lookups = self.pins.pinned_lookups().map_err(failed(self.pins.lookups()))?;
        Ok((hooks, lookups.len()))
    }

    /// Name, entries in use, capacity. Walks the maps: for a scrape, not for every connection.
    pub fn map_fill(&self) -> Result<Vec<(&'static str, usize, u32)>, KernelError> {
        macro_rules! fill {
            ($($name:literal = $map:ident),*) => { vec![$((
                $name,
                self.maps.$map.keys().map_err(|source| KernelError::Map { name: $name, source })?.len(),
                self.maps.$map.capacity(),
            )),*] };
        }
        Ok(fill!(
            "pods" = pods,
            "pod_use" = pod_use,
            "excluded_ports" = excluded_ports,
            "excluded_cidrs" = excluded_cidrs,
            "original_by_cookie" = original_by_cookie,
            "original_destinations" = original_destinations,
            "peer_by_cookie" = peer_by_cookie,
            "peer_names" = peer_names,
            "accepted_peers" = accepted_peers,
            "closed_peers" = closed_peers,
            "probe_ports" = probe_ports,
            "probes_by_cookie" = probes_by_cookie,
            "probes" = probes,
            "inbound_listeners" = inbound_listeners,
            "sockets" = sockets,
            "legs" = legs
        ))
    }

    /// How many entries of the flow maps are there because of a pod's sockets; none for a namespace that was never
    /// enrolled. Index: [`weft_ebpf_common::abi::Share`].
    pub fn pod_use(&self, netns_cookie: u64) -> Result<Option<PodUse>, KernelError> {
        self.maps.pod_use.find(&netns_cookie).map_err(|source| KernelError::Map { name: "POD_USE", source })
    }

    /// What the start-up probe found.
    pub fn probe_report(&self) -> &ProbeReport {
        &self.report
    }

    /// Whether new connections are accelerated.
    pub fn redirect_on(&self) -> bool {
        self.redirect.load(Ordering::Relaxed) && self.report.redirect.available()
    }

    /// Switches acceleration for new connections; live ones keep their path. Answers whether it is on now: it stays off
    /// where the probe failed.
    pub fn set_redirect(&self, on: bool) -> Result<bool, KernelError> {
        self.redirect.store(on, Ordering::Relaxed);
        self.write_config()?;
        Ok(on && self.report.redirect.available())
    }

    /// Removes every link, map and pin of this node: for uninstalling. See [`crate::detach_all`].
    pub fn detach_all(&self) -> Result<(), KernelError> {
        pins::detach_all(&self.options.pin_dir)
    }

    fn write_config(&self) -> Result<(), KernelError> {
        let on = self.redirect_on();
        let mut flags = if on { NODE_REDIRECT } else { 0 };
        if on && self.report.redirect_accepted.available() {
            flags |= NODE_REDIRECT_ACCEPTED;
        }
        let config = NodeConfig {
            abi_version: ABI_VERSION,
            flags,
            proxy_cgroup_id: self.node.proxy_cgroup,
            node_netns_cookie: self.node.netns_cookie,
            pods_cgroup_id: self.node.pods_cgroup,
            pod_flows_max: pod_flows_max(self.options.flows_max),
            pad: [0; 4],
        };
        self.insert("CONFIG", &self.maps.config, &0, &config)
    }

    pub(crate) fn insert<K: crate::table::Plain, V: crate::table::Plain>(
        &self,
        name: &'static str,
        table: &Table<K, V>,
        key: &K,
        value: &V,
    ) -> Result<(), KernelError> {
        table.insert(key, value).map_err(|source| KernelError::Map { name, source })
    }
}

fn own_netns_cookie() -> Result<u64, KernelError> {
    sys::own_netns_cookie().map_err(|source| match source.raw_os_error() {
        Some(libc::ENOPROTOOPT) => KernelError::TooOld {
            kernel: probe::kernel_release(),
            lacks: "no cookies of network namespaces (SO_NETNS_COOKIE)",
        },
        _ => KernelError::Map { name: "CONFIG", source },
    })
}

/// One pod's share of `flows_max`.
fn pod_flows_max(flows_max: u32) -> u32 {
    (flows_max / PODS_TO_FILL_FLOWS).max(1)
}

/// Unpins maps that another version or size made, and hands back the pods in them: they stay enrolled throughout. The
/// links hold the old maps until their programs are replaced.
fn make_room(pins: &Pins, flows_max: u32) -> Result<Vec<(u64, PodConfig)>, KernelError> {
    let directory = pins.maps();
    let pinned = object::MAPS.iter().any(|name| directory.join(name).exists());
    if !pinned || Maps::open(&directory).is_ok_and(|maps| maps.fit(flows_max)) {
        return Ok(Vec::new());
    }
    tracing::info!("pinned maps are of another version or size: replacing them");
    // Both layouts are promised to stay: see `docs/kernel.md`.
    let mut carried = Vec::new();
    if let Ok(old) = Table::<u64, PodConfig>::open(&directory.join("PODS")) {
        for cookie in old.keys().unwrap_or_default() {
            carried.extend(old.find(&cookie).ok().flatten().map(|pod| (cookie, pod)));
        }
    }
    for name in object::MAPS {
        pins::remove(&directory.join(name))
            .map_err(|source| KernelError::Pins { path: directory.clone(), source })?;
    }
    Ok(carried)
}

/// Replaces the program behind a pinned link, or attaches and pins a new one.
pub(crate) fn attach_pinned(
    program: &OwnedFd,
    target: &impl AsFd,
    kind: AttachType,
    path: &Path,
) -> io::Result<OwnedFd> {
    if let Ok(link) = sys::open_pin(path)
        && sys::link_update(&link, program).is_ok()
    {
        return Ok(link);
    }
    // None, or its cgroup or namespace is gone: a new one is attached before the pin is replaced.
    let link = sys::link_create(program, target, kind)?;
    pins::pin_again(&link, path)?;
    Ok(link)
}

pub(crate) fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => v4_mapped(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => address_from_bytes(v6.octets()),
    }
}

pub(crate) fn from_std(address: SocketAddr) -> SocketAddress {
    SocketAddress::new(self::address(address.ip()), address.port())
}

pub(crate) fn to_std(address: SocketAddress) -> SocketAddr {
    SocketAddr::new(IpAddr::from(address_bytes(address.address)).to_canonical(), address.port)
}
