//! Informational answers (1xx) of an application: what the client sees of them, and where.

use tokio::io::AsyncWriteExt;

use super::*;

const HINTS: &[u8] =
    b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nconnection: x-gone\r\nx-gone: 1\r\n\r\n";
const HINTED: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n";

/// An application that tells `before` at once, and answers when it is told to go on: once for each request.
fn hinting(before: &'static [u8]) -> (mpsc::Sender<()>, App) {
    let (go, wait) = mpsc::channel(4);
    let wait = Arc::new(tokio::sync::Mutex::new(wait));
    let app = App::raw(move |mut io, _| {
        let wait = Arc::clone(&wait);
        async move {
            loop {
                head_of(&mut io).await;
                io.write_all(before).await.unwrap();
                if wait.lock().await.recv().await.is_none() {
                    return;
                }
                io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        }
    });
    (go, app)
}

async fn ok_of(client: &mut DuplexStream) {
    let head = head_of(client).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut body = [0; 2];
    within(client.read_exact(&mut body)).await.unwrap();
    assert_eq!(&body, b"ok");
}

/// The hint is worth something only if it comes before the answer is made.
#[tokio::test]
async fn early_hints_reach_the_client_before_the_answer_is_there() {
    let (go, app) = hinting(HINTS);
    let fake = Fake::new(vec![app]);
    let (mut client, _) = fake.client(Protocol::Http1);
    for _ in 0..3 {
        client.write_all(b"GET / HTTP/1.1\r\nhost: b\r\n\r\n").await.unwrap();
        assert_eq!(head_of(&mut client).await, HINTED);
        go.send(()).await.unwrap();
        ok_of(&mut client).await;
    }
    until(|| fake.finished("ok") == 3).await;
}

#[tokio::test]
async fn every_informational_answer_passes_in_its_order_but_those_of_hop_by_hop_meaning() {
    let (go, app) = hinting(
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\ncontent-length: 7\r\nlink: <b>\r\n\r\n",
    );
    let fake = Fake::new(vec![app]);
    let (mut client, _) = fake.client(Protocol::Http1);
    client.write_all(b"GET / HTTP/1.1\r\nhost: b\r\n\r\n").await.unwrap();
    assert_eq!(head_of(&mut client).await, "HTTP/1.1 102 Processing\r\n\r\n");
    assert_eq!(head_of(&mut client).await, "HTTP/1.1 103 Early Hints\r\nlink: <b>\r\n\r\n");
    go.send(()).await.unwrap();
    ok_of(&mut client).await;
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_none() {
    let (go, app) = hinting(HINTS);
    let fake = Fake::new(vec![app]);
    let (mut client, _) = fake.client(Protocol::Http1);
    client.write_all(b"GET / HTTP/1.0\r\nhost: b\r\n\r\n").await.unwrap();
    go.send(()).await.unwrap();
    let head = head_of(&mut client).await;
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
}

/// Requests sent behind each other get whole answers in their order, with the hints in front of their own.
#[tokio::test]
async fn hints_never_get_between_the_parts_of_another_answer() {
    const REQUESTS: usize = 50;
    const BODY_BYTES: usize = 40_000;
    let fake = Fake::new(vec![App::raw(|mut io, _| async move {
        for n in 0.. {
            if io.read_u8().await.is_err() {
                return;
            }
            head_of(&mut io).await;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY_BYTES}\r\nx-n: {n}\r\n\r\n");
            let hints = format!("HTTP/1.1 103 Early Hints\r\nx-n: {n}\r\n\r\n");
            for part in [hints.as_bytes(), head.as_bytes(), &vec![b'.'; BODY_BYTES]] {
                io.write_all(part).await.unwrap();
            }
        }
    })]);
    let (client, _) = fake.client(Protocol::Http1);
    let (mut read, mut write) = tokio::io::split(client);
    let asked = tokio::spawn(async move {
        write.write_all(&b"GET / HTTP/1.1\r\nhost: b\r\n\r\n".repeat(REQUESTS)).await.unwrap();
        write
    });
    let mut body = vec![0; BODY_BYTES];
    for n in 0..REQUESTS {
        let own = format!("x-n: {n}\r\n");
        let mut head = head_of(&mut read).await;
        // Where the answer came while the one before was still being written, its hints are of no use any more.
        if head.starts_with("HTTP/1.1 103") {
            assert!(head.contains(&own), "{head}");
            head = head_of(&mut read).await;
        }
        assert!(head.starts_with("HTTP/1.1 200") && head.contains(&own), "{n}: {head}");
        within(read.read_exact(&mut body)).await.unwrap();
        assert!(body.iter().all(|byte| *byte == b'.'), "{n}");
    }
    drop(asked.await.unwrap());
}

/// An application that never stops hinting costs a client that does not read a bounded amount of memory, and nobody else
/// anything: what does not fit is dropped.
#[tokio::test]
async fn hints_that_nobody_reads_are_dropped_beyond_a_bound() {
    const HINTS: usize = 2000;
    let fake = Fake::new(vec![App::raw(|mut io, _| async move {
        head_of(&mut io).await;
        for _ in 0..HINTS {
            let hint = format!("HTTP/1.1 103 Early Hints\r\nlink: <{}>\r\n\r\n", "x".repeat(1000));
            io.write_all(hint.as_bytes()).await.unwrap();
        }
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        std::future::pending::<()>().await;
    })]);
    let (mut client, _) = fake.client(Protocol::Http1);
    client.write_all(b"GET / HTTP/1.1\r\nhost: b\r\n\r\n").await.unwrap();
    until(|| fake.finished("ok") == 1).await;
    let mut passed = 0;
    loop {
        let head = head_of(&mut client).await;
        if !head.starts_with("HTTP/1.1 103") {
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            break;
        }
        passed += 1;
    }
    assert!((1..HINTS / 4).contains(&passed), "{passed} of {HINTS}");
}
