//! The cluster's wires: a namespace with a bridge for the control plane, a namespace per node, and the way from this machine's
//! loopback to the API server. Pods' wires are made by the CNI plugins.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;

use super::{Cluster, Families, Family};
use crate::lab::command::ip_batch;
use crate::lab::process::Place;
use crate::lab::{Capture, netns};

pub(crate) const API_PORT: u16 = 6443;

const FORWARDING: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
];
const FORWARDING_V6: &[(&str, &str)] = &[("net/ipv6/conf/all/forwarding", "1")];
/// Without them an answer between two pods of a node passes the rules that turn a Service's address back.
const BRIDGE_CALLS: [&str; 2] = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];

/// All namespaces of a cluster begin with this; a node's name follows, or `control`.
pub(crate) fn netns_of(cluster: &str, place: &str) -> String {
    format!("weftc.{cluster}.{place}")
}

/// `ip address`'s arguments. Nobody else has the address: IPv6 need not ask before it is used.
fn address_on(link: &str, address: IpAddr, family: Family) -> String {
    let unasked = if family == Family::V6 { " nodad" } else { "" };
    format!("address add {address}/{} dev {link}{unasked}", family.link_bits())
}

fn add_router(netns: &str, families: Families) -> Result<()> {
    netns::add(netns)?;
    families.each().iter().try_for_each(|family| {
        netns::sysctl(netns, if *family == Family::V4 { FORWARDING } else { FORWARDING_V6 })
    })
}

pub(crate) fn add_control(cluster: &str, families: Families) -> Result<()> {
    let control = netns_of(cluster, "control");
    add_router(&control, families)?;
    let mut lines = vec!["link add br0 type bridge".to_owned()];
    lines.extend(families.each().iter().map(|family| address_on("br0", family.control(), *family)));
    lines.push("link set br0 up".into());
    ip_batch(&control, &lines)
}

pub(crate) fn add_node(cluster: &str, families: Families, index: u16, nodes: u16) -> Result<()> {
    let (control, node) = (netns_of(cluster, "control"), netns_of(cluster, &format!("node{index}")));
    add_router(&node, families)?;
    for setting in BRIDGE_CALLS {
        if netns::inside(&node, || Path::new("/proc/sys").join(setting).exists())? {
            netns::sysctl(&node, &[(setting, "1")])?;
        }
    }
    let mut on_control = vec![
        format!("link add node{index} type veth peer name eth0 netns {node}"),
        format!("link set node{index} master br0 up"),
    ];
    let mut on_node = vec!["link set eth0 up".to_owned()];
    for family in families.each() {
        let to_pods = |index| format!("route add {} via {}", family.pods_of(index), family.node(index));
        on_control.push(to_pods(index));
        on_node.push(address_on("eth0", family.node(index), *family));
        on_node.push(format!("route add default via {}", family.control()));
        on_node.extend((1..=nodes).filter(|other| *other != index).map(to_pods));
    }
    ip_batch(&control, &on_control)?;
    ip_batch(&node, &on_node)
}

/// What a killed node leaves in its namespace: the pods' bridge and kube-proxy's rules.
pub(crate) fn forget_pods(cluster: &str, node: &str) -> Result<()> {
    let node = netns_of(cluster, node);
    let bridge = netns::inside(&node, || fs::read_to_string("/proc/thread-self/net/dev"))??;
    if bridge.contains("cni0:") { ip_batch(&node, &["link delete cni0".into()]) } else { Ok(()) }
}

impl Cluster {
    /// The namespace that joins the nodes, from which their pods can be reached.
    pub fn control_netns(&self) -> String {
        netns_of(self.name(), "control")
    }

    /// A node's addresses, the cluster's own family first.
    pub fn node_ips(&self, node: &str) -> Result<Vec<IpAddr>> {
        let index = Self::node_index(node)?;
        Ok(self.families().each().iter().map(|family| family.node(index)).collect())
    }

    /// Captures what crosses the link between a node and all others, with a filter in tcpdump's words. One at a time.
    pub fn capture(&self, node: &str, filter: &str) -> Result<Capture> {
        let group = self.cgroup().join("tools").join(format!("capture-{node}"));
        let place = Place { netns: self.control_netns(), cgroup: group, files: Vec::new() };
        Capture::start(
            place,
            node,
            self.families().first().node(Self::node_index(node)?),
            &self.directory().join("captures"),
            filter,
        )
    }
}

pub(crate) fn remove(cluster: &str) -> Result<()> {
    for netns in netns::with_prefix(&netns_of(cluster, "")) {
        netns::remove(&netns)?;
    }
    Ok(())
}
