//! Agents that are away, hang, or take their time.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::*;

const SHORT: Duration = Duration::from_millis(50);
/// Only a step without a bound takes so long.
const FOR_EVER: Duration = Duration::from_secs(20);

fn listener() -> (tempfile::TempDir, PathBuf, UnixListener) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cni.sock");
    let listener = UnixListener::bind(&path).unwrap();
    (directory, path, listener)
}

fn del() -> Command {
    Command::Del { container_id: "c1".into() }
}

fn hurried() -> Patience {
    Patience { away: Duration::ZERO, sign: SHORT, answer: SHORT }
}

#[test]
fn an_agent_that_listens_and_says_nothing_hangs() {
    let (_directory, path, _never_accepts) = listener();
    let begun = Instant::now();
    // Far more than fit into a socket's buffer, too.
    let large = Command::Gc { container_ids: vec!["x".repeat(1024); 1024] };
    for command in [del(), large] {
        let asked = ask(&path, command, &Patience { answer: FOR_EVER, ..hurried() });
        assert!(matches!(asked, Err(AskError::Hangs(SHORT))), "{asked:?}");
    }
    assert!(begun.elapsed() < FOR_EVER);
}

#[test]
fn an_agent_whose_queue_is_full_hangs_and_holds_nobody_up() {
    let (_directory, path, _never_accepts) = listener();
    // The kernel keeps a connection that its client gave up, too: as many as this, and one.
    let length: usize =
        std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    for _ in 0..=length {
        UnixStream::connect(&path).unwrap();
    }
    let begun = Instant::now();
    assert!(matches!(connect_once(&path, SHORT), Err(AskError::Hangs(_))));
    let asked = ask(&path, del(), &hurried());
    assert!(matches!(asked, Err(AskError::Hangs(SHORT))), "{asked:?}");
    assert!(begun.elapsed() < FOR_EVER);
}

/// Takes a request, gives a sign of life, and answers after a while.
fn slow_agent(listener: UnixListener, after: Duration) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
        stream.write_all(b"\n").unwrap();
        // Time is what is promised here, and there is nothing else to wait for.
        thread::sleep(after);
        // The plugin may have given up.
        let _ = stream.write_all(br#"{"enrolled":true}"#);
    })
}

#[test]
fn an_agent_that_took_the_request_has_more_time_for_the_answer() {
    // Longer than a sign takes on a busy machine.
    let sign = Duration::from_secs(5);
    let (_directory, path, listener) = listener();
    let agent = slow_agent(listener, sign + SHORT);
    assert!(ask(&path, del(), &Patience { sign, answer: FOR_EVER, ..hurried() }).unwrap().enrolled);
    agent.join().unwrap();
}

#[test]
fn an_agent_that_took_the_request_and_does_not_answer_is_late() {
    let answer = Duration::from_secs(1);
    let (_directory, path, listener) = listener();
    let agent = slow_agent(listener, answer + SHORT);
    let asked = ask(&path, del(), &Patience { sign: FOR_EVER, answer, ..hurried() });
    assert!(matches!(asked, Err(AskError::Late(wait)) if wait == answer), "{asked:?}");
    agent.join().unwrap();
}

#[test]
fn an_agent_that_is_away_or_hangs_up_is_told_apart() {
    let (_directory, path, listener) = listener();
    let agent = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
        stream.write_all(b"\n").unwrap();
    });
    let patience = Patience { away: SHORT, sign: FOR_EVER, answer: FOR_EVER };
    match ask(&path, del(), &patience) {
        Err(AskError::Broken(error)) => assert!(error.to_string().contains("hung up"), "{error}"),
        other => panic!("{other:?}"),
    }
    agent.join().unwrap();
    let asked = ask(&path, del(), &patience);
    assert!(matches!(asked, Err(AskError::Away(_))), "{asked:?}");
}

#[test]
fn the_end_of_a_pod_is_not_held_up_and_its_start_fails_before_the_kubelet_gives_up() {
    let Patience { away, sign, answer } = Patience::END;
    assert!(away + sign.max(answer) <= Duration::from_secs(2));
    let Patience { away, sign, answer } = Patience::BEGIN;
    assert!(away + sign <= Duration::from_secs(10) && away + answer < Duration::from_secs(60));
}
