//! The lab's wires: an underlay bridge in a namespace of its own, a namespace per node, one per pod.
//!
//! A pod hangs on its node by a routed veth pair (as the `ptp` CNI plugin does), not on a shared bridge: so traffic
//! between two pods of a node passes the node's rules, as it must for Services to work from outside the mesh.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};

use super::command::{ip_batch, run_with_input};
use super::netns;
use super::state::PodState;

/// Addresses of pods begin after the gateway's.
pub(crate) const FIRST_SLOT: u16 = 2;
/// One /24 per node.
pub(crate) const LAST_SLOT: u16 = 254;

/// Nodes of a lab: their addresses end in 11 and so on.
pub const NODES_MAX: u16 = 200;

/// The underlay's own address, where `weft-control` listens.
pub const UNDERLAY_IP: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);

pub(crate) fn underlay_netns(lab: &str) -> String {
    format!("weft-{lab}-underlay")
}

pub(crate) fn node_netns(lab: &str, node: &str) -> String {
    format!("weft-{lab}-{node}")
}

pub(crate) fn pod_netns(lab: &str, node_index: u16, slot: u16) -> String {
    format!("weft-{lab}-pod-{node_index}-{slot}")
}

/// All namespaces of a lab begin with this. A lab `a` must not match the namespaces of a lab `a-b`.
pub(crate) fn is_of_lab(netns: &str, lab: &str) -> bool {
    let Some(rest) = netns.strip_prefix(&format!("weft-{lab}-")) else { return false };
    let numbers = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    rest == "underlay"
        || rest.strip_prefix("node").is_some_and(numbers)
        || rest.strip_prefix("pod-").is_some_and(numbers)
}

/// `node1` is 1.
pub(crate) fn node_index(node: &str) -> Result<u16> {
    let number =
        node.strip_prefix("node").and_then(|n| n.parse().ok()).filter(|n| (1..=NODES_MAX).contains(n));
    number.with_context(|| format!("nodes of a lab are called node1, node2, ..., not {node:?}"))
}

pub fn node_ip(index: u16) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, 10 + index.to_be_bytes()[1])
}

fn node_ip6(index: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, 0x10 + index)
}

pub(crate) fn pod_ips(index: u16, slot: u16) -> Vec<IpAddr> {
    let [node, host] = [index.to_be_bytes()[1], slot.to_be_bytes()[1]];
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, index, 0, 0, 0, slot);
    vec![Ipv4Addr::new(10, 244, node, host).into(), v6.into()]
}

const FORWARDING: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
];

/// Nobody else has these addresses. While a device's own link-local one is being looked for (up to two seconds), its
/// kernel asks for no neighbour, and the first connections wait.
const NO_DUPLICATES: &[(&str, &str)] =
    &[("net/ipv6/conf/default/accept_dad", "0"), ("net/ipv6/conf/default/dad_transmits", "0")];

/// The underlay and the nodes, without pods.
pub(crate) fn add_nodes(lab: &str, nodes: u16) -> Result<()> {
    let underlay = underlay_netns(lab);
    netns::add(&underlay)?;
    netns::sysctl(&underlay, &[("net/ipv4/ip_forward", "1")])?;
    netns::sysctl(&underlay, NO_DUPLICATES)?;
    ip_batch(
        &underlay,
        &[
            "link add br0 type bridge".into(),
            format!("address add {UNDERLAY_IP}/24 dev br0"),
            "address add fd00:172:30::1/64 dev br0 nodad".into(),
            "link set br0 up".into(),
        ],
    )?;
    for index in 1..=nodes {
        add_node(lab, index, nodes)?;
    }
    Ok(())
}

fn add_node(lab: &str, index: u16, nodes: u16) -> Result<()> {
    let (underlay, node) = (underlay_netns(lab), node_netns(lab, &format!("node{index}")));
    netns::add(&node)?;
    netns::sysctl(&node, FORWARDING)?;
    netns::sysctl(&node, NO_DUPLICATES)?;
    let mut on_underlay = vec![
        format!("link add node{index} type veth peer name eth0 netns {node}"),
        format!("link set node{index} master br0 up"),
    ];
    let mut on_node = vec![
        format!("address add {}/24 dev eth0", node_ip(index)),
        format!("address add {}/64 dev eth0 nodad", node_ip6(index)),
        "link set eth0 up".into(),
    ];
    on_underlay.push(format!("route add 10.244.{index}.0/24 via {}", node_ip(index)));
    on_underlay.push(format!("route add fd00:10:244:{index:x}::/64 via {}", node_ip6(index)));
    for other in (1..=nodes).filter(|o| *o != index) {
        on_node.push(format!("route add 10.244.{other}.0/24 via {}", node_ip(other)));
        on_node.push(format!("route add fd00:10:244:{other:x}::/64 via {}", node_ip6(other)));
    }
    ip_batch(&underlay, &on_underlay)?;
    ip_batch(&node, &on_node)
}

/// The pod's namespace, with `eth0` and `lo`, joined to its node.
pub(crate) fn add_pod(lab: &str, pod: &PodState) -> Result<()> {
    let index = node_index(&pod.node)?;
    let (node, host) = (node_netns(lab, &pod.node), format!("pod{}", pod.slot));
    let gateways: Vec<String> = vec![format!("10.244.{index}.1"), format!("fd00:10:244:{index:x}::1")];
    netns::add(&pod.netns)?;
    netns::sysctl(&pod.netns, NO_DUPLICATES)?;
    // An earlier pod's namespace, and its device with it, lives on while anything holds it open.
    remove_device(&node, &host)?;
    let mut on_node = vec![
        format!("link add {host} type veth peer name eth0 netns {}", pod.netns),
        format!("address add {}/32 dev {host}", gateways[0]),
        format!("address add {}/128 dev {host} nodad", gateways[1]),
        format!("link set {host} up"),
    ];
    let mut on_pod = vec!["link set eth0 up".to_owned()];
    for (ip, gateway) in pod.ips.iter().zip(&gateways) {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let everywhere = if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        on_pod.push(format!("address add {ip}/{bits} dev eth0{}", if ip.is_ipv4() { "" } else { " nodad" }));
        on_pod.push(format!("route add {gateway}/{bits} dev eth0"));
        on_pod.push(format!("route add {everywhere} via {gateway} dev eth0"));
        on_node.push(format!("route add {ip}/{bits} dev {host}"));
    }
    ip_batch(&node, &on_node)?;
    ip_batch(&pod.netns, &on_pod)
}

/// Removes a pod's device on its node, if it is there; the pod's end and the routes to it go with it.
fn remove_device(node: &str, host: &str) -> Result<()> {
    let there = || -> Result<bool> { netns::inside(node, || has_device(host))? };
    if !there()? {
        return Ok(());
    }
    match ip_batch(node, &[format!("link del {host}")]) {
        // Gone is what was wanted: the kernel takes a namespace that was removed apart in its own time, this device with it.
        Err(_) if !there()? => Ok(()),
        other => other,
    }
}

/// Whether the calling thread's namespace has a device of this name.
fn has_device(name: &str) -> Result<bool> {
    let table = "/proc/thread-self/net/dev";
    let text = std::fs::read_to_string(table).context(table)?;
    Ok(text
        .lines()
        .any(|line| line.trim_start().strip_prefix(name).is_some_and(|rest| rest.starts_with(':'))))
}

/// Makes a pod's namespace drop every packet that comes in over its link, or stop doing so.
pub(crate) fn blackhole(pod: &PodState, on: bool) -> Result<()> {
    let rules = match on {
        true => {
            "table inet blackhole {\n  chain in {\n    type filter hook prerouting priority -300\n    \
             iifname \"eth0\" drop\n  }\n}\n"
        }
        false => "delete table inet blackhole\n",
    };
    netns::inside(&pod.netns, || run_with_input("nft", &["-f", "-"], rules).map(drop))?
        .with_context(|| format!("rules of {}", pod.key()))
}

/// Puts the Service rules of a node in force, in one transaction.
pub(crate) fn apply_service_rules(lab: &str, node: &str, rules: &str) -> Result<()> {
    let netns = node_netns(lab, node);
    netns::inside(&netns, || run_with_input("nft", &["-f", "-"], rules).map(drop))?
        .with_context(|| format!("Service rules of {node}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_owns_its_own_namespaces_only() {
        for (netns, lab, expected) in [
            ("weft-a-underlay", "a", true),
            ("weft-a-node2", "a", true),
            ("weft-a-pod-1-2", "a", true),
            ("weft-a-node-node1", "a", false),
            ("weft-a-b-node1", "a", false),
            ("weft-a-b-node1", "a-b", true),
            ("other", "a", false),
        ] {
            assert_eq!(is_of_lab(netns, lab), expected, "{netns} of {lab}");
        }
    }
}
