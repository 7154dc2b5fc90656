//! Names and virtual addresses of Services for pods: `/etc/hosts` instead of a cluster's DNS, and nftables rules
//! instead of kube-proxy.
//!
//! The mesh itself needs neither the rules nor nftables: they are for pods outside the mesh. All functions here are
//! pure texts; [`super::network`] applies them.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use super::manifest::{Manifests, Service};
use super::state::PodState;

/// What `/etc/hosts` of a pod says. Every form of a Service's name that the cluster's DNS would answer is there.
pub(crate) fn hosts_file(pod: &PodState, manifests: &Manifests, pods: &[PodState]) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n".to_owned();
    for ip in &pod.ips {
        let _ = writeln!(text, "{ip} {}", pod.name);
    }
    for service in manifests.services.values() {
        let (name, namespace) = (&service.metadata.name, &service.metadata.namespace);
        let long = format!("{name}.{namespace} {name}.{namespace}.svc {name}.{namespace}.svc.cluster.local");
        let short = if *namespace == pod.namespace { format!(" {name}") } else { String::new() };
        for ip in addresses(service, manifests, pods) {
            let _ = writeln!(text, "{ip} {long}{short}");
        }
    }
    text
}

/// The virtual addresses, or those of the pods behind a headless Service.
fn addresses(service: &Service, manifests: &Manifests, pods: &[PodState]) -> Vec<IpAddr> {
    let vips = service.vips();
    if !vips.is_empty() {
        return vips;
    }
    let behind = pods.iter().filter(|p| manifests.pods.get(&p.key()).is_some_and(|m| service.selects(m)));
    behind.flat_map(|p| p.ips.clone()).collect()
}

/// The node's rules: every virtual address and port leads to a random pod behind it, as kube-proxy would have it.
pub(crate) fn nft_rules(manifests: &Manifests, pods: &[PodState]) -> String {
    let mut rules = String::new();
    for service in manifests.services.values() {
        for vip in service.vips() {
            for port in &service.spec.ports {
                let behind: Vec<SocketAddr> = pods
                    .iter()
                    .filter_map(|p| {
                        let manifest = manifests.pods.get(&p.key()).filter(|m| service.selects(m))?;
                        let ip = p.ips.iter().find(|ip| ip.is_ipv4() == vip.is_ipv4())?;
                        Some(SocketAddr::new(*ip, port.target(manifest)?))
                    })
                    .collect();
                let _ = writeln!(rules, "    {}", nft_rule(vip, port.port, &behind));
            }
        }
    }
    format!(
        "table inet services\ndelete table inet services\ntable inet services {{\n  chain prerouting {{\n    \
         type nat hook prerouting priority dstnat; policy accept;\n{rules}  }}\n}}\n"
    )
}

fn nft_rule(vip: IpAddr, port: u16, behind: &[SocketAddr]) -> String {
    let family = if vip.is_ipv4() { "ip" } else { "ip6" };
    let matched = format!("{family} daddr {vip} tcp dport {port}");
    if behind.is_empty() {
        // A nat chain cannot reject; a packet to an address without a route is answered by the node itself.
        return format!("{matched} counter");
    }
    let choices: Vec<String> =
        behind.iter().enumerate().map(|(i, to)| format!("{i} : {} . {}", to.ip(), to.port())).collect();
    let count = behind.len();
    format!(
        "{matched} dnat {family} addr . port to numgen random mod {count} map {{ {} }}",
        choices.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ip: &str) -> PodState {
        PodState {
            namespace: "shop".into(),
            name: name.into(),
            uid: "u".into(),
            node: "node1".into(),
            netns: "n".into(),
            ips: vec![ip.parse().unwrap()],
            slot: 2,
            containers: Vec::new(),
        }
    }

    fn shop() -> (Manifests, Vec<PodState>) {
        let text = "apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, labels: {app: web}}
spec: {nodeName: node1, containers: [{name: c, command: [x]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: each, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
";
        (
            Manifests::parse("shop.yaml", text, 2).unwrap(),
            vec![pod("a", "10.244.1.2"), pod("b", "10.244.1.3")],
        )
    }

    #[test]
    fn hosts_name_services_by_every_form_and_headless_ones_by_their_pods() {
        let (manifests, pods) = shop();
        let hosts = hosts_file(&pods[1], &manifests, &pods);
        assert!(
            hosts.contains("10.96.0.10 web.shop web.shop.svc web.shop.svc.cluster.local web\n"),
            "{hosts}"
        );
        assert!(hosts.contains("10.244.1.2 each.shop "), "{hosts}");
        assert!(hosts.contains("10.244.1.3 b\n"), "{hosts}");
    }

    #[test]
    fn rules_lead_a_virtual_address_to_the_pods_behind_it() {
        let (manifests, pods) = shop();
        let rules = nft_rules(&manifests, &pods);
        let rule = "ip daddr 10.96.0.10 tcp dport 80 dnat ip addr . port to numgen random mod 1 map { 0 : 10.244.1.2 . 8080 }";
        assert!(rules.contains(rule), "{rules}");
    }
}
