//! Pods that the watch has not delivered yet, asked of the API server: a node may know of its pod first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1 as k8s;
use kube::Api;
use parking_lot::Mutex;
use tonic::Status;
use weft_proto::identity::NamespacedName;

use super::review::kind_of;
use crate::source::Object;
use crate::source::kinds::{self, Parsed};
use crate::source::manifest::Document;
use crate::source::object::Pod;

/// Look-ups of one node in a burst: pods that start at once.
const BURST: u32 = 20;
/// ... and then one in this time. The watch is usually less than a second behind.
const REFILL: Duration = Duration::from_millis(200);
const LOOK_UP_WAIT_MAX: Duration = Duration::from_secs(5);
/// Nodes whose quota is remembered; the ones that are full are forgotten first.
const NODES_MAX: usize = 20_000;

/// How often each node may ask.
#[derive(Debug, Default)]
struct Quotas(HashMap<Arc<str>, (u32, Instant)>);

impl Quotas {
    fn take(&mut self, node: &Arc<str>, now: Instant) -> bool {
        let refilled = |(left, since): (u32, Instant)| {
            let more =
                u32::try_from(now.duration_since(since).as_millis() / REFILL.as_millis()).unwrap_or(BURST);
            (left.saturating_add(more).min(BURST), since + REFILL * more)
        };
        if self.0.len() >= NODES_MAX && !self.0.contains_key(node) {
            self.0.retain(|_, quota| refilled(*quota).0 < BURST);
            if self.0.len() >= NODES_MAX {
                return false;
            }
        }
        let (left, since) = refilled(self.0.get(node).copied().unwrap_or((BURST, now)));
        self.0.insert(node.clone(), (left.saturating_sub(1), since));
        left > 0
    }
}

pub(crate) struct LivePods {
    client: kube::Client,
    quotas: Mutex<Quotas>,
}

impl LivePods {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client, quotas: Mutex::default() }
    }

    /// The pod of that name as it is now. None: there is none, or it cannot be read.
    pub(super) async fn pod(&self, node: &Arc<str>, id: &NamespacedName) -> Result<Option<Arc<Pod>>, Status> {
        if !self.quotas.lock().take(node, Instant::now()) {
            return Err(Status::resource_exhausted("too many requests for pods that are not known"));
        }
        let api: Api<k8s::Pod> = Api::namespaced(self.client.clone(), &id.namespace);
        let found = tokio::time::timeout(LOOK_UP_WAIT_MAX, api.get_opt(&id.name)).await;
        match found {
            Ok(Ok(pod)) => Ok(pod.and_then(|pod| read(&pod))),
            Ok(Err(error)) => Err(Status::unavailable(kind_of(&error))),
            Err(_) => Err(Status::unavailable("the API server did not answer in time")),
        }
    }
}

/// By the same reader as pods of the source.
fn read(pod: &k8s::Pod) -> Option<Arc<Pod>> {
    let value = serde_json::to_value(pod).ok()?;
    match kinds::read(&Document::live(&value), "v1", "Pod", &mut |_, _| {}) {
        Ok(Some(Parsed::Object(Object::Pod(pod)))) => Some(pod),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_a_burst_and_then_a_rate_of_its_own() {
        let mut quotas = Quotas::default();
        let (start, one, two): (_, Arc<str>, Arc<str>) = (Instant::now(), "one".into(), "two".into());
        assert_eq!((0..100).filter(|_| quotas.take(&one, start)).count(), BURST as usize);
        assert!(quotas.take(&two, start), "another node is not concerned");
        assert!(!quotas.take(&one, start + REFILL / 2));
        assert!(quotas.take(&one, start + REFILL) && !quotas.take(&one, start + REFILL));
        let later = start + REFILL * 1000;
        assert_eq!((0..100).filter(|_| quotas.take(&one, later)).count(), BURST as usize);
    }

    #[test]
    fn a_live_pod_is_read_as_the_source_reads_it() {
        let text = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"shop","uid":"u-1","labels":
            {"weft.dev/mesh":"enabled"}},"spec":{"nodeName":"n1","serviceAccountName":"sa","containers":[{"name":"c"}]}}"#;
        let pod = read(&serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!((pod.uid.as_str(), pod.node.as_deref(), &*pod.service_account), ("u-1", Some("n1"), "sa"));
        // Also where a label is wrong.
        let pod = read(&serde_json::from_str(&text.replace("enabled", "enabel")).unwrap()).unwrap();
        assert_eq!(pod.mesh, None);
    }
}
