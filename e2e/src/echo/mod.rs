//! The echo application that tests run inside pods: it answers over HTTP/1.1, h2c, gRPC, WebSocket, HTTPS and raw TCP, says
//! what it saw, and misbehaves on request. The clients that load it are in [`load`], [`grpc`] and [`stream`].
//!
//! It knows nothing of the mesh. Start reading at [`Server::run`].

pub mod grpc;
mod health;
mod http;
pub mod load;
pub mod pace;
pub mod stream;
mod tcp;
mod tls;
pub mod websocket;

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{io, str::FromStr, sync::Arc};

use anyhow::{Context as _, Result, anyhow};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

/// Pending connections a listener holds: tests open many at once.
const BACKLOG: u32 = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TcpMode {
    /// Sends back what comes, until the client closes its half.
    Echo,
    /// Speaks first, then echoes.
    Greet,
    /// Speaks first and closes its half, then reads to the end and counts.
    CloseFirst,
    /// Echoes the first message, then resets the connection.
    Abort,
}

/// `1/3`: a share of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ratio {
    pub part: u64,
    pub whole: u64,
}

impl FromStr for Ratio {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let (part, whole) = text.split_once('/').ok_or_else(|| anyhow!("{text:?} is not like 1/3"))?;
        let (part, whole) = (part.parse()?, whole.parse()?);
        if whole == 0 || part > whole {
            return Err(anyhow!("{text:?} is not a share between 0 and 1"));
        }
        Ok(Self { part, whole })
    }
}

/// What the application is and how it behaves.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// Ports for HTTP/1.1, h2c, gRPC and WebSocket, told apart by their first bytes
    #[arg(long, value_name = "PORT")]
    pub http: Vec<u16>,
    /// Ports for the same over TLS, with a certificate that nobody vouches for
    #[arg(long, value_name = "PORT")]
    pub https: Vec<u16>,
    /// Ports for raw TCP that echo
    #[arg(long, value_name = "PORT")]
    pub tcp: Vec<u16>,
    /// Ports for raw TCP on which the server speaks first
    #[arg(long, value_name = "PORT")]
    pub greet: Vec<u16>,
    /// Ports for raw TCP on which the server speaks first, closes its half and counts what still comes
    #[arg(long, value_name = "PORT")]
    pub close_first: Vec<u16>,
    /// Ports for raw TCP on which the server echoes one message and resets the connection
    #[arg(long, value_name = "PORT")]
    pub abort: Vec<u16>,
    /// Name of this version, told in every answer
    #[arg(long, default_value = "v1", env = "ECHO_VERSION")]
    pub version: String,
    /// Share of the HTTP requests that fail, spread evenly
    #[arg(long, value_name = "N/M", env = "ECHO_FAIL_RATIO")]
    pub fail_ratio: Option<Ratio>,
    /// Status of the failing share
    #[arg(long, default_value_t = 503, env = "ECHO_FAIL_STATUS")]
    pub fail_status: u16,
    /// Delay of every HTTP answer
    #[arg(long, default_value_t = 0, env = "ECHO_DELAY_MS")]
    pub delay_ms: u64,
    /// At SIGTERM, stop listening at once, finish the HTTP requests that have come, and end, as most servers do. Without it the signal has its default effect:
    /// none on process 1 of a pod
    #[arg(long)]
    pub graceful: bool,
}

/// The running application.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    pod: String,
    node: String,
    counts: Mutex<BTreeMap<String, u64>>,
    served: AtomicU64,
}

impl Server {
    pub fn new(settings: Settings) -> Arc<Self> {
        let of = |name| std::env::var(name).unwrap_or_default();
        Arc::new(Self {
            settings,
            pod: of("POD_NAME"),
            node: of("NODE_NAME"),
            counts: Mutex::default(),
            served: AtomicU64::new(0),
        })
    }

    /// Listens on all ports and serves until the process ends.
    pub async fn run(self: Arc<Self>) -> Result<()> {
        let asked = self.settings.graceful.then(|| signal(SignalKind::terminate())).transpose()?;
        let open = Arc::new(GracefulShutdown::new());
        let mut listeners = self.listen_on_all(&open)?;
        tokio::select! {
            // What has come is accepted before the listeners close: the kernel would reset it.
            biased;
            ended = listeners.join_next() => match ended {
                Some(ended) => ended.context("a listener's task")?.context("accept"),
                None => Err(anyhow!(
                    "no port to serve: give --http, --https, --tcp, --greet, --close-first or --abort"
                )),
            },
            () = received(asked) => {
                listeners.shutdown().await;
                let open = Arc::into_inner(open).context("only listeners share it, and they are gone")?;
                open.shutdown().await;
                Ok(())
            }
        }
    }

    /// A task for each listener. Those that speak HTTP show their connections to `open`.
    fn listen_on_all(self: &Arc<Self>, open: &Arc<GracefulShutdown>) -> Result<JoinSet<io::Result<()>>> {
        let mut tasks = JoinSet::new();
        for port in self.settings.http.clone() {
            let (server, listener, open) = (self.clone(), listen(port)?, open.clone());
            tasks.spawn(async move {
                let serve = |s, from| tokio::spawn(http::serve(server.clone(), open.watcher(), s, from));
                accept(&listener, serve).await
            });
        }
        for port in self.settings.https.clone() {
            let (server, listener, open) = (self.clone(), listen(port)?, open.clone());
            let tls = tls::acceptor()?;
            tasks.spawn(async move {
                let serve =
                    |s, from| tokio::spawn(tls::serve(server.clone(), open.watcher(), tls.clone(), s, from));
                accept(&listener, serve).await
            });
        }
        let modes = [
            (TcpMode::Echo, self.settings.tcp.clone()),
            (TcpMode::Greet, self.settings.greet.clone()),
            (TcpMode::CloseFirst, self.settings.close_first.clone()),
            (TcpMode::Abort, self.settings.abort.clone()),
        ];
        for (mode, port) in modes.into_iter().flat_map(|(m, ports)| ports.into_iter().map(move |p| (m, p))) {
            let (server, listener) = (self.clone(), listen(port)?);
            tasks.spawn(async move {
                accept(&listener, |s, _| tokio::spawn(tcp::serve(server.clone(), mode, s))).await
            });
        }
        Ok(tasks)
    }

    fn count(&self, what: &str, by: u64) -> u64 {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(what.to_owned()).or_default();
        *count += by;
        *count
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the next request is one of the failing share: of any `whole` in a row, `part` are.
    fn fails_now(&self) -> bool {
        let turn = self.served.fetch_add(1, Ordering::Relaxed);
        self.settings.fail_ratio.is_some_and(|r| turn % r.whole < r.part)
    }
}

/// Both address families on one socket, as Go and Java servers listen.
fn listen(port: u16) -> Result<TcpListener> {
    let context = || format!("listening on port {port}");
    let socket = TcpSocket::new_v6().with_context(context)?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)).with_context(context)?;
    socket.listen(BACKLOG).with_context(context)
}

async fn accept<T>(listener: &TcpListener, each: impl Fn(TcpStream, SocketAddr) -> T) -> io::Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                // Small answers must not wait for more.
                let _ = stream.set_nodelay(true);
                each(stream, from);
            }
            // The client gave up, or descriptors ran out for a moment: the next one may do better.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// Never, of a signal that is not asked for.
async fn received(signal: Option<Signal>) {
    match signal {
        Some(mut signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// `::ffff:10.0.0.1` as `10.0.0.1`.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
