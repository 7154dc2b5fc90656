//! The plugin's side of the socket: asks the agent once, and waits no longer than its [`Patience`] allows, whatever the agent does.
//!
//! A process that is stopped still has its socket: the kernel takes connections for it until its queue is full, and then `connect` itself
//! waits. So every step has its bound, that one too.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::wire::{ANSWER_BYTES_MAX, Answer, Command, Request};

const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// How long the parts of an exchange may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For an agent that does not listen.
    pub away: Duration,
    /// From connecting to the first byte, which an agent that works sends as soon as it has the request.
    pub sign: Duration,
    /// From connecting to the whole answer.
    pub answer: Duration,
}

impl Patience {
    /// A pod begins. An agent that is being replaced is back in 3 s, and the pod gets no event. One that gives no sign of life in 5 s
    /// hangs, or its node is so busy that the kubelet had better try later. The answer may take longer than the agent itself waits for word
    /// of the pod (20 s); all of it is shorter than the kubelet waits for a sandbox (2 minutes).
    pub const BEGIN: Self =
        Self { away: Duration::from_secs(3), sign: Duration::from_secs(5), answer: Duration::from_secs(30) };
    /// A pod ends, and need not wait for anybody: an agent that works answers in milliseconds.
    pub const END: Self =
        Self { away: Duration::ZERO, sign: Duration::from_secs(2), answer: Duration::from_secs(2) };
}

/// Why there is no answer.
#[derive(Debug)]
pub enum AskError {
    /// Nobody listens.
    Away(io::Error),
    /// It listens, but gave no sign of life in this time.
    Hangs(Duration),
    /// It took the request, but did not answer in this time.
    Late(Duration),
    /// The connection failed, or what came is no answer.
    Broken(io::Error),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(error) => write!(f, "weft-node does not listen: {error}"),
            Self::Hangs(wait) => write!(
                f,
                "weft-node on this node accepts connections but does not answer (waited {} s): it hangs",
                wait.as_secs()
            ),
            Self::Late(wait) => write!(
                f,
                "weft-node on this node took the request but gave no answer in {} s: a part of it hangs",
                wait.as_secs()
            ),
            Self::Broken(error) => write!(f, "{error}"),
        }
    }
}

pub fn ask(socket: &Path, command: Command, patience: &Patience) -> Result<Answer, AskError> {
    let request =
        serde_json::to_vec(&Request::new(command)).map_err(|error| AskError::Broken(error.into()))?;
    let (stream, begun) = connect(socket, patience)?;
    let mut exchange = Exchange { stream, begun, patience, heard: Vec::new() };
    exchange.send(&request)?;
    exchange.receive()?;
    if exchange.heard.trim_ascii().is_empty() {
        let hung_up = io::Error::new(io::ErrorKind::UnexpectedEof, "weft-node hung up without an answer");
        return Err(AskError::Broken(hung_up));
    }
    serde_json::from_slice(&exchange.heard).map_err(|error| AskError::Broken(error.into()))
}

/// The connection, and when it was asked for.
fn connect(socket: &Path, patience: &Patience) -> Result<(UnixStream, Instant), AskError> {
    let until = Instant::now() + patience.away;
    loop {
        let begun = Instant::now();
        match connect_once(socket, patience.sign)? {
            Ok(stream) => return Ok((stream, begun)),
            Err(error) if Instant::now() >= until => return Err(AskError::Away(error)),
            Err(_) => thread::sleep(CONNECT_PAUSE),
        }
    }
}

/// On a thread of its own, because the standard library cannot bound it. One that is stuck ends with the process.
fn connect_once(socket: &Path, wait: Duration) -> Result<io::Result<UnixStream>, AskError> {
    let (done, result) = mpsc::channel();
    let socket = socket.to_owned();
    thread::Builder::new().spawn(move || done.send(UnixStream::connect(socket))).map_err(AskError::Broken)?;
    result.recv_timeout(wait).map_err(|_| AskError::Hangs(wait))
}

struct Exchange<'a> {
    stream: UnixStream,
    begun: Instant,
    patience: &'a Patience,
    /// Of the answer.
    heard: Vec<u8>,
}

impl Exchange<'_> {
    fn send(&mut self, mut request: &[u8]) -> Result<(), AskError> {
        while !request.is_empty() {
            let left = self.left()?;
            self.stream.set_write_timeout(Some(left)).map_err(AskError::Broken)?;
            let sent = self.stream.write(request);
            let sent = self.checked(sent)?.unwrap_or(0);
            request = &request[sent..];
        }
        self.stream.shutdown(Shutdown::Write).map_err(AskError::Broken)
    }

    fn receive(&mut self) -> Result<(), AskError> {
        let mut bytes = [0; 4096];
        while self.heard.len() <= ANSWER_BYTES_MAX {
            let left = self.left()?;
            self.stream.set_read_timeout(Some(left)).map_err(AskError::Broken)?;
            let read = self.stream.read(&mut bytes);
            match self.checked(read)? {
                Some(0) => break,
                Some(length) => self.heard.extend_from_slice(&bytes[..length]),
                None => {}
            }
        }
        Ok(())
    }

    /// Time that is left for the next step.
    fn left(&self) -> Result<Duration, AskError> {
        let (wait, over) = if self.heard.is_empty() {
            (self.patience.sign, AskError::Hangs(self.patience.sign))
        } else {
            (self.patience.answer, AskError::Late(self.patience.answer))
        };
        let left = wait.saturating_sub(self.begun.elapsed());
        if left.is_zero() { Err(over) } else { Ok(left) }
    }

    /// None: to be tried again, if there is time left.
    fn checked(&self, done: io::Result<usize>) -> Result<Option<usize>, AskError> {
        match done {
            Ok(length) => Ok(Some(length)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(AskError::Broken(error)),
            },
        }
    }
}

#[cfg(test)]
mod tests;
