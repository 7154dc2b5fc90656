//! What the watches have told, merged: nothing until every kind was listed, then differences. Pure.
//!
//! An object that cannot be used keeps its last good version, as long as it is the same object (by UID).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::kinds::{WATCHED, is_told_by_event};
use super::raw::Item;
use crate::source::object::{Object, ObjectKey};
use crate::source::subjects::{Remark, Subjects};
use crate::source::{Event, PROBLEMS_SHOWN_MAX, Problem, Read, Report};

/// What the watch of one kind tells.
#[derive(Debug)]
pub(super) enum Told {
    /// The whole of the kind, replacing what was known.
    Listed(Vec<Item>),
    Applied(Box<Item>),
    Deleted(ObjectKey),
    /// The API server does not have the kind: its CRD is not installed.
    Absent,
    /// The watch does not work; what is known stays.
    Trouble(String),
    /// It works again.
    Well,
}

#[derive(Debug, Default)]
struct Held {
    uid: String,
    good: Option<Object>,
    problem: Option<String>,
    warnings: Vec<String>,
}

#[derive(Debug, Default)]
struct OfKind {
    listed: bool,
    absent: bool,
    trouble: Option<String>,
    objects: BTreeMap<ObjectKey, Held>,
    /// Those with a problem or a warning.
    remarkable: BTreeSet<ObjectKey>,
}

#[derive(Debug)]
pub(super) struct State {
    kinds: [OfKind; WATCHED.len()],
    complete: bool,
    subjects: Arc<Subjects>,
}

impl State {
    pub(super) fn new(subjects: Arc<Subjects>) -> Self {
        Self { kinds: Default::default(), complete: false, subjects }
    }

    /// Kinds that were never listed, by name.
    pub(super) fn awaited(&self) -> Vec<String> {
        let kinds = self.kinds.iter().zip(&WATCHED);
        kinds.filter(|(of_kind, _)| !of_kind.listed).map(|(_, watched)| watched.name()).collect()
    }

    /// What the index has to know of it.
    pub(super) fn take(&mut self, at: usize, told: Told, events: &mut Vec<Event>) {
        let mut changes = Vec::new();
        let of_kind = &mut self.kinds[at];
        match told {
            Told::Trouble(problem) => of_kind.trouble = Some(problem),
            Told::Well => of_kind.trouble = None,
            Told::Applied(item) => apply(of_kind, &self.subjects, *item, &mut changes),
            Told::Deleted(key) => delete(of_kind, &self.subjects, &key, &mut changes),
            Told::Listed(items) => {
                list(of_kind, &self.subjects, items, &mut changes);
                of_kind.absent = false;
                of_kind.trouble = None;
            }
            Told::Absent => {
                list(of_kind, &self.subjects, Vec::new(), &mut changes);
                of_kind.absent = true;
                of_kind.trouble = None;
            }
        }
        if self.complete {
            events.append(&mut changes);
        } else if self.kinds.iter().all(|of_kind| of_kind.listed) {
            self.complete = true;
            let objects = self.kinds.iter().flat_map(|of_kind| of_kind.objects.values());
            events.push(Event::Reset(objects.filter_map(|held| held.good.clone()).collect()));
        }
    }

    pub(super) fn report(&self) -> Report {
        let (mut errors, mut warnings) = (Vec::new(), Vec::new());
        let problem = |file: String, message: String| Problem { file, line: 0, message };
        let mut objects = 0;
        for (of_kind, watched) in self.kinds.iter().zip(&WATCHED) {
            objects += of_kind.objects.len();
            if let Some(trouble) = &of_kind.trouble {
                errors.push(problem(watched.name(), format!("{trouble}; the last known state stays")));
            }
            if of_kind.absent {
                let message = "the API server does not have this kind: its CRD is not installed".to_owned();
                warnings.push(problem(watched.name(), message));
            }
            for key in &of_kind.remarkable {
                let Some(held) = of_kind.objects.get(key) else { continue };
                if let Some(message) = held.problem.as_ref().filter(|_| errors.len() < PROBLEMS_SHOWN_MAX) {
                    errors.push(problem(key.to_string(), message.clone()));
                }
                if warnings.len() < PROBLEMS_SHOWN_MAX {
                    warnings.extend(held.warnings.iter().map(|w| problem(key.to_string(), w.clone())));
                }
            }
        }
        Report { read: Read::Objects(objects), errors, warnings }
    }
}

fn list(of_kind: &mut OfKind, subjects: &Subjects, items: Vec<Item>, changes: &mut Vec<Event>) {
    of_kind.listed = true;
    let found: BTreeSet<&ObjectKey> = items.iter().map(|item| &item.key).collect();
    let gone: Vec<ObjectKey> = of_kind.objects.keys().filter(|key| !found.contains(key)).cloned().collect();
    for key in gone {
        delete(of_kind, subjects, &key, changes);
    }
    for item in items {
        apply(of_kind, subjects, item, changes);
    }
}

fn delete(of_kind: &mut OfKind, subjects: &Subjects, key: &ObjectKey, changes: &mut Vec<Event>) {
    of_kind.remarkable.remove(key);
    if of_kind.objects.remove(key).is_some_and(|held| held.good.is_some()) {
        changes.push(Event::Delete(key.clone()));
    }
    subjects.forget(key);
}

fn apply(of_kind: &mut OfKind, subjects: &Subjects, item: Item, changes: &mut Vec<Event>) {
    let Item { key, uid, outcome, warnings, subject } = item;
    if let Some(subject) = subject {
        subjects.set(&key, subject);
    }
    let held = of_kind.objects.entry(key.clone()).or_default();
    let other = held.uid != uid;
    if is_told_by_event(key.kind) && (other || held.warnings != warnings) {
        let remark = Remark { uid: uid.clone(), warnings: warnings.clone() };
        subjects.remark(&key, Some(remark).filter(|remark| !remark.warnings.is_empty()));
    }
    held.uid = uid;
    if held.warnings != warnings {
        warnings.iter().for_each(|warning| tracing::warn!(object = %key, "{warning}"));
    }
    held.warnings = warnings;
    if outcome.is_err() || !held.warnings.is_empty() {
        of_kind.remarkable.insert(key.clone());
    } else {
        of_kind.remarkable.remove(&key);
    }
    let next = match outcome {
        Ok(next) => {
            held.problem = None;
            next
        }
        Err(problem) => {
            if held.problem.as_ref() != Some(&problem) {
                tracing::warn!(object = %key, problem, "cannot be used; its last good version stays");
            }
            held.problem = Some(problem);
            if !other {
                return;
            }
            None
        }
    };
    if next == held.good {
        return;
    }
    changes.push(match &next {
        Some(object) => Event::Apply(object.clone()),
        None => Event::Delete(key),
    });
    held.good = next;
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
