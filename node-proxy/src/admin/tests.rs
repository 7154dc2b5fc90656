//! What the endpoint answers, and to whom it opens.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use weft_admin::{AskError, ask};

use super::*;
use crate::telemetry::TelemetrySettings;

fn sources(unready: &'static [&'static str]) -> AdminSources {
    AdminSources {
        unready: Arc::new(move || unready.iter().map(ToString::to_string).collect()),
        config_dump: Arc::new(|| json!({"revision": 7})),
        status: Arc::new(|| json!({"node": "n1"})),
        pod: Arc::new(|(namespace, name), service| {
            (name == "web").then(|| json!({"pod": format!("{namespace}/{name}"), "service": service}))
        }),
    }
}

async fn fetch(path: &Path, request: &str) -> String {
    fetch_by(UnixStream::connect(path).await.unwrap(), request).await
}

async fn fetch_by(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    let request = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn every_page_answers_and_unknown_ones_list_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let address = Address::Unix(path.clone());
    let telemetry = Telemetry::start(&TelemetrySettings::default()).unwrap();
    let drain = Drain::default();
    let listener = open(&address, Duration::ZERO).await.unwrap();
    let task = tokio::spawn(serve(listener, sources(&["no configuration yet"]), telemetry, drain.clone()));
    for (request, status, text) in [
        ("GET /healthz", "200", "ok"),
        ("GET /readyz", "503", "no configuration yet"),
        ("GET /metrics", "200", "weft_build_info{"),
        ("GET /config_dump", "200", "\"revision\": 7"),
        ("GET /status?x=1", "200", "\"node\": \"n1\""),
        ("GET /connections", "200", "\"flows\": []"),
        ("GET /pod/shop/web", "200", "\"pod\": \"shop/web\""),
        ("GET /pod/shop/web/service/bank/db", "200", "\"bank\",\n    \"db\""),
        ("GET /pod/shop/web/routes/bank/db", "404", "no pod shop/web/routes/bank/db is on this node"),
        ("GET /pod/shop/db", "404", "no pod shop/db is on this node"),
        ("GET /pod/shop/db/service/bank/db", "404", "no pod shop/db is on this node"),
        ("GET /pod/shop", "404", "no pod shop is on this node"),
        ("GET /nothing", "404", "/readyz, /metrics"),
        ("POST /metrics", "405", "only GET"),
    ] {
        let answer = fetch(&path, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        assert!(answer.contains(text), "{request}: {answer}");
    }
    let body = ask(&address, "/status").await.unwrap();
    assert!(body.starts_with(b"{"), "{body:?}");
    let unready = ask(&address, "/readyz").await.unwrap_err().to_string();
    assert_eq!(unready, "503 Service Unavailable: no configuration yet");
    assert!(matches!(ask(&address, "status").await, Err(AskError::Path(_))));
    let nobody = Address::Unix(directory.path().join("nobody.sock"));
    assert!(matches!(ask(&nobody, "/status").await, Err(AskError::Connect { .. })));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drain.deadline.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_scraper_is_shown_metrics_and_health_and_nothing_else() {
    let telemetry = Telemetry::start(&TelemetrySettings::default()).unwrap();
    let drain = Drain::default();
    let any = "127.0.0.1:0".parse().unwrap();
    let served = serve_metrics(any, sources(&["no configuration yet"]), telemetry, drain.clone()).await;
    let (address, serving) = served.unwrap();
    let task = tokio::spawn(serving);
    for (request, status, text) in [
        ("GET /healthz", "200", "ok"),
        ("GET /readyz", "503", "no configuration yet"),
        ("GET /metrics", "200", "weft_build_info{"),
        ("GET /config_dump", "404", "no such page"),
        ("GET /status", "404", "no such page"),
        ("GET /connections", "404", "no such page"),
        ("GET /pod/shop/web", "404", "no such page"),
        ("POST /metrics", "405", "only GET"),
    ] {
        let answer = fetch_by(TcpStream::connect(address).await.unwrap(), request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(text),
            "{request}: {answer}"
        );
    }
    drain.deadline.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_dead_socket_is_replaced_a_live_one_is_not_and_other_addresses_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    // Dropped: the file stays, nobody listens.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    // A child that another test is making has a copy of it until it becomes another program.
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    while !UnixStream::connect(&path).await.is_err_and(|error| refused(&error)) {
        tokio::task::yield_now().await;
    }
    let live = open(&Address::Unix(path.clone()), Duration::ZERO).await.unwrap();
    assert!(matches!(open(&Address::Unix(path), Duration::ZERO).await, Err(AdminError::Listen { .. })));
    drop(live);
    let file = directory.path().join("file");
    std::fs::write(&file, "kept").unwrap();
    assert!(open(&Address::Unix(file.clone()), Duration::ZERO).await.is_err());
    assert_eq!(std::fs::read_to_string(file).unwrap(), "kept");
    let everywhere = Address::Tcp("0.0.0.0:0".parse().unwrap());
    assert!(matches!(open(&everywhere, Duration::ZERO).await, Err(AdminError::NotLoopback(_))));
}

#[tokio::test]
async fn a_predecessor_has_time_to_end_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let unix = Address::Unix(directory.path().join("admin.sock"));
    // Nobody else's: not of the address where tests listen, nor of the ports that connections get.
    let [.., high, low] = std::process::id().to_be_bytes();
    let tcp = Address::Tcp(SocketAddr::from(([127, 77, high, low], 15_021)));
    for address in [unix, tcp] {
        let predecessor = open(&address, Duration::ZERO).await.unwrap();
        let refused = open(&address, OPEN_PAUSE).await.unwrap_err();
        assert!(
            matches!(&refused, AdminError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse),
            "{refused:?}"
        );
        let mut successor = Box::pin(open(&address, Duration::from_secs(60)));
        tokio::select! {
            biased;
            opened = &mut successor => panic!("beside its predecessor: {opened:?}"),
            () = tokio::task::yield_now() => {}
        }
        drop(predecessor);
        successor.await.unwrap();
    }
}
