//! What goes wrong: time-outs, retries, dead endpoints, bounds, clients that leave.

use http::Method;
use tokio::io::AsyncWriteExt;
use weft_proto::model::{Retry, RetryPolicy};

use super::*;

fn retried(codes: &[u16], attempts: u32) -> HttpRule {
    let codes = codes.iter().map(|code| StatusCode::from_u16(*code).unwrap()).collect();
    HttpRule { retry: Some(Retry { codes, attempts, backoff: Some(Duration::from_millis(1)) }), ..rule() }
}

fn hangs() -> App {
    App::http(|_| std::future::pending())
}

fn reason(headers: &HeaderMap) -> &str {
    headers.get("x-weft-reason").map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_bad_answer_is_repeated_elsewhere() {
    // Both orders of picking are met.
    for _ in 0..8 {
        let fake =
            Fake::new(vec![App::says(503, "bad"), App::says(200, "good")]).rules(vec![retried(&[503], 1)]);
        let (status, _, text) = fake.ask(get("/")).await;
        assert_eq!((status, &*text), (200, "good"));
    }
}

#[tokio::test]
async fn the_last_answer_goes_back_when_all_are_bad() {
    let fake = Fake::new(vec![App::says(503, "bad")]).rules(vec![retried(&[503], 2)]);
    let (status, headers, text) = fake.ask(get("/")).await;
    assert_eq!((status, &*text, reason(&headers)), (503, "bad", ""));
    assert_eq!(counted(&fake.telemetry, "weft_retries_total"), 2);
    assert_eq!(fake.finished("ok"), 1);
}

#[tokio::test]
async fn a_post_is_not_repeated() {
    let fake = Fake::new(vec![App::says(503, "bad"), App::says(503, "bad")]).rules(vec![retried(&[503], 3)]);
    let (status, ..) = fake.ask(request("POST", "/", "x")).await;
    assert_eq!(status, 503);
    assert_eq!(counted(&fake.telemetry, "weft_retries_total"), 0);
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over_whatever_the_method() {
    for _ in 0..8 {
        let fake = Fake::new(vec![App::Refuses, App::says(200, "good")]);
        let (status, _, text) = fake.ask(request("POST", "/", "x")).await;
        assert_eq!((status, &*text), (200, "good"));
    }
}

#[tokio::test]
async fn when_all_are_dead_the_answer_says_so() {
    let fake = Fake::new(vec![App::Refuses, App::Refuses, App::Refuses]);
    let (status, headers, text) = fake.ask(get("/")).await;
    assert_eq!((status, reason(&headers)), (503, "connect_refused"), "{text}");
    for n in 1..=3 {
        assert_eq!(fake.connects_to(address(n)), 1, "each endpoint once");
    }
    let fake = Fake::new(vec![]);
    let (status, headers, text) = fake.ask(get("/")).await;
    assert_eq!((status, reason(&headers)), (503, "no_endpoints"), "{text}");
    // A gRPC client gets it in its own form.
    let mut request = get("/");
    request.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
    let (status, headers, _) = fake.ask(request).await;
    assert_eq!((status, &headers["grpc-status"]), (200, &http::HeaderValue::from(14)));
}

#[tokio::test]
async fn a_spent_budget_ends_the_repeating() {
    let retry = RetryPolicy {
        codes: vec![StatusCode::SERVICE_UNAVAILABLE],
        attempts: 5,
        backoff: Some(Duration::from_millis(1)),
        methods: vec![],
        budget_percent: 0,
        budget_min_per_s: 0,
        per_try_timeout: None,
    };
    let fake =
        Fake::new(vec![App::says(503, "bad")]).policy(TrafficPolicy { retry: Some(retry), ..traffic() });
    let (status, ..) = fake.ask(get("/")).await;
    assert_eq!(status, 503);
    assert_eq!(counted(&fake.telemetry, "weft_retries_total"), 0);
    assert_eq!(fake.balancers.totals().budget_spent(), 1);
}

/// A GRPCRoute knows no retries; a TrafficPolicy that names POST does, and UNAVAILABLE counts as 503.
#[tokio::test]
async fn a_grpc_call_that_was_refused_is_repeated_where_the_policy_says_so() {
    let policy = |methods| RetryPolicy {
        codes: vec![],
        attempts: 1,
        backoff: Some(Duration::from_millis(1)),
        methods,
        budget_percent: 100,
        budget_min_per_s: 100,
        per_try_timeout: None,
    };
    for (methods, retries) in [(vec![Method::POST], 1), (vec![], 0)] {
        let unavailable = App::http(|_| async {
            let mut response = answer(200, "");
            response.headers_mut().insert("grpc-status", 14.into());
            response
        });
        let retry = Some(policy(methods));
        let fake = Fake::new(vec![unavailable]).policy(TrafficPolicy { retry, ..traffic() });
        let mut call = request("POST", "/a.Greeter/Hello", "x");
        call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let (_, headers, _) = fake.ask(call).await;
        assert_eq!(headers["grpc-status"], "14");
        assert_eq!(counted(&fake.telemetry, "weft_retries_total"), retries);
    }
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_a_504() {
    let timeouts = Timeouts { request: Some(Duration::from_millis(60)), backend_request: None };
    let fake = Fake::new(vec![hangs()]).rules(vec![HttpRule { timeouts, ..rule() }]);
    let (status, headers, _) = fake.ask(get("/")).await;
    assert_eq!((status, reason(&headers)), (504, "request_timeout"));
    assert_eq!(fake.finished("request_timeout"), 1);
    // One that takes no connections at all is the same.
    let timeouts = Timeouts { request: Some(Duration::from_millis(60)), backend_request: None };
    let fake = Fake::new(vec![App::Silent]).rules(vec![HttpRule { timeouts, ..rule() }]);
    assert_eq!(fake.ask(get("/")).await.0, 504);
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_repeated_elsewhere() {
    // Longer than a good answer takes on a busy machine.
    let timeouts = Timeouts { request: None, backend_request: Some(Duration::from_secs(2)) };
    for slow in [hangs(), App::Silent] {
        let rule = HttpRule { timeouts, ..retried(&[504], 2) };
        let fake = Fake::new(vec![slow, App::says(200, "good")]).rules(vec![rule]);
        let asked = (0..4).map(|_| fake.ask(get("/")));
        for (status, ..) in futures_util::future::join_all(asked).await {
            assert_eq!(status, 200);
        }
    }
    let fake = Fake::new(vec![hangs()]).rules(vec![HttpRule { timeouts, ..rule() }]);
    let (status, headers, _) = fake.ask(get("/")).await;
    assert_eq!((status, reason(&headers)), (504, "attempt_timeout"));
}

/// The time-out covers the answer's last byte; what has begun can only be broken off.
#[tokio::test]
async fn an_answer_that_takes_too_long_is_broken_off() {
    // Longer than it takes to begin on a busy machine.
    let timeouts = Timeouts { request: Some(Duration::from_secs(2)), backend_request: None };
    let fake = Fake::new(vec![App::http(|_| async move {
        let (frames, body) = channel();
        frames.send(Frame::data("begun".into())).await.unwrap();
        tokio::spawn(async move {
            let _frames = frames;
            std::future::pending::<()>().await;
        });
        Response::new(body)
    })])
    .rules(vec![HttpRule { timeouts, ..rule() }]);
    let response = within(fake.h1().await.send_request(get("/"))).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(within(response.into_body().collect()).await.is_err());
    until(|| fake.finished("request_timeout") == 1).await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let fake = Fake::new(vec![hangs()]);
        if protocol == Protocol::Http1 {
            let (mut client, _) = fake.client(protocol);
            client.write_all(b"GET / HTTP/1.1\r\nhost: b\r\n\r\n").await.unwrap();
            until(|| fake.connects_to(address(1)) == 1).await;
        } else {
            let mut client = fake.h2().await;
            let asked = tokio::spawn(async move { client.send_request(get("http://b/")).await.map(drop) });
            until(|| fake.connects_to(address(1)) == 1).await;
            asked.abort();
        }
        until(|| fake.finished("cancelled") == 1).await;
        if protocol == Protocol::Http1 {
            until(|| Arc::strong_count(&fake.live) == 1).await;
        }
    }
}

/// Answers once, then closes: `at_once`, or when the next request has come.
fn closes(at_once: bool) -> App {
    App::raw(move |mut io, _| async move {
        head_of(&mut io).await;
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        if !at_once {
            let _ = io.read_u8().await;
        }
    })
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_is_replaced() {
    let fake = Fake::new(vec![closes(true)]);
    let mut client = fake.h1().await;
    for method in ["GET", "POST", "POST", "GET"] {
        within(client.ready()).await.unwrap();
        let (status, ..) = read(within(client.send_request(request(method, "/", ""))).await.unwrap()).await;
        assert_eq!(status, 200, "{method}");
        // Until the application has closed its end.
        until(|| Arc::strong_count(&fake.live) == 1).await;
    }
}

/// A server that ends, as at a SIGTERM that it does not handle, takes with it what it has not answered.
#[tokio::test]
async fn a_server_that_ends_on_the_first_request_is_forgiven_only_for_idempotent_methods() {
    let ends = || App::raw(|mut io, _| async move { drop(head_of(&mut io).await) });
    // Both orders of picking are met.
    for method in ["GET", "PUT"].repeat(8) {
        let fake = Fake::new(vec![ends(), App::says(200, "alive")]);
        assert_eq!(fake.ask(request(method, "/", "")).await.0, 200, "{method}");
    }
    for (method, repeated) in [("GET", 1), ("POST", 0)] {
        let fake = Fake::new(vec![ends()]);
        let (status, headers, _) = fake.ask(request(method, "/", "")).await;
        assert_eq!((status, reason(&headers)), (502, "server_reset"), "{method}");
        assert_eq!(counted(&fake.telemetry, "weft_retries_total"), repeated, "{method}");
    }
}

/// Here nobody can know whether the request was processed.
#[tokio::test]
async fn a_connection_that_closes_on_the_request_is_forgiven_only_for_idempotent_methods() {
    for (method, want) in [("GET", 200), ("PUT", 200), ("POST", 502)] {
        let fake = Fake::new(vec![closes(false)]);
        let mut client = fake.h1().await;
        assert_eq!(within(client.send_request(get("/"))).await.unwrap().status(), 200);
        within(client.ready()).await.unwrap();
        let (status, headers, _) =
            read(within(client.send_request(request(method, "/", ""))).await.unwrap()).await;
        assert_eq!(status, want, "{method}");
        if want == 502 {
            assert_eq!(reason(&headers), "server_reset");
        }
    }
}

#[tokio::test]
async fn more_than_the_policy_allows_is_refused() {
    let (tell, mut told) = mpsc::channel(4);
    let app = App::http(move |_| {
        let tell = tell.clone();
        async move {
            tell.send(()).await.unwrap();
            std::future::pending().await
        }
    });
    let bounds = TrafficPolicy { max_connections: Some(1), max_pending_requests: Some(0), ..traffic() };
    let fake = Fake::new(vec![app]).policy(bounds);
    let mut first = fake.h1().await;
    let _first = tokio::spawn(first.send_request(get("/")));
    within(told.recv()).await.unwrap();
    let (status, headers, _) = fake.ask(get("/")).await;
    assert_eq!((status, reason(&headers)), (503, "overloaded"));
}

/// A backend that the mesh does not know answers for its share with 500, as the Gateway API says.
#[tokio::test]
async fn what_cannot_be_routed_is_an_error() {
    let with = |backends| HttpRule { backends, ..rule() };
    for backends in [vec![], vec![backend("shop/unknown", 1)], vec![backend("shop/backend", 0)]] {
        let fake = Fake::new(vec![App::says(200, "a")]).rules(vec![with(backends)]);
        assert_eq!(fake.ask(get("/")).await.0, 500);
    }
    let fake = Fake::new(vec![App::says(200, "a")]).rules(vec![]);
    let (status, headers, _) = fake.ask(get("/")).await;
    assert_eq!((status, reason(&headers)), (404, "no_route"));
}

/// Connections that nobody looks into are bounded by the same policy.
#[tokio::test]
async fn copied_connections_take_part_in_the_bounds() {
    let upstreams = Upstreams::new(UPSTREAMS_MAX);
    let pod: PodUid = "uid-a".parse().unwrap();
    let other: PodUid = "uid-b".parse().unwrap();
    let to = Destination { address: address(1), workload: None, service: None, traceparent: None };
    let bounds = TrafficPolicy { max_connections: Some(1), max_pending_requests: Some(0), ..traffic() };
    assert!(upstreams.reserve(&pod, &to, None, false).await.unwrap().is_none(), "unbounded without a policy");
    let first = upstreams.reserve(&pod, &to, Some(&bounds), false).await.unwrap();
    assert!(matches!(
        upstreams.reserve(&pod, &to, Some(&bounds), false).await,
        Err(ConnectError::Overloaded(_))
    ));
    assert!(upstreams.reserve(&other, &to, Some(&bounds), false).await.is_ok(), "each pod has its own");
    drop(first);
    assert!(upstreams.reserve(&pod, &to, Some(&bounds), false).await.unwrap().is_some());
}

/// One pod cannot use up the proxy's descriptors, whatever it asks for and of whom.
#[tokio::test]
async fn a_pod_has_so_many_connections_to_all_endpoints_together_and_no_more() {
    let (app, mut told, go) = App::held();
    let fake = Fake::new(vec![app]);
    let mut asked = Vec::new();
    for _ in 0..UPSTREAMS_MAX {
        let mut client = fake.h1().await;
        asked.push(tokio::spawn(async move { client.send_request(get("/")).await }));
        within(told.recv()).await.unwrap();
    }
    let (status, headers, _) = fake.ask(get("/")).await;
    assert_eq!((status, reason(&headers)), (503, "overloaded"));
    go.send(true).unwrap();
    for one in asked {
        assert_eq!(within(one).await.unwrap().unwrap().status(), 200);
    }
    // An idle one serves again.
    let asked = fake.ask(get("/"));
    let (answered, _) = tokio::join!(asked, told.recv());
    assert_eq!(answered.0, 200);
}
