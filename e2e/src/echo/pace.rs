//! A client that asks at a fixed rate and times each answer from when its request was due, so that a stall shows in
//! every request that it held up. Threads and blocking sockets: tokio's timers are no finer than a millisecond.
//!
//! Start reading at [`run`].

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::json;

use super::load::Latencies;

/// Longer than this is no answer.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);
/// A test application's answer is small.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Sleeps end this exactly, instead of the usual 50 µs late.
const TIMER_SLACK_NS: libc::c_ulong = 1;

#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// An HTTP/1.1 server
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub to: SocketAddr,
    /// Requests a second in all, evenly spread
    #[arg(long, default_value_t = 1000)]
    pub rate: u32,
    /// Keep-alive connections that take turns
    #[arg(long, default_value_t = 16)]
    pub connections: u32,
    /// Seconds to go on
    #[arg(long, default_value_t = 5.0)]
    pub duration: f64,
}

/// Asks, and tells the latencies in milliseconds.
pub fn run(settings: &Settings) -> Result<serde_json::Value> {
    ensure!(settings.connections > 0 && settings.rate > 0, "--connections and --rate are at least 1");
    // Connections are made before the clock runs: this measures requests.
    let open = (0..settings.connections).map(|_| Connection::open(settings.to));
    let open = open.collect::<Result<Vec<_>>>()?;
    let (start, mut all, mut failed) = (Instant::now(), Latencies::default(), Vec::new());
    let threads = open.into_iter().zip(0..).map(|(connection, turn)| {
        let settings = settings.clone();
        thread::spawn(move || paced(&settings, connection, turn, start))
    });
    for thread in threads.collect::<Vec<_>>() {
        let (latencies, error) = thread.join().map_err(|_| anyhow!("a client thread panicked"))?;
        latencies.into_iter().for_each(|latency| all.add(latency));
        failed.extend(error.map(|error| format!("{error:#}")));
    }
    let (requests, seconds) = (all.len(), start.elapsed().as_secs_f64());
    Ok(json!({
        "requests": requests, "seconds": seconds, "per_second": requests as f64 / seconds, "ms": all.summary(),
        "failed": failed,
    }))
}

/// One connection's share: every `connections`-th request.
fn paced(
    settings: &Settings,
    mut connection: Connection,
    turn: u32,
    start: Instant,
) -> (Vec<Duration>, Option<anyhow::Error>) {
    // SAFETY: a system call with plain numbers that concerns this thread alone.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, TIMER_SLACK_NS) };
    let step = 1.0 / f64::from(settings.rate);
    let mut latencies = Vec::new();
    let mut due_s = f64::from(turn) * step;
    while due_s < settings.duration {
        let due = start + Duration::from_secs_f64(due_s);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if let Err(error) = connection.ask() {
            return (latencies, Some(error));
        }
        latencies.push(due.elapsed());
        due_s += f64::from(settings.connections) * step;
    }
    (latencies, None)
}

struct Connection {
    tcp: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    fn open(to: SocketAddr) -> Result<Self> {
        let tcp =
            TcpStream::connect_timeout(&to, ANSWER_WAIT_MAX).with_context(|| format!("connect to {to}"))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(ANSWER_WAIT_MAX))?;
        let request = format!("GET / HTTP/1.1\r\nhost: {to}\r\n\r\n").into_bytes();
        let mut connection = Self { tcp, request, answer: vec![0; ANSWER_BYTES_MAX] };
        // The first one opens what the path opens lazily.
        connection.ask()?;
        Ok(connection)
    }

    fn ask(&mut self) -> Result<()> {
        self.tcp.write_all(&self.request).context("send")?;
        let mut have = 0;
        loop {
            match self.tcp.read(&mut self.answer[have..]).context("receive")? {
                0 => bail!("the connection ended inside an answer"),
                length => have += length,
            }
            if let Some(whole) = answer_bytes(&self.answer[..have])? {
                ensure!(have == whole, "{} bytes after the answer", have - whole);
                return Ok(());
            }
            ensure!(have < ANSWER_BYTES_MAX, "an answer above {ANSWER_BYTES_MAX} bytes");
        }
    }
}

/// The length of the whole answer at the start of `bytes`; None: not all there yet.
fn answer_bytes(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).context("a head that is no text")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{}", head.lines().next().unwrap_or_default());
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let whole = end + 4 + length.context("an answer without Content-Length")?;
    Ok((bytes.len() >= whole).then_some(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(answer_bytes(whole).unwrap(), Some(whole.len()));
        for part in [0, 10, whole.len() - 1] {
            assert_eq!(answer_bytes(&whole[..part]).unwrap(), None);
        }
        assert!(answer_bytes(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(answer_bytes(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
