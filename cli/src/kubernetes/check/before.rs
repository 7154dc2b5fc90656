//! What an installation needs of the cluster. Pure: facts in, findings out.

use k8s_openapi::api::core::v1::Node;
use serde_json::Value;

use super::super::release::Release;
use super::facts::{ClusterFacts, GATEWAY_KINDS};
use super::finding::Finding;
use super::permissions::Right;

/// Tokens name their node (ServiceAccountTokenPodNodeInfo) by default from 1.30 on, always from 1.32 on; weft-control knows a node by that.
const KUBERNETES_MIN: (u32, u32) = (1, 30);
/// The network namespace's cookie in sock_ops programs.
const KERNEL_MIN: (u32, u32) = (5, 15);

/// DaemonSets and Deployments by which other meshes are known, and what they are.
const MESHES: [(&str, &str); 7] = [
    ("istio-cni-node", "Istio's CNI plugin"),
    ("ztunnel", "Istio's ambient mode"),
    ("istiod", "Istio"),
    ("linkerd-cni", "Linkerd's CNI plugin"),
    ("linkerd-proxy-injector", "Linkerd"),
    ("kuma-control-plane", "Kuma"),
    ("consul-connect-injector", "Consul"),
];

/// DaemonSets by which networks are known.
const NETWORKS: [(&str, &str); 10] = [
    ("calico-node", "Calico"),
    ("canal", "Canal"),
    ("cilium", "Cilium"),
    ("kube-flannel-ds", "Flannel"),
    ("kindnet", "kindnet"),
    ("aws-node", "Amazon VPC CNI"),
    ("azure-cns", "Azure CNI"),
    ("antrea-agent", "Antrea"),
    ("kube-router", "kube-router"),
    ("weave-net", "Weave Net"),
];

pub(super) fn judge(facts: &ClusterFacts) -> Vec<Finding> {
    let readable = |resources: &[&str]| !resources.iter().any(|it| facts.unreadable.contains(it));
    let mut findings = vec![server(facts)];
    findings.extend(permissions(facts));
    if readable(&["customresourcedefinitions"]) {
        findings.push(gateway_api(facts));
    }
    if readable(&["daemonsets", "deployments", "namespaces"]) {
        findings.extend(meshes(facts));
    }
    if readable(&["daemonsets", "configmaps of kube-system"]) {
        findings.extend(network(facts));
    }
    if readable(&["nodes"]) {
        findings.extend(kernels(&facts.nodes));
    }
    findings.extend(pod_security(facts));
    findings.extend(network_policies(facts));
    findings
}

/// The manifest would be applied by force, so nothing would be left of other values, and nobody would be told.
pub(super) fn of_helm(release: &Release) -> Finding {
    Finding::error(
        "Helm",
        format!(
            "Weft was installed here as {release}, whose values `weft install` would set back to the defaults"
        ),
        format!("let Helm upgrade it, which keeps them: {}", release.upgrade()),
    )
}

fn server(facts: &ClusterFacts) -> Finding {
    let (major, minor) = facts.server_version;
    let shown = format!("{} is reached, Kubernetes {major}.{minor}", facts.server);
    if facts.server_version < KUBERNETES_MIN {
        let (major, minor) = KUBERNETES_MIN;
        return Finding::error(
            "API server",
            shown,
            format!("Weft needs {major}.{minor} or later, where a token says on which node it is used"),
        );
    }
    Finding::ok("API server", shown)
}

fn permissions(facts: &ClusterFacts) -> Vec<Finding> {
    const WHAT: &str = "permissions";
    let refused = facts.permissions.iter().filter(|one| !one.allowed).map(|one| &one.right);
    let (grants, missing): (Vec<&Right>, Vec<&Right>) = refused.partition(|right| right.grants());
    let mut findings = Vec::new();
    if !missing.is_empty() {
        let remedy = "ask for cluster-admin, or for these";
        findings.push(Finding::error(WHAT, format!("you may not {}", in_words(&missing)), remedy));
    }
    if !grants.is_empty() {
        let remedy =
            "the API server lets you install Weft's roles only if you have every right in them yourself";
        findings.push(Finding::warning(WHAT, format!("you may not {}", in_words(&grants)), remedy));
    }
    if !facts.unreadable.is_empty() {
        let detail = format!("you may not read {}", facts.unreadable.join(", "));
        findings.push(Finding::warning(WHAT, detail, "what depends on them was not checked"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(WHAT, "you may do all that install, check, status and uninstall do"));
    }
    findings
}

/// The verbs together that are of one place.
fn in_words(rights: &[&Right]) -> String {
    let mut places: Vec<(String, Vec<&str>)> = Vec::new();
    for right in rights {
        let place = right.place();
        match places.iter_mut().find(|(other, _)| *other == place) {
            Some((_, verbs)) => verbs.push(right.verb),
            None => places.push((place, vec![right.verb])),
        }
    }
    let told = places.iter().map(|(place, verbs)| format!("{} {place}", verbs.join("/")));
    told.collect::<Vec<_>>().join(", ")
}

fn gateway_api(facts: &ClusterFacts) -> Finding {
    let warning = |what: String, then| Finding::warning("Gateway API", what, then);
    if GATEWAY_KINDS.iter().all(|(name, ..)| !facts.definitions.contains_key(*name)) {
        return warning(
            "its kinds are not installed".to_owned(),
            "the mesh works without; for HTTPRoutes install the standard channel of the Gateway API",
        );
    }
    let unread =
        GATEWAY_KINDS.iter().filter_map(|(name, kind, version)| match facts.definitions.get(*name) {
            None => Some(format!("{kind} is not installed")),
            Some(served) if served.iter().any(|served| served == version) => None,
            Some(served) => Some(format!("{kind} is served as {} only, not {version}", served.join(", "))),
        });
    let unread: Vec<String> = unread.collect();
    if unread.is_empty() {
        let read = GATEWAY_KINDS.map(|(_, kind, version)| format!("{kind} as {version}"));
        return Finding::ok("Gateway API", format!("{} are served", read.join(", ")));
    }
    warning(
        unread.join(", "),
        "objects of these kinds are not read: install the standard channel of the Gateway API, 1.1 or later",
    )
}

fn meshes(facts: &ClusterFacts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = MESHES
        .iter()
        .filter_map(|(name, mesh)| {
            let place = facts.workloads.iter().find(|workload| workload.1 == *name)?;
            Some(Finding::warning(
                "other meshes",
                format!("{mesh} is installed ({}/{})", place.0, place.1),
                "both work in one cluster as long as no namespace is in both",
            ))
        })
        .collect();
    for (namespace, mark) in &facts.namespaces_in_two_meshes {
        findings.push(Finding::error(
            "other meshes",
            format!("the namespace {namespace} is in Weft and in another mesh ({mark})"),
            format!("take one of the two away: kubectl label namespace {namespace} weft.dev/mesh-"),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("other meshes", "none"));
    }
    findings
}

fn network(facts: &ClusterFacts) -> Vec<Finding> {
    let found = NETWORKS.iter().find(|(name, _)| facts.workloads.iter().any(|workload| workload.1 == *name));
    let mut findings = vec![match found {
        Some((_, network)) => Finding::ok("network", *network),
        None => Finding::ok("network", "none that is known by name; any chained CNI configuration will do"),
    }];
    let cilium = |key: &str| facts.cilium.get(key).map(String::as_str);
    if cilium("sockops-enable") == Some("true") {
        findings.push(Finding::warning(
            "sockmap",
            "Cilium's sockops are on: two programs cannot have the same socket",
            "Weft counts such sockets (socket_refused_busy) and sends them through the stack; set sockops-enable=false in cilium-config",
        ));
    }
    // Absent, as where Cilium is chained to another network, it is off; its chart has it on.
    if cilium("cni-exclusive") == Some("true") {
        findings.push(Finding::warning(
            "CNI order",
            "Cilium takes the network configuration for itself (cni-exclusive): it renames those of others, and writes its own anew whenever \
             somebody else has changed it",
            "weft-cni's entry does not last, and a pod that starts without it is outside the mesh at first: set cni.exclusive=false in \
             Cilium's chart (cni-exclusive in cilium-config)",
        ));
    }
    if resolves_at_connect(&facts.felix) {
        findings.push(Finding::warning(
            "network",
            "Calico's eBPF data plane resolves Services at connect(), inside the pods, so Weft may see a pod's address instead of the Service's",
            "set bpfConnectTimeLoadBalancing: Disabled and bpfHostNetworkedNATWithoutCTLB: Enabled in the FelixConfiguration default",
        ));
    }
    let socket_lb = cilium("bpf-lb-sock") == Some("true") || cilium("kube-proxy-replacement") == Some("true");
    if socket_lb && cilium("bpf-lb-sock-hostns-only") != Some("true") {
        findings.push(Finding::error(
            "network",
            "Cilium resolves Services at connect(), inside the pods, so Weft may see a pod's address instead of the Service's",
            "set socketLB.hostNamespaceOnly=true (bpf-lb-sock-hostns-only in cilium-config)",
        ));
    }
    findings
}

/// Calico's connect-time load balancing is on for TCP by default where its eBPF data plane is; an older setting says yes or no.
fn resolves_at_connect(felix: &Value) -> bool {
    let off = match felix["bpfConnectTimeLoadBalancing"].as_str() {
        Some(mode) => mode == "Disabled",
        None => felix["bpfConnectTimeLoadBalancingEnabled"] == false,
    };
    felix["bpfEnabled"] == true && !off
}

/// `5.15.0-91-generic` → (5, 15).
fn kernel(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernels(nodes: &[Node]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut good = Vec::new();
    for node in nodes {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let Some(info) = node.status.as_ref().and_then(|status| status.node_info.as_ref()) else { continue };
        if info.operating_system != "linux" {
            findings.push(Finding::warning(
                format!("node {name}"),
                format!("runs {}", info.operating_system),
                "its pods cannot be in the mesh",
            ));
        } else if kernel(&info.kernel_version).is_some_and(|version| version >= KERNEL_MIN) {
            good.push(info.kernel_version.as_str());
        } else {
            findings.push(Finding::error(
                format!("node {name}"),
                format!("Linux {}", info.kernel_version),
                format!("weft-node needs {}.{} or later", KERNEL_MIN.0, KERNEL_MIN.1),
            ));
        }
    }
    let count = good.len();
    good.sort_unstable();
    good.dedup();
    if count > 0 {
        findings.push(Finding::ok("kernels", format!("{count} nodes with Linux {}", good.join(", "))));
    }
    if findings.is_empty() {
        findings.push(Finding::warning(
            "kernels",
            "the cluster has no node",
            "weft-node starts where one appears",
        ));
    }
    findings
}

fn network_policies(facts: &ClusterFacts) -> Option<Finding> {
    let namespaces = &facts.namespaces_with_network_policies;
    (!namespaces.is_empty()).then(|| {
        Finding::warning(
            "NetworkPolicies",
            format!("there are some in namespaces of the mesh: {}", namespaces.join(", ")),
            "between pods of the mesh they see TCP to port 15008 on another node, which they must allow, and nothing on the same node: let \
             AuthorizationPolicies say what they say (docs/security.md)",
        )
    })
}

fn pod_security(facts: &ClusterFacts) -> Option<Finding> {
    let level = facts.own_namespace_enforces.as_deref()?;
    (level != "privileged").then(|| {
        Finding::error(
            "Pod Security",
            format!("the namespace weft-system enforces {level:?}, which forbids the node proxies"),
            "kubectl label --overwrite namespace weft-system pod-security.kubernetes.io/enforce=privileged",
        )
    })
}

#[cfg(test)]
#[path = "before_tests.rs"]
mod tests;
