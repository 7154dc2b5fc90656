//! Raw TCP clients: each run is one promise of a byte stream, checked, with the evidence as JSON.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::load::Latencies;
use super::tcp::GREETING;

/// The pattern's period is prime: a chunk that is lost, doubled or moved does not go unseen.
const PATTERN_BYTES: usize = 1_048_573;
const CHUNK_BYTES: usize = 64 << 10;
/// Between two messages of a connection that just has to be alive.
const LIVE_PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Sends --bytes to an echo server while reading them back, comparing every byte
    Transfer,
    /// Sends --bytes, closes its half, and only then reads the echo to the end
    HalfClose,
    /// A server that closes its half first still gets --bytes
    CloseFirst,
    /// The server speaks first
    Greet,
    /// Resets the connection with data under way
    Reset,
    /// The server resets the connection: that is what the client must see, not an orderly end
    Aborted,
    /// Reads the echo of --bytes slowly: backpressure must reach the sender
    Slow,
    /// --count messages of --bytes there and back
    PingPong,
    /// --count connections, --parallel at a time, one message each
    Short,
    /// Messages of --bytes there and back until the connection breaks, and how it did
    Live,
    /// --count connections at once, held open until all of them have echoed
    Hold,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// host:port
    #[arg(long)]
    pub to: String,
    #[arg(long, value_enum)]
    pub mode: Mode,
    #[arg(long, default_value_t = 64)]
    pub bytes: u64,
    #[arg(long, default_value_t = 1)]
    pub count: u64,
    #[arg(long, default_value_t = 16)]
    pub parallel: u64,
    /// Seconds until the run is given up
    #[arg(long, default_value_t = 120)]
    pub timeout: u64,
}

pub async fn run(settings: &Settings) -> Result<Value> {
    let wait_max = Duration::from_secs(settings.timeout);
    let start = Instant::now();
    let mut told = tokio::time::timeout(wait_max, one(settings))
        .await
        .with_context(|| format!("after {wait_max:?}"))??;
    told["seconds"] = json!(start.elapsed().as_secs_f64());
    Ok(told)
}

async fn one(settings: &Settings) -> Result<Value> {
    match settings.mode {
        Mode::Transfer => transfer(settings, Duration::ZERO).await,
        Mode::Slow => transfer(settings, Duration::from_millis(20)).await,
        Mode::HalfClose => half_close(settings).await,
        Mode::CloseFirst => close_first(settings).await,
        Mode::Greet => greet(settings).await,
        Mode::Reset => reset(settings).await,
        Mode::Aborted => aborted(settings).await,
        Mode::PingPong => ping_pong(settings).await,
        Mode::Short => short(settings).await,
        Mode::Live => live(settings).await,
        Mode::Hold => hold(settings).await,
    }
}

async fn connect(settings: &Settings) -> Result<TcpStream> {
    let stream =
        TcpStream::connect(&settings.to).await.with_context(|| format!("connecting to {}", settings.to))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The byte stream that tests send: the same at the same offset, in every process.
fn pattern() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(next).take(PATTERN_BYTES).collect();
    // Its own beginning follows its end, so that a chunk at any offset is one slice.
    bytes.extend_from_within(..CHUNK_BYTES);
    bytes
}

fn at(pattern: &[u8], offset: u64, length: usize) -> &[u8] {
    // Fits: the remainder is below the period.
    let from = usize::try_from(offset % PATTERN_BYTES as u64).unwrap_or_default();
    &pattern[from..from + length.min(CHUNK_BYTES)]
}

async fn send(writer: &mut OwnedWriteHalf, bytes: u64) -> Result<()> {
    let pattern = pattern();
    let mut sent = 0;
    while sent < bytes {
        let length = usize::try_from(bytes - sent).unwrap_or(CHUNK_BYTES);
        let piece = at(&pattern, sent, length);
        writer.write_all(piece).await.with_context(|| format!("sending after {sent} bytes"))?;
        sent += piece.len() as u64;
    }
    writer.shutdown().await.context("closing our half")
}

/// Reads to the end and compares every byte with what should come.
async fn receive(reader: &mut OwnedReadHalf, pause: Duration) -> Result<u64> {
    let pattern = pattern();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut received = 0;
    loop {
        let read =
            reader.read(&mut buffer).await.with_context(|| format!("reading after {received} bytes"))?;
        if read == 0 {
            return Ok(received);
        }
        ensure!(buffer[..read] == *at(&pattern, received, read), "bytes changed after offset {received}");
        received += read as u64;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

async fn transfer(settings: &Settings, pause: Duration) -> Result<Value> {
    let (mut reader, mut writer) = connect(settings).await?.into_split();
    let bytes = settings.bytes;
    let sender = tokio::spawn(async move { send(&mut writer, bytes).await });
    let received = receive(&mut reader, pause).await?;
    sender.await??;
    ensure!(received == bytes, "{received} of {bytes} bytes came back");
    Ok(json!({"sent": bytes, "received": received, "intact": true}))
}

async fn half_close(settings: &Settings) -> Result<Value> {
    let (mut reader, mut writer) = connect(settings).await?.into_split();
    // Small enough to lie in the path's buffers, since nobody reads until our half is closed.
    send(&mut writer, settings.bytes).await?;
    let received = receive(&mut reader, Duration::ZERO).await?;
    ensure!(
        received == settings.bytes,
        "{received} of {} bytes came after our half was closed",
        settings.bytes
    );
    Ok(json!({"received_after_close": received}))
}

async fn close_first(settings: &Settings) -> Result<Value> {
    let (mut reader, mut writer) = connect(settings).await?.into_split();
    let mut greeting = String::new();
    reader.read_to_string(&mut greeting).await.context("reading to the server's end")?;
    ensure!(greeting == GREETING, "the greeting came as {greeting:?}");
    send(&mut writer, settings.bytes).await?;
    Ok(json!({"sent_after_servers_close": settings.bytes}))
}

async fn greet(settings: &Settings) -> Result<Value> {
    let mut stream = connect(settings).await?;
    let mut greeting = vec![0; GREETING.len()];
    stream.read_exact(&mut greeting).await.context("the greeting")?;
    ensure!(greeting == GREETING.as_bytes(), "the greeting came changed");
    exchange(&mut stream, settings.bytes).await?;
    Ok(json!({"greeted": true}))
}

/// One message there and back.
async fn exchange(stream: &mut TcpStream, bytes: u64) -> Result<()> {
    let message = vec![b'e'; usize::try_from(bytes)?];
    stream.write_all(&message).await.context("sending")?;
    let mut back = vec![0; message.len()];
    stream.read_exact(&mut back).await.context("reading the echo")?;
    ensure!(back == message, "the echo came changed");
    Ok(())
}

async fn reset(settings: &Settings) -> Result<Value> {
    let mut stream = connect(settings).await?;
    exchange(&mut stream, 1).await?;
    stream.write_all(&vec![b'r'; usize::try_from(settings.bytes)?]).await?;
    // Closing with a linger of 0 sends RST and throws away what was under way.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(json!({"reset_after": settings.bytes}))
}

async fn aborted(settings: &Settings) -> Result<Value> {
    let mut stream = connect(settings).await?;
    exchange(&mut stream, settings.bytes).await?;
    stream.write_all(b"!").await?;
    match stream.read_u8().await {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(json!({"reset": true})),
        Err(error) => bail!("the server's reset came as {error:?}"),
        Ok(byte) => bail!("the server's reset came as the byte {byte}"),
    }
}

async fn ping_pong(settings: &Settings) -> Result<Value> {
    let mut stream = connect(settings).await?;
    let mut latencies = Latencies::default();
    for _ in 0..settings.count {
        let start = Instant::now();
        exchange(&mut stream, settings.bytes).await?;
        latencies.add(start.elapsed());
    }
    Ok(json!({"count": settings.count, "ms": latencies.summary(), "peer": peer(&stream)}))
}

fn peer(stream: &TcpStream) -> Option<SocketAddr> {
    stream.peer_addr().ok()
}

async fn short(settings: &Settings) -> Result<Value> {
    let share = settings.count / settings.parallel.max(1);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..settings.parallel.max(1) {
        let settings = settings.clone();
        clients.spawn(async move {
            let mut latencies = Vec::new();
            for _ in 0..share {
                let start = Instant::now();
                exchange(&mut connect(&settings).await?, settings.bytes).await?;
                latencies.push(start.elapsed());
            }
            Ok::<_, anyhow::Error>(latencies)
        });
    }
    let mut all = Latencies::default();
    let mut connections = 0;
    while let Some(done) = clients.join_next().await {
        for latency in done?? {
            all.add(latency);
            connections += 1;
        }
    }
    Ok(json!({"connections": connections, "ms": all.summary()}))
}

async fn live(settings: &Settings) -> Result<Value> {
    let mut stream = connect(settings).await?;
    let mut messages = 0_u64;
    let error = loop {
        match exchange(&mut stream, settings.bytes).await {
            Ok(()) => messages += 1,
            Err(error) => break error,
        }
        tokio::time::sleep(LIVE_PAUSE).await;
    };
    let kind = error.downcast_ref::<std::io::Error>().map(|e| format!("{:?}", e.kind()));
    Ok(json!({
        "messages": messages, "ended": kind, "error": format!("{error:#}"),
        "ended_unix_ms": super::load::unix_ms(SystemTime::now()),
    }))
}

async fn hold(settings: &Settings) -> Result<Value> {
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..settings.count {
        let settings = settings.clone();
        opening.spawn(async move { connect(&settings).await });
    }
    let mut streams = Vec::new();
    while let Some(stream) = opening.join_next().await {
        streams.push(stream??);
    }
    for stream in &mut streams {
        exchange(stream, settings.bytes).await?;
    }
    if streams.len() as u64 != settings.count {
        bail!("{} of {} connections", streams.len(), settings.count);
    }
    Ok(json!({"held": streams.len()}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_depends_on_its_offset_alone() {
        let pattern = pattern();
        let end = PATTERN_BYTES as u64;
        for offset in [0, 7, end - 100, end - 1, end, 5 * end - 50] {
            for (i, byte) in at(&pattern, offset, 200).iter().enumerate() {
                assert_eq!(*byte, at(&pattern, offset + i as u64, 1)[0], "offset {offset} + {i}");
            }
        }
    }
}
