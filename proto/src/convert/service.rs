//! Service and Endpoint.

use crate::convert::field::{self, Invalid};
use crate::convert::workload::{app_protocol, app_protocol_to_wire};
use crate::model::{Endpoint, Service, ServicePort};
use crate::v1;

pub(super) fn service(wire: v1::Service) -> Result<Service, Invalid> {
    Ok(Service {
        id: field::namespaced(&wire.namespace, &wire.name)?,
        vips: field::ips("vips", wire.vips)?,
        ports: field::list("ports", wire.ports, service_port)?,
        node_local: wire.node_local,
    })
}

fn service_port(wire: v1::ServicePort) -> Result<ServicePort, Invalid> {
    let v1::ServicePort { name, port, app_protocol: protocol } = wire;
    Ok(ServicePort {
        name: field::text("name", &name)?,
        port: field::port("port", port)?,
        app_protocol: app_protocol("app_protocol", protocol)?,
    })
}

pub(super) fn service_to_wire(service: &Service) -> v1::Service {
    v1::Service {
        namespace: service.id.namespace.to_string(),
        name: service.id.name.to_string(),
        vips: field::texts(&service.vips),
        ports: service
            .ports
            .iter()
            .map(|port| v1::ServicePort {
                name: port.name.to_string(),
                port: port.port.into(),
                app_protocol: app_protocol_to_wire(port.app_protocol),
            })
            .collect(),
        node_local: service.node_local,
    }
}

pub(super) fn endpoint(wire: v1::Endpoint) -> Result<Endpoint, Invalid> {
    field::bounded("ports", wire.ports.len())?;
    let ports = wire
        .ports
        .into_iter()
        .map(|(port, target)| Ok((field::port("ports", port)?, field::port("ports", target)?)))
        .collect::<Result<_, Invalid>>()?;
    let workload = match wire.workload_uid.as_str() {
        "" => None,
        uid => Some(field::pod_uid("workload_uid", uid)?),
    };
    Ok(Endpoint {
        service: field::namespaced_message("service", wire.service)?,
        ip: field::ip("ip", &wire.ip)?,
        workload,
        ports,
        ready: wire.ready,
        serving: wire.serving,
        terminating: wire.terminating,
        node: field::text("node", &wire.node)?,
        zone: field::text("zone", &wire.zone)?,
    })
}

pub(super) fn endpoint_to_wire(endpoint: &Endpoint) -> v1::Endpoint {
    v1::Endpoint {
        service: Some(field::namespaced_to_wire(&endpoint.service)),
        ip: endpoint.ip.to_string(),
        workload_uid: endpoint.workload.as_ref().map(ToString::to_string).unwrap_or_default(),
        ports: endpoint.ports.iter().map(|(port, target)| ((*port).into(), (*target).into())).collect(),
        ready: endpoint.ready,
        serving: endpoint.serving,
        terminating: endpoint.terminating,
        node: endpoint.node.to_string(),
        zone: endpoint.zone.to_string(),
    }
}
