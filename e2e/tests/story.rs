//! The story of `make demo`, a test for each step. Needs the binaries: `cargo build --bins`.
//!
//! The steps share a lab while tests overlap; it goes down with the last one. A step that fails takes its lab with it,
//! so that the others start from a clean one.

use std::process;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use weft_e2e::lab::Lab;
use weft_e2e::story;

struct Shared {
    lab: Mutex<Lab>,
    spoilt: AtomicBool,
}

/// The lab of the tests that run now.
static SHARED: Mutex<Weak<Shared>> = Mutex::new(Weak::new());
static LABS: AtomicU32 = AtomicU32::new(0);

fn shared() -> Arc<Shared> {
    let mut slot = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(shared) = slot.upgrade().filter(|s| !s.spoilt.load(Ordering::Acquire)) {
        return shared;
    }
    let name = format!("story{}-{}", process::id(), LABS.fetch_add(1, Ordering::Relaxed));
    let lab = story::up(&name).expect("the story's lab");
    let shared = Arc::new(Shared { lab: Mutex::new(lab), spoilt: AtomicBool::new(false) });
    *slot = Arc::downgrade(&shared);
    shared
}

fn step(number: u8) {
    let step = story::STEPS.iter().find(|s| s.number == number).expect("a step of that number");
    loop {
        let shared = shared();
        let mut lab = shared.lab.lock().unwrap_or_else(PoisonError::into_inner);
        // Another test may have spoilt it while this one waited.
        if shared.spoilt.load(Ordering::Acquire) {
            continue;
        }
        let told = (step.run)(&mut lab);
        if let Err(e) = &told {
            shared.spoilt.store(true, Ordering::Release);
            let logs = lab.keep_logs().map_or_else(|e| format!("lost: {e:#}"), |d| d.display().to_string());
            panic!("step {number}, {}: {e:#}\nlogs: {logs}", step.title);
        }
        println!("{number}. {}\n   {}", step.title, told.unwrap_or_default().join("\n   "));
        return;
    }
}

#[test]
fn step_1_a_request_crosses_the_nodes_encrypted() {
    step(1);
}

#[test]
fn step_2_both_ends_are_known_by_their_certificates() {
    step(2);
}

#[test]
fn step_3_failures_are_hidden_from_the_client() {
    step(3);
}

#[test]
fn step_4_weights_hold_and_change_without_a_failure() {
    step(4);
}

#[test]
fn step_5_a_deny_policy_is_in_force_within_a_second() {
    step(5);
}

#[test]
fn step_6_a_namespace_leaves_and_comes_back() {
    step(6);
}

#[test]
fn step_7_the_trace_of_a_request_shows_its_failed_attempt() {
    // The demo can do without; a test must not.
    assert!(weft_e2e::lab::traces::collector().is_some(), "no collector: run scripts/setup.sh --tests");
    step(7);
}

#[test]
fn step_8_local_bytes_skip_the_stack_and_need_not() {
    step(8);
}

#[test]
fn step_9_the_mesh_survives_its_own_processes() {
    step(9);
}

#[test]
fn every_step_of_the_story_has_a_test() {
    let numbers: Vec<u8> = story::STEPS.iter().map(|s| s.number).collect();
    assert_eq!(numbers, (1..=9).collect::<Vec<_>>());
}
