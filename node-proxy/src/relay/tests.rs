//! What a relayed connection's ends see of each other: bytes, half-close, resets, in both directions.

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

struct Relayed {
    client: TcpStream,
    server: TcpStream,
    counts: Arc<ByteCounts>,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<CloseReason>,
}

async fn relayed(first: &'static [u8]) -> Relayed {
    let ((client, client_end), (server_end, server)) = (pair().await, pair().await);
    let (counts, stop) = (Arc::<ByteCounts>::default(), CancellationToken::new());
    let (counted, stopped) = (Arc::clone(&counts), stop.clone());
    let ended = tokio::spawn(async move {
        let stop = async {
            stopped.cancelled().await;
            CloseReason::PolicyDenied
        };
        run(Leg::Tcp(client_end), Leg::Tcp(server_end), Bytes::from_static(first), &[counted], stop).await
    });
    Relayed { client, server, counts, stop, ended }
}

async fn text(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn each_direction_ends_by_itself_and_bytes_are_counted() {
    let mut r = relayed(b"first ").await;
    r.client.write_all(b"request").await.unwrap();
    r.client.shutdown().await.unwrap();
    assert_eq!(text(&mut r.server).await, "first request");
    r.server.write_all(b"answer after the half-close").await.unwrap();
    r.server.shutdown().await.unwrap();
    assert_eq!(text(&mut r.client).await, "answer after the half-close");
    assert_eq!(r.ended.await.unwrap(), CloseReason::Ok);
    assert_eq!((r.counts.sent.load(Ordering::Relaxed), r.counts.received.load(Ordering::Relaxed)), (13, 27));
}

#[tokio::test]
async fn a_client_reset_becomes_a_reset_at_the_server() {
    let mut r = relayed(b"").await;
    r.client.write_all(b"x").await.unwrap();
    r.server.read_exact(&mut [0]).await.unwrap();
    socket::reset_on_close(&r.client);
    drop(r.client);
    assert_eq!(r.server.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(r.ended.await.unwrap(), CloseReason::ClientReset);
}

#[tokio::test]
async fn a_server_reset_becomes_a_reset_at_the_client_after_what_came_before_it() {
    let mut r = relayed(b"").await;
    r.client.write_all(b"x").await.unwrap();
    r.server.read_exact(&mut [0]).await.unwrap();
    r.server.write_all(b"last words").await.unwrap();
    let mut words = [0; 10];
    r.client.read_exact(&mut words).await.unwrap();
    socket::reset_on_close(&r.server);
    drop(r.server);
    assert_eq!(r.client.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(r.ended.await.unwrap(), CloseReason::ServerReset);
}

/// The kernel tells of a reset once. Here the write of the other direction is told, and the read finds what looks like
/// an orderly end. Both directions by hand, so that the write certainly comes first.
#[tokio::test]
async fn a_reset_that_a_write_noticed_first_is_not_passed_on_as_an_orderly_end() {
    let ((client, mut client_end), (mut server_end, mut server)) = (pair().await, pair().await);
    server.write_all(b"answer").await.unwrap();
    server_end.readable().await.unwrap();
    socket::reset_on_close(&client);
    drop(client);
    // That it has come; nobody is told by this.
    client_end.ready(tokio::io::Interest::ERROR).await.unwrap();
    let resets = Resets::default();
    {
        let (client_reader, client_writer) = client_end.split();
        let (server_reader, server_writer) = server_end.split();
        let pump =
            |from, to, sides: (Side, Side)| pump(from, to, Bytes::new(), |_| {}, sides.0, sides.1, &resets);
        let (server_reader, client_writer) =
            (Reader::tcp(server_reader), Writer::Tcp { tcp: client_writer, pace: Pace::default() });
        let back = pump(server_reader, client_writer, (Side::Upstream, Side::Client)).await;
        assert_eq!(back.unwrap_err().error.kind(), ErrorKind::ConnectionReset, "the write is told");
        let (client_reader, server_writer) =
            (Reader::tcp(client_reader), Writer::Tcp { tcp: server_writer, pace: Pace::default() });
        let forth = pump(client_reader, server_writer, (Side::Client, Side::Upstream)).await;
        let broken = forth.expect_err("the client's end was no orderly one");
        assert_eq!((broken.side, broken.error.kind()), (Side::Client, ErrorKind::ConnectionReset));
    }
    // And the premise: reading the socket itself does not show the reset any more.
    assert_eq!(client_end.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_reset_is_noticed_while_the_other_side_does_not_read() {
    let mut r = relayed(b"").await;
    // Fill every buffer on the way to a server that never reads.
    let block = vec![1; 1 << 20];
    while tokio::time::timeout(Duration::from_millis(200), r.client.write_all(&block)).await.is_ok() {}
    socket::reset_on_close(&r.client);
    drop(r.client);
    let reason = tokio::time::timeout(Duration::from_secs(10), r.ended).await.unwrap().unwrap();
    assert_eq!(reason, CloseReason::ClientReset);
}

#[tokio::test]
async fn a_stop_resets_both_ends_with_its_reason() {
    let mut r = relayed(b"").await;
    r.stop.cancel();
    for end in [&mut r.client, &mut r.server] {
        assert_eq!(end.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!(r.ended.await.unwrap(), CloseReason::PolicyDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_every_byte() {
    const TOTAL: usize = 32 << 20;
    let mut r = relayed(b"").await;
    let writer = tokio::spawn(async move {
        let block: Vec<u8> = (0..=255).cycle().take(1 << 16).collect();
        for _ in 0..TOTAL / block.len() {
            r.client.write_all(&block).await.unwrap();
        }
        r.client.shutdown().await.unwrap();
        r.client
    });
    let (mut total, mut buffer) = (0_usize, vec![0; 4099]);
    loop {
        let length = r.server.read(&mut buffer).await.unwrap();
        if length == 0 {
            break;
        }
        assert!(buffer[..length].iter().enumerate().all(|(i, byte)| *byte == ((total + i) % 256) as u8));
        total += length;
        if total % 7 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(total, TOTAL);
    drop(r.server);
    let _client = writer.await.unwrap();
    assert_eq!(r.ended.await.unwrap(), CloseReason::Ok);
}
