//! The configuration as the data path sees it: immutable and whole.
//!
//! A connection takes one [`Snapshot`] and decides by it; a new one replaces the old as a whole.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use weft_proto::identity::{NamespacedName, PodUid};
use weft_proto::model::{AuthorizationPolicy, Endpoint, Mesh, Revision, Service, TrafficPolicy, Workload};

use crate::route::RouteTable;

/// A Service with what belongs to it.
#[derive(Debug, Clone)]
pub struct ServiceEntry {
    pub service: Arc<Service>,
    /// In a stable order (by address).
    pub endpoints: Vec<Arc<Endpoint>>,
    pub traffic_policy: Option<Arc<TrafficPolicy>>,
    /// The routes of all its ports and client namespaces, compiled.
    pub routes: Arc<RouteTable>,
}

/// One immutable view of the cluster.
#[derive(Debug, Default)]
pub struct Snapshot {
    _private: (),
}

impl Snapshot {
    pub fn revision(&self) -> Revision {
        todo!()
    }
    pub fn mesh(&self) -> Option<&Arc<Mesh>> {
        todo!()
    }
    pub fn workload(&self, _uid: &PodUid) -> Option<&Arc<Workload>> {
        todo!()
    }
    pub fn workload_by_ip(&self, _ip: IpAddr) -> Option<&Arc<Workload>> {
        todo!()
    }
    pub fn service(&self, _id: &NamespacedName) -> Option<&Arc<ServiceEntry>> {
        todo!()
    }
    pub fn service_by_vip(&self, _ip: IpAddr) -> Option<&Arc<ServiceEntry>> {
        todo!()
    }
    /// The policies that select this (local) workload.
    pub fn policies(&self, _workload: &Workload) -> Vec<Arc<AuthorizationPolicy>> {
        todo!()
    }
    /// The pods of a node.
    pub fn workloads_of_node<'a>(
        &'a self,
        _node: &'a str,
    ) -> Box<dyn Iterator<Item = &'a Arc<Workload>> + 'a> {
        todo!()
    }
}

/// The current snapshot, and word of each new one.
pub struct SnapshotHandle {
    current: ArcSwap<Snapshot>,
    changed: watch::Sender<Revision>,
}

impl SnapshotHandle {
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }
    /// Changes whenever a new snapshot is current.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.changed.subscribe()
    }
}
