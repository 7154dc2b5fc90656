//! HTTP/2 clients that mean harm: slow heads, floods of frames, of streams and of resets. Each costs its own connection.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::inbound::{HEAD_TIMEOUT, Server, unconnected};
use super::*;
use crate::l7::limits;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;
/// GET, http, /, `:authority: b`
const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'b'];
/// The same as POST.
const POST: &[u8] = &[0x83, 0x86, 0x84, 0x41, 1, b'b'];
/// `:status: 200`
const STATUS_200: u8 = 0x88;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// A frame of the server.
struct Frame {
    kind: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    /// Of RST_STREAM.
    fn code(&self) -> u32 {
        u32::from_be_bytes(self.payload[..4].try_into().unwrap())
    }
    /// Of GOAWAY.
    fn goaway_code(&self) -> u32 {
        u32::from_be_bytes(self.payload[4..8].try_into().unwrap())
    }
}

/// A client that writes its frames itself.
struct Hostile {
    server: Server,
}

impl Hostile {
    async fn start() -> Self {
        let mut server = Server::start(Protocol::Http2, vec![]).await;
        let app = std::mem::replace(&mut server.app, unconnected().await);
        tokio::spawn(reading(app));
        let mut hostile = Self { server };
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        hostile.send(&[preface.as_slice(), &frame(SETTINGS, 0, 0, &[])].concat()).await;
        hostile
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.server.client.write_all(bytes).await.unwrap();
    }

    async fn next(&mut self) -> std::io::Result<Frame> {
        let client = &mut self.server.client;
        let mut head = [0; 9];
        within(client.read_exact(&mut head)).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        within(client.read_exact(&mut payload)).await?;
        Ok(Frame { kind: head[3], stream: u32::from_be_bytes(head[5..].try_into().unwrap()), payload })
    }

    async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.expect("a frame of this kind before the end");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// One byte after the other until `enough`: how many, or None if the connection ended.
    async fn trickle(&mut self, bytes: &[u8], enough: Duration) -> Option<usize> {
        let began = std::time::Instant::now();
        for (sent, byte) in bytes.iter().enumerate() {
            if began.elapsed() >= enough {
                return Some(sent);
            }
            self.server.client.write_all(&[*byte]).await.ok()?;
            tokio::time::sleep(HEAD_TIMEOUT / 20).await;
        }
        Some(bytes.len())
    }

    /// ... and that is why it ended.
    async fn given_up(self) {
        within(self.server.serving).await.unwrap();
        let late = "weft_connections_closed_total{reporter=\"destination\",reason=\"request_timeout\"}";
        until(|| counted(&self.server.telemetry, late) == 1).await;
    }
}

/// Answers when it has read the whole request.
async fn reading(app: TcpStream) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let _ = request.into_body().collect().await;
        Ok::<_, Infallible>(answer(200, "ok"))
    });
    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(app), service).await;
}

#[tokio::test]
async fn an_http2_head_that_trickles_in_is_given_up_and_recorded() {
    let mut client = Hostile::start().await;
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, GET)).await;
    client.next_of(HEADERS).await;
    // Silence is no slow head, and neither is a slow body.
    tokio::time::sleep(HEAD_TIMEOUT * 2).await;
    client.send(&frame(HEADERS, END_HEADERS, 3, POST)).await;
    let body = frame(DATA, END_STREAM, 3, &[b'x'; 1000]);
    client.send(&body[..9]).await;
    let sent = client.trickle(&body[9..], HEAD_TIMEOUT * 2).await.unwrap();
    client.send(&body[9 + sent..]).await;
    assert_eq!(client.next_of(HEADERS).await.stream, 3);
    // The second frame of this head never comes whole.
    client.send(&frame(HEADERS, END_STREAM, 5, GET)).await;
    let began = std::time::Instant::now();
    let rest = frame(CONTINUATION, END_HEADERS, 5, &[0; 5000]);
    assert_eq!(client.trickle(&rest, WAIT_MAX).await, None);
    assert!(began.elapsed() >= HEAD_TIMEOUT * 9 / 10, "{:?}", began.elapsed());
    client.given_up().await;
}

#[tokio::test]
async fn an_http2_preface_must_come_in_time() {
    let mut server = Server::start(Protocol::Http2, vec![]).await;
    server.client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM").await.unwrap();
    let app = std::mem::replace(&mut server.app, unconnected().await);
    tokio::spawn(reading(app));
    Hostile { server }.given_up().await;
}

#[tokio::test]
async fn a_head_of_endless_frames_ends_its_connection() {
    let mut client = Hostile::start().await;
    client.send(&frame(HEADERS, END_STREAM, 1, GET)).await;
    client.send(&frame(CONTINUATION, 0, 1, &[]).repeat(100)).await;
    assert_eq!(client.next_of(GOAWAY).await.goaway_code(), ENHANCE_YOUR_CALM);
    within(client.server.serving).await.unwrap();
}

#[tokio::test]
async fn a_head_that_is_too_large_is_answered_431_and_the_connection_goes_on() {
    let mut client = Hostile::start().await;
    // `x: yyy...`, 10,000 bytes, as a literal that is not kept; eight of them in as few frames as there can be.
    let mut header = vec![0x00, 1, b'x', 0x7f, 0x80 | 17, 77];
    header.resize(header.len() + 10_000, b'y');
    let head = [GET, &header.repeat(8)].concat();
    let frames = head.chunks(16_384).count();
    for (n, part) in head.chunks(16_384).enumerate() {
        let kind = if n == 0 { HEADERS } else { CONTINUATION };
        let end = if n == frames - 1 { END_HEADERS } else { 0 };
        client.send(&frame(kind, (END_STREAM * u8::from(n == 0)) | end, 1, part)).await;
    }
    let answer = client.next_of(HEADERS).await;
    assert_eq!(answer.stream, 1);
    assert_ne!(answer.payload[0], STATUS_200);
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, GET)).await;
    let answer = client.next_of(HEADERS).await;
    assert_eq!((answer.stream, answer.payload[0]), (3, STATUS_200));
}

#[tokio::test]
async fn a_storm_of_resets_ends_its_connection() {
    let mut client = Hostile::start().await;
    let mut storm = Vec::new();
    for n in 0..1000 {
        storm.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET));
        storm.extend(frame(RST_STREAM, 0, 2 * n + 1, &8_u32.to_be_bytes()));
    }
    client.send(&storm).await;
    assert_eq!(client.next_of(GOAWAY).await.goaway_code(), ENHANCE_YOUR_CALM);
    within(client.server.serving).await.unwrap();
}

#[tokio::test]
async fn one_stream_too_many_is_refused_and_the_others_go_on() {
    let mut client = Hostile::start().await;
    // Requests whose bodies never end: all of them stay open.
    let of = |n: u32| 2 * n + 1;
    for n in 0..=limits::STREAMS_OF_CLIENT_MAX {
        client.send(&frame(HEADERS, END_HEADERS, of(n), POST)).await;
    }
    let refused = client.next_of(RST_STREAM).await;
    assert_eq!((refused.stream, refused.code()), (of(limits::STREAMS_OF_CLIENT_MAX), REFUSED_STREAM));
    client.send(&frame(DATA, END_STREAM, 1, b"x")).await;
    loop {
        let frame = client.next_of(DATA).await;
        if frame.stream == 1 {
            break;
        }
    }
}
