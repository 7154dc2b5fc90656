//! The other side of an endpoint: asks for one page, for `weft-node admin` and `weft-control admin`.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::Address;

/// A page of the largest configuration is made in a second or two.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A dump of 10,000 Services with 100,000 endpoints has some 100 MB.
const PAGE_BYTES_MAX: usize = 512 * 1024 * 1024;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("{0:?} is not the path of a page, such as /status")]
    Path(String),
    #[error("nobody answers at {address}: {source}")]
    Connect { address: Address, source: io::Error },
    #[error("the answer cannot be read: {0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Late,
    /// The page says that something is wrong, as /readyz may.
    #[error("{status}: {text}")]
    Refused { status: StatusCode, text: String },
}

pub async fn ask(address: &Address, path: &str) -> Result<Bytes, AskError> {
    let bad_path = |_| AskError::Path(path.to_owned());
    if !path.starts_with('/') {
        return Err(AskError::Path(path.to_owned()));
    }
    let request = Request::get(path).header(header::HOST, "weft").body(Empty::new()).map_err(bad_path)?;
    let failed = |source| AskError::Connect { address: address.clone(), source };
    let answered = async {
        match address {
            Address::Unix(socket) => {
                exchange(UnixStream::connect(socket).await.map_err(failed)?, request).await
            }
            Address::Tcp(tcp) => exchange(TcpStream::connect(tcp).await.map_err(failed)?, request).await,
        }
    };
    let (status, body) = tokio::time::timeout(TIMEOUT, answered).await.unwrap_or(Err(AskError::Late))?;
    if !status.is_success() {
        let text = String::from_utf8_lossy(&body).trim_end().to_owned();
        return Err(AskError::Refused { status, text });
    }
    Ok(body)
}

async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<(StatusCode, Bytes), AskError> {
    let broken = |error: hyper::Error| AskError::Broken(error.into());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), PAGE_BYTES_MAX).collect().await;
    Ok((status, body.map_err(AskError::Broken)?.to_bytes()))
}
