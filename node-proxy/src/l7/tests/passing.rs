//! What must come through unchanged.

use tokio::io::AsyncWriteExt;

use super::*;

/// Two parties of the same HTTP version see each other's messages as without a proxy.
#[tokio::test]
async fn an_http1_message_passes_as_it_is() {
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = Arc::new(Mutex::new(Some(tell)));
    let fake = Fake::new(vec![App::raw(move |mut io, _| {
        let tell = tell.lock().take();
        async move {
            let head = head_of(&mut io).await;
            let _ = tell.unwrap().send(head);
            io.write_all(b"HTTP/1.1 418 Teapot\r\nX-Odd-Case: a\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 3\r\n\r\nabc")
                .await
                .unwrap();
            std::future::pending::<()>().await;
        }
    })]);
    let (mut client, _) = fake.client(Protocol::Http1);
    client
        .write_all(b"PATCH /a%20b?x=1&y HTTP/1.1\r\nHost: backend:80\r\nX-CamelCase: 1\r\nKeep-Alive: 3\r\nConnection: X-Gone\r\nX-Gone: 1\r\n\r\n")
        .await
        .unwrap();
    let seen = within(told).await.unwrap();
    assert!(seen.starts_with("PATCH /a%20b?x=1&y HTTP/1.1\r\n"), "{seen}");
    for part in ["Host: backend:80\r\n", "X-CamelCase: 1\r\n", "x-weft-attempt: 1\r\n"] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
    for gone in ["Keep-Alive", "X-Gone", "onnection:"] {
        assert!(!seen.contains(gone), "{gone} in {seen}");
    }
    let back = head_of(&mut client).await;
    assert!(back.starts_with("HTTP/1.1 418"), "{back}");
    assert!(back.contains("X-Odd-Case: a\r\n") && back.contains("Set-Cookie: a\r\nSet-Cookie: b"), "{back}");
    let mut text = [0; 3];
    within(client.read_exact(&mut text)).await.unwrap();
    assert_eq!(&text, b"abc");
    until(|| fake.finished("ok") == 1).await;
}

#[tokio::test]
async fn grpc_passes_with_its_trailers_and_without_a_body() {
    let fake = Fake::new(vec![App::http(|request: Request<Incoming>| async move {
        assert_eq!(request.version(), http::Version::HTTP_2);
        assert_eq!(request.headers()["te"], "trailers");
        let path = request.uri().path().to_owned();
        let got = request.into_body().collect().await.unwrap().to_bytes();
        let mut response = answer(200, got);
        response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        if path == "/only" {
            response.headers_mut().insert("grpc-status", 5.into());
            *response.body_mut() = body("");
            return response;
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", 0.into());
        let collected = response.into_body();
        Response::builder()
            .header("content-type", "application/grpc")
            .body(collected.with_trailers(async move { Some(Ok(trailers)) }).boxed_unsync())
            .unwrap()
    })]);
    let mut client = fake.h2().await;
    let ask = |path: &str| {
        Request::post(format!("http://backend{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body("\0\0\0\0\u{2}hi"))
            .unwrap()
    };
    let response = within(client.send_request(ask("/a.B/C"))).await.unwrap();
    let collected = within(response.into_body().collect()).await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(&collected.to_bytes()[..], b"\0\0\0\0\x02hi");
    let response = within(client.send_request(ask("/only"))).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "5");
    until(|| fake.finished("ok") == 2).await;
    assert_eq!(fake.connects_to(address(1)), 1, "one HTTP/2 connection carries both");
}

/// Bytes both ways after 101, and the end of one direction does not end the other.
#[tokio::test]
async fn an_upgrade_becomes_a_stream_with_half_close() {
    let fake = Fake::new(vec![App::raw(|mut io, _| async move {
        let head = head_of(&mut io).await;
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
        io.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello",
        )
        .await
        .unwrap();
        let mut all = String::new();
        io.read_to_string(&mut all).await.unwrap();
        io.write_all(format!("{all} and bye").as_bytes()).await.unwrap();
    })]);
    let (mut client, serving) = fake.client(Protocol::Http1);
    client
        .write_all(b"GET /ws HTTP/1.1\r\nhost: b\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let head = head_of(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    client.write_all(b"ping").await.unwrap();
    client.shutdown().await.unwrap();
    let mut all = String::new();
    within(client.read_to_string(&mut all)).await.unwrap();
    assert_eq!(all, "helloping and bye");
    // The connection is served until what it became has ended.
    within(serving).await.unwrap();
    assert_eq!(fake.finished("ok"), 1);
}

#[tokio::test]
async fn an_upgraded_stream_ends_with_its_connection() {
    let fake = Fake::new(vec![App::raw(|mut io, _| async move {
        head_of(&mut io).await;
        io.write_all(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").await.unwrap();
        std::future::pending::<()>().await;
    })]);
    let (mut client, serving) = fake.client(Protocol::Http1);
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: b\r\nconnection: Upgrade\r\nupgrade: x\r\n\r\n")
        .await
        .unwrap();
    head_of(&mut client).await;
    // As the outbound stage does when the pod is gone.
    serving.abort();
    let mut all = Vec::new();
    within(client.read_to_end(&mut all)).await.unwrap();
    until(|| fake.finished("draining") == 1).await;
}

/// The client's body starts when the application asks for it, not when the proxy does.
#[tokio::test]
async fn expect_100_continue_is_the_applications_to_answer() {
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let wait = Arc::new(Mutex::new(Some(wait)));
    let fake = Fake::new(vec![App::raw(move |mut io, _| {
        let wait = wait.lock().take().unwrap();
        async move {
            let head = head_of(&mut io).await;
            assert!(head.contains("expect: 100-continue"), "{head}");
            wait.await.unwrap();
            io.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
                .await
                .unwrap();
            let mut body = [0; 4];
            io.read_exact(&mut body).await.unwrap();
            io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n").await.unwrap();
            io.write_all(&body).await.unwrap();
        }
    })]);
    let (mut client, _) = fake.client(Protocol::Http1);
    client
        .write_all(b"POST / HTTP/1.1\r\nhost: b\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
        .await
        .unwrap();
    until(|| fake.connects_to(address(1)) == 1).await;
    let early = tokio::time::timeout(Duration::from_millis(50), client.read_u8()).await;
    assert!(early.is_err(), "an answer before the application's");
    go.send(()).unwrap();
    assert_eq!(head_of(&mut client).await, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
    assert_eq!(head_of(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"body").await.unwrap();
    assert!(head_of(&mut client).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_drain_finishes_requests_and_then_closes() {
    let (app, mut told, go) = App::held();
    let fake = Fake::new(vec![app]);
    let (io, serving) = fake.client(Protocol::Http1);
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    let asked = tokio::spawn(sender.send_request(get("/")));
    within(told.recv()).await.unwrap();
    fake.drain.draining.cancel();
    go.send(true).unwrap();
    let (status, _, text) = read(within(asked).await.unwrap().unwrap()).await;
    assert_eq!((status, &*text), (200, "done"));
    within(serving).await.unwrap();
}

/// Requests of one connection use one upstream connection, one after the other.
#[tokio::test]
async fn connections_to_an_endpoint_are_reused() {
    let fake = Fake::new(vec![App::says(200, "a")]);
    let mut client = fake.h1().await;
    for _ in 0..5 {
        within(client.ready()).await.unwrap();
        let (status, ..) = read(within(client.send_request(get("/"))).await.unwrap()).await;
        assert_eq!(status, 200);
    }
    assert_eq!(fake.connects_to(address(1)), 1);
    assert_eq!(fake.upstreams.open(), 1);
    fake.upstreams.retain(|_| false);
    drop(client);
    until(|| fake.upstreams.open() == 0).await;
}

#[tokio::test]
async fn the_connection_carries_the_attempts_trace() {
    let fake = Fake::new(vec![App::says(200, "a")]);
    fake.ask(get("/")).await;
    // No exporter, so no spans: contexts pass as they came, and the CONNECT has none.
    assert_eq!(fake.connects.lock()[0].traceparent, None);
    assert_eq!(fake.connects.lock()[0].service, Some(id("shop/backend")));
}
