//! The ports of a pod that its kubelet connects to: probes and lifecycle hooks over HTTP, TCP and gRPC.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Sorted. Named ports are those of the same container, as for the kubelet. A probe of another host is none of the pod's.
pub(super) fn probe_ports(spec: &k8s::PodSpec) -> Vec<u16> {
    let mut ports = BTreeSet::new();
    // Only init containers that restart (sidecars) can have probes; the API server sees to that.
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
        for probe in probes.into_iter().flatten() {
            ports.extend(probe.http_get.as_ref().and_then(|http| of_http(http, container)));
            ports.extend(probe.tcp_socket.as_ref().and_then(|tcp| of_tcp(tcp, container)));
            ports.extend(probe.grpc.as_ref().and_then(|grpc| number(grpc.port)));
        }
        let hooks = container.lifecycle.iter().flat_map(|hooks| [&hooks.post_start, &hooks.pre_stop]);
        for hook in hooks.flatten() {
            ports.extend(hook.http_get.as_ref().and_then(|http| of_http(http, container)));
            ports.extend(hook.tcp_socket.as_ref().and_then(|tcp| of_tcp(tcp, container)));
        }
    }
    ports.into_iter().collect()
}

fn of_http(action: &k8s::HTTPGetAction, container: &k8s::Container) -> Option<u16> {
    of_host(action.host.as_deref(), &action.port, container)
}

fn of_tcp(action: &k8s::TCPSocketAction, container: &k8s::Container) -> Option<u16> {
    of_host(action.host.as_deref(), &action.port, container)
}

fn of_host(host: Option<&str>, port: &IntOrString, container: &k8s::Container) -> Option<u16> {
    if host.is_some_and(|host| !host.is_empty()) {
        return None;
    }
    match port {
        IntOrString::Int(port) => number(*port),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
            named.map_or_else(
                || name.parse().ok().filter(|port| *port != 0),
                |port| number(port.container_port),
            )
        }
    }
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_that_a_kubelet_connects_to() {
        let spec: k8s::PodSpec = serde_yaml_ng::from_str(
            "containers:\n- name: a\n  ports: [{name: web, containerPort: 8080}, {name: other, containerPort: 9}]\n  \
             livenessProbe: {httpGet: {port: web}}\n  readinessProbe: {tcpSocket: {port: 5432}}\n  startupProbe: {grpc: \
             {port: 9000}}\n  lifecycle: {preStop: {httpGet: {port: 8081}}}\n- name: b\n  livenessProbe: {httpGet: {port: \
             web}}\n  readinessProbe: {httpGet: {port: 7000, host: example.com}}\n  startupProbe: {exec: {command: \
             [x]}}\ninitContainers:\n- name: sidecar\n  restartPolicy: Always\n  startupProbe: {httpGet: {port: '15021'}}\n",
        )
        .unwrap();
        assert_eq!(probe_ports(&spec), [5432, 8080, 8081, 9000, 15021]);
    }
}
