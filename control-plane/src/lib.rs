//! Weft's control plane as a library: source → index → push, and the certificate authority. Start at [`start`].

pub mod admin;
mod api_server;
pub mod authority;
mod caller;
mod handshakes;
pub mod index;
mod line_quota;
mod listener;
mod places;
pub mod push;
pub mod settings;
pub mod source;
mod stale;
mod status;
mod token_file;
pub mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::admin::Pages;
use crate::authority::{Authenticate, Authority, JoinTokens, Lifetimes, LivePods, TokenReviews};
use crate::index::Index;
use crate::line_quota::LineQuota;
use crate::listener::{RENEWAL_RETRY, ServerCertificate};
use crate::push::Hub;
use crate::settings::Settings;
use crate::source::directory::Directory;
use crate::source::kubernetes::Kubernetes;
use crate::source::{BATCHES_UNDER_WAY_MAX, Event, Read, Report, Sink, Source};
use crate::world::{Metrics, World};

/// Streams of nodes end at once on shutdown; this is for the rest.
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);

/// A running control plane.
pub struct Running {
    pub grpc_address: SocketAddr,
    pub metrics_address: Option<SocketAddr>,
    pub world: Arc<World>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    /// Ends everything, in bounded time.
    pub async fn stop(self) {
        self.stop.cancel();
        for mut task in self.tasks {
            if tokio::time::timeout(STOP_WAIT_MAX, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

/// Starts everything that the settings ask for.
pub async fn start(settings: Settings) -> anyhow::Result<Running> {
    start_with(settings, Lifetimes::default()).await
}

/// The same with other lifetimes than the usual ones.
pub async fn start_with(settings: Settings, lifetimes: Lifetimes) -> anyhow::Result<Running> {
    let trust_domain = settings.validate()?;
    let client = if settings.kubernetes {
        Some(api_server::client(&settings).await.context("Kubernetes")?)
    } else {
        None
    };
    let authority = Authority::open(&settings, client.clone(), trust_domain.clone(), lifetimes)
        .await
        .context("certificate authority")?;
    let mut index = Index::new(trust_domain, &settings.namespace);
    index.set_roots(authority.bundle());
    let index = Arc::new(RwLock::new(index));
    let read = if settings.kubernetes { Read::Objects(0) } else { Read::Files(0) };
    let (report_sender, report) = watch::channel(Arc::new(Report::empty(read)));
    let stop = CancellationToken::new();
    let authenticate: Arc<dyn Authenticate> = match client.clone() {
        Some(client) => Arc::new(TokenReviews::new(client, &settings.namespace)),
        None => Arc::new(JoinTokens(index.clone())),
    };
    let world = Arc::new(World {
        live_pods: client.clone().map(LivePods::new),
        client,
        subjects: Arc::default(),
        authenticate,
        index,
        hub: Hub::default(),
        authority,
        refusals_logged: LineQuota::default(),
        report,
        metrics: Metrics::default(),
        synced: AtomicBool::new(false),
        stop: stop.clone(),
    });
    let listener = tokio::net::TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("listening on {}", settings.listen))?;
    let grpc_address = listener.local_addr()?;
    let admin =
        admin::bind(&settings.admin).await.with_context(|| format!("admin endpoint {:?}", settings.admin))?;
    let metrics = match settings.metrics_address {
        Some(address) => {
            let listener = tokio::net::TcpListener::bind(address).await;
            Some(listener.with_context(|| format!("--metrics-address {address}"))?)
        }
        None => None,
    };
    let metrics_address = metrics.as_ref().map(tokio::net::TcpListener::local_addr).transpose()?;
    let certificate = Arc::new(ServerCertificate::issue(&world)?);
    let (batches, received) = mpsc::channel(BATCHES_UNDER_WAY_MAX);
    let sink = Sink { batches, report: report_sender, subjects: world.subjects.clone() };
    let source = match world.client.clone() {
        Some(client) => tokio::spawn(Kubernetes::new(client, settings.watch_time).run(sink, stop.clone())),
        None => {
            let state_dir = settings.state_dir.clone().context("--state-dir is needed with --manifests")?;
            tokio::spawn(Directory::new(settings.manifests.clone(), state_dir).run(sink, stop.clone()))
        }
    };
    let mut tasks = vec![
        source,
        tokio::spawn(take_in(world.clone(), received)),
        tokio::spawn(renew(world.clone(), certificate.clone(), lifetimes.server / 2, stop.clone())),
        tokio::spawn(tell_jumps(stop.clone())),
        tokio::spawn(admin::serve(world.clone(), admin, Pages::All, stop.clone())),
        tokio::spawn(serve(world.clone(), listener, certificate, stop.clone())),
    ];
    if let Some(listener) = metrics {
        let listener = admin::Listener::Tcp(listener);
        tasks.push(tokio::spawn(admin::serve(world.clone(), listener, Pages::Metrics, stop.clone())));
    }
    if let Some(client) = world.client.clone() {
        let status = status::run(world.clone(), client, settings.namespace.clone(), stop.clone());
        tasks.push(tokio::spawn(status));
    }
    tracing::info!(%grpc_address, "weft-control is up");
    Ok(Running { grpc_address, metrics_address, world, stop, tasks })
}

async fn serve(
    world: Arc<World>,
    listener: tokio::net::TcpListener,
    certificate: Arc<ServerCertificate>,
    stop: CancellationToken,
) {
    // Nodes get nothing before the first state is whole: an empty one would take everything from them.
    while !world.synced.load(Ordering::Acquire) {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
    if let Err(error) = listener::serve(world, listener, &certificate, stop.clone()).await {
        tracing::error!(%error, "the gRPC listener ended");
    }
}

async fn take_in(world: Arc<World>, mut batches: mpsc::Receiver<Vec<Event>>) {
    while let Some(events) = batches.recv().await {
        let count = events.len();
        let revision = {
            let mut index = world.index.write();
            let changes = index.apply(events);
            world.hub.changed(changes);
            index.revision().0
        };
        world.synced.store(true, Ordering::Release);
        tracing::info!(events = count, revision, "objects taken in");
    }
}

/// Whoever reads of certificates that are not valid shall find why.
async fn tell_jumps(stop: CancellationToken) {
    let mut clock = weft_admin::clock::Clock::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            seconds = clock.jump() => {
                tracing::warn!(seconds, "the wall clock jumped; certificates are judged by it, and signed by it from now on");
            }
        }
    }
}

/// Renews the listener's certificate, and follows the authority's store.
async fn renew(
    world: Arc<World>,
    certificate: Arc<ServerCertificate>,
    every: Duration,
    stop: CancellationToken,
) {
    let mut look = tokio::time::interval(world.authority.look_every());
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewal = tokio::time::interval(every);
    renewal.tick().await;
    let mut following = Following::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = renewal.tick() => {}
            _ = look.tick() => {
                let advanced = following.look(&world).await;
                // By the wall clock too: after a jump of it the timer is too late.
                if !advanced && !certificate.due() {
                    continue;
                }
            }
        }
        if let Err(error) = certificate.renew(&world) {
            tracing::error!(%error, "the listener's certificate was not renewed");
            renewal.reset_after(RENEWAL_RETRY);
        }
    }
}

#[derive(Default)]
struct Following {
    /// The revision that brought nodes the present bundle.
    bundle_revision: u64,
    /// What was last wrong: told once.
    problem: Option<String>,
}

impl Following {
    /// True: another authority signs now.
    async fn look(&mut self, world: &World) -> bool {
        match world.authority.follow().await {
            Ok(bundle) => {
                self.problem = None;
                if let Some(bundle) = bundle {
                    tracing::info!(roots = bundle.len(), "trust bundle changed");
                    let mut index = world.index.write();
                    let changes = index.set_roots(bundle);
                    self.bundle_revision = index.revision().0;
                    world.hub.changed(changes);
                }
            }
            Err(error) => {
                let problem = error.to_string();
                if self.problem.as_ref() != Some(&problem) {
                    tracing::error!(problem, "the last good authority and trust bundle stay");
                }
                self.problem = Some(problem);
            }
        }
        let advanced = world.authority.advance(world.hub.all_have(self.bundle_revision));
        if advanced {
            tracing::info!("the new authority signs from now on");
        }
        advanced
    }
}
