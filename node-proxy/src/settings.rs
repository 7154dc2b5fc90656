//! Flags and environment of `weft-node`: documented, bounded, all mistakes reported at once. No test switches.

mod check;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use weft_admin::{Address, listen_address};
use weft_proto::identity::NamespacedName;

use self::check::Check;
use crate::cni::Host;
use crate::socket::places::CONNECTIONS_PER_POD_DEFAULT;
use crate::telemetry::OtelSettings;

/// Longer than this nobody waits for a node's proxy; Kubernetes' own limit for a pod is far below.
const DRAIN_SECONDS_MAX: u64 = 3_600;
/// A pod's share is a quarter: fewer are of no use to anybody.
const FLOWS_MIN: u32 = 64;
/// Sixteen times the default; the kernel's tables for so many take about 60 MiB before the first connection.
const FLOWS_MAX: u32 = 1 << 20;
/// Fewer are of no use to an application with a pool of connections.
const CONNECTIONS_PER_POD_MIN: u32 = 16;
/// As many as the kernel's tables can be told to hold for all pods together.
const CONNECTIONS_PER_POD_MAX: u32 = FLOWS_MAX;

/// Command line of `weft-node`.
#[derive(Debug, Parser)]
#[command(name = "weft-node", version, args_conflicts_with_subcommands = true)]
#[command(
    about = "Weft's node proxy: mutual TLS, routing, policy and telemetry for every enrolled pod of this node"
)]
#[command(after_help = "\
Runs as root in the node's network namespace. Logs are JSON lines on stderr; WEFT_LOG sets their level \
(such as `info,weft_node::enrol=debug`). Traces go where the OTEL_* variables say.

SIGTERM drains: listeners close, tunnels say GOAWAY, connections may finish for --drain-seconds. The kernel's hooks \
stay, so that enrolled pods fail closed until the next weft-node; in Kubernetes they go when the DaemonSet was deleted. \
`weft-node detach` removes them in any case.

`weft-node admin /status` asks a running weft-node; other pages: /healthz /readyz /metrics /config_dump /connections.")]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArguments,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Removes what a node proxy that is not running left: kernel hooks and maps, and with the two --cni directories the CNI plugin.
    /// Its pods leave the mesh
    Detach(DetachArguments),
    /// Prints a page of the admin endpoint of the running weft-node
    #[command(
        after_help = "Exit code 1 and the text on stderr where the page says that something is wrong, as /readyz may."
    )]
    Admin {
        /// The page, such as /status, /config_dump, /metrics or /readyz
        path: String,
        /// Where the endpoint listens [default: unix:/run/weft/admin.sock if it is there, else 127.0.0.1:15021]
        #[arg(long, env = "WEFT_ADMIN", value_name = "ADDRESS")]
        admin: Option<Address>,
    },
}

/// What to clean up.
#[derive(Debug, Args)]
pub struct DetachArguments {
    /// The pin directory that weft-node was started with
    #[arg(long, env = "WEFT_PIN_DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// The directory of CNI plugins that weft-node was started with
    #[arg(long, env = "WEFT_CNI_BIN_DIR", value_name = "DIR", requires = "cni_conf_dir")]
    pub cni_bin_dir: Option<PathBuf>,
    /// The directory of CNI configurations that weft-node was started with
    #[arg(long, env = "WEFT_CNI_CONF_DIR", value_name = "DIR", requires = "cni_bin_dir")]
    pub cni_conf_dir: Option<PathBuf>,
}

/// Where weft-node's admin endpoint is found without being told: the socket of Kubernetes, or the default port.
pub fn admin_default() -> Address {
    let socket = Path::new("/run/weft/admin.sock");
    if socket.exists() { Address::Unix(socket.into()) } else { Address::Tcp(ADMIN_PORT_DEFAULT) }
}

const ADMIN_PORT_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15021);

const PIN_DIR: &str = "/sys/fs/bpf/weft";

/// As typed. Everything is text here, so that all mistakes can be told at once.
#[derive(Debug, Default, Args)]
pub struct RunArguments {
    /// Name of this node in the cluster
    #[arg(long, env = "WEFT_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// The control plane, as https://<host>:<port>
    #[arg(long, env = "WEFT_CONTROL_ADDRESS", value_name = "URL")]
    control_address: Option<String>,
    /// PEM file with the authority of the control plane's own certificate (for the name weft-control)
    #[arg(long, env = "WEFT_CONTROL_CA", value_name = "FILE")]
    control_ca: Option<PathBuf>,
    /// File with the token that proves to the control plane which node this is
    #[arg(long, env = "WEFT_JOIN_TOKEN_FILE", value_name = "FILE")]
    join_token_file: Option<PathBuf>,
    /// cgroup v2 directory of the node: pods are looked for below it, and the hooks are attached to it
    /// [default: /sys/fs/cgroup, or /sys/fs/cgroup/unified on a hybrid hierarchy]
    #[arg(long, env = "WEFT_CGROUP_ROOT", value_name = "DIR")]
    cgroup_root: Option<PathBuf>,
    /// Directory on a bpffs for the pinned hooks and maps
    #[arg(long, env = "WEFT_PIN_DIR", value_name = "DIR", default_value = PIN_DIR)]
    pin_dir: PathBuf,
    /// Where the admin endpoint listens: unix:/path or a loopback address with port
    #[arg(long, env = "WEFT_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:15021")]
    admin: String,
    /// IP:PORT for /metrics, /healthz and /readyz alone, for a scraper on another machine: plain HTTP, open to whoever reaches it
    /// [default: none]
    #[arg(long, env = "WEFT_METRICS_ADDRESS", value_name = "IP:PORT")]
    metrics_address: Option<String>,
    /// Join sockets of one node in the kernel: auto (where the start-up probe passes) or off
    #[arg(long, env = "WEFT_REDIRECT", value_name = "auto|off", default_value = "auto")]
    redirect: String,
    /// Connections that may be intercepted on this node at a time; beyond it new ones of enrolled pods are refused. One
    /// pod may hold a quarter. 64 to 1048576; another figure than before makes new kernel maps
    #[arg(long, env = "WEFT_FLOWS_MAX", value_name = "CONNECTIONS", default_value_t = weft_ebpf::FLOWS_MAX_DEFAULT.to_string())]
    flows_max: String,
    /// Connections that one pod may have through the proxy at a time, each way; further ones wait or are refused. 16 to
    /// 1048576, and never more than a sixteenth of the limit of open files
    #[arg(long, env = "WEFT_CONNECTIONS_PER_POD", value_name = "CONNECTIONS", default_value_t = CONNECTIONS_PER_POD_DEFAULT.to_string())]
    connections_per_pod: String,
    /// Connections and requests that are logged: off, errors or all
    #[arg(long, env = "WEFT_ACCESS_LOG", value_name = "off|errors|all", default_value = "off")]
    access_log: String,
    /// File that the access log is appended to, instead of stdout
    #[arg(long, env = "WEFT_ACCESS_LOG_FILE", value_name = "FILE")]
    access_log_file: Option<PathBuf>,
    /// How long connections may finish after SIGTERM
    #[arg(long, env = "WEFT_DRAIN_SECONDS", value_name = "SECONDS", default_value = "30")]
    drain_seconds: String,
    /// The cluster's DNS domain, for metric labels
    #[arg(long, env = "WEFT_CLUSTER_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// The container runtime's directory of CNI plugins, as /opt/cni/bin: weft-cni is copied into it. With --cni-conf-dir
    #[arg(long, env = "WEFT_CNI_BIN_DIR", value_name = "DIR")]
    cni_bin_dir: Option<PathBuf>,
    /// The container runtime's directory of CNI configurations, as /etc/cni/net.d: the first by name gets weft-cni as its last plugin.
    /// With --cni-bin-dir
    #[arg(long, env = "WEFT_CNI_CONF_DIR", value_name = "DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// Unix socket at which weft-cni asks [default: /run/weft/cni.sock with --cni-bin-dir, else none]
    #[arg(long, env = "WEFT_CNI_SOCKET", value_name = "PATH")]
    cni_socket: Option<PathBuf>,
    /// Namespaces whose new pods never wait for weft-node
    #[arg(long, env = "WEFT_CNI_EXCLUDE_NAMESPACES", value_name = "NAMES", default_value = weft_cni::entry::EXCLUDED_NAMESPACES)]
    cni_exclude_namespaces: String,
    /// This weft-node's own DaemonSet: when it is deleted, SIGTERM removes hooks, maps and CNI plugin. Looked at only in Kubernetes
    #[arg(
        long,
        env = "WEFT_DAEMONSET",
        value_name = "NAMESPACE/NAME",
        default_value = "weft-system/weft-node"
    )]
    daemonset: String,
}

/// The CNI plugin's side of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniSettings {
    pub socket: PathBuf,
    /// Where the plugin is installed. None: somebody else does that.
    pub host: Option<Host>,
    pub exclude_namespaces: Vec<String>,
}

/// Which records the access log has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    Off,
    Errors,
    All,
}

/// The node proxy's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of this node in the cluster.
    pub node_name: String,
    /// `https://host:port`.
    pub control_address: String,
    pub control_ca: PathBuf,
    pub join_token_file: PathBuf,
    pub cgroup_root: PathBuf,
    pub pin_dir: PathBuf,
    pub admin: Address,
    /// Where only metrics and health are served, for others than this machine.
    pub metrics_address: Option<SocketAddr>,
    /// Use sk_msg acceleration where the probe passes.
    pub redirect: bool,
    /// Intercepted connections at a time.
    pub flows_max: u32,
    /// Connections of one pod at a time, each way.
    pub connections_per_pod: u32,
    pub access_log: AccessLog,
    /// None: stdout.
    pub access_log_file: Option<PathBuf>,
    pub drain: Duration,
    pub cluster_domain: String,
    /// None: new pods do not wait for this agent.
    pub cni: Option<CniSettings>,
    pub daemonset: NamespacedName,
    /// The OTEL_* variables.
    pub otel: OtelSettings,
}

/// Every mistake of a command line and its environment, one a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the settings cannot be used (weft-node --help says what they may be):")?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl Settings {
    /// `variable`: the value of an environment variable, for those that are not a flag's.
    pub fn new(typed: RunArguments, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, Mistakes> {
        let mut check = Check::default();
        let settings = Self {
            node_name: check.name("--node-name", typed.node_name),
            control_address: check.address("--control-address", typed.control_address),
            control_ca: check.required("--control-ca", typed.control_ca),
            join_token_file: check.required("--join-token-file", typed.join_token_file),
            cgroup_root: check.cgroup_root("--cgroup-root", typed.cgroup_root),
            pin_dir: check.absolute("--pin-dir", typed.pin_dir),
            admin: check
                .parsed("--admin", typed.admin.parse())
                .unwrap_or_else(|| Address::Unix(PathBuf::new())),
            metrics_address: typed
                .metrics_address
                .and_then(|text| check.parsed("--metrics-address", listen_address(&text))),
            redirect: check.one_of("--redirect", &typed.redirect, &[("auto", true), ("off", false)]),
            flows_max: check.number("--flows-max", &typed.flows_max, FLOWS_MIN, FLOWS_MAX),
            connections_per_pod: check.number(
                "--connections-per-pod",
                &typed.connections_per_pod,
                CONNECTIONS_PER_POD_MIN,
                CONNECTIONS_PER_POD_MAX,
            ),
            access_log: check.one_of(
                "--access-log",
                &typed.access_log,
                &[("off", AccessLog::Off), ("errors", AccessLog::Errors), ("all", AccessLog::All)],
            ),
            access_log_file: typed.access_log_file,
            drain: check.seconds("--drain-seconds", &typed.drain_seconds, DRAIN_SECONDS_MAX),
            cluster_domain: check.name("--cluster-domain", Some(typed.cluster_domain)),
            cni: check.cni(
                typed.cni_bin_dir,
                typed.cni_conf_dir,
                typed.cni_socket,
                &typed.cni_exclude_namespaces,
            ),
            daemonset: check
                .parsed(
                    "--daemonset",
                    typed
                        .daemonset
                        .parse()
                        .map_err(|_| format!("{:?} is not namespace/name", typed.daemonset)),
                )
                .unwrap_or_else(|| "x/x".parse().expect("a name")),
            otel: check.otel(OtelSettings::read(variable)),
        };
        if check.0.is_empty() { Ok(settings) } else { Err(Mistakes(check.0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup_root;

    fn parse(line: &str) -> Result<Settings, Mistakes> {
        let arguments =
            Arguments::try_parse_from(std::iter::once("weft-node").chain(line.split(' '))).unwrap();
        Settings::new(arguments.run, &|_| None)
    }

    const GOOD: &str =
        "--node-name n1 --control-address https://10.0.0.1:15012 --control-ca /ca --join-token-file /t";

    #[test]
    fn defaults_are_those_of_a_real_node() {
        let settings = parse(GOOD).unwrap();
        assert_eq!(settings.admin, Address::Tcp("127.0.0.1:15021".parse().unwrap()));
        assert_eq!(Some(settings.cgroup_root), cgroup_root::detect().ok());
        assert_eq!(settings.cni, None);
        assert_eq!(settings.daemonset.to_string(), "weft-system/weft-node");
        assert_eq!((settings.redirect, settings.access_log), (true, AccessLog::Off));
        assert_eq!(settings.drain, Duration::from_secs(30));
        assert_eq!(settings.flows_max, weft_ebpf::FLOWS_MAX_DEFAULT);
        assert_eq!(settings.connections_per_pod, CONNECTIONS_PER_POD_DEFAULT);
    }

    #[test]
    fn the_cni_directories_come_together() {
        let cni = |flags: &str| parse(&format!("{GOOD} {flags}")).map(|settings| settings.cni);
        let both = cni("--cni-bin-dir /opt/cni/bin --cni-conf-dir /etc/cni/net.d").unwrap().unwrap();
        assert_eq!(both.socket, Path::new("/run/weft/cni.sock"));
        assert_eq!(both.exclude_namespaces, ["kube-system", "weft-system"]);
        let socket_only = cni("--cni-socket /s --cni-exclude-namespaces a").unwrap().unwrap();
        assert_eq!((socket_only.host, socket_only.exclude_namespaces), (None, vec!["a".into()]));
        for flags in ["--cni-bin-dir /a", "--cni-conf-dir /a"] {
            assert!(cni(flags).unwrap_err().to_string().contains("belong together"));
        }
        assert!(
            cni("--cni-bin-dir a --cni-conf-dir /b").unwrap_err().to_string().contains("--cni-bin-dir: ")
        );
        assert!(cni("--cni-socket /s --cni-exclude-namespaces A/b").is_err());
        assert!(cni("--daemonset weft").unwrap_err().to_string().contains("--daemonset: "));
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let line = "--control-address http://x --cgroup-root rel --admin 0.0.0.0:1 --redirect on --access-log some \
                    --drain-seconds x1 --flows-max 63 --connections-per-pod 0";
        let mistakes = parse(line).unwrap_err();
        let told = mistakes.to_string();
        for flag in [
            "--node-name is missing",
            "--control-address: ",
            "--control-ca is missing",
            "--join-token-file is missing",
            "--cgroup-root: ",
            "--admin: ",
            "--redirect: ",
            "--access-log: ",
            "--drain-seconds: ",
            "--flows-max: ",
            "--connections-per-pod: ",
        ] {
            assert!(told.contains(flag), "{flag} in {told}");
        }
        assert_eq!(mistakes.0.len(), 11);
    }

    #[test]
    fn the_admin_endpoint_is_local() {
        for (text, local) in [
            ("unix:/run/weft/admin.sock", true),
            ("127.0.0.1:0", true),
            ("[::1]:15021", true),
            ("unix:relative", false),
            ("0.0.0.0:15021", false),
            ("10.0.0.1:15021", false),
            ("localhost:15021", false),
            ("", false),
        ] {
            assert_eq!(text.parse::<Address>().is_ok(), local, "{text:?}");
        }
    }

    #[test]
    fn a_scrapers_address_may_be_written_without_brackets() {
        for (text, address) in [
            ("10.0.0.1:15020", "10.0.0.1:15020"),
            ("[fd00::1]:15020", "[fd00::1]:15020"),
            ("fd00::1:15020", "[fd00::1]:15020"),
        ] {
            let settings = parse(&format!("{GOOD} --metrics-address {text}")).unwrap();
            assert_eq!(settings.metrics_address, Some(address.parse().unwrap()), "{text}");
        }
        assert_eq!(parse(GOOD).unwrap().metrics_address, None);
        for wrong in ["15020", "10.0.0.1", "10.0.0.1:x", "node:15020"] {
            let told = parse(&format!("{GOOD} --metrics-address {wrong}")).unwrap_err().to_string();
            assert!(told.contains("--metrics-address: "), "{told}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }
}
