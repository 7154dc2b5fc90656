//! `weft config [<namespace>/]<pod>`: what the proxy of a pod's node holds for that pod.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::Format;
use crate::kubernetes;
use crate::mesh::{Chosen, Mesh, WHO_IS_ASKED};
use crate::table::table;

#[derive(Debug, Args)]
#[command(after_help = WHO_IS_ASKED)]
pub(crate) struct Arguments {
    /// The pod, as <pod> or <namespace>/<pod>
    #[arg(value_name = "POD", value_parser = parse_pod)]
    pod: Pod,
    /// Namespace of the pod [default: that of the kubeconfig's context; of a lab: default]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Show this Service, of any namespace, instead of those of the pod's own
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = parse_service)]
    service: Option<String>,
    #[command(flatten)]
    mesh: Mesh,
    /// json has all that routes and policies say
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pod {
    namespace: Option<String>,
    name: String,
}

fn is_name(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
}

fn parse_service(text: &str) -> Result<String, String> {
    let named = text.split_once('/').is_some_and(|(namespace, name)| is_name(namespace) && is_name(name));
    if named { Ok(text.to_owned()) } else { Err("is not <namespace>/<name>".into()) }
}

fn parse_pod(text: &str) -> Result<Pod, String> {
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, text),
    };
    if namespace.is_some_and(|namespace| !is_name(namespace)) || !is_name(name) {
        return Err("is not <pod> or <namespace>/<pod>".into());
    }
    Ok(Pod { namespace: namespace.map(str::to_owned), name: name.to_owned() })
}

impl Arguments {
    /// None: the default one.
    fn namespace(&self) -> Result<Option<&str>> {
        match (self.namespace.as_deref(), self.pod.namespace.as_deref()) {
            (Some(one), Some(other)) if one != other => {
                bail!(
                    "the pod is in one namespace: --namespace says {one}, {other}/{} says {other}",
                    self.pod.name
                )
            }
            (one, other) => Ok(one.or(other)),
        }
    }
}

/// A lab has no kubeconfig that would say another.
const NAMESPACE_OF_A_LAB: &str = "default";

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (namespace, pod) = (arguments.namespace()?, arguments.pod.name.as_str());
    let service = arguments.service.as_deref();
    let (node, answer) = match arguments.mesh.choose()? {
        Chosen::Cluster(target) => kubernetes::cluster_config(target, namespace, pod, service)?,
        Chosen::Lab(lab) => {
            let namespace = namespace.unwrap_or(NAMESPACE_OF_A_LAB);
            let path = page(namespace, pod, service);
            let mut found = None;
            for node in lab.nodes() {
                let (status, body) = lab.node_admin(&node).fetch(&path).with_context(|| node.clone())?;
                if status == 200 {
                    found = Some((node, serde_json::from_str(&body)?));
                }
            }
            let Some(found) = found else { bail!("no node of the lab has a pod {namespace}/{pod}") };
            found
        }
    };
    if let Some(service) = service.filter(|_| list(&answer["services"]).next().is_none()) {
        bail!("{node} knows no Service {service}");
    }
    match arguments.output {
        Format::Json => crate::write(&format!("{}\n", serde_json::to_string_pretty(&answer)?)),
        Format::Table => crate::write(&shown(&node, &answer)),
    }
}

/// Of weft-node's admin endpoint.
pub(crate) fn page(namespace: &str, pod: &str, service: Option<&str>) -> String {
    let of_service = service.map(|service| format!("/service/{service}")).unwrap_or_default();
    format!("/pod/{namespace}/{pod}{of_service}")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// By its name, or as text, as weft-nodes of earlier versions name a policy.
fn name(value: &Value) -> &str {
    value["name"].as_str().unwrap_or_else(|| text(value))
}

fn policies(all: &Value) -> String {
    let told = |policy: &Value| match policy["action"].as_str().or(policy["problem"].as_str()) {
        Some(how) => format!("{} ({how})", name(policy)),
        None => name(policy).to_owned(),
    };
    let all: Vec<String> = list(all).map(told).collect();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn words(value: &Value) -> String {
    let all: Vec<&str> = list(value).map(text).collect();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}

/// Pure: the answer of `/pod` for people.
fn shown(node: &str, answer: &Value) -> String {
    let pod = &answer["pod"];
    let mut out = format!("{}/{} on {node}", text(&pod["namespace"]), text(&pod["name"]));
    let _ = writeln!(out, "  revision {}", answer["revision"]);
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(out, "  {label:<13}{value}");
    };
    match pod["reason"].as_str() {
        Some(reason) => line("state", &format!("{}: {reason}", text(&pod["state"]))),
        None => line("state", text(&pod["state"])),
    }
    // What it would have in the mesh is not what it has.
    let of_mesh = |field: &str| if answer["enrolled"] == false { "-" } else { text(&answer[field]) };
    line("identity", of_mesh("identity"));
    line("addresses", &words(&pod["ips"]));
    line("mutual TLS", of_mesh("mtls"));
    line("policies", &policies(&answer["policies"]));
    for service in list(&answer["services"]) {
        let _ = writeln!(out, "\nservice {}  {}", text(&service["name"]), words(&service["addresses"]));
        for port in list(&service["ports"]) {
            let _ = writeln!(out, "  port {} {}", port["port"], text(&port["protocol"]));
        }
        for route in list(&service["routes"]) {
            let rules =
                route["rules"].as_array().map_or_else(|| route["rules"].clone(), |rules| rules.len().into());
            let _ = writeln!(out, "  {} {}: {rules} rules", text(&route["kind"]), name(route));
        }
        if !service["traffic_policy"].is_null() {
            let _ = writeln!(out, "  traffic policy {}", name(&service["traffic_policy"]));
        }
        let row = |endpoint: &Value| {
            vec![
                text(&endpoint["address"]).to_owned(),
                text(&endpoint["workload"]).to_owned(),
                text(&endpoint["node"]).to_owned(),
                text(&endpoint["state"]).to_owned(),
            ]
        };
        let rows: Vec<_> = list(&service["endpoints"]).map(row).collect();
        let table = match rows.is_empty() {
            true => "no endpoint\n".to_owned(),
            false => table(&["ENDPOINT", "POD", "NODE", "STATE"], rows),
        };
        for line in table.lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pods_configuration_reads_from_its_identity_to_the_endpoints() {
        let answer = json!({
            "revision": 7, "identity": "spiffe://cluster.local/ns/shop/sa/web", "mtls": "strict",
            "policies": [{"name": "shop/only-front", "kind": "AuthorizationPolicy", "action": "Allow", "rules": []},
                {"name": "shop/lost", "problem": "named, but not here: denies all"}, "shop/old (Deny)"],
            "pod": {"namespace": "shop", "name": "web", "state": "enrolled", "reason": null, "ips": ["10.0.0.2"]},
            "services": [{"name": "shop/db", "addresses": ["10.96.0.9"], "traffic_policy": {"name": "shop/patient"},
                "ports": [{"port": 5432, "name": "sql", "protocol": "tcp"}],
                "routes": [{"kind": "HTTPRoute", "name": "shop/split", "rules": [{"name": ""}, {"name": ""}]},
                    {"kind": "GRPCRoute", "name": "shop/old", "rules": 3}],
                "endpoints": [{"address": "10.0.0.3", "workload": "shop/db-0", "node": "node2", "state": "ready"}]}],
        });
        assert_eq!(
            shown("node1", &answer),
            "\
shop/web on node1  revision 7
  state        enrolled
  identity     spiffe://cluster.local/ns/shop/sa/web
  addresses    10.0.0.2
  mutual TLS   strict
  policies     shop/only-front (Allow), shop/lost (named, but not here: denies all), shop/old (Deny)

service shop/db  10.96.0.9
  port 5432 tcp
  HTTPRoute shop/split: 2 rules
  GRPCRoute shop/old: 3 rules
  traffic policy shop/patient
  ENDPOINT  POD        NODE   STATE
  10.0.0.3  shop/db-0  node2  ready
"
        );
    }

    #[test]
    fn a_pod_outside_the_mesh_has_neither_identity_nor_mutual_tls() {
        let answer = json!({
            "revision": 7, "enrolled": false, "identity": "spiffe://cluster.local/ns/shop/sa/web", "mtls": "strict",
            "pod": {"namespace": "shop", "name": "web", "state": "not enrolled", "ips": ["10.0.0.2"]},
        });
        assert_eq!(
            shown("node1", &answer),
            "\
shop/web on node1  revision 7
  state        not enrolled
  identity     -
  addresses    10.0.0.2
  mutual TLS   -
  policies     none
"
        );
    }

    #[test]
    fn a_pod_is_named_with_its_namespace_or_without() {
        let pod = |namespace: Option<&str>, name: &str| {
            Ok(Pod { namespace: namespace.map(str::to_owned), name: name.to_owned() })
        };
        assert_eq!(parse_pod("shop/web-1"), pod(Some("shop"), "web-1"));
        assert_eq!(parse_pod("web-1"), pod(None, "web-1"));
        for wrong in ["", "/web", "shop/", "shop/we b", "a/b/c", "shop/../x"] {
            assert!(parse_pod(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_service_is_named_with_its_namespace() {
        assert_eq!(parse_service("bank/db"), Ok("bank/db".to_owned()));
        for wrong in ["", "db", "/db", "bank/", "bank/db/x", "bank/../pod"] {
            assert!(parse_service(wrong).is_err(), "{wrong}");
        }
        assert_eq!(page("shop", "web", None), "/pod/shop/web");
        assert_eq!(page("shop", "web", Some("bank/db")), "/pod/shop/web/service/bank/db");
    }

    #[test]
    fn two_namespaces_for_one_pod_are_a_mistake() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: Arguments,
        }
        for (line, namespace) in [
            (["x", "web"].as_slice(), Ok(None)),
            (&["x", "shop/web"], Ok(Some("shop"))),
            (&["x", "web", "-n", "shop"], Ok(Some("shop"))),
            (&["x", "shop/web", "-n", "shop"], Ok(Some("shop"))),
            (&["x", "shop/web", "--namespace", "bank"], Err(())),
        ] {
            let arguments = <Line as clap::Parser>::parse_from(line).arguments;
            assert_eq!(arguments.namespace().map_err(drop), namespace, "{line:?}");
        }
    }
}
