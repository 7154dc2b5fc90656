//! Resources for tests.

use std::collections::BTreeMap;

use weft_proto::model::{InboundMode, Workload};

/// An enrolled pod.
pub(crate) fn workload(uid: &str, ip: &str, node: &str, terminating: bool) -> Workload {
    Workload {
        uid: uid.parse().unwrap(),
        namespace: "shop".into(),
        name: uid.into(),
        service_account: "default".into(),
        node: node.into(),
        ips: vec![ip.parse().unwrap()],
        enrolled: true,
        inbound_mode: InboundMode::Strict,
        workload_name: uid.into(),
        workload_kind: "pod".into(),
        canonical_service: uid.into(),
        canonical_revision: "latest".into(),
        app: uid.into(),
        app_version: "".into(),
        zone: "".into(),
        authorization_policies: Vec::new(),
        excluded_inbound_ports: Vec::new(),
        excluded_outbound_ports: Vec::new(),
        excluded_outbound_cidrs: Vec::new(),
        redirect: true,
        ready: true,
        terminating,
        port_protocols: BTreeMap::new(),
        probe_ports: Vec::new(),
    }
}
