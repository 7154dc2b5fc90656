//! Each fault of a cluster leads to a finding that names it.

use serde_json::json;

use super::super::finding::{Level, each_is_told};
use super::super::permissions::{Permission, needed};
use super::*;

fn node(name: &str, os: &str, kernel: &str) -> Node {
    let info = json!({"operatingSystem": os, "kernelVersion": kernel, "architecture": "", "bootID": "",
        "containerRuntimeVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "",
        "osImage": "", "systemUUID": ""});
    serde_json::from_value(json!({"metadata": {"name": name}, "status": {"nodeInfo": info}})).unwrap()
}

fn good() -> ClusterFacts {
    ClusterFacts {
        server: "https://api/".into(),
        server_version: (1, 36),
        permissions: needed().unwrap().into_iter().map(|right| Permission { right, allowed: true }).collect(),
        definitions: GATEWAY_KINDS
            .map(|(name, _, version)| (name.to_owned(), vec![version.to_owned()]))
            .into(),
        workloads: vec![("kube-system".into(), "calico-node".into())],
        nodes: vec![node("a", "linux", "5.15.0-91-generic"), node("b", "linux", "6.1.0")],
        ..ClusterFacts::default()
    }
}

fn refuse(facts: &mut ClusterFacts, resources: &[&str], verbs: &[&str]) {
    for one in &mut facts.permissions {
        let (resource, verb) = (one.right.resource.as_str(), one.right.verb);
        one.allowed = !(resources.contains(&resource) && verbs.contains(&verb));
    }
}

#[test]
fn a_fitting_cluster_has_no_fault() {
    let findings = judge(&good());
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
    let text: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(
        text.contains(&"ok       kernels: 2 nodes with Linux 5.15.0-91-generic, 6.1.0".to_owned()),
        "{text:?}"
    );
}

#[test]
fn each_fault_is_named_with_what_to_do() {
    type Spoil = fn(&mut ClusterFacts);
    let cases: [(Spoil, Level, &str); 16] = [
        (|f| f.server_version = (1, 29), Level::Error, "needs 1.30 or later"),
        (
            |f| refuse(f, &["daemonsets", "namespaces"], &["create", "delete"]),
            Level::Error,
            "you may not create/delete namespaces, create/delete daemonsets in weft-system; ask",
        ),
        (
            |f| refuse(f, &["clusterroles"], &["escalate", "bind"]),
            Level::Warning,
            "you may not escalate/bind clusterroles; the API server lets you install",
        ),
        (|f| f.definitions.clear(), Level::Warning, "its kinds are not installed"),
        (
            |f| f.definitions.values_mut().for_each(|v| v[0] = "v1alpha2".into()),
            Level::Warning,
            "HTTPRoute is served as v1alpha2 only, not v1, GRPCRoute",
        ),
        (
            |f| drop(f.definitions.remove("grpcroutes.gateway.networking.k8s.io")),
            Level::Warning,
            "Gateway API: GRPCRoute is not installed; objects of these",
        ),
        (
            |f| drop(f.definitions.remove("referencegrants.gateway.networking.k8s.io")),
            Level::Warning,
            "Gateway API: ReferenceGrant is not installed; objects of these",
        ),
        (
            |f| f.workloads.push(("i".into(), "ztunnel".into())),
            Level::Warning,
            "ambient mode is installed (i/ztunnel)",
        ),
        (
            |f| f.namespaces_in_two_meshes.push(("shop".into(), "label istio.io/rev=stable".into())),
            Level::Error,
            "namespace shop is in Weft and in another mesh (label istio.io/rev=stable); take one",
        ),
        (
            |f| drop(f.cilium.insert("sockops-enable".into(), "true".into())),
            Level::Warning,
            "sockops are on: two programs cannot have the same socket; Weft counts such sockets (socket_refused_busy)",
        ),
        (
            |f| drop(f.cilium.insert("cni-exclusive".into(), "true".into())),
            Level::Warning,
            "CNI order: Cilium takes the network configuration for itself (cni-exclusive)",
        ),
        (
            |f| f.felix = json!({"bpfEnabled": true}),
            Level::Warning,
            "network: Calico's eBPF data plane resolves Services at connect()",
        ),
        (
            |f| drop(f.cilium.insert("bpf-lb-sock".into(), "true".into())),
            Level::Error,
            "hostNamespaceOnly=true",
        ),
        (
            |f| f.nodes.push(node("old", "linux", "5.4.0")),
            Level::Error,
            "node old: Linux 5.4.0; weft-node needs 5.15",
        ),
        (|f| f.own_namespace_enforces = Some("baseline".into()), Level::Error, "enforces \"baseline\""),
        (
            |f| f.namespaces_with_network_policies.push("shop".into()),
            Level::Warning,
            "in namespaces of the mesh: shop; between pods of the mesh they see TCP to port 15008",
        ),
    ];
    each_is_told(good, judge, cases);
}

#[test]
fn a_network_that_leaves_connects_and_configurations_alone_is_not_warned_of() {
    let said = |cilium: &[(&str, &str)], felix: Value| -> usize {
        let cilium = cilium.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let findings = judge(&ClusterFacts { cilium, felix, ..good() });
        findings.iter().filter(|finding| finding.level != Level::Ok).count()
    };
    type Settings = &'static [(&'static str, &'static str)];
    let cases: [(Settings, Value, usize); 6] = [
        (&[("cni-exclusive", "false")], json!({}), 0),
        (&[("cni-exclusive", "true")], json!({}), 1),
        (&[], json!({"bpfEnabled": false, "bpfConnectTimeLoadBalancing": "TCP"}), 0),
        (&[], json!({"bpfEnabled": true, "bpfConnectTimeLoadBalancing": "TCP"}), 1),
        (&[], json!({"bpfEnabled": true, "bpfConnectTimeLoadBalancing": "Disabled"}), 0),
        (&[], json!({"bpfEnabled": true, "bpfConnectTimeLoadBalancingEnabled": false}), 0),
    ];
    for (cilium, felix, warnings) in cases {
        assert_eq!(said(cilium, felix.clone()), warnings, "{cilium:?} {felix}");
    }
}

/// The counter that is named is one that the kernel side has, so that whoever looks for it finds it.
#[test]
fn the_counter_of_busy_sockets_is_in_the_documentation_of_the_kernel_side() {
    let documentation = include_str!("../../../../docs/kernel.md");
    assert!(documentation.contains("counted (`socket_refused_busy`)"));
    let counters = include_str!("../../../../ebpf-redirect/common/src/count.rs");
    assert!(counters.contains("= \"socket_refused_busy\":"));
}

#[test]
fn nothing_is_said_of_what_may_not_be_read() {
    let unreadable = vec!["customresourcedefinitions", "daemonsets", "nodes"];
    let facts = ClusterFacts { nodes: Vec::new(), workloads: Vec::new(), unreadable, ..good() };
    let whats: Vec<String> = judge(&facts).into_iter().map(|finding| finding.what).collect();
    assert_eq!(whats, ["API server", "permissions"]);
}

#[test]
fn kernel_versions_are_read_as_distributions_write_them() {
    for (text, version) in [
        ("5.15.0-91-generic", Some((5, 15))),
        ("6.18.44-fc-v657", Some((6, 18))),
        ("4.18", Some((4, 18))),
        ("x", None),
    ] {
        assert_eq!(kernel(text), version, "{text}");
    }
}
