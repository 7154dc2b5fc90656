//! HTTP/2 in bad faith, or just malformed: answered or ended, never harmful to the process.

use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderValue, Method, StatusCode};

use super::*;

/// A raw client over memory, and how many CONNECTs came through to the handler.
async fn raw()
-> (h2::client::SendRequest<bytes::Bytes>, tokio::task::JoinHandle<Result<(), h2::Error>>, Arc<AtomicUsize>) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let handled = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&handled);
    tokio::spawn(async move {
        let ending = CancellationToken::new();
        let _ = serve(near, Timing::default(), &ending, |connect| {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(echo(connect));
        })
        .await;
    });
    let (requests, connection) = h2::client::handshake(far).await.unwrap();
    (requests, tokio::spawn(connection), handled)
}

async fn status(
    requests: &h2::client::SendRequest<bytes::Bytes>,
    request: Request<()>,
) -> Result<StatusCode, h2::Error> {
    let mut requests = requests.clone().ready().await?;
    let (response, _sender) = requests.send_request(request, false)?;
    Ok(response.await?.status())
}

#[tokio::test]
async fn what_is_not_a_connect_to_an_address_is_400() {
    let (requests, _connection, handled) = raw().await;
    let connect = |authority: &str| {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = authority.parse().unwrap();
        request
    };
    let get = Request::get("https://10.0.0.9:80/").body(()).unwrap();
    for bad in
        [get, connect("backend:80"), connect("10.0.0.9"), connect("10.0.0.9:0"), connect("u@10.0.0.9:80")]
    {
        let text = format!("{} {}", bad.method(), bad.uri());
        assert_eq!(status(&requests, bad).await.unwrap(), StatusCode::BAD_REQUEST, "{text}");
    }
    assert_eq!(handled.load(Ordering::SeqCst), 0);
    assert_eq!(
        status(&requests, connect("10.0.0.9:80")).await.unwrap(),
        StatusCode::OK,
        "the tunnel still works"
    );
}

#[tokio::test]
async fn oversized_headers_are_refused() {
    let (requests, _connection, handled) = raw().await;
    let mut large = request("10.0.0.9:80");
    large.headers_mut().insert(headers::BAGGAGE, HeaderValue::from_str(&"x".repeat(20 << 10)).unwrap());
    let answer = status(&requests, large).await;
    assert!(answer.is_err() || answer.is_ok_and(|status| status != StatusCode::OK));
    assert_eq!(handled.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn rapid_reset_is_bounded() {
    // The work behind a request does not end with its reset here: the worst case.
    let (near, far) = tokio::io::duplex(1 << 20);
    let handled = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&handled);
    let held = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let hold = Arc::clone(&held);
    let serving = tokio::spawn(async move {
        let ending = CancellationToken::new();
        serve(near, Timing::default(), &ending, |connect| {
            count.fetch_add(1, Ordering::SeqCst);
            hold.lock().push(connect);
        })
        .await
    });
    let (requests, connection) = h2::client::handshake(far).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..5_000 {
        let Ok(mut requests) = requests.clone().ready().await else { break };
        let Ok((response, mut sender)) = requests.send_request(request("10.0.0.9:80"), false) else { break };
        sender.send_reset(h2::Reason::CANCEL);
        drop(response);
        tokio::task::yield_now().await;
    }
    drop(requests);
    let _ = tokio::time::timeout(Duration::from_secs(2), serving).await;
    let open = handled.load(Ordering::SeqCst);
    assert!(open <= limits::SERVER_STREAMS_MAX as usize, "{open} requests were let through");
}
