//! An HTTP load client: so many requests over so many connections, at a fixed rate if asked, and a summary as JSON.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::{TcpStream, lookup_host};

/// Errors are counted by text; more kinds than this are lumped together.
const ERROR_KINDS_MAX: usize = 20;

#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// Where to, such as http://backend/path
    #[arg(long)]
    pub url: Uri,
    /// Requests in all; without it, --duration or --until-eof decides
    #[arg(long)]
    pub requests: Option<u64>,
    /// Seconds to go on
    #[arg(long, value_name = "SECONDS")]
    pub duration: Option<f64>,
    /// Go on until standard input ends
    #[arg(long)]
    pub until_eof: bool,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 1)]
    pub connections: u32,
    #[arg(long, default_value_t = Method::GET)]
    pub method: Method,
    /// Requests a second in all, evenly spread; without it, as fast as answers come
    #[arg(long)]
    pub rate: Option<f64>,
    /// Bytes of each request's body
    #[arg(long, default_value_t = 0)]
    pub body_bytes: usize,
    /// Header to send, as name:value; may be repeated
    #[arg(long)]
    pub header: Vec<String>,
    /// HTTP/2 with prior knowledge
    #[arg(long)]
    pub http2: bool,
    /// Only over IPv4: of a name's addresses, none of IPv6
    #[arg(long, conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// Only over IPv6
    #[arg(long)]
    pub ipv6: bool,
    /// A new connection for each request
    #[arg(long)]
    pub reconnect: bool,
    /// Milliseconds that an answer may take
    #[arg(long, default_value_t = 10_000)]
    pub timeout_ms: u64,
    /// End with the first answer of this status, and tell when it came
    #[arg(long, value_name = "STATUS")]
    pub until_status: Option<u16>,
}

/// Latencies of a run, kept whole: tests are small.
#[derive(Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn add(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn summary(&mut self) -> serde_json::Value {
        self.0.sort_unstable();
        let at = |share: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an index below the length"
            )]
            let index = ((self.0.len() as f64 * share) as usize).min(self.0.len().saturating_sub(1));
            self.0.get(index).map(|d| (d.as_secs_f64() * 1e6).round() / 1e3)
        };
        json!({"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": at(1.0)})
    }
}

#[derive(Debug, Default)]
struct Outcome {
    statuses: BTreeMap<u16, u64>,
    errors: BTreeMap<String, u64>,
    versions: BTreeMap<String, u64>,
    /// When each version answered for the last time.
    versions_last: BTreeMap<String, SystemTime>,
    pods: BTreeMap<String, u64>,
    latencies: Latencies,
    connections: u64,
    body_bytes: u64,
    /// When the first answer of the status that was waited for came.
    until: Option<SystemTime>,
    /// Of the requests that were answered otherwise than hoped for, or not at all: when the first was known to have failed, and when the last
    /// began. Between the two whatever made them fail was there, however long each of them stood still.
    failed: Option<(SystemTime, SystemTime)>,
}

impl Outcome {
    fn error(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        let full = self.errors.len() >= ERROR_KINDS_MAX && !self.errors.contains_key(&text);
        *self.errors.entry(if full { "others".into() } else { text }).or_default() += 1;
    }

    fn fail(&mut self, began: SystemTime, ended: SystemTime) {
        let (first, last) = self.failed.unwrap_or((ended, began));
        self.failed = Some((first.min(ended), last.max(began)));
    }

    fn merge(&mut self, other: Self) {
        fn sum<K: Ord>(into: &mut BTreeMap<K, u64>, from: BTreeMap<K, u64>) {
            from.into_iter().for_each(|(k, v)| *into.entry(k).or_default() += v);
        }
        sum(&mut self.statuses, other.statuses);
        sum(&mut self.errors, other.errors);
        sum(&mut self.versions, other.versions);
        sum(&mut self.pods, other.pods);
        for (version, at) in other.versions_last {
            let last = self.versions_last.entry(version).or_insert(at);
            *last = at.max(*last);
        }
        self.latencies.0.extend(other.latencies.0);
        self.connections += other.connections;
        self.body_bytes += other.body_bytes;
        self.until = [self.until, other.until].into_iter().flatten().min();
        if let Some((ended, began)) = other.failed {
            self.fail(began, ended);
        }
    }
}

/// Becomes true with the end of standard input.
pub(super) fn input_ended() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&ended);
    // A thread that nobody waits for: the input may go on.
    std::thread::spawn(move || {
        // One that cannot be read has ended, too.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        told.store(true, Ordering::Relaxed);
    });
    ended
}

/// Makes the requests and tells how they went.
pub async fn run(settings: Settings) -> Result<serde_json::Value> {
    let ends = settings.requests.is_some() || settings.duration.is_some() || settings.until_eof;
    ensure!(ends, "give --requests, --duration or --until-eof");
    ensure!(settings.url.authority().is_some(), "--url needs a host, such as http://backend/");
    let (settings, taken) = (Arc::new(settings), Arc::new(AtomicU64::new(0)));
    let ended = if settings.until_eof { input_ended() } else { Arc::default() };
    let start = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..settings.connections.max(1) {
        clients.spawn(client(settings.clone(), taken.clone(), ended.clone(), start));
    }
    let mut all = Outcome::default();
    while let Some(outcome) = clients.join_next().await {
        all.merge(outcome?);
    }
    let (seconds, ok) = (start.elapsed().as_secs_f64(), all.statuses.get(&200).copied().unwrap_or(0));
    let requests = all.statuses.values().sum::<u64>() + all.errors.values().sum::<u64>();
    let versions_last: BTreeMap<_, _> =
        all.versions_last.into_iter().map(|(version, at)| (version, unix_ms(at))).collect();
    let failed = all.failed.map(|(first, last)| [first, last].map(unix_ms));
    Ok(json!({
        "requests": requests, "ok": ok, "failed": requests - ok,
        "statuses": all.statuses, "errors": all.errors, "versions": all.versions, "pods": all.pods,
        "ms": all.latencies.summary(), "seconds": seconds, "per_second": requests as f64 / seconds,
        "connections": all.connections, "body_bytes": all.body_bytes, "until_unix_ms": all.until.map(unix_ms),
        "versions_last_unix_ms": versions_last, "failed_unix_ms": failed,
    }))
}

pub(super) fn unix_ms(at: SystemTime) -> u128 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

/// One connection's worth of requests.
async fn client(
    settings: Arc<Settings>,
    taken: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    start: Instant,
) -> Outcome {
    let (mut outcome, mut connection) = (Outcome::default(), None);
    loop {
        let turn = taken.fetch_add(1, Ordering::Relaxed);
        if ended.load(Ordering::Relaxed) || settings.requests.is_some_and(|max| turn >= max) {
            return outcome;
        }
        // At a fixed rate the latency counts from when the request was due, so that a stall is not hidden.
        let due =
            settings.rate.map_or_else(Instant::now, |r| start + Duration::from_secs_f64(turn as f64 / r));
        tokio::time::sleep_until(due.into()).await;
        if settings.duration.is_some_and(|max| start.elapsed().as_secs_f64() >= max) {
            return outcome;
        }
        let wait_max = Duration::from_millis(settings.timeout_ms);
        let began = SystemTime::now();
        let asked = tokio::time::timeout(wait_max, ask(&settings, &mut connection, &mut outcome)).await;
        match asked.unwrap_or_else(|_| Err(anyhow!("no answer in {wait_max:?}"))) {
            Ok(status) => {
                outcome.latencies.add(due.elapsed());
                if status != 200 && settings.until_status != Some(status) {
                    outcome.fail(began, SystemTime::now());
                }
                if settings.until_status == Some(status) {
                    outcome.until = Some(SystemTime::now());
                    // The other connections end, too.
                    ended.store(true, Ordering::Relaxed);
                }
            }
            Err(e) => {
                outcome.error(&e);
                outcome.fail(began, SystemTime::now());
                connection = None;
            }
        }
        if settings.reconnect {
            connection = None;
        }
    }
}

enum Connection {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    async fn open(settings: &Settings) -> Result<Self> {
        let host = settings.url.host().context("a host")?.trim_matches(['[', ']']);
        let port = settings.url.port_u16().unwrap_or(80);
        let all = lookup_host((host, port)).await.with_context(|| format!("no address of {host}"))?;
        let wanted = |to: &SocketAddr| if to.is_ipv4() { !settings.ipv6 } else { !settings.ipv4 };
        let addresses: Vec<_> = all.filter(wanted).collect();
        let stream = TcpStream::connect(&*addresses).await.context("connect")?;
        stream.set_nodelay(true)?;
        let stream = TokioIo::new(stream);
        if settings.http2 {
            let (sender, driver) =
                http2::handshake(TokioExecutor::new(), stream).await.context("handshake")?;
            tokio::spawn(driver);
            return Ok(Self::Two(sender));
        }
        let (sender, driver) = http1::handshake(stream).await.context("handshake")?;
        tokio::spawn(driver.with_upgrades());
        Ok(Self::One(sender))
    }

    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<http::Response<hyper::body::Incoming>> {
        match self {
            Self::One(sender) => sender.send_request(request).await,
            Self::Two(sender) => sender.send_request(request).await,
        }
    }

    async fn usable(&mut self) -> bool {
        match self {
            Self::One(sender) => sender.ready().await.is_ok(),
            Self::Two(sender) => sender.ready().await.is_ok(),
        }
    }
}

async fn ask(settings: &Settings, slot: &mut Option<Connection>, outcome: &mut Outcome) -> Result<u16> {
    // A server may close an idle connection at any time; that is no failure of a request.
    if let Some(open) = slot
        && !open.usable().await
    {
        *slot = None;
    }
    if slot.is_none() {
        outcome.connections += 1;
        *slot = Some(Connection::open(settings).await?);
    }
    let connection = slot.as_mut().context("a connection")?;
    let response = connection.send(build(settings)?).await.context("request")?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.context("response")?.to_bytes();
    *outcome.statuses.entry(status).or_default() += 1;
    outcome.body_bytes += body.len() as u64;
    if let Ok(seen) = serde_json::from_slice::<serde_json::Value>(&body) {
        for (key, counts) in [("version", &mut outcome.versions), ("pod", &mut outcome.pods)] {
            if let Some(name) = seen[key].as_str() {
                *counts.entry(name.to_owned()).or_default() += 1;
            }
        }
        if let Some(version) = seen["version"].as_str() {
            outcome.versions_last.insert(version.to_owned(), SystemTime::now());
        }
    }
    Ok(status)
}

fn build(settings: &Settings) -> Result<Request<Full<Bytes>>> {
    let authority = settings.url.authority().context("a host")?.as_str();
    let path = settings.url.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::builder().method(settings.method.clone());
    request = if settings.http2 {
        request.uri(format!("http://{authority}{path}"))
    } else {
        request.uri(path).header("host", authority)
    };
    for header in &settings.header {
        let (name, value) = header.split_once(':').context("a header is name:value")?;
        request = request.header(name.trim(), value.trim());
    }
    Ok(request.body(Full::new(Bytes::from(vec![b'x'; settings.body_bytes])))?)
}
