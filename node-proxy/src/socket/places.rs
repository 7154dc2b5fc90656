//! A pod's share of the proxy: how many connections it may have there at a time, each way, over all its listeners.
//!
//! One pod must not use up the descriptors and the memory of the process that serves all of them. Beyond its share its
//! new connections wait in its own listeners' backlogs; where there is none to wait in, they are refused.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weft_proto::identity::PodUid;

use crate::enrol::LocalPod;
use crate::telemetry::metrics::Counter;

/// Connections of one pod in one direction, unless set otherwise: what the kernel's tables let it have too (a quarter of
/// 65,536 flows).
pub const CONNECTIONS_PER_POD_DEFAULT: u32 = 16_384;
/// Both directions of four pods that hold all they may leave descriptors for the others: no pod has more than one part in
/// so many.
const PODS_TO_FILL: u64 = 4;
/// What a connection takes at most: the application's side and the other one, each way.
const DESCRIPTORS_PER_CONNECTION: u64 = 2 * 2;
/// The log names a pod at its limit so often at most.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// How many a pod may have where `wanted` are configured and the process may open so many `descriptors` (None: any
/// number). At least one.
pub fn per_pod(wanted: u32, descriptors: Option<u64>) -> u32 {
    let fair = descriptors.map_or(u64::MAX, |all| all / (PODS_TO_FILL * DESCRIPTORS_PER_CONNECTION));
    u32::try_from(fair).unwrap_or(u32::MAX).min(wanted).max(1)
}

/// The places of every pod.
#[derive(Debug)]
pub struct Places {
    per_pod: u32,
    pods: Mutex<HashMap<PodUid, Arc<PodPlaces>>>,
}

impl Places {
    pub fn new(per_pod: u32) -> Self {
        Self { per_pod, pods: Mutex::default() }
    }

    /// Each way.
    pub fn per_pod(&self) -> u32 {
        self.per_pod
    }

    pub fn of(&self, pod: &PodUid) -> Arc<PodPlaces> {
        let mut pods = self.pods.lock();
        let new = || {
            let direction = |name| Share::new(name, self.per_pod);
            Arc::new(PodPlaces { outbound: direction("outbound"), inbound: direction("inbound") })
        };
        Arc::clone(pods.entry(pod.clone()).or_insert_with(new))
    }

    /// How many a pod has: outbound, inbound.
    pub fn taken(&self, pod: &PodUid) -> (usize, usize) {
        let pods = self.pods.lock();
        pods.get(pod).map_or((0, 0), |places| (places.outbound.taken(), places.inbound.taken()))
    }

    /// Forgets the pods for which `keep` is false once their last connection has ended: one that comes back meanwhile
    /// has no second share.
    pub fn retain(&self, mut keep: impl FnMut(&PodUid) -> bool) {
        self.pods
            .lock()
            .retain(|pod, places| keep(pod) || places.outbound.taken() > 0 || places.inbound.taken() > 0);
    }
}

/// One pod's.
#[derive(Debug)]
pub struct PodPlaces {
    pub outbound: Share,
    pub inbound: Share,
}

/// One pod's places in one direction.
#[derive(Debug)]
pub struct Share {
    direction: &'static str,
    places: Arc<Semaphore>,
    most: u32,
    told: Mutex<Option<Instant>>,
}

/// A place that is taken until this is dropped.
pub type Place = OwnedSemaphorePermit;

impl Share {
    fn new(direction: &'static str, most: u32) -> Self {
        let places = Arc::new(Semaphore::new(most as usize));
        Self { direction, places, most, told: Mutex::default() }
    }

    pub fn most(&self) -> u32 {
        self.most
    }

    /// How many there are now.
    pub fn taken(&self) -> usize {
        (self.most as usize).saturating_sub(self.places.available_permits())
    }

    /// Waits for a place. `limited` counts that there was none.
    pub async fn place(&self, pod: &LocalPod, limited: &Counter) -> Place {
        if let Some(place) = self.try_place() {
            return place;
        }
        limited.increment();
        self.tell(pod);
        Arc::clone(&self.places).acquire_owned().await.expect("nobody closes the semaphore")
    }

    /// A place, if there is one; for those who cannot wait.
    pub fn place_now(&self, pod: &LocalPod) -> Option<Place> {
        let place = self.try_place();
        if place.is_none() {
            self.tell(pod);
        }
        place
    }

    fn try_place(&self) -> Option<Place> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    fn tell(&self, pod: &LocalPod) {
        let now = Instant::now();
        let mut told = self.told.lock();
        if told.is_some_and(|last| now.duration_since(last) < TELL_INTERVAL) {
            return;
        }
        *told = Some(now);
        drop(told);
        let workload = pod.workload.load();
        tracing::warn!(
            namespace = %workload.namespace,
            pod = %workload.name,
            direction = self.direction,
            connections_max = self.most,
            "the pod has as many connections as it may; further ones wait or are refused"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pod_may_have_the_descriptors_of_the_others() {
        for (wanted, descriptors, want) in [
            (16_384, None, 16_384),
            (16_384, Some(1 << 20), 16_384),
            (16_384, Some(1 << 16), 4_096),
            (1 << 20, Some(1 << 20), 65_536),
            (64, Some(1_024), 64),
            (65, Some(1_024), 64),
            (64, Some(3), 1),
        ] {
            assert_eq!(per_pod(wanted, descriptors), want, "{wanted} of {descriptors:?}");
        }
    }

    #[test]
    fn a_pod_that_comes_back_has_no_second_share() {
        let places = Places::new(2);
        let uid = |text: &str| text.parse::<PodUid>().unwrap();
        let held = places.of(&uid("a")).inbound.try_place().unwrap();
        places.of(&uid("b"));
        places.retain(|_| false);
        assert_eq!(places.pods.lock().len(), 1);
        let again = places.of(&uid("a"));
        assert_eq!((again.inbound.taken(), again.outbound.taken()), (1, 0));
        drop(held);
        places.retain(|_| false);
        assert_eq!(places.pods.lock().len(), 0);
    }
}
