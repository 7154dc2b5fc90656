//! The plugin's side of the socket: asks the agent once, and waits no longer than a bound.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::wire::{ANSWER_BYTES_MAX, Answer, Command, Request};

/// How long an agent that does not listen is waited for: one that is being replaced is back in that time, and the pod gets no event.
const CONNECT_WAIT: Duration = Duration::from_secs(3);
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// For an answer. Longer than the agent itself waits for word of the pod (20 s), shorter than the kubelet waits for a sandbox (2 minutes).
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug)]
pub enum AskError {
    /// Nobody listens.
    Away(io::Error),
    /// The connection failed, or what came is no answer.
    Broken(io::Error),
}

/// `wait`: whether it is worth waiting for an agent that does not listen.
pub fn ask(socket: &Path, command: Command, wait: bool) -> Result<Answer, AskError> {
    let stream = connect(socket, if wait { CONNECT_WAIT } else { Duration::ZERO })?;
    exchange(stream, &Request::new(command)).map_err(AskError::Broken)
}

fn connect(socket: &Path, wait: Duration) -> Result<UnixStream, AskError> {
    let until = Instant::now() + wait;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= until => return Err(AskError::Away(error)),
            Err(_) => thread::sleep(CONNECT_PAUSE),
        }
    }
}

fn exchange(mut stream: UnixStream, request: &Request) -> io::Result<Answer> {
    stream.set_read_timeout(Some(ANSWER_WAIT))?;
    stream.set_write_timeout(Some(ANSWER_WAIT))?;
    stream.write_all(&serde_json::to_vec(request)?)?;
    stream.shutdown(Shutdown::Write)?;
    let mut text = Vec::new();
    let bytes_max = u64::try_from(ANSWER_BYTES_MAX).unwrap_or(u64::MAX);
    stream.take(bytes_max).read_to_end(&mut text)?;
    if text.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "weft-node hung up without an answer"));
    }
    Ok(serde_json::from_slice(&text)?)
}
