//! One stream: bytes, both ends of it, resets; and its neighbours.

use std::io::ErrorKind;

use bytes::Bytes;
use sha_free::Checksum;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::*;
use crate::telemetry::CloseReason;

/// A checksum that depends on order: FNV-1a, enough to see a lost, doubled or swapped byte.
mod sha_free {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Checksum(pub(super) u64);
    impl Checksum {
        pub(super) fn new() -> Self {
            Self(0xcbf2_9ce4_8422_2325)
        }
        pub(super) fn add(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
}

#[tokio::test]
async fn what_is_sent_comes_back_and_so_does_the_end() {
    let lab = Lab::new(Timing::default(), echo).await;
    let mut stream = lab.open().await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut five = [0; 5];
    stream.read_exact(&mut five).await.unwrap();
    assert_eq!(&five, b"hello");
    // Half-close: the other direction still works after it.
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn the_server_may_end_its_direction_first() {
    let (heard, mut hears) = mpsc::channel(1);
    let lab = Lab::new(Timing::default(), move |connect| {
        let heard = heard.clone();
        async move {
            let mut stream = connect.accept().unwrap();
            stream.write_all(b"bye").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            heard.send(text).await.unwrap();
        }
    })
    .await;
    let mut stream = lab.open().await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "bye");
    stream.write_all(b"still here").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(hears.recv().await.unwrap(), "still here");
}

#[tokio::test]
async fn a_reset_arrives_as_a_reset_and_not_as_an_end() {
    let lab = Lab::new(Timing::default(), |connect| async {
        let mut stream = connect.accept().unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        stream.reset();
    })
    .await;
    let mut stream = lab.open().await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_stream_that_is_given_up_is_a_reset_too() {
    let lab = Lab::new(Timing::default(), |connect| async {
        connect.accept().unwrap().read_exact(&mut [0]).await.unwrap();
    })
    .await;
    let mut stream = lab.open().await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn no_error_and_cancel_read_as_the_end() {
    for reason in [h2::Reason::NO_ERROR, h2::Reason::CANCEL] {
        let lab = Lab::new(Timing::default(), echo).await;
        let (_stream, peer) = lab.open_as(&lab.key(CLIENT), &request("10.0.0.9:80")).await.unwrap();
        let (near, far) = tokio::io::duplex(1 << 20);
        tokio::spawn(async move {
            // As other implementations of the wire end a stream.
            let mut connection = h2::server::handshake(far).await.unwrap();
            let (_request, mut answer) = connection.accept().await.unwrap().unwrap();
            let mut sender = answer.send_response(http::Response::new(()), false).unwrap();
            sender.send_data(Bytes::from_static(b"part"), false).unwrap();
            let _ = tokio::time::timeout(Duration::from_millis(50), connection.accept()).await;
            sender.send_reset(reason);
            while connection.accept().await.is_some() {}
        });
        let tunnel = Tunnel::start(near, peer, Timing::default()).await.unwrap();
        let mut stream = tunnel.reserve().unwrap().open(request("10.0.0.9:80")).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "part", "{reason:?}");
    }
}

#[tokio::test]
async fn a_refusal_says_why() {
    for (reason, status) in [
        (CloseReason::PolicyDenied, 401),
        (CloseReason::BadTarget, 400),
        (CloseReason::ConnectRefused, 503),
        (CloseReason::Internal, 503),
    ] {
        let by = weft_proto::identity::NamespacedName::new("shop", "deny").unwrap();
        let lab = Lab::new(Timing::default(), move |connect| {
            let by = by.clone();
            async move { connect.refuse(reason, Some(&by)) }
        })
        .await;
        let Err(TunnelError::Refused { status: got, reason: said, policy }) = lab.open().await else {
            panic!("{reason:?} was not refused");
        };
        assert_eq!((got.as_u16(), said.as_deref()), (status, Some(reason.as_str())));
        assert_eq!(policy.as_deref(), Some("shop/deny"));
    }
}

#[tokio::test]
async fn a_proxy_port_as_target_is_unavailable() {
    let lab =
        Lab::new(Timing::default(), |connect| async { connect.refuse(CloseReason::BadTarget, None) }).await;
    for port in [15001, 15006, 15008] {
        let request = request(&format!("10.0.0.9:{port}"));
        let Err(TunnelError::Refused { status, .. }) = lab.open_as(&lab.key(CLIENT), &request).await else {
            panic!("{port} was not refused");
        };
        assert_eq!(status.as_u16(), 503);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes_each_way_arrive_whole() {
    const TOTAL: usize = 64 << 20;
    let lab = Lab::new(Timing::default(), echo).await;
    let stream = lab.open().await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let sending = tokio::spawn(async move {
        let mut sum = Checksum::new();
        let mut state = 1_u64;
        let mut left = TOTAL;
        while left > 0 {
            // Odd sizes, so that nothing aligns with frames, records or windows.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let length = left.min(1 + (state >> 44) as usize % 100_003);
            let block: Vec<u8> = (0..length).map(|i| (state >> 17) as u8 ^ i as u8).collect();
            sum.add(&block);
            write.write_all(&block).await.unwrap();
            left -= length;
        }
        write.shutdown().await.unwrap();
        sum
    });
    let mut sum = Checksum::new();
    let mut total = 0;
    let mut buffer = vec![0; 70_001];
    loop {
        let length = read.read(&mut buffer).await.unwrap();
        if length == 0 {
            break;
        }
        sum.add(&buffer[..length]);
        total += length;
    }
    assert_eq!((total, sum), (TOTAL, sending.await.unwrap()));
}

#[tokio::test]
async fn readers_that_stall_do_not_stall_their_neighbours() {
    let lab = Lab::new(Timing::default(), echo).await;
    // More full streams than the base connection window (16 MiB) can hold.
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut stream = lab.open().await.unwrap();
        let block = Bytes::from(vec![7; 64 << 10]);
        // Until both directions' windows are full: nobody reads what comes back. Before that it is only a busy machine.
        let mut sent_bytes = 0;
        loop {
            let sent = tokio::time::timeout(Duration::from_millis(300), stream.sender.send(block.clone()));
            match sent.await {
                Ok(result) => result.unwrap(),
                Err(_) if sent_bytes >= limits::STREAM_WINDOW_BYTES as usize => break,
                Err(_) => continue,
            }
            sent_bytes += block.len();
        }
        stalled.push(stream);
    }
    let mut neighbour = lab.open().await.unwrap();
    let answered = tokio::time::timeout(PATIENCE, async {
        for _ in 0..100 {
            neighbour.write_all(&[9; 1000]).await.unwrap();
            let mut back = [0; 1000];
            neighbour.read_exact(&mut back).await.unwrap();
        }
    });
    assert!(answered.await.is_ok(), "a neighbour was stalled");
    assert_eq!(lab.connections(), 1, "all of them share one tunnel");
    // The stalled ones go on where they were.
    let mut first = stalled.swap_remove(0);
    first.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
}
