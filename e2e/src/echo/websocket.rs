//! Just enough of RFC 6455 for a test: the handshake, and binary or text frames echoed, no fragments, no extensions.

use anyhow::{Context as _, Result, ensure};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The constant of RFC 6455, section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const FRAME_BYTES_MAX: u64 = 1 << 20;
const CLOSE: u8 = 8;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// Answers the handshake; the frames are echoed on a task of their own.
pub(super) fn accept(request: Request<Incoming>) -> Response<()> {
    let key = request.headers().get("sec-websocket-key").map(|k| k.as_bytes().to_vec()).unwrap_or_default();
    let accepted = accept_value(&key);
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            // The end of the connection is the end of the conversation, however it comes.
            let _ = echo(TokioIo::new(upgraded)).await;
        }
    });
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert("upgrade", http::HeaderValue::from_static("websocket"));
    headers.insert("connection", http::HeaderValue::from_static("Upgrade"));
    if let Ok(value) = accepted.parse() {
        headers.insert("sec-websocket-accept", value);
    }
    response
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
    loop {
        let (opcode, payload) = read_frame(&mut stream).await?;
        write_frame(&mut stream, opcode, &payload, false).await?;
        if opcode == CLOSE {
            return Ok(stream.shutdown().await?);
        }
    }
}

#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// host:port
    #[arg(long)]
    pub to: String,
    #[arg(long, default_value_t = 10)]
    pub messages: u32,
    #[arg(long, default_value_t = 1000)]
    pub bytes: usize,
}

/// Shakes hands, sends messages, checks each echo, closes.
pub async fn client(settings: &Settings) -> Result<Value> {
    let mut stream = TcpStream::connect(&settings.to).await.with_context(|| settings.to.clone())?;
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    let hello = format!(
        "GET /websocket HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n",
        settings.to
    );
    stream.write_all(hello.as_bytes()).await?;
    let head = read_head(&mut stream).await?;
    ensure!(head.starts_with("HTTP/1.1 101"), "the handshake was answered by {head:?}");
    ensure!(head.contains(&accept_value(key.as_bytes())), "no proof of the key in {head:?}");
    let message: Vec<u8> = (0..=255).cycle().take(settings.bytes).collect();
    for _ in 0..settings.messages {
        write_frame(&mut stream, 2, &message, true).await?;
        let (opcode, echoed) = read_frame(&mut stream).await?;
        ensure!(opcode == 2 && echoed == message, "a message came back changed");
    }
    write_frame(&mut stream, CLOSE, &1000_u16.to_be_bytes(), true).await?;
    let (opcode, _) = read_frame(&mut stream).await?;
    ensure!(opcode == CLOSE, "the close was answered by opcode {opcode}");
    Ok(json!({"messages": settings.messages, "closed": "both ways"}))
}

async fn read_head(stream: &mut TcpStream) -> Result<String> {
    const HEAD_BYTES_MAX: usize = 16 << 10;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < HEAD_BYTES_MAX, "an endless answer");
        head.push(stream.read_u8().await.context("the answer ended early")?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> Result<(u8, Vec<u8>)> {
    let [first, second] = [stream.read_u8().await?, stream.read_u8().await?];
    let length = match second & !MASKED {
        126 => u64::from(stream.read_u16().await?),
        127 => stream.read_u64().await?,
        short => u64::from(short),
    };
    ensure!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes");
    let mut mask = [0; 4];
    if second & MASKED != 0 {
        stream.read_exact(&mut mask).await?;
    }
    let mut payload = vec![0; usize::try_from(length)?];
    stream.read_exact(&mut payload).await?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(b, m)| *b ^= m);
    Ok((first & 0x0f, payload))
}

async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    opcode: u8,
    payload: &[u8],
    masked: bool,
) -> Result<()> {
    let mask_bit = if masked { MASKED } else { 0 };
    let mut frame = vec![FINAL | opcode];
    match payload.len() {
        short @ 0..126 => frame.push(mask_bit | u8::try_from(short)?),
        medium @ 126..65536 => {
            frame.push(mask_bit | 126);
            frame.extend(u16::try_from(medium)?.to_be_bytes());
        }
        long => {
            frame.push(mask_bit | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    // A test needs no secret mask, but a real one: proxies must not touch the bytes.
    let mask = if masked { [0x12, 0x34, 0x56, 0x78] } else { [0; 4] };
    if masked {
        frame.extend(mask);
    }
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
    Ok(stream.write_all(&frame).await?)
}

/// The proof that the server understood the key: base64(SHA-1(key, GUID)).
fn accept_value(key: &[u8]) -> String {
    base64(&sha1(&[key, GUID.as_bytes()].concat()))
}

/// SHA-1 (FIPS 180-4). Here it proves nothing but that the peer speaks WebSocket.
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut state: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    let mut padded = message.to_vec();
    padded.push(0x80);
    padded.resize((padded.len() + 8).next_multiple_of(64) - 8, 0);
    padded.extend((message.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks_exact(64) {
        let mut words = [0_u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        for i in 16..80 {
            words[i] = (words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (i, word) in words.iter().enumerate() {
            let (f, k) = match i {
                0..20 => ((b & c) | (!b & d), 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (s, v) in state.iter_mut().zip([a, b, c, d, e]) {
            *s = s.wrapping_add(v);
        }
    }
    let mut digest = [0; 20];
    for (to, word) in digest.chunks_exact_mut(4).zip(state) {
        to.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let index = (group >> (18 - 6 * i)) & 0x3f;
            text.push(if i <= chunk.len() { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_that_of_the_specification() {
        // RFC 6455, section 1.3.
        assert_eq!(accept_value(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn frames_of_every_length_form_survive() {
        for length in [0, 125, 126, 65_535, 65_536] {
            let payload = vec![7; length];
            for masked in [false, true] {
                let mut wire = Vec::new();
                write_frame(&mut wire, 2, &payload, masked).await.unwrap();
                assert_eq!(read_frame(&mut wire.as_slice()).await.unwrap(), (2, payload.clone()));
            }
        }
    }
}
