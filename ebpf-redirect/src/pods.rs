//! Enrolling and releasing pods: what the maps shall hold for a pod, added before what is stale is removed.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{MutexGuard, PoisonError};

use weft_ebpf_common::abi::{
    DIRECTION_INBOUND, DIRECTION_OUTBOUND, EXCLUDED_CIDRS_PER_POD_MAX, EXCLUDED_PORTS_PER_POD_MAX,
    ExcludedPort, FAMILY_V4, FAMILY_V6, InboundKey, POD_NO_REDIRECT, PROBE_PORTS_PER_POD_MAX, PodConfig,
    PodUse, SHARES, SocketAddress, address_bytes, address_from_bytes,
};
use weft_ebpf_common::decide::{CIDR_COOKIE_BITS, cidr_key};

use crate::kernel::{Kernel, address, attach_pinned};
use crate::object::{self, SK_LOOKUP};
use crate::pins;
use crate::sys::{self, AttachType};
use crate::table::CidrKey;
use crate::{KernelError, PodState};

/// Bits by which a v4-mapped prefix is longer than the IPv4 prefix.
const MAPPED_BITS: u32 = 96;

/// What the maps hold, by pod. The maps are the truth; this spares walking them.
#[derive(Default)]
pub(crate) struct PodEntries {
    by_cookie: HashMap<u64, PodEntry>,
    /// Released namespaces that had no connection when last looked at.
    idle: HashSet<u64>,
}

#[derive(Default)]
pub(crate) struct PodEntry {
    ports: HashSet<ExcludedPort>,
    cidrs: HashSet<CidrKey>,
    probes: HashSet<SocketAddress>,
    /// The namespace's sk_lookup link.
    link: Option<OwnedFd>,
}

fn map(name: &'static str) -> impl Fn(io::Error) -> KernelError {
    move |source| KernelError::Map { name, source }
}

impl Kernel {
    /// Enrols a pod or updates it. Add before remove: never a moment without steering. A new one that cannot be had is shut:
    /// it is meant to be in the mesh, and without an entry it would go past it.
    pub fn enrol(&self, pod: &PodState<'_>) -> Result<(), KernelError> {
        let mut entries = self.lock_entries();
        self.forget_use_of_released(&mut entries.idle)?;
        self.allow_use(pod.netns_cookie)?;
        let entry = entries.by_cookie.entry(pod.netns_cookie).or_default();
        self.steer(pod, entry).inspect_err(|_| {
            // The first error is the one to tell.
            let _ = self.shut_if_new(pod, entry);
        })
    }

    fn shut_if_new(&self, pod: &PodState<'_>, entry: &mut PodEntry) -> Result<(), KernelError> {
        if self.maps.pods.find(&pod.netns_cookie).map_err(map("PODS"))?.is_none() {
            // Nobody can listen on port 0, and there is no listener for what comes in.
            let shut = PodConfig { outbound_port: 0, ..pod_config(pod) };
            self.insert("PODS", &self.maps.pods, &pod.netns_cookie, &shut)?;
        }
        if entry.link.is_none() {
            entry.link = Some(self.attach_lookup(pod)?);
        }
        Ok(())
    }

    fn steer(&self, pod: &PodState<'_>, entry: &mut PodEntry) -> Result<(), KernelError> {
        let ports = wanted_ports(pod);
        let cidrs = wanted_cidrs(pod);
        let probes = wanted_probes(pod);
        within("excluded ports", ports.len(), EXCLUDED_PORTS_PER_POD_MAX)?;
        within("excluded prefixes", cidrs.len(), EXCLUDED_CIDRS_PER_POD_MAX)?;
        within("probed ports", probes.len(), PROBE_PORTS_PER_POD_MAX)?;
        for port in ports.difference(&entry.ports) {
            self.insert("EXCLUDED_PORTS", &self.maps.excluded_ports, port, &1)?;
        }
        for cidr in cidrs.difference(&entry.cidrs) {
            self.insert("EXCLUDED_CIDRS", &self.maps.excluded_cidrs, cidr, &1)?;
        }
        for probe in probes.difference(&entry.probes) {
            self.insert("PROBE_PORTS", &self.maps.probe_ports, probe, &pod.netns_cookie)?;
        }
        self.listen(pod.netns_cookie, FAMILY_V4, pod.inbound_v4)?;
        self.listen(pod.netns_cookie, FAMILY_V6, pod.inbound_v6)?;
        self.insert("PODS", &self.maps.pods, &pod.netns_cookie, &pod_config(pod))?;
        if entry.link.is_none() {
            entry.link = Some(self.attach_lookup(pod)?);
        }
        for port in entry.ports.difference(&ports) {
            self.maps.excluded_ports.remove(port).map_err(map("EXCLUDED_PORTS"))?;
        }
        for cidr in entry.cidrs.difference(&cidrs) {
            self.maps.excluded_cidrs.remove(cidr).map_err(map("EXCLUDED_CIDRS"))?;
        }
        for probe in entry.probes.difference(&probes) {
            self.forget_probe(pod.netns_cookie, probe)?;
        }
        (entry.ports, entry.cidrs, entry.probes) = (ports, cidrs, probes);
        Ok(())
    }

    /// Releases a pod: its new connections bypass the mesh. Live ones are not touched.
    pub fn release(&self, netns_cookie: u64) -> Result<(), KernelError> {
        let mut entries = self.lock_entries();
        let entry = entries.by_cookie.remove(&netns_cookie).unwrap_or_default();
        pins::detach_link(&self.pins.lookup(netns_cookie))
            .map_err(|source| KernelError::Attach { name: SK_LOOKUP.into(), source })?;
        self.maps.pods.remove(&netns_cookie).map_err(map("PODS"))?;
        for family in [FAMILY_V4, FAMILY_V6] {
            self.listen(netns_cookie, family, None)?;
        }
        for port in &entry.ports {
            self.maps.excluded_ports.remove(port).map_err(map("EXCLUDED_PORTS"))?;
        }
        for cidr in &entry.cidrs {
            self.maps.excluded_cidrs.remove(cidr).map_err(map("EXCLUDED_CIDRS"))?;
        }
        for probe in &entry.probes {
            self.forget_probe(netns_cookie, probe)?;
        }
        self.forget_use_of_released(&mut entries.idle)
    }

    /// Another pod may have been given the address meanwhile.
    fn forget_probe(&self, netns_cookie: u64, probe: &SocketAddress) -> Result<(), KernelError> {
        let failed = map("PROBE_PORTS");
        if self.maps.probe_ports.find(probe).map_err(&failed)? == Some(netns_cookie) {
            self.maps.probe_ports.remove(probe).map_err(failed)?;
        }
        Ok(())
    }

    /// Without an entry of its own in `POD_USE` a pod is refused everything. One that it has already, with the
    /// connections that it counts, stays as it is.
    pub(crate) fn allow_use(&self, netns_cookie: u64) -> Result<(), KernelError> {
        let none = PodUse { entries: [0; SHARES] };
        self.maps.pod_use.insert_new(&netns_cookie, &none).map_err(map("POD_USE")).map(drop)
    }

    /// Removes the counts of released namespaces once nothing is left to count. Seen idle twice in a row: a connect that
    /// was in the hook while its pod was released has long ended by the second time.
    fn forget_use_of_released(&self, idle: &mut HashSet<u64>) -> Result<(), KernelError> {
        let failed = map("POD_USE");
        let mut idle_now = HashSet::new();
        for cookie in self.maps.pod_use.keys().map_err(&failed)? {
            if self.maps.pods.find(&cookie).map_err(map("PODS"))?.is_some() {
                continue;
            }
            let used = self.maps.pod_use.find(&cookie).map_err(&failed)?;
            if used.is_some_and(|used| used.entries != [0; SHARES]) {
                continue;
            }
            if idle.contains(&cookie) {
                self.maps.pod_use.remove(&cookie).map_err(&failed)?;
            } else {
                idle_now.insert(cookie);
            }
        }
        *idle = idle_now;
        Ok(())
    }

    /// Cookies of the pods that the kernel holds enrolled now, also from an earlier process.
    pub fn enrolled(&self) -> Result<Vec<u64>, KernelError> {
        self.maps.pods.keys().map_err(map("PODS"))
    }

    /// Puts this process's programs behind the links of an earlier one, and learns what it had excluded.
    pub(crate) fn take_over_pods(&self) -> Result<(), KernelError> {
        let mut entries = self.lock_entries();
        for cookie in self.maps.pods.keys().map_err(map("PODS"))? {
            self.allow_use(cookie)?;
            entries.by_cookie.entry(cookie).or_default();
        }
        let pinned = self
            .pins
            .pinned_lookups()
            .map_err(|source| KernelError::Pins { path: self.pins.lookups(), source })?;
        for cookie in pinned {
            let path = self.pins.lookup(cookie);
            let Some(entry) = entries.by_cookie.get_mut(&cookie) else {
                // Half released by a process that died.
                pins::detach_link(&path).map_err(|source| KernelError::Pins { path, source })?;
                continue;
            };
            let program = self.lookup_program(cookie)?;
            let link =
                sys::open_pin(&path).map_err(|source| KernelError::Pins { path: path.clone(), source })?;
            match sys::link_update(&link, &program) {
                Ok(()) => entry.link = Some(link),
                // The namespace is gone; the pod will be released.
                Err(_) => pins::remove(&path).map_err(|source| KernelError::Pins { path, source })?,
            }
        }
        for port in self.maps.excluded_ports.keys().map_err(map("EXCLUDED_PORTS"))? {
            entries.by_cookie.entry(port.netns_cookie).or_default().ports.insert(port);
        }
        for cidr in self.maps.excluded_cidrs.keys().map_err(map("EXCLUDED_CIDRS"))? {
            let [high, low] = cidr.data.netns_cookie_be.map(u32::from_be);
            let cookie = u64::from(high) << 32 | u64::from(low);
            entries.by_cookie.entry(cookie).or_default().cidrs.insert(cidr);
        }
        let failed = map("PROBE_PORTS");
        for probe in self.maps.probe_ports.keys().map_err(&failed)? {
            if let Some(cookie) = self.maps.probe_ports.find(&probe).map_err(&failed)? {
                entries.by_cookie.entry(cookie).or_default().probes.insert(probe);
            }
        }
        Ok(())
    }

    /// A poisoned lock means that a thread died between two map writes; the maps are still the truth.
    fn lock_entries(&self) -> MutexGuard<'_, PodEntries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lookup_program(&self, netns_cookie: u64) -> Result<OwnedFd, KernelError> {
        let mut object = object::open(Some(&self.pins.maps()), self.options.flows_max, netns_cookie)?;
        object::load(&mut object, SK_LOOKUP)
    }

    fn attach_lookup(&self, pod: &PodState<'_>) -> Result<OwnedFd, KernelError> {
        let program = self.lookup_program(pod.netns_cookie)?;
        let path = self.pins.lookup(pod.netns_cookie);
        attach_pinned(&program, &pod.netns, AttachType::SkLookup, &path)
            .map_err(|source| KernelError::Attach { name: SK_LOOKUP.into(), source })
    }

    fn listen(
        &self,
        netns_cookie: u64,
        family: u32,
        socket: Option<BorrowedFd<'_>>,
    ) -> Result<(), KernelError> {
        let key = InboundKey { netns_cookie, family, pad: [0; 4] };
        let listeners = &self.maps.inbound_listeners;
        match socket {
            Some(socket) => self.insert("INBOUND_LISTENERS", listeners, &key, &socket.as_raw_fd()),
            None => listeners.remove(&key).map(drop).map_err(map("INBOUND_LISTENERS")),
        }
    }
}

/// So that no pod takes another's room.
fn within(what: &'static str, wanted: usize, most: u32) -> Result<(), KernelError> {
    if wanted > most as usize { Err(KernelError::TooMany { what, wanted, most }) } else { Ok(()) }
}

fn pod_config(pod: &PodState<'_>) -> PodConfig {
    let v4 = pod.addresses.iter().copied().find(IpAddr::is_ipv4);
    let v6 = pod.addresses.iter().copied().find(IpAddr::is_ipv6);
    PodConfig {
        outbound_v4: address(v4.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))),
        outbound_v6: address(v6.unwrap_or(IpAddr::V6(Ipv6Addr::LOCALHOST))),
        outbound_port: pod.outbound_port,
        flags: if pod.redirect { 0 } else { POD_NO_REDIRECT },
        pad: [0; 4],
    }
}

fn wanted_ports(pod: &PodState<'_>) -> HashSet<ExcludedPort> {
    let of = |direction| {
        move |port: &u16| ExcludedPort { netns_cookie: pod.netns_cookie, port: *port, direction, pad: [0; 4] }
    };
    let inbound = pod.excluded_inbound_ports.iter().map(of(DIRECTION_INBOUND));
    inbound.chain(pod.excluded_outbound_ports.iter().map(of(DIRECTION_OUTBOUND))).collect()
}

fn wanted_probes(pod: &PodState<'_>) -> HashSet<SocketAddress> {
    let of = |ip: &IpAddr| {
        let address = address(*ip);
        pod.probe_ports.iter().map(move |port| SocketAddress::new(address, *port))
    };
    pod.addresses.iter().flat_map(of).collect()
}

fn wanted_cidrs(pod: &PodState<'_>) -> HashSet<CidrKey> {
    pod.excluded_outbound_cidrs
        .iter()
        .map(|(prefix, length)| {
            let mapped = if prefix.is_ipv4() { MAPPED_BITS } else { 0 };
            // A prefix longer than an address excludes just that address.
            let bits = (u32::from(*length) + mapped).min(128);
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            let network = u128::from_be_bytes(address_bytes(address(*prefix))) & mask;
            let network = address_from_bytes(network.to_be_bytes());
            CidrKey { prefix_bits: CIDR_COOKIE_BITS + bits, data: cidr_key(pod.netns_cookie, network) }
        })
        .collect()
}
