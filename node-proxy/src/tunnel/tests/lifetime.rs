//! Tunnels: when a new one is made, who shares one, and how it ends.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn the_hundred_and_first_stream_opens_a_second_connection() {
    let lab = Lab::new(Timing::default(), echo).await;
    let mut streams = Vec::new();
    for _ in 0..limits::CLIENT_STREAMS_MAX {
        streams.push(lab.open().await.unwrap());
    }
    assert_eq!(lab.connections(), 1);
    streams.push(lab.open().await.unwrap());
    assert_eq!((lab.connections(), lab.pool.len()), (2, 2));
    // A place that becomes free is used again.
    streams.remove(0);
    streams.push(lab.open().await.unwrap());
    assert_eq!(lab.connections(), 2);
}

#[tokio::test]
async fn a_burst_shares_one_dial() {
    let lab = Lab::new(Timing::default(), echo).await;
    let streams = futures_util::future::join_all((0..50).map(|_| lab.open())).await;
    assert!(streams.iter().all(Result::is_ok));
    assert_eq!(lab.connections(), 1);
}

#[tokio::test]
async fn a_failed_dial_fails_all_who_waited_and_the_next_one_dials_again() {
    let lab = Lab::new(Timing::default(), echo).await;
    let refused =
        || async { Err(TunnelError::Connect(Arc::new(std::io::ErrorKind::ConnectionRefused.into()))) };
    let (key, head) = (lab.key(CLIENT), request("10.0.0.9:80"));
    let waiting = (0..10).map(|_| lab.pool.open(&key, &head, PATIENCE, refused));
    let all = futures_util::future::join_all(waiting).await;
    assert!(all.iter().all(|one| matches!(one, Err(TunnelError::Connect(_)))));
    assert!(lab.open().await.is_ok());
}

#[tokio::test]
async fn a_dial_that_everybody_gave_up_is_not_waited_for() {
    let lab = Lab::new(Timing::default(), echo).await;
    let (key, head) = (lab.key(CLIENT), request("10.0.0.9:80"));
    let never = || std::future::pending();
    let gave_up =
        tokio::time::timeout(Duration::from_millis(20), lab.pool.open(&key, &head, PATIENCE, never));
    assert!(gave_up.await.is_err());
    assert!(lab.open().await.is_ok(), "a new dial");
}

#[tokio::test]
async fn identities_addresses_and_pods_never_share() {
    let lab = Lab::new(Timing::default(), echo).await;
    let base = lab.key(CLIENT);
    let mut keys = vec![base.clone()];
    keys.push(PoolKey { source: "spiffe://cluster.local/ns/shop/sa/other".parse().unwrap(), ..base.clone() });
    keys.push(PoolKey { expected: vec![CLIENT.parse().unwrap()], ..base.clone() });
    keys.push(PoolKey { from: "127.0.0.2".parse().unwrap(), ..base.clone() });
    keys.push(PoolKey { netns_cookie: 2, ..base.clone() });
    let mut streams = Vec::new();
    for (count, key) in keys.iter().enumerate() {
        streams.push(lab.open_as(key, &request("10.0.0.9:80")).await.unwrap());
        assert_eq!(lab.connections(), count + 1, "{key:?}");
    }
    streams.push(lab.open_as(&base, &request("10.0.0.9:80")).await.unwrap());
    assert_eq!(lab.connections(), keys.len());
}

#[tokio::test]
async fn a_drain_lets_open_streams_finish_and_sends_new_ones_elsewhere() {
    let lab = Lab::new(Timing::default(), echo).await;
    let mut stream = lab.open().await.unwrap();
    lab.ending.cancel();
    // The first request that meets the GOAWAY retires the tunnel; the next ones dial.
    let met = tokio::time::timeout(PATIENCE, async {
        while lab.connections() == 1 {
            let _ = tokio::time::timeout(Duration::from_millis(100), lab.open()).await;
        }
    });
    assert!(met.await.is_ok(), "GOAWAY did not retire the tunnel");
    stream.write_all(b"late").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "late");
}

#[tokio::test]
async fn an_idle_tunnel_is_closed_and_a_used_one_is_not() {
    let timing = Timing { idle: Duration::from_millis(50), ..Timing::default() };
    let lab = Lab::new(timing, echo).await;
    let stream = lab.open().await.unwrap();
    tokio::time::sleep(timing.idle * 4).await;
    assert_eq!(lab.pool.len(), 1, "in use");
    drop(stream);
    until("closing", || lab.pool.is_empty()).await;
    assert!(lab.open().await.is_ok());
    assert_eq!(lab.connections(), 2);
}

#[tokio::test]
async fn a_peer_that_does_not_answer_ping_is_given_up() {
    let (near, far) = tokio::io::duplex(1 << 20);
    let peer_of = Lab::new(Timing::default(), echo).await;
    let (_stream, peer) = peer_of.open_as(&peer_of.key(CLIENT), &request("10.0.0.9:80")).await.unwrap();
    let timing = Timing {
        ping_interval: Duration::from_millis(20),
        ping_timeout: Duration::from_millis(50),
        ..Timing::default()
    };
    // The far end takes everything and says nothing.
    let tunnel = Tunnel::start(near, peer, timing).await.unwrap();
    until("giving up", || tunnel.retired()).await;
    drop(far);
}

#[tokio::test]
async fn the_server_gives_up_a_silent_client_too() {
    let (near, far) = tokio::io::duplex(1 << 20);
    let timing = Timing {
        ping_interval: Duration::from_millis(20),
        ping_timeout: Duration::from_millis(50),
        ..Timing::default()
    };
    let ending = CancellationToken::new();
    let serving = tokio::spawn(async move { serve(near, timing, &ending, |_| {}).await });
    // A client that shakes hands and is never driven again.
    let (_requests, connection) = h2::client::handshake(far).await.unwrap();
    let mut connection = connection;
    let _ = tokio::time::timeout(Duration::from_millis(5), &mut connection).await;
    let ended = tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap();
    assert!(matches!(ended, Err(TunnelError::TimedOut)), "{ended:?}");
}

#[tokio::test]
async fn a_server_of_another_authority_or_a_client_without_certificate_is_refused() {
    let lab = Lab::new(Timing::default(), echo).await;
    let stranger = Authority::new().client(CLIENT);
    let tcp = TcpStream::connect(lab.address).await.unwrap();
    let error = connect_tls(tcp, lab.address.ip(), stranger).await.err().unwrap();
    assert!(matches!(error, TunnelError::Tls(_)), "{error}");
    assert_eq!(lab.pool.len(), 0);
}
