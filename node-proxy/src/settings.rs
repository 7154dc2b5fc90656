//! Flags and environment of `weft-node`: documented, bounded, all mistakes reported at once. No test switches.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Longer than this nobody waits for a node's proxy; Kubernetes' own limit for a pod is far below.
const DRAIN_SECONDS_MAX: u64 = 3_600;
const NAME_BYTES_MAX: usize = 253;
/// A pod's share is a quarter: fewer are of no use to anybody.
const FLOWS_MIN: u32 = 64;
/// Sixteen times the default; the kernel's tables for so many take about 60 MiB before the first connection.
const FLOWS_MAX: u32 = 1 << 20;

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
stay, so that enrolled pods fail closed until the next weft-node. `weft-node detach` removes the hooks too.")]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArguments,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Removes the kernel hooks and maps of a node proxy that is not running: its pods leave the mesh
    Detach {
        /// The pin directory that weft-node was started with
        #[arg(long, env = "WEFT_PIN_DIR", default_value = PIN_DIR)]
        pin_dir: PathBuf,
    },
}

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
    #[arg(long, env = "WEFT_CGROUP_ROOT", value_name = "DIR", default_value = "/sys/fs/cgroup")]
    cgroup_root: PathBuf,
    /// Directory on a bpffs for the pinned hooks and maps
    #[arg(long, env = "WEFT_PIN_DIR", value_name = "DIR", default_value = PIN_DIR)]
    pin_dir: PathBuf,
    /// Where the admin endpoint listens: unix:/path or a loopback address with port
    #[arg(long, env = "WEFT_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:15021")]
    admin: String,
    /// Join sockets of one node in the kernel: auto (where the start-up probe passes) or off
    #[arg(long, env = "WEFT_REDIRECT", value_name = "auto|off", default_value = "auto")]
    redirect: String,
    /// Connections that may be intercepted on this node at a time; beyond it new ones of enrolled pods are refused. One
    /// pod may hold a quarter. 64 to 1048576; another figure than before makes new kernel maps
    #[arg(long, env = "WEFT_FLOWS_MAX", value_name = "CONNECTIONS", default_value_t = weft_ebpf::FLOWS_MAX_DEFAULT.to_string())]
    flows_max: String,
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
}

/// Where the admin endpoint listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    Unix(PathBuf),
    /// Always loopback.
    Tcp(SocketAddr),
}

impl FromStr for AdminAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match Path::new(path) {
                path if path.is_absolute() => Ok(Self::Unix(path.into())),
                _ => Err(format!("{text:?} does not name an absolute path after unix:")),
            };
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Tcp(address)),
            Ok(_) => Err(format!("{text:?} is not a loopback address: the endpoint shows the configuration")),
            Err(_) => Err(format!("{text:?} is neither unix:/path nor a loopback address with port")),
        }
    }
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
    pub admin: AdminAddress,
    /// Use sk_msg acceleration where the probe passes.
    pub redirect: bool,
    /// Intercepted connections at a time.
    pub flows_max: u32,
    pub access_log: AccessLog,
    /// None: stdout.
    pub access_log_file: Option<PathBuf>,
    pub drain: Duration,
    pub cluster_domain: String,
}

/// Every mistake of a command line, one a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the settings cannot be used:")?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl TryFrom<RunArguments> for Settings {
    type Error = Mistakes;

    fn try_from(typed: RunArguments) -> Result<Self, Mistakes> {
        let mut check = Check::default();
        let settings = Self {
            node_name: check.name("--node-name", typed.node_name),
            control_address: check.address("--control-address", typed.control_address),
            control_ca: check.required("--control-ca", typed.control_ca),
            join_token_file: check.required("--join-token-file", typed.join_token_file),
            cgroup_root: check.absolute("--cgroup-root", typed.cgroup_root),
            pin_dir: check.absolute("--pin-dir", typed.pin_dir),
            admin: check
                .parsed("--admin", typed.admin.parse())
                .unwrap_or_else(|| AdminAddress::Unix(PathBuf::new())),
            redirect: check.one_of("--redirect", &typed.redirect, &[("auto", true), ("off", false)]),
            flows_max: check.number("--flows-max", &typed.flows_max, FLOWS_MIN, FLOWS_MAX),
            access_log: check.one_of(
                "--access-log",
                &typed.access_log,
                &[("off", AccessLog::Off), ("errors", AccessLog::Errors), ("all", AccessLog::All)],
            ),
            access_log_file: typed.access_log_file,
            drain: check.seconds("--drain-seconds", &typed.drain_seconds, DRAIN_SECONDS_MAX),
            cluster_domain: check.name("--cluster-domain", Some(typed.cluster_domain)),
        };
        if check.0.is_empty() { Ok(settings) } else { Err(Mistakes(check.0)) }
    }
}

/// Collects mistakes; what it returns after one is never used.
#[derive(Default)]
struct Check(Vec<String>);

impl Check {
    fn required<T: Default>(&mut self, flag: &str, value: Option<T>) -> T {
        if value.is_none() {
            self.0.push(format!("{flag} is missing"));
        }
        value.unwrap_or_default()
    }

    fn parsed<T>(&mut self, flag: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|mistake| self.0.push(format!("{flag}: {mistake}"))).ok()
    }

    fn name(&mut self, flag: &str, value: Option<String>) -> String {
        let missing = value.is_none();
        let value = self.required(flag, value);
        let valid = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
        if !missing && (value.is_empty() || value.len() > NAME_BYTES_MAX || !value.bytes().all(valid)) {
            self.0.push(format!(
                "{flag}: {value:?} is not 1 to {NAME_BYTES_MAX} characters of a-z, 0-9, '.', '-'"
            ));
        }
        value
    }

    fn address(&mut self, flag: &str, value: Option<String>) -> String {
        let missing = value.is_none();
        let value = self.required(flag, value);
        let uri = value.parse::<http::Uri>().ok();
        let usable = uri.is_some_and(|uri| {
            uri.scheme_str() == Some("https") && uri.port_u16().is_some() && matches!(uri.path(), "" | "/")
        });
        if !missing && !usable {
            self.0.push(format!("{flag}: {value:?} is not of the form https://<host>:<port>"));
        }
        value
    }

    fn absolute(&mut self, flag: &str, value: PathBuf) -> PathBuf {
        if !value.is_absolute() {
            self.0.push(format!("{flag}: {value:?} is not an absolute path"));
        }
        value
    }

    fn one_of<T: Copy>(&mut self, flag: &str, value: &str, choices: &[(&str, T)]) -> T {
        let chosen = choices.iter().find(|(name, _)| *name == value);
        if chosen.is_none() {
            let names = choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            self.0.push(format!("{flag}: {value:?} is none of {names}"));
        }
        chosen.unwrap_or(&choices[0]).1
    }

    fn number(&mut self, flag: &str, value: &str, min: u32, max: u32) -> u32 {
        match value.parse::<u32>() {
            Ok(number) if (min..=max).contains(&number) => number,
            _ => {
                self.0.push(format!("{flag}: {value:?} is not a whole number from {min} to {max}"));
                min
            }
        }
    }

    fn seconds(&mut self, flag: &str, value: &str, max: u64) -> Duration {
        match value.parse::<u64>() {
            Ok(seconds) if seconds <= max => Duration::from_secs(seconds),
            _ => {
                self.0.push(format!("{flag}: {value:?} is not a whole number from 0 to {max}"));
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Settings, Mistakes> {
        let arguments =
            Arguments::try_parse_from(std::iter::once("weft-node").chain(line.split(' '))).unwrap();
        Settings::try_from(arguments.run)
    }

    const GOOD: &str =
        "--node-name n1 --control-address https://10.0.0.1:15012 --control-ca /ca --join-token-file /t";

    #[test]
    fn defaults_are_those_of_a_real_node() {
        let settings = parse(GOOD).unwrap();
        assert_eq!(settings.admin, AdminAddress::Tcp("127.0.0.1:15021".parse().unwrap()));
        assert_eq!(settings.cgroup_root, Path::new("/sys/fs/cgroup"));
        assert_eq!((settings.redirect, settings.access_log), (true, AccessLog::Off));
        assert_eq!(settings.drain, Duration::from_secs(30));
        assert_eq!(settings.flows_max, weft_ebpf::FLOWS_MAX_DEFAULT);
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let line = "--control-address http://x --cgroup-root rel --admin 0.0.0.0:1 --redirect on --access-log some \
                    --drain-seconds x1 --flows-max 63";
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
        ] {
            assert!(told.contains(flag), "{flag} in {told}");
        }
        assert_eq!(mistakes.0.len(), 10);
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
            assert_eq!(text.parse::<AdminAddress>().is_ok(), local, "{text:?}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }
}
