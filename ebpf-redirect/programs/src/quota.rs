//! Each pod's share of the flow maps: an insert that is counted, and the removal that takes it back. One pod that fills
//! its share is refused; the others are not.
//!
//! The count changes only where the map says that an entry came or went, which it says exactly once for each, so a count
//! never drifts: not by failed connects, nor by a socket that connects again, nor across restarts of the proxy (the
//! counts are pinned with the maps). A namespace without a count is refused.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::{BPF_EXIST, BPF_NOEXIST};
use aya_ebpf::maps::HashMap;
use weft_ebpf_common::abi::Share;

use crate::maps::{POD_USE, pod_flows_max};

const EEXIST: i32 = -17;

/// Why an entry was not made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The pod holds its share.
    Share,
    /// The map is full, or the kernel has no memory for it.
    Full,
}

/// Makes an entry or replaces the one with this key.
#[inline(always)]
pub fn insert<K, V>(
    map: &HashMap<K, V>,
    key: &K,
    value: &V,
    netns_cookie: u64,
    share: Share,
) -> Result<(), Refused> {
    let taken = take(netns_cookie, share);
    if taken {
        match map.insert(key, value, u64::from(BPF_NOEXIST)) {
            Ok(()) => return Ok(()),
            Err(error) => {
                give_back(netns_cookie, share);
                if error != EEXIST {
                    return Err(Refused::Full);
                }
            }
        }
    }
    // One that is there already takes no more room.
    match map.insert(key, value, u64::from(BPF_EXIST)) {
        Ok(()) => Ok(()),
        Err(_) if taken => Err(Refused::Full),
        Err(_) => Err(Refused::Share),
    }
}

/// True if there was one.
#[inline(always)]
pub fn remove<K, V>(map: &HashMap<K, V>, key: &K, netns_cookie: u64, share: Share) -> bool {
    let removed = map.remove(key).is_ok();
    if removed {
        give_back(netns_cookie, share);
    }
    removed
}

/// Counts one more entry, if the pod may have it. Two processors that ask in the same moment may both get the last one,
/// so a pod has at most one entry more for each further processor: an addition that also answers is an instruction of a
/// later BPF version than the one built for.
#[inline(always)]
pub fn take(netns_cookie: u64, share: Share) -> bool {
    let Some(count) = entries(netns_cookie, share) else { return false };
    let most = u64::from(pod_flows_max()) * u64::from(share.entries_per_flow());
    // SAFETY: a word of a map value, which stays valid while the program runs.
    if unsafe { count.read_volatile() } >= most {
        return false;
    }
    add(count, 1);
    true
}

#[inline(always)]
pub fn give_back(netns_cookie: u64, share: Share) {
    if let Some(count) = entries(netns_cookie, share) {
        add(count, u64::MAX);
    }
}

#[inline(always)]
fn add(count: *mut u64, amount: u64) {
    // SAFETY: as above; programs only ever change it atomically. (`AtomicU64` has no such method on this target, which
    // lacks compare-and-swap.)
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, amount) };
}

#[inline(always)]
fn entries(netns_cookie: u64, share: Share) -> Option<*mut u64> {
    let pod = POD_USE.get_ptr_mut(&netns_cookie)?;
    // SAFETY: the index is that of a field of the array.
    Some(unsafe { &raw mut (*pod).entries[share as usize] })
}
