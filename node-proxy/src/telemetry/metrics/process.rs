//! What `/proc/self` says about this process. Read at scrape time; what cannot be read is left out.

use std::fs;

use super::names;
use super::own::Samples;
use super::to_f64;

/// `USER_HZ`, the unit of times in `/proc`: 100 on every architecture that Weft runs on, whatever the kernel's own tick.
const TICKS_PER_S: f64 = 100.0;

pub(super) fn collect(samples: &mut Samples) {
    samples.put(&names::BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory itself.
        samples.put(&names::PROCESS_FDS, &[], to_f64(entries.count().saturating_sub(1) as u64));
    }
    let Ok(stat) = fs::read_to_string("/proc/self/stat") else { return };
    // The second field, the name, may hold spaces and parentheses: count from its end (proc(5)).
    let Some((_, rest)) = stat.rsplit_once(") ") else { return };
    let fields: Vec<u64> = rest.split(' ').map(|field| field.trim().parse().unwrap_or(0)).collect();
    if let [.., user, system] = fields.get(..13).unwrap_or_default() {
        samples.put(&names::PROCESS_CPU, &[], to_f64(user + system) / TICKS_PER_S);
    }
    if let Some(threads) = fields.get(17) {
        samples.put(&names::PROCESS_THREADS, &[], to_f64(*threads));
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    if let Some(kib) = resident.and_then(|kib| kib.trim().parse::<u64>().ok()) {
        samples.put(&names::PROCESS_MEMORY, &[], to_f64(kib * 1024));
    }
}
