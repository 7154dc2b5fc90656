//! Weft's own counters and gauges, and the callbacks through which other modules show theirs at scrape time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::names::Family;
use super::text::push_label;
use super::to_f64;

/// Label sets per family, registered or collected: a node has at most hundreds of pods and Services of interest, and what
/// is above this is counted together as `overflow="true"`.
const SERIES_PER_FAMILY_MAX: usize = 1024;

/// A number that only grows. Cheap to clone; register once and keep.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    pub fn increment(&self) {
        self.add(1);
    }
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down. Cheap to clone; register once and keep.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }
    pub fn add(&self, difference: f64) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| {
            Some((f64::from_bits(bits) + difference).to_bits())
        });
    }
    pub fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

enum Cell {
    Counter(Counter),
    Gauge(Gauge),
}

/// A family with its series, by their labels.
type Cells = (&'static Family, BTreeMap<String, Cell>);
type Collect = Box<dyn Fn(&mut Samples) + Send + Sync>;

#[derive(Default)]
pub(super) struct Own {
    cells: Mutex<BTreeMap<&'static str, Cells>>,
    collectors: Mutex<Vec<Collect>>,
}

impl Own {
    pub(super) fn counter(&self, family: &'static Family, labels: &[(&str, &str)]) -> Counter {
        self.cell(
            family,
            labels,
            |cell| match cell {
                Cell::Counter(counter) => counter.clone(),
                // A family is asked for as what it is; otherwise its count is kept apart and not shown.
                Cell::Gauge(_) => Counter::default(),
            },
            || Cell::Counter(Counter::default()),
        )
    }

    pub(super) fn gauge(&self, family: &'static Family, labels: &[(&str, &str)]) -> Gauge {
        self.cell(
            family,
            labels,
            |cell| match cell {
                Cell::Gauge(gauge) => gauge.clone(),
                Cell::Counter(_) => Gauge::default(),
            },
            || Cell::Gauge(Gauge::default()),
        )
    }

    fn cell<T>(
        &self,
        family: &'static Family,
        labels: &[(&str, &str)],
        take: impl FnOnce(&Cell) -> T,
        make: impl FnOnce() -> Cell,
    ) -> T {
        let mut cells = self.cells.lock();
        let series = &mut cells.entry(family.name).or_insert_with(|| (family, BTreeMap::new())).1;
        let key = bounded_key(labels, |key| series.contains_key(key), series.len());
        take(series.entry(key).or_insert_with(make))
    }

    pub(super) fn collector(&self, collect: Collect) {
        self.collectors.lock().push(collect);
    }

    pub(super) fn collect(&self) -> Samples {
        let mut samples = Samples::default();
        for (family, series) in self.cells.lock().values() {
            let into = samples.0.entry(family.name).or_insert_with(|| (*family, BTreeMap::new()));
            for (labels, cell) in series {
                let value = match cell {
                    Cell::Counter(counter) => to_f64(counter.value()),
                    Cell::Gauge(gauge) => gauge.value(),
                };
                into.1.insert(labels.clone(), value);
            }
        }
        for collect in self.collectors.lock().iter() {
            collect(&mut samples);
        }
        samples
    }
}

fn bounded_key(labels: &[(&str, &str)], known: impl Fn(&str) -> bool, count: usize) -> String {
    let mut key = String::new();
    for (name, value) in labels {
        push_label(&mut key, name, value);
    }
    if count >= SERIES_PER_FAMILY_MAX && !known(&key) { "overflow=\"true\"".into() } else { key }
}

/// What a scrape shows; collectors put theirs in. The same series put twice is added up.
#[derive(Default)]
pub struct Samples(BTreeMap<&'static str, (&'static Family, BTreeMap<String, f64>)>);

impl Samples {
    pub fn put(&mut self, family: &'static Family, labels: &[(&str, &str)], value: f64) {
        let series = &mut self.0.entry(family.name).or_insert_with(|| (family, BTreeMap::new())).1;
        let key = bounded_key(labels, |key| series.contains_key(key), series.len());
        *series.entry(key).or_insert(0.0) += value;
    }

    pub(super) fn into_families(self) -> impl Iterator<Item = (&'static Family, BTreeMap<String, f64>)> {
        self.0.into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::super::names;
    use super::*;

    #[test]
    fn the_number_of_series_is_bounded_and_nothing_is_lost() {
        let own = Own::default();
        for i in 0..SERIES_PER_FAMILY_MAX + 10 {
            own.counter(&names::EJECTIONS, &[("endpoint", &i.to_string())]).increment();
        }
        // A known series is still found when the family is full.
        own.counter(&names::EJECTIONS, &[("endpoint", "3")]).increment();
        let series = &own.collect().0[names::EJECTIONS.name].1;
        assert_eq!(series.len(), SERIES_PER_FAMILY_MAX + 1);
        assert_eq!(series["overflow=\"true\""], 10.0);
        assert_eq!(series["endpoint=\"3\""], 2.0);
    }

    #[test]
    fn collectors_and_registered_series_meet_in_one_family() {
        let own = Own::default();
        own.gauge(&names::TUNNELS_LIVE, &[("role", "client")]).set(2.0);
        own.gauge(&names::TUNNELS_LIVE, &[("role", "client")]).add(-1.0);
        own.collector(Box::new(|samples| samples.put(&names::TUNNELS_LIVE, &[("role", "server")], 5.0)));
        let series = &own.collect().0[names::TUNNELS_LIVE.name].1;
        assert_eq!(series["role=\"client\""], 1.0);
        assert_eq!(series["role=\"server\""], 5.0);
    }
}
