//! Reading the per-CPU counters of the hooks.

use std::io;
use std::os::fd::OwnedFd;

use weft_ebpf_common::count::{OUTCOMES, Outcome};

use crate::sys;

/// What the hooks have counted since the maps were made: the sums over all CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    values: Vec<u64>,
}

impl Counters {
    /// How often this happened (for `Bytes*`: how many bytes).
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.values[outcome as usize]
    }

    /// All, with the names for metrics.
    pub fn iter(&self) -> impl Iterator<Item = (Outcome, u64)> + '_ {
        Outcome::ALL.iter().map(|outcome| (*outcome, self.of(*outcome)))
    }

    pub(crate) fn add(&mut self, outcome: Outcome, amount: u64) {
        self.values[outcome as usize] += amount;
    }

    pub(crate) fn read(map: &OwnedFd, cpus: usize) -> io::Result<Self> {
        let mut values = Vec::with_capacity(OUTCOMES as usize);
        let mut per_cpu = vec![0u64; cpus];
        for index in 0..OUTCOMES {
            // SAFETY: a per-CPU array of u64 fills one word for each possible CPU.
            unsafe { sys::lookup(map, (&raw const index).cast(), per_cpu.as_mut_ptr().cast())? };
            values.push(per_cpu.iter().sum());
        }
        Ok(Self { values })
    }
}
