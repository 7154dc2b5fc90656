//! Bodies: long ones, slow ones, ones that are needed again.

use super::*;
use crate::l7::limits::REPLAY_BYTES_MAX;
use weft_proto::model::Retry;

fn echo() -> App {
    App::http(|request: Request<Incoming>| async move {
        Response::new(request.into_body().map_err(BoxError::from).boxed_unsync())
    })
}

fn retried(attempts: u32) -> HttpRule {
    let codes = vec![StatusCode::SERVICE_UNAVAILABLE];
    HttpRule { retry: Some(Retry { codes, attempts, backoff: Some(Duration::from_millis(1)) }), ..rule() }
}

/// Much more than all buffers and windows together, echoed while it is sent.
#[tokio::test]
async fn large_bodies_stream_both_ways() {
    const FRAMES: usize = 256;
    const FRAME: usize = 64 << 10;
    for http2 in [false, true] {
        let fake = Fake::new(vec![echo()]);
        let (frames, body) = channel();
        let request = Request::post("http://backend/").header("host", "b").body(body).unwrap();
        let response = if http2 {
            within(fake.h2().await.send_request(request)).await.unwrap()
        } else {
            within(fake.h1().await.send_request(request)).await.unwrap()
        };
        tokio::spawn(async move {
            for _ in 0..FRAMES {
                frames.send(Frame::data(Bytes::from_static(&[7; FRAME]))).await.unwrap();
            }
        });
        let mut body = response.into_body();
        let mut length = 0;
        while let Some(frame) = within(body.frame()).await {
            length += frame.unwrap().data_ref().map_or(0, Bytes::len);
        }
        assert_eq!(length, FRAMES * FRAME, "http2: {http2}");
        until(|| fake.finished("ok") == 1).await;
    }
}

/// The first byte of an answer arrives while the request is still being sent, and frames are not held back.
#[tokio::test]
async fn nothing_waits_for_the_end() {
    let fake = Fake::new(vec![echo()]).rules(vec![retried(1)]);
    let (frames, body) = channel();
    let request = Request::get("http://backend/").header("host", "b").body(body).unwrap();
    let mut response = within(fake.h2().await.send_request(request)).await.unwrap();
    for text in ["one", "two"] {
        frames.send(Frame::data(text.into())).await.unwrap();
        let frame = within(response.body_mut().frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), text);
    }
}

fn flaky() -> App {
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    App::http(move |request: Request<Incoming>| {
        let asked = Arc::clone(&asked);
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => answer(503, "no"),
                _ => answer(200, body),
            }
        }
    })
}

#[tokio::test]
async fn a_small_body_is_sent_again_and_a_large_one_is_not() {
    for (length, want) in [(0, 200), (1, 200), (REPLAY_BYTES_MAX, 200), (REPLAY_BYTES_MAX + 1, 503)] {
        for chunked in [false, true] {
            let fake = Fake::new(vec![flaky()]).rules(vec![retried(1)]);
            let bytes = "x".repeat(length);
            let request = if chunked {
                let (frames, body) = channel();
                let bytes = Bytes::from(bytes.clone());
                tokio::spawn(async move {
                    for part in bytes.chunks(1000) {
                        let _ = frames.send(Frame::data(Bytes::copy_from_slice(part))).await;
                    }
                });
                // Without the header hyper's client sends no body with a GET.
                Request::get("/")
                    .header("host", "b")
                    .header("transfer-encoding", "chunked")
                    .body(body)
                    .unwrap()
            } else {
                request("GET", "/", bytes.clone())
            };
            let (status, _, text) = fake.ask(request).await;
            assert_eq!(status, want, "{length} bytes, chunked: {chunked}");
            if want == 200 {
                assert!(text == bytes, "{length} bytes came back as {}", text.len());
            }
            assert_eq!(fake.connects_to(address(1)), 1, "the discarded answer kept its connection");
        }
    }
}

/// A mirror gets the same, and its answer, its slowness and its absence change nothing.
#[tokio::test]
async fn a_mirror_gets_a_copy() {
    let (tell, mut told) = mpsc::channel(8);
    let fake = Fake::new(vec![echo()]);
    let mirror = App::http(move |request: Request<Incoming>| {
        let tell = tell.clone();
        async move {
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            tell.send((path, body)).await.unwrap();
            answer(500, "ignored")
        }
    });
    fake.add("shop/shadow", 9, vec![mirror]);
    let filter = |service: &str| weft_proto::model::HttpFilter::Mirror {
        service: id(service),
        port: PORT,
        fraction: (1, 1),
    };
    let filters = vec![filter("shop/shadow"), filter("shop/unknown")];
    let fake = fake.rules(vec![HttpRule { filters, ..rule() }]);
    for text in ["", "some text"] {
        let (status, _, back) = fake.ask(request("POST", "/a", text)).await;
        assert_eq!((status, &*back), (200, text));
        let (path, body) = within(told.recv()).await.unwrap();
        assert_eq!((&*path, &body[..]), ("/a", text.as_bytes()));
    }
    until(|| fake.finished("ok") == 4).await;
}

#[tokio::test]
async fn a_mirror_that_hangs_delays_nothing() {
    let fake = Fake::new(vec![App::says(200, "a")]);
    fake.add(
        "shop/shadow",
        9,
        vec![App::raw(|io, _| async move {
            let _io = io;
            std::future::pending::<()>().await;
        })],
    );
    let filter =
        weft_proto::model::HttpFilter::Mirror { service: id("shop/shadow"), port: PORT, fraction: (1, 1) };
    let fake = fake.rules(vec![HttpRule { filters: vec![filter], ..rule() }]);
    // More than the mirror's buffers hold.
    let (status, ..) = fake.ask(request("POST", "/", vec![1; 16 << 20])).await;
    assert_eq!(status, 200);
}

/// An answer before the end of the request goes back, and the connection that is still busy does no harm to others.
#[tokio::test]
async fn an_early_answer_goes_back() {
    let fake = Fake::new(vec![App::http(|request: Request<Incoming>| async move {
        if request.method() == http::Method::POST {
            tokio::spawn(async move {
                let _body = request.into_body();
                std::future::pending::<()>().await;
            });
            return answer(413, "too much");
        }
        answer(200, "fine")
    })]);
    let (_frames, body) = channel();
    let request = Request::post("http://backend/").body(body).unwrap();
    let mut client = fake.h2().await;
    let (status, ..) = read(within(client.send_request(request)).await.unwrap()).await;
    assert_eq!(status, 413);
    let (status, ..) = fake.ask(get("/")).await;
    assert_eq!(status, 200);
}
