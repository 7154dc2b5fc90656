//! Namespace, Node, ServiceAccount, Service, EndpointSlice.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weft_proto::identity::NamespacedName;
use weft_proto::model::{AppProtocol, InboundMode};

use super::super::manifest::{Document, Refused};
use super::super::object::{
    EndpointSlice, Namespace, Node, Object, PodReference, Service, ServicePort, SliceEndpoint, TargetPort,
};
use super::{annotation, id_of, label, read_core, shown, warn_of_unknown};

type Warn<'a> = dyn FnMut(usize, String) + 'a;

pub(super) fn namespace(document: &Document<'_>, warn: &mut Warn<'_>) -> Result<Object, Refused> {
    let read: k8s::Namespace = read_core(document, warn)?;
    let name = read.metadata.name.as_deref().unwrap_or_default();
    let id =
        NamespacedName::new(name, name).map_err(|e| document.refuse("metadata", format!("metadata: {e}")))?;
    warn_of_unknown(document, &read.metadata, &["mesh", "mtls"], &["mtls"], warn);
    let mode = label(&read.metadata, "weft.dev/mtls").or_else(|| annotation(&read.metadata, "weft.dev/mtls"));
    let inbound_mode = match mode.map(|text| inbound_mode(text).ok_or(text)) {
        None => None,
        Some(Ok(mode)) => Some(mode),
        Some(Err(text)) => {
            let wrong = format!("weft.dev/mtls: {:?} is not strict or permissive", shown(text));
            document.wrong_metadata("metadata", wrong, "it counts as strict", warn)?;
            Some(InboundMode::Strict)
        }
    };
    let enrolled = match label(&read.metadata, "weft.dev/mesh") {
        None | Some("disabled") => false,
        Some("enabled") => true,
        Some(other) => {
            warn(
                document.line_of("metadata.labels"),
                format!("label weft.dev/mesh: {other:?} is not enabled or disabled; it counts as enabled"),
            );
            // A slip of the pen must not open what was enrolled.
            true
        }
    };
    Ok(Object::Namespace(Arc::new(Namespace { id, enrolled, inbound_mode })))
}

pub(super) fn node(document: &Document<'_>, warn: &mut Warn<'_>) -> Result<Object, Refused> {
    let read: k8s::Node = read_core(document, warn)?;
    let name = read.metadata.name.as_deref().unwrap_or_default();
    let id =
        NamespacedName::new(name, name).map_err(|e| document.refuse("metadata", format!("metadata: {e}")))?;
    let zone = label(&read.metadata, "topology.kubernetes.io/zone").unwrap_or_default().into();
    Ok(Object::Node(Arc::new(Node { id, zone })))
}

pub(super) fn inbound_mode(text: &str) -> Option<InboundMode> {
    if text.eq_ignore_ascii_case("strict") {
        Some(InboundMode::Strict)
    } else if text.eq_ignore_ascii_case("permissive") {
        Some(InboundMode::Permissive)
    } else {
        None
    }
}

pub(super) fn service_account(document: &Document<'_>, warn: &mut Warn<'_>) -> Result<Object, Refused> {
    let read: k8s::ServiceAccount = read_core(document, warn)?;
    id_of(document, &read.metadata).map(Object::ServiceAccount)
}

pub(super) fn service(document: &Document<'_>, warn: &mut Warn<'_>) -> Result<Object, Refused> {
    let read: k8s::Service = read_core(document, warn)?;
    let id = id_of(document, &read.metadata)?;
    let mut spec = read.spec.unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") {
        // A name of somebody else's: what it may still say of addresses and pods has no meaning.
        spec = k8s::ServiceSpec { ports: spec.ports, ..Default::default() };
    }
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let message =
            "spec.sessionAffinity: ClientIP is not followed in the mesh: requests are balanced one by one";
        warn(document.line_of("spec.sessionAffinity"), message.to_owned());
    }
    let mut texts = spec.cluster_ips.unwrap_or_default();
    if texts.is_empty() {
        texts.extend(spec.cluster_ip);
    }
    let vips = texts
        .iter()
        .filter(|text| !text.is_empty() && *text != "None")
        .map(|text| {
            text.parse().map_err(|_| {
                document.refuse("spec.clusterIP", format!("spec.clusterIP: {text:?} is not an IP address"))
            })
        })
        .collect::<Result<_, _>>()?;
    let mut ports = Vec::new();
    for (i, port) in spec.ports.unwrap_or_default().into_iter().enumerate() {
        if port.protocol.as_deref().unwrap_or("TCP") == "TCP" {
            ports.push(service_port(document, i, port)?);
        }
    }
    Ok(Object::Service(Arc::new(Service {
        id,
        vips,
        selector: spec.selector.filter(|selector| !selector.is_empty()),
        ports,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
    })))
}

fn port_number(document: &Document<'_>, path: &str, value: i32) -> Result<u16, Refused> {
    u16::try_from(value)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| document.refuse(path, format!("{path}: {value} is not a port from 1 to 65535")))
}

fn service_port(document: &Document<'_>, i: usize, read: k8s::ServicePort) -> Result<ServicePort, Refused> {
    let port = port_number(document, &format!("spec.ports.{i}.port"), read.port)?;
    let target = match read.target_port {
        None | Some(IntOrString::Int(0)) => TargetPort::Number(port),
        Some(IntOrString::Int(number)) => {
            TargetPort::Number(port_number(document, &format!("spec.ports.{i}.targetPort"), number)?)
        }
        Some(IntOrString::String(name)) => TargetPort::Named(name),
    };
    let name = read.name.unwrap_or_default();
    Ok(ServicePort {
        app_protocol: app_protocol(read.app_protocol.as_deref(), &name),
        name: name.into(),
        port,
        target,
    })
}

/// `appProtocol` decides; else the name up to its first `-`, as in Istio; else the first bytes will.
/// TLS of the application's own is opaque. What is not known is detected.
fn app_protocol(declared: Option<&str>, name: &str) -> AppProtocol {
    let word = declared.unwrap_or_else(|| name.split('-').next().unwrap_or_default()).to_ascii_lowercase();
    match word.as_str() {
        "http" | "http1" => AppProtocol::Http,
        "kubernetes.io/h2c" | "http2" | "h2c" => AppProtocol::H2c,
        "kubernetes.io/ws" | "ws" => AppProtocol::WebSocket,
        "grpc" => AppProtocol::Grpc,
        "tcp" | "https" | "tls" | "kubernetes.io/wss" | "wss" | "mysql" | "postgres" | "postgresql"
        | "redis" | "mongo" | "amqp" => AppProtocol::Tcp,
        _ => AppProtocol::Detect,
    }
}

pub(super) fn endpoint_slice(
    document: &Document<'_>,
    warn: &mut Warn<'_>,
) -> Result<Option<Object>, Refused> {
    let read: discovery::EndpointSlice = read_core(document, warn)?;
    let id = id_of(document, &read.metadata)?;
    let Some(service) = label(&read.metadata, "kubernetes.io/service-name") else {
        warn(
            document.line_of("metadata"),
            "EndpointSlice without label kubernetes.io/service-name is ignored".into(),
        );
        return Ok(None);
    };
    let service = NamespacedName::new(&id.namespace, service)
        .map_err(|e| document.refuse("metadata.labels", format!("kubernetes.io/service-name: {e}")))?;
    if read.address_type == "FQDN" {
        warn(document.line_of("addressType"), "EndpointSlice of address type FQDN is ignored".into());
        return Ok(None);
    }
    let mut ports = std::collections::BTreeMap::new();
    for (i, port) in read.ports.unwrap_or_default().into_iter().enumerate() {
        if let (Some(number), "TCP") = (port.port, port.protocol.as_deref().unwrap_or("TCP")) {
            let number = port_number(document, &format!("ports.{i}.port"), number)?;
            ports.insert(port.name.unwrap_or_default(), number);
        }
    }
    let endpoints = read
        .endpoints
        .into_iter()
        .enumerate()
        .map(|(i, endpoint)| slice_endpoint(document, &id, i, endpoint))
        .collect::<Result<_, _>>()?;
    Ok(Some(Object::EndpointSlice(Arc::new(EndpointSlice { id, service, ports, endpoints }))))
}

fn slice_endpoint(
    document: &Document<'_>,
    slice: &NamespacedName,
    i: usize,
    read: discovery::Endpoint,
) -> Result<SliceEndpoint, Refused> {
    let ips = read
        .addresses
        .iter()
        .map(|text| {
            let path = format!("endpoints.{i}.addresses");
            text.parse().map_err(|_| document.refuse(&path, format!("{path}: {text:?} is not an IP address")))
        })
        .collect::<Result<_, _>>()?;
    let conditions = read.conditions.unwrap_or_default();
    let pod = read.target_ref.filter(|target| target.kind.as_deref() == Some("Pod")).and_then(|target| {
        let id = NamespacedName::new(&slice.namespace, target.name.as_deref()?).ok()?;
        Some(PodReference { id, uid: target.uid.and_then(|uid| uid.parse().ok()) })
    });
    // Absent conditions read as the API says: ready, serving as ready, not terminating.
    let ready = conditions.ready.unwrap_or(true);
    Ok(SliceEndpoint {
        ips,
        pod,
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        node: read.node_name.unwrap_or_default().into(),
        zone: read.zone.unwrap_or_default().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kinds::Parsed;
    use crate::source::manifest;

    #[test]
    fn of_how_a_service_spreads_its_clients_the_node_counts_and_the_address_is_told_to_be_passed_over() {
        let read = |spec: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec:\n  clusterIP: 10.96.0.1\n{spec}  ports: [{{port: 80}}]\n"
            );
            let mut read = manifest::parse("t.yaml", &text).unwrap();
            let Some(Parsed::Object(Object::Service(service))) = read.objects.pop().map(|l| l.parsed) else {
                panic!("a Service")
            };
            (service.node_local, read.warnings)
        };
        assert_eq!(read(""), (false, vec![]));
        assert_eq!(read("  internalTrafficPolicy: Cluster\n  sessionAffinity: None\n"), (false, vec![]));
        assert_eq!(read("  internalTrafficPolicy: Local\n"), (true, vec![]));
        let (_, warnings) = read("  sessionAffinity: ClientIP\n");
        assert!(
            warnings[0].line == 6 && warnings[0].message.contains("ClientIP is not followed"),
            "{warnings:?}"
        );
    }

    #[test]
    fn the_protocol_comes_from_app_protocol_then_from_the_name() {
        for (declared, name, expected) in [
            (Some("http"), "tcp-x", AppProtocol::Http),
            (Some("kubernetes.io/h2c"), "", AppProtocol::H2c),
            (Some("kubernetes.io/ws"), "", AppProtocol::WebSocket),
            (Some("https"), "", AppProtocol::Tcp),
            (Some("example.com/own"), "http", AppProtocol::Detect),
            (None, "http-api", AppProtocol::Http),
            (None, "grpc", AppProtocol::Grpc),
            (None, "tcp-db", AppProtocol::Tcp),
            (None, "web", AppProtocol::Detect),
            (None, "", AppProtocol::Detect),
        ] {
            assert_eq!(app_protocol(declared, name), expected, "{declared:?} {name}");
        }
    }
}
