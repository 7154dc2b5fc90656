//! Rules at work on real messages; which rule matches is proved in `route`.

use weft_proto::model::{HeaderModifier, HttpFilter, HttpMatch, PathMatch, PathModifier};

use super::*;

/// Tells what it saw.
fn mirror_of_the_request() -> App {
    App::http(|request: Request<Incoming>| async move {
        let mut response = answer(200, format!("{} {}", request.method(), request.uri()));
        for (name, value) in request.headers() {
            response
                .headers_mut()
                .append(http::HeaderName::try_from(format!("seen-{name}")).unwrap(), value.clone());
        }
        response
    })
}

fn modifier(set: (&'static str, &str), add: (&'static str, &str), remove: &'static str) -> HeaderModifier {
    let pair = |(name, value): (&'static str, &str)| {
        vec![(http::HeaderName::from_static(name), value.parse().unwrap())]
    };
    HeaderModifier { set: pair(set), add: pair(add), remove: vec![http::HeaderName::from_static(remove)] }
}

#[tokio::test]
async fn headers_are_changed_both_ways() {
    let filters = vec![
        HttpFilter::RequestHeaders(modifier(("x-set", "rule"), ("x-add", "b"), "x-gone")),
        HttpFilter::ResponseHeaders(modifier(("x-answer", "yes"), ("seen-x-add", "c"), "seen-host")),
    ];
    let mut to = backend("shop/backend", 1);
    to.filters = vec![HttpFilter::RequestHeaders(modifier(("x-backend", "1"), ("x-more", "1"), "x-none"))];
    let fake = Fake::new(vec![mirror_of_the_request()]).rules(vec![HttpRule {
        filters,
        backends: vec![to],
        ..rule()
    }]);
    let mut request = get("/");
    for (name, value) in [("x-add", "a"), ("x-gone", "1"), ("x-set", "client")] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let (_, headers, _) = fake.ask(request).await;
    for (name, want) in [
        ("seen-x-set", Some("rule")),
        ("seen-x-add", Some("a,b,c")),
        ("seen-x-gone", None),
        ("seen-x-backend", Some("1")),
        ("x-answer", Some("yes")),
        ("seen-host", None),
    ] {
        assert_eq!(headers.get(name).map(|value| value.to_str().unwrap()), want, "{name}");
    }
}

#[tokio::test]
async fn paths_and_hosts_are_rewritten() {
    let matches = vec![HttpMatch { path: Some(PathMatch::Prefix("/old".into())), ..HttpMatch::default() }];
    let path = Some(PathModifier::ReplacePrefix("/new".into()));
    let filters = vec![HttpFilter::Rewrite { hostname: Some("other".into()), path }];
    let fake = Fake::new(vec![mirror_of_the_request()]).rules(vec![HttpRule { matches, filters, ..rule() }]);
    let (_, headers, text) = fake.ask(get("/old/a?q=1")).await;
    assert_eq!((&*text, &headers["seen-host"]), ("GET /new/a?q=1", &http::HeaderValue::from_static("other")));
    let response = within(fake.h2().await.send_request(get("http://backend/old/a?q=1"))).await.unwrap();
    let (_, _, text) = read(response).await;
    assert_eq!(text, "GET http://other/new/a?q=1");
}

#[tokio::test]
async fn a_redirect_needs_no_backend() {
    let status = StatusCode::PERMANENT_REDIRECT;
    let filters = vec![
        HttpFilter::Redirect {
            scheme: Some("https".into()),
            hostname: None,
            port: None,
            path: Some(PathModifier::ReplaceFull("/there".into())),
            status,
        },
        HttpFilter::ResponseHeaders(modifier(("x-set", "1"), ("x-add", "1"), "x-none")),
    ];
    let fake = Fake::new(vec![]).rules(vec![HttpRule { filters, backends: vec![], ..rule() }]);
    let (status, headers, _) = fake.ask(get("/here?a")).await;
    assert_eq!(
        (status, &headers["location"]),
        (308, &http::HeaderValue::from_static("https://backend/there?a"))
    );
    assert_eq!(headers["x-set"], "1");
    assert_eq!(fake.finished("ok"), 1);
}

#[tokio::test]
async fn the_share_of_a_backend_that_cannot_be_resolved_is_refused_in_the_clients_terms() {
    let mut nobody = backend("other/backend", 1);
    nobody.invalid = true;
    let fake = Fake::new(vec![]).rules(vec![HttpRule { backends: vec![nobody], ..rule() }]);
    let (status, headers, _) = fake.ask(get("/")).await;
    assert_eq!((status, headers.get("grpc-status")), (500, None));
    let mut call = request("POST", "/a.Greeter/Hello", "");
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let (status, headers, _) = fake.ask(call).await;
    // UNAVAILABLE.
    assert_eq!((status, &headers["grpc-status"]), (200, &http::HeaderValue::from(14)));
}

#[tokio::test]
async fn weights_hold_per_request() {
    let fake = Fake::new(vec![App::says(200, "one")]);
    fake.add("shop/two", 9, vec![App::says(200, "two")]);
    let backends = vec![backend("shop/backend", 3), backend("shop/two", 1)];
    let fake = fake.rules(vec![HttpRule { backends, ..rule() }]);
    let mut client = fake.h1().await;
    let mut ones = 0;
    for _ in 0..400 {
        within(client.ready()).await.unwrap();
        let (_, _, text) = read(within(client.send_request(get("/"))).await.unwrap()).await;
        ones += usize::from(text == "one");
    }
    // 300 expected with a deviation of 8.7: six of them.
    assert!((248..=352).contains(&ones), "{ones}");
}
