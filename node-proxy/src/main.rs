//! `weft-node`: reads the settings, starts the node proxy, waits for the end.
//!
//! Start-up: all settings, the environment's too → telemetry → kernel hooks (or those of an earlier process) → shared
//! state → control plane's stream, which brings the pods. End: SIGTERM drains; the hooks stay pinned, so that pods fail
//! closed meanwhile, unless Weft is being removed from the node (`uninstall`).

mod allocator;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};
use weft_admin::Address;
use weft_cni::notice::Notice;
use weft_node::admin::AdminSources;
use weft_node::cni::CniStatus;
use weft_node::discovery::{self, ControlPlane, ControlStatus, Sink};
use weft_node::drain::Drain;
use weft_node::enrol::{self, Enroller, Listeners, LocalPod, Passes};
use weft_node::identity::Identities;
use weft_node::l7::Upstreams;
use weft_node::node::Node;
use weft_node::settings::{AccessLog, Arguments, Command, DetachArguments, Settings, admin_default};
use weft_node::snapshot::SnapshotHandle;
use weft_node::socket::places::{self, Places};
use weft_node::telemetry::{LogLevel, LogSink, Telemetry, TelemetrySettings};
use weft_node::uninstall::{self, Cluster};
use weft_node::{admin, cgroup_root, cni, inbound, kernel_metrics, node_metrics, outbound};

/// Threads for passes over the pods and files of the control connection: there are few at a time.
const BLOCKING_THREADS_MAX: usize = 16;
/// What may be left after draining gets this long to end before the process does.
const SHUTDOWN: std::time::Duration = std::time::Duration::from_secs(1);
/// For the weft-node before this one, besides its time to drain: to ask the API server whether it is removed, and to end.
const PREDECESSOR: std::time::Duration = std::time::Duration::from_secs(10);
/// Queued spans and log lines are written out for at most this long.
const FLUSH: std::time::Duration = std::time::Duration::from_secs(3);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log();
    let runs = arguments.command.is_none();
    let result = match arguments.command {
        Some(Command::Detach(what)) => detach(&what),
        Some(Command::Admin { path, admin }) => ask_admin(&admin.unwrap_or_else(admin_default), &path),
        None => match Settings::new(arguments.run, &|name| std::env::var(name).ok()) {
            Ok(settings) => start(settings),
            Err(mistakes) => {
                eprintln!("weft-node: {mistakes}");
                return ExitCode::from(2);
            }
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if runs {
                error!(error = format!("{error:#}"), "weft-node ends");
            }
            eprintln!("weft-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .with_env_var("WEFT_LOG")
        .from_env_lossy();
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .init();
}

fn detach(what: &DetachArguments) -> Result<()> {
    let host = what.cni_bin_dir.clone().zip(what.cni_conf_dir.clone());
    let host = host.map(|(bin_dir, conf_dir)| cni::Host { bin_dir, conf_dir });
    remove_all(&what.pin_dir, host.as_ref())
}

/// New pods first: none may wait for an agent that is gone. Then the hooks: the pods leave the mesh.
fn remove_all(pin_dir: &Path, host: Option<&cni::Host>) -> Result<()> {
    if let Some(host) = host {
        host.remove().context("cannot remove the CNI plugin")?;
        info!(configurations = %host.conf_dir.display(), "CNI plugin and its entry removed");
    }
    weft_ebpf::detach_all(pin_dir)
        .with_context(|| format!("cannot remove the hooks under {}", pin_dir.display()))?;
    info!(pin_dir = %pin_dir.display(), "hooks and maps removed");
    Ok(())
}

/// Prints the page; what is wrong goes to stderr, where a kubelet's exec probe finds it too.
fn ask_admin(address: &Address, path: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let body = runtime.block_on(weft_admin::ask(address, path)).with_context(|| path.to_owned())?;
    std::io::stdout().write_all(&body).context("cannot print the page")
}

fn start(settings: Settings) -> Result<()> {
    let descriptors = raise_descriptor_limit();
    avoid_huge_pages();
    // Used by the connection to the control plane; the mesh's own TLS names its provider.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        warn!("a TLS provider was installed before");
    }
    let cores = std::thread::available_parallelism().context("cannot count the cores")?.get();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("weft-worker")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(run(settings, descriptors));
    runtime.shutdown_timeout(SHUTDOWN);
    result
}

/// Memory is given back soon: each time a small buffer needs some again, the kernel would clear a huge page, 2 MiB, of it.
/// That was 6 % of the proxy's processor time at keep-alive requests, and memory besides.
fn avoid_huge_pages() {
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: a system call with plain numbers; it concerns pages that are not there yet.
    if unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, on, unused, unused, unused) } != 0 {
        warn!(error = %std::io::Error::last_os_error(), "cannot turn huge pages off");
    }
}

/// A node's proxy has some descriptors per connection of every pod; the soft limit is for programs that use select().
/// Gives what there is now (None: no limit).
fn raise_descriptor_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            warn!(?current, ?maximum, %error, "cannot raise the limit of open files");
            current
        }
    }
}

fn connections_per_pod(wanted: u32, descriptors: Option<u64>) -> u32 {
    let per_pod = places::per_pod(wanted, descriptors);
    if per_pod < wanted {
        warn!(
            wanted,
            per_pod, descriptors, "fewer connections per pod than configured: the limit of open files is low"
        );
    }
    per_pod
}

async fn run(settings: Settings, descriptors: Option<u64>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    // Before the hooks: two processes must not work at them.
    let admin = tokio::select! {
        opened = admin::open(&settings.admin, settings.drain + PREDECESSOR) => {
            opened.context("cannot open the admin endpoint")?
        }
        () = asked_to_end(&mut terminate, &mut interrupt) => return Ok(()),
    };
    let snapshot = Arc::new(SnapshotHandle::default());
    let control = Arc::new(ControlPlane::new(&settings, Arc::clone(&snapshot)));
    let per_pod = connections_per_pod(settings.connections_per_pod, descriptors);
    let node = Arc::new(build(settings, per_pod, snapshot, &control)?);
    weft_node::l7::metrics::register(&node);
    node_metrics::publish(&node);
    let enroller = Arc::new(Mutex::new(enroller(&node)?));
    let (passes, requests) = Passes::channel();
    let sink = Sink {
        node_name: node.settings.node_name.clone(),
        snapshot: Arc::clone(&node.snapshot),
        identities: Arc::clone(&node.identities),
        status: Arc::clone(&node.control),
        follow: passes,
    };
    tokio::spawn(admin::serve(admin, admin_sources(&node), node.telemetry.clone(), node.drain.clone()));
    if let Some(address) = node.settings.metrics_address {
        let (telemetry, drain) = (node.telemetry.clone(), node.drain.clone());
        let served = admin::serve_metrics(address, admin_sources(&node), telemetry, drain).await;
        let (address, metrics) = served.context("cannot open the metrics endpoint")?;
        info!(%address, "metrics and health are served there to everybody");
        tokio::spawn(metrics);
    }
    if let Some(settings) = &node.settings.cni {
        let agent = cni::serve(&settings.socket, &node, &enroller)
            .with_context(|| format!("cannot open the CNI socket {}", settings.socket.display()))?;
        tokio::spawn(agent);
    }
    tokio::spawn(tell_jumps());
    let installed = tokio::spawn(cni::install_once_in_sync(Arc::clone(&node)));
    let noticed = tokio::spawn(cni::keep_notice(Arc::clone(&node)));
    let cluster = Cluster::from_environment(node.settings.daemonset.clone()).map(Arc::new);
    if let Some(cluster) = cluster.clone() {
        tokio::spawn(async move { cluster.verify().await });
    }
    let stream = tokio::spawn(discovery::run(control, sink));
    let pods = tokio::spawn(enrol::run(Arc::clone(&node), Arc::clone(&enroller), requests));
    info!(node = node.settings.node_name, version = env!("CARGO_PKG_VERSION"), "weft-node runs");

    let failed = tokio::select! {
        () = asked_to_end(&mut terminate, &mut interrupt) => None,
        ended = stream => Some(format!("the control plane's client ended: {ended:?}")),
        ended = pods => Some(format!("the enrolment of pods ended: {ended:?}")),
    };
    let uninstalled = match cluster.filter(|_| failed.is_none()) {
        Some(cluster) => cluster.was_removed().await,
        None => false,
    };
    // Told first: tunnels say GOAWAY, and nothing is enrolled any more.
    node.drain.draining.cancel();
    enroller.lock().close();
    if uninstalled {
        // Not beside a repair of what is taken away.
        let _ = (installed.await, noticed.await);
        let (pin_dir, host) =
            (node.settings.pin_dir.clone(), node.settings.cni.as_ref().and_then(|it| it.host.clone()));
        tokio::task::spawn_blocking(move || remove_all(&pin_dir, host.as_ref())).await??;
    }
    node.drain.finish(node.settings.drain, asked_to_end(&mut terminate, &mut interrupt)).await;
    node.telemetry.shutdown(FLUSH).await;
    if uninstalled {
        let admin = match &node.settings.admin {
            Address::Unix(path) => Some(path.as_path()),
            Address::Tcp(_) => None,
        };
        let cni = node.settings.cni.as_ref().map(|it| it.socket.as_path());
        let notice = cni.map(Notice::path);
        uninstall::remove_sockets(notice.as_deref().into_iter().chain(admin).chain(cni));
        info!("weft-node ends; nothing of it is left on this node");
    } else {
        info!("weft-node ends; the hooks stay, and enrolled pods fail closed until it is back");
    }
    failed.map_or(Ok(()), |reason| Err(anyhow::anyhow!(reason)))
}

/// Whoever reads of certificates that are not valid shall find why.
async fn tell_jumps() {
    let mut clock = weft_admin::clock::Clock::new();
    loop {
        let seconds = clock.jump().await;
        warn!(
            seconds,
            "the wall clock jumped; certificates are judged by it, and renewed if they are out of time now"
        );
    }
}

async fn asked_to_end(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn build(
    settings: Settings,
    per_pod: u32,
    snapshot: Arc<SnapshotHandle>,
    control: &Arc<ControlPlane>,
) -> Result<Node> {
    // Before the hooks: what it cannot use, such as the log's file, must not leave a node that is half set up.
    let telemetry = Telemetry::start(&TelemetrySettings {
        log_level: match settings.access_log {
            AccessLog::Off => LogLevel::Off,
            AccessLog::Errors => LogLevel::Errors,
            AccessLog::All => LogLevel::All,
        },
        log_sink: settings.access_log_file.clone().map_or(LogSink::Stdout, LogSink::File),
        cluster_domain: settings.cluster_domain.clone(),
        otel: settings.otel.clone(),
    })
    .context("cannot start telemetry")?;
    let kernel = weft_ebpf::Kernel::load(&weft_ebpf::Options {
        pin_dir: settings.pin_dir.clone(),
        cgroup_root: settings.cgroup_root.clone(),
        proxy_cgroup: cgroup_root::own_directory(&settings.cgroup_root)
            .map_err(|error| anyhow::anyhow!("cannot find weft-node's own cgroup: {error}"))?,
        pods_cgroup: cgroup_root::of_all_pods(&settings.cgroup_root),
        redirect: settings.redirect,
        flows_max: settings.flows_max,
    })
    .context("cannot set up the kernel hooks")?;
    let kernel = Arc::new(kernel);
    kernel_metrics::publish(&telemetry, &kernel);
    weft_node::socket::leg::ask(Arc::clone(&kernel));
    Ok(Node {
        snapshot,
        identities: Arc::new(Identities::new(Arc::clone(control) as _)),
        pods: enrol::Pods::default(),
        tunnels: Default::default(),
        upstreams: Upstreams::new(per_pod),
        places: Places::new(per_pod),
        balancers: Default::default(),
        telemetry,
        kernel,
        drain: Drain::default(),
        control: Arc::new(watch::Sender::new(ControlStatus::default())),
        cni: watch::Sender::new(CniStatus::default()),
        settings,
    })
}

fn admin_sources(node: &Arc<Node>) -> AdminSources {
    let (ready, dumped, reported) = (Arc::clone(node), Arc::clone(node), Arc::clone(node));
    let of_pods = Arc::clone(node);
    AdminSources {
        unready: Arc::new(move || ready.unready()),
        config_dump: Arc::new(move || dumped.config_dump()),
        status: Arc::new(move || serde_json::json!(reported.status())),
        pod: Arc::new(move |(namespace, name), service| of_pods.pod_config(namespace, name, service)),
    }
}

fn enroller(node: &Arc<Node>) -> Result<Enroller> {
    let (name, root) = (node.settings.node_name.clone(), node.settings.cgroup_root.clone());
    // The enroller is owned beside the node, not by it: no cycle.
    let shared = Arc::clone(node);
    let runtime = tokio::runtime::Handle::current();
    let start = Box::new(move |pod: &Arc<LocalPod>, listeners| accept(&runtime, &shared, pod, listeners));
    Enroller::new(name, root, Arc::clone(&node.kernel) as _, start).context("cannot read the kernel's maps")
}

/// One task per listener of a pod.
fn accept(
    runtime: &tokio::runtime::Handle,
    node: &Arc<Node>,
    pod: &Arc<LocalPod>,
    listeners: Listeners,
) -> Vec<JoinHandle<()>> {
    let both = || (Arc::clone(node), Arc::clone(pod));
    let outbound = |listener: TcpListener| {
        let (node, pod) = both();
        runtime.spawn(outbound::run(node, pod, listener))
    };
    let plaintext = |listener: TcpListener| {
        let (node, pod) = both();
        runtime.spawn(inbound::run_plaintext(node, pod, listener))
    };
    let tunnel = |listener: TcpListener| {
        let (node, pod) = both();
        runtime.spawn(inbound::run_tunnel(node, pod, listener))
    };
    let Listeners { outbound: out, inbound: plain, tunnel: tunnels } = listeners;
    out.into_iter()
        .map(outbound)
        .chain(plain.into_iter().map(plaintext))
        .chain(tunnels.into_iter().map(tunnel))
        .collect()
}
