//! The cluster's wires: a namespace with a bridge for the control plane, a namespace per node, and the way from this machine's
//! loopback to the API server. Pods' wires are made by the CNI plugins.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Result;

use super::Cluster;
use crate::lab::command::ip_batch;
use crate::lab::process::Place;
use crate::lab::{Capture, netns};

/// Where the API server listens, in the control plane's namespace.
pub(crate) const CONTROL_IP: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
pub(crate) const API_PORT: u16 = 6443;

const FORWARDING: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
];
/// Without it an answer between two pods of a node passes the rules that turn a Service's address back.
const BRIDGE_CALLS: &str = "net/bridge/bridge-nf-call-iptables";

/// All namespaces of a cluster begin with this; a node's name follows, or `control`.
pub(crate) fn netns_of(cluster: &str, place: &str) -> String {
    format!("weftc.{cluster}.{place}")
}

pub(crate) fn node_ip(index: u16) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, 10 + index.to_be_bytes()[1])
}

/// Addresses of a node's pods.
pub(crate) fn pod_subnet(index: u16) -> String {
    format!("10.244.{index}.0/24")
}

pub(crate) fn add_control(cluster: &str) -> Result<()> {
    let control = netns_of(cluster, "control");
    netns::add(&control)?;
    netns::sysctl(&control, FORWARDING)?;
    ip_batch(
        &control,
        &[
            "link add br0 type bridge".into(),
            format!("address add {CONTROL_IP}/24 dev br0"),
            "link set br0 up".into(),
        ],
    )
}

pub(crate) fn add_node(cluster: &str, index: u16, nodes: u16) -> Result<()> {
    let (control, node) = (netns_of(cluster, "control"), netns_of(cluster, &format!("node{index}")));
    netns::add(&node)?;
    netns::sysctl(&node, FORWARDING)?;
    if netns::inside(&node, || Path::new("/proc/sys").join(BRIDGE_CALLS).exists())? {
        netns::sysctl(&node, &[(BRIDGE_CALLS, "1")])?;
    }
    ip_batch(
        &control,
        &[
            format!("link add node{index} type veth peer name eth0 netns {node}"),
            format!("link set node{index} master br0 up"),
            format!("route add {} via {}", pod_subnet(index), node_ip(index)),
        ],
    )?;
    let mut on_node = vec![
        format!("address add {}/24 dev eth0", node_ip(index)),
        "link set eth0 up".into(),
        format!("route add default via {CONTROL_IP}"),
    ];
    for other in (1..=nodes).filter(|o| *o != index) {
        on_node.push(format!("route add {} via {}", pod_subnet(other), node_ip(other)));
    }
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

    /// Captures what crosses the link between a node and all others, with a filter in tcpdump's words. One at a time.
    pub fn capture(&self, node: &str, filter: &str) -> Result<Capture> {
        let group = self.cgroup().join("tools").join(format!("capture-{node}"));
        let place = Place { netns: self.control_netns(), cgroup: group, files: Vec::new() };
        Capture::start(
            place,
            node,
            node_ip(Self::node_index(node)?),
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
