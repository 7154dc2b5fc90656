//! Application → relay → tunnel → relay → application: the whole L4 path but for the hooks.

use std::io::ErrorKind;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::relay::{self, Leg};
use crate::socket;
use crate::telemetry::{ByteCounts, CloseReason};

struct Path {
    _lab: Lab,
    /// The two applications' ends.
    client: TcpStream,
    server: TcpStream,
    client_proxy: tokio::task::JoinHandle<CloseReason>,
    server_proxy: tokio::sync::mpsc::Receiver<CloseReason>,
}

async fn path() -> Path {
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = application.local_addr().unwrap();
    let (ended, server_proxy) = tokio::sync::mpsc::channel(1);
    let lab = Lab::new(Timing::default(), move |connect| {
        let ended = ended.clone();
        async move {
            let tcp = TcpStream::connect(address).await.unwrap();
            let stream = connect.accept().unwrap();
            let counts = [Arc::<ByteCounts>::default()];
            let never = std::future::pending();
            let reason = relay::run(Leg::Tunnel(stream), Leg::Tcp(tcp), Bytes::new(), &counts, never).await;
            ended.send(reason).await.unwrap();
        }
    })
    .await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let (stream, server) = tokio::join!(lab.open(), application.accept());
    let stream = stream.unwrap();
    let client_proxy = tokio::spawn(async move {
        let counts = [Arc::<ByteCounts>::default()];
        relay::run(Leg::Tcp(accepted), Leg::Tunnel(stream), Bytes::new(), &counts, std::future::pending())
            .await
    });
    Path { _lab: lab, client, server: server.unwrap().0, client_proxy, server_proxy }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_and_half_close_cross_in_both_directions() {
    const TOTAL: usize = 64 << 20;
    let mut p = path().await;
    let block = |seed: u8| -> Vec<u8> { (0..=250).cycle().take(251 * 1021).map(|b: u8| b ^ seed).collect() };
    async fn send(stream: &mut TcpStream, block: &[u8]) {
        let mut left = TOTAL;
        while left > 0 {
            let length = left.min(block.len());
            stream.write_all(&block[..length]).await.unwrap();
            left -= length;
        }
        stream.shutdown().await.unwrap();
    }
    async fn check(stream: &mut TcpStream, seed: u8) {
        let (mut total, mut buffer) = (0, vec![0; 100_003]);
        loop {
            let length = stream.read(&mut buffer).await.unwrap();
            if length == 0 {
                break;
            }
            let right = |(i, byte): (usize, &u8)| *byte == ((total + i) % 251) as u8 ^ seed;
            assert!(buffer[..length].iter().enumerate().all(right), "at {total}");
            total += length;
        }
        assert_eq!(total, TOTAL);
    }
    // One after the other: the second crosses a connection that is half-closed.
    let (forth, back) = (block(0), block(90));
    tokio::join!(send(&mut p.client, &forth), check(&mut p.server, 0));
    tokio::join!(send(&mut p.server, &back), check(&mut p.client, 90));
    assert_eq!(p.client_proxy.await.unwrap(), CloseReason::Ok);
    assert_eq!(p.server_proxy.recv().await.unwrap(), CloseReason::Ok);
}

#[tokio::test]
async fn a_client_reset_crosses_as_a_reset() {
    let mut p = path().await;
    p.client.write_all(b"x").await.unwrap();
    p.server.read_exact(&mut [0]).await.unwrap();
    socket::reset_on_close(&p.client);
    drop(p.client);
    assert_eq!(p.server.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(p.client_proxy.await.unwrap(), CloseReason::ClientReset);
    assert_eq!(p.server_proxy.recv().await.unwrap(), CloseReason::ClientReset);
}

#[tokio::test]
async fn a_server_reset_crosses_as_a_reset() {
    let mut p = path().await;
    p.server.write_all(b"x").await.unwrap();
    p.client.read_exact(&mut [0]).await.unwrap();
    socket::reset_on_close(&p.server);
    drop(p.server);
    assert_eq!(p.client.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(p.server_proxy.recv().await.unwrap(), CloseReason::ServerReset);
    assert_eq!(p.client_proxy.await.unwrap(), CloseReason::ServerReset);
}
