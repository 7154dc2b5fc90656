//! The raw TCP side: echo, server-speaks-first, server-closes-first, server-resets.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Server, TcpMode};

const BUFFER_BYTES: usize = 64 << 10;

/// What a server that speaks first says.
pub(super) const GREETING: &str = "weft-echo speaks first\n";

pub(super) async fn serve(server: Arc<Server>, mode: TcpMode, mut stream: TcpStream) {
    server.count("tcp", 1);
    let result = match mode {
        TcpMode::Echo => echo(&server, &mut stream).await,
        TcpMode::Greet => greet(&server, &mut stream).await,
        TcpMode::CloseFirst => close_first(&server, &mut stream).await,
        TcpMode::Abort => abort(&mut stream).await,
    };
    if result.is_err() {
        server.count("tcp_failed", 1);
    }
}

async fn greet(server: &Server, stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(GREETING.as_bytes()).await?;
    echo(server, stream).await
}

async fn echo(server: &Server, stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return stream.shutdown().await;
        }
        server.count("tcp_bytes", read as u64);
        stream.write_all(&buffer[..read]).await?;
    }
}

async fn close_first(server: &Server, stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(GREETING.as_bytes()).await?;
    stream.shutdown().await?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            server.count("tcp_ended_after_close", 1);
            return Ok(());
        }
        server.count("tcp_bytes_after_close", read as u64);
    }
}

async fn abort(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let read = stream.read(&mut buffer).await?;
    stream.write_all(&buffer[..read]).await?;
    // The client says when it has the echo: a reset may overtake data that the peer has not read.
    stream.read_exact(&mut buffer[..1]).await?;
    socket2::SockRef::from(&*stream).set_linger(Some(std::time::Duration::ZERO))
}
