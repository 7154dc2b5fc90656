//! Mesh and Workload.

use crate::convert::field::{self, Invalid};
use crate::identity::NamespacedName;
use crate::model::{AppProtocol, InboundMode, Mesh, Workload};
use crate::v1;

/// A trust bundle holds an old and a new root during a rotation; more than a few is a mistake.
const ROOTS_MAX: usize = 16;
/// Largest root certificate in DER.
const ROOT_BYTES_MAX: usize = 16 * 1024;
/// Namespaces of a cluster: Kubernetes itself is tested with 10,000.
const NAMESPACES_MAX: usize = 65_536;

pub(super) fn mesh(wire: v1::Mesh) -> Result<Mesh, Invalid> {
    let trust_domain = field::parsed("trust_domain", &wire.trust_domain, "a trust domain")?;
    let count = wire.roots_der.len();
    if count == 0 || count > ROOTS_MAX {
        return Err(Invalid::new("roots_der", count, format!("roots are not 1 to {ROOTS_MAX}")));
    }
    for (i, root) in wire.roots_der.iter().enumerate() {
        if root.is_empty() || root.len() > ROOT_BYTES_MAX {
            let problem = format!("bytes are not 1 to {ROOT_BYTES_MAX}");
            return Err(Invalid::new(format!("roots_der[{i}]"), root.len(), problem));
        }
    }
    if wire.enrolled_namespaces.len() > NAMESPACES_MAX {
        let problem = format!("names are more than {NAMESPACES_MAX}");
        return Err(Invalid::new("enrolled_namespaces", wire.enrolled_namespaces.len(), problem));
    }
    let names = wire.enrolled_namespaces.iter().enumerate();
    let mut enrolled_namespaces = names
        .map(|(i, name)| field::object_name(&format!("enrolled_namespaces[{i}]"), name))
        .collect::<Result<Vec<_>, _>>()?;
    enrolled_namespaces.sort_unstable();
    Ok(Mesh { trust_domain, roots: wire.roots_der, enrolled_namespaces })
}

pub(super) fn mesh_to_wire(mesh: &Mesh) -> v1::Mesh {
    v1::Mesh {
        trust_domain: mesh.trust_domain.to_string(),
        roots_der: mesh.roots.clone(),
        enrolled_namespaces: field::texts(&mesh.enrolled_namespaces),
    }
}

fn inbound_mode(wire: i32) -> Result<InboundMode, Invalid> {
    match v1::InboundMode::try_from(wire) {
        Ok(v1::InboundMode::Strict) => Ok(InboundMode::Strict),
        Ok(v1::InboundMode::Permissive) => Ok(InboundMode::Permissive),
        Ok(v1::InboundMode::Unspecified) | Err(_) => {
            Err(Invalid::new("inbound_mode", wire, "is not a known inbound mode"))
        }
    }
}

pub(super) fn app_protocol(field: &str, wire: i32) -> Result<AppProtocol, Invalid> {
    Ok(match v1::AppProtocol::try_from(wire) {
        Ok(v1::AppProtocol::Unspecified) => AppProtocol::Detect,
        Ok(v1::AppProtocol::Tcp) => AppProtocol::Tcp,
        Ok(v1::AppProtocol::Http) => AppProtocol::Http,
        Ok(v1::AppProtocol::H2c) => AppProtocol::H2c,
        Ok(v1::AppProtocol::Grpc) => AppProtocol::Grpc,
        Ok(v1::AppProtocol::Ws) => AppProtocol::WebSocket,
        Err(_) => return Err(Invalid::new(field, wire, "is not a known protocol")),
    })
}

pub(super) fn app_protocol_to_wire(protocol: AppProtocol) -> i32 {
    let wire = match protocol {
        AppProtocol::Detect => v1::AppProtocol::Unspecified,
        AppProtocol::Tcp => v1::AppProtocol::Tcp,
        AppProtocol::Http => v1::AppProtocol::Http,
        AppProtocol::H2c => v1::AppProtocol::H2c,
        AppProtocol::Grpc => v1::AppProtocol::Grpc,
        AppProtocol::WebSocket => v1::AppProtocol::Ws,
    };
    wire.into()
}

pub(super) fn workload(wire: v1::Workload) -> Result<Workload, Invalid> {
    field::bounded("port_protocols", wire.port_protocols.len())?;
    let port_protocols = wire
        .port_protocols
        .into_iter()
        .map(|(port, protocol)| {
            Ok((field::port("port_protocols", port)?, app_protocol("port_protocols", protocol)?))
        })
        .collect::<Result<_, Invalid>>()?;
    Ok(Workload {
        uid: field::pod_uid("uid", &wire.uid)?,
        namespace: field::object_name("namespace", &wire.namespace)?,
        name: field::object_name("name", &wire.name)?,
        service_account: field::object_name("service_account", &wire.service_account)?,
        node: field::object_name("node", &wire.node)?,
        ips: field::ips("ips", wire.ips)?,
        enrolled: wire.enrolled,
        inbound_mode: inbound_mode(wire.inbound_mode)?,
        workload_name: field::required_text("workload_name", &wire.workload_name)?,
        workload_kind: field::required_text("workload_kind", &wire.workload_kind)?,
        canonical_service: field::text("canonical_service", &wire.canonical_service)?,
        canonical_revision: field::text("canonical_revision", &wire.canonical_revision)?,
        app: field::text("app", &wire.app)?,
        app_version: field::text("app_version", &wire.app_version)?,
        zone: field::text("zone", &wire.zone)?,
        authorization_policies: field::list("authorization_policies", wire.authorization_policies, |name| {
            field::parsed::<NamespacedName>("", &name, "namespace/name")
        })?,
        excluded_inbound_ports: field::ports("excluded_inbound_ports", wire.excluded_inbound_ports)?,
        excluded_outbound_ports: field::ports("excluded_outbound_ports", wire.excluded_outbound_ports)?,
        excluded_outbound_cidrs: field::cidrs("excluded_outbound_cidrs", wire.excluded_outbound_cidrs)?,
        redirect: wire.redirect,
        ready: wire.ready,
        terminating: wire.terminating,
        port_protocols,
        probe_ports: field::ports("probe_ports", wire.probe_ports)?,
    })
}

pub(super) fn workload_to_wire(pod: &Workload) -> v1::Workload {
    v1::Workload {
        uid: pod.uid.to_string(),
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        service_account: pod.service_account.to_string(),
        node: pod.node.to_string(),
        ips: field::texts(&pod.ips),
        enrolled: pod.enrolled,
        inbound_mode: match pod.inbound_mode {
            InboundMode::Strict => v1::InboundMode::Strict,
            InboundMode::Permissive => v1::InboundMode::Permissive,
        }
        .into(),
        workload_name: pod.workload_name.to_string(),
        workload_kind: pod.workload_kind.to_string(),
        canonical_service: pod.canonical_service.to_string(),
        canonical_revision: pod.canonical_revision.to_string(),
        app: pod.app.to_string(),
        app_version: pod.app_version.to_string(),
        zone: pod.zone.to_string(),
        authorization_policies: field::texts(&pod.authorization_policies),
        excluded_inbound_ports: field::numbers(&pod.excluded_inbound_ports),
        excluded_outbound_ports: field::numbers(&pod.excluded_outbound_ports),
        excluded_outbound_cidrs: field::texts(&pod.excluded_outbound_cidrs),
        redirect: pod.redirect,
        ready: pod.ready,
        terminating: pod.terminating,
        port_protocols: pod
            .port_protocols
            .iter()
            .map(|(port, protocol)| (u32::from(*port), app_protocol_to_wire(*protocol)))
            .collect(),
        probe_ports: field::numbers(&pod.probe_ports),
    }
}
