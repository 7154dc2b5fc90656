//! The other side of the admin endpoint: `weft-control admin <page>`, for probes and for `weft status` in a pod without a shell.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::settings::AdminAddress;

/// The socket of the Kubernetes deployment, and the default of `--admin`.
const SOCKET: &str = "/run/weft/admin.sock";
const PORT: u16 = 15014;
/// An answer comes from memory; one that takes longer is stuck.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);
/// A dump of a large mesh; more is not an answer but an accident.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// Where the endpoint is found without being told.
pub fn default_address() -> AdminAddress {
    match Path::new(SOCKET).exists() {
        true => AdminAddress::Unix(SOCKET.into()),
        false => AdminAddress::Loopback(([127, 0, 0, 1], PORT).into()),
    }
}

/// The body of a 200 answer; what any other says is the error.
pub fn ask(address: &AdminAddress, page: &str) -> io::Result<String> {
    let answer = match address {
        AdminAddress::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(ANSWER_WAIT_MAX))?;
            exchange(stream, page)?
        }
        AdminAddress::Loopback(address) => {
            let stream = TcpStream::connect_timeout(address, ANSWER_WAIT_MAX)?;
            stream.set_read_timeout(Some(ANSWER_WAIT_MAX))?;
            exchange(stream, page)?
        }
    };
    body(&answer)
}

/// HTTP/1.0: the end of the answer is the end of the connection, and no chunk has to be decoded.
fn exchange(mut stream: impl Read + Write, page: &str) -> io::Result<String> {
    if page.chars().any(|c| c.is_control() || c == ' ') || !page.starts_with('/') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{page:?} is not a page such as /status"),
        ));
    }
    write!(stream, "GET {page} HTTP/1.0\r\nHost: weft\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

fn body(answer: &str) -> io::Result<String> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status = head.split(' ').nth(1).ok_or_else(broken)?;
    match status {
        "200" => Ok(body.to_owned()),
        _ => Err(io::Error::other(format!("{status}: {}", body.trim_end()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_printed_and_trouble_is_an_error_with_its_text() {
        assert_eq!(body("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nok\n").unwrap(), "ok\n");
        let error = body("HTTP/1.0 503 Service Unavailable\r\n\r\nnot yet\n").unwrap_err();
        assert_eq!(error.to_string(), "503: not yet");
        assert!(body("nonsense").is_err());
    }

    #[test]
    fn what_is_no_page_is_not_sent() {
        for page in ["status", "/a b", "/a\r\nX: y"] {
            assert!(exchange(io::Cursor::new(Vec::new()), page).is_err(), "{page:?}");
        }
    }
}
