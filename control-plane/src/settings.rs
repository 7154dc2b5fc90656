//! Flags and environment of `weft-control`, and their validation: all mistakes are reported at once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use weft_admin::{Address, listen_address};
use weft_proto::identity::{NamespacedName, TrustDomain};

/// A shorter lifetime leaves no time to renew.
const CERT_LIFETIME_MIN: Duration = Duration::from_secs(30);
/// A shorter watch is mostly the asking for the next one.
const WATCH_TIME_MIN: Duration = Duration::from_secs(2);
/// An API server ends a watch by itself after five to ten minutes.
const WATCH_TIME_MAX: Duration = Duration::from_secs(300);
/// A workload certificate is not meant to outlive a quarter.
const CERT_LIFETIME_MAX: Duration = Duration::from_secs(90 * 24 * 3600);

#[derive(Debug, Clone, Parser)]
#[command(
    name = "weft-control",
    version,
    about = "Weft's control plane: reads Kubernetes objects, tells each node what it needs, signs workload certificates",
    after_help = "Objects come from a Kubernetes API server (--kubernetes) or from directories of manifests (--manifests). Nodes \
                  connect to --listen with TLS; the certificate names the DNS name weft-control. With --manifests it chains to \
                  <state-dir>/root.pem, which every node needs, and each node authenticates with the token of a Secret of type \
                  weft.dev/join-token in the manifests.\n\nThe log is text on stderr; RUST_LOG sets its level (default `info`; \
                  such as `info,weft_control=debug`)."
)]
pub struct Settings {
    /// Directory of Kubernetes manifests (*.yaml, *.yml, *.json), read recursively and watched; may be repeated
    #[arg(long, env = "WEFT_MANIFESTS", value_delimiter = ',')]
    pub manifests: Vec<PathBuf>,

    /// Read objects from a Kubernetes API server instead: the one of --kubeconfig, else of KUBECONFIG or ~/.kube/config, else of
    /// the cluster it runs in
    #[arg(long, env = "WEFT_KUBERNETES")]
    pub kubernetes: bool,

    /// How to reach the API server, and as whom
    #[arg(long, env = "WEFT_KUBECONFIG", requires = "kubernetes")]
    pub kubeconfig: Option<PathBuf>,

    /// How long a watch of the API server lives before it is resumed; a connection that is silent for a quarter longer is dead. 2s
    /// to 5m
    #[arg(long, env = "WEFT_WATCH_TIME", default_value = "60s", value_parser = parse_duration)]
    pub watch_time: Duration,

    /// Namespace of Weft itself: its Secret, ConfigMap and Leases; its pods are never in the mesh
    #[arg(long, env = "WEFT_NAMESPACE", default_value = "weft-system")]
    pub namespace: String,

    /// Address that nodes connect to (gRPC over TLS)
    #[arg(long, env = "WEFT_LISTEN", default_value = "0.0.0.0:15012", value_parser = listen_address)]
    pub listen: SocketAddr,

    /// Directory for the authority's key, the published root.pem and the last good text of each manifest; made if missing; needed with
    /// --manifests
    #[arg(long, env = "WEFT_STATE_DIR")]
    pub state_dir: Option<PathBuf>,

    /// Issuing certificate (PEM), followed by what it chains to; default: made on first start and kept in --state-dir
    #[arg(long, env = "WEFT_CA_CERT", requires = "ca_key")]
    pub ca_cert: Option<PathBuf>,

    /// Private key of --ca-cert (PEM without a passphrase: PKCS#8, SEC1 or PKCS#1; ECDSA, RSA or Ed25519)
    #[arg(long, env = "WEFT_CA_KEY", requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,

    /// Further roots (PEM) that nodes shall trust, as during a rotation; read again when it changes. For none, the one line `# none`
    #[arg(long, env = "WEFT_EXTRA_ROOTS")]
    pub extra_roots: Option<PathBuf>,

    /// Trust domain of every identity
    #[arg(long, env = "WEFT_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,

    /// Lifetime of workload certificates, such as 24h, 90m or 60s
    #[arg(long, env = "WEFT_CERT_LIFETIME", default_value = "24h", value_parser = parse_duration)]
    pub cert_lifetime: Duration,

    /// Further DNS names and IP addresses for the server certificate, besides weft-control
    #[arg(long, env = "WEFT_SERVER_NAMES", value_delimiter = ',')]
    pub server_names: Vec<String>,

    /// Admin endpoint: unix:/path or a loopback address with port
    #[arg(long, env = "WEFT_ADMIN", default_value = "127.0.0.1:15014")]
    pub admin: Address,

    /// Address and port for /metrics, /healthz and /readyz alone, for a scraper on another machine. Plain HTTP, open to whoever reaches
    /// it [default: none]
    #[arg(long, env = "WEFT_METRICS_ADDRESS", value_parser = listen_address)]
    pub metrics_address: Option<SocketAddr>,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let seconds = match &text[digits..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err("is not a number with s, m, h or d, such as 24h".to_owned()),
    };
    let number: u64 = text[..digits].parse().map_err(|_| "does not start with a number".to_owned())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| "is too long".to_owned())
}

#[derive(Debug, thiserror::Error)]
#[error("settings: {}", .0.join("; "))]
pub struct SettingsError(Vec<String>);

impl Settings {
    /// Checks what a single flag's parser cannot. Every mistake is in the error.
    pub fn validate(&self) -> Result<TrustDomain, SettingsError> {
        let mut mistakes = Vec::new();
        let domain: Result<TrustDomain, _> = self.trust_domain.parse();
        if let Err(error) = &domain {
            mistakes.push(format!("--trust-domain: {error}"));
        }
        if !(CERT_LIFETIME_MIN..=CERT_LIFETIME_MAX).contains(&self.cert_lifetime) {
            mistakes.push(format!("--cert-lifetime: {:?} is not 30s to 90d", self.cert_lifetime));
        }
        if !(WATCH_TIME_MIN..=WATCH_TIME_MAX).contains(&self.watch_time) {
            mistakes.push(format!("--watch-time: {:?} is not 2s to 5m", self.watch_time));
        }
        if NamespacedName::new(&self.namespace, &self.namespace).is_err() {
            mistakes.push(format!("--namespace: {:?} is not a name of a namespace", self.namespace));
        }
        match (self.kubernetes, self.manifests.is_empty()) {
            (true, false) => mistakes.push("--kubernetes and --manifests exclude each other".to_owned()),
            (false, true) => mistakes.push("--kubernetes or --manifests must be given".to_owned()),
            (false, false) if self.state_dir.is_none() => {
                mistakes.push("--state-dir: needed with --manifests".to_owned());
            }
            _ => {}
        }
        for directory in self.manifests.iter().filter(|directory| !directory.is_dir()) {
            mistakes.push(format!("--manifests: {} is not a directory", directory.display()));
        }
        for (flag, file) in
            [("--ca-cert", &self.ca_cert), ("--ca-key", &self.ca_key), ("--extra-roots", &self.extra_roots)]
        {
            if let Some(file) = file.as_ref().filter(|file| !file.is_file()) {
                mistakes.push(format!("{flag}: {} is not a file", file.display()));
            }
        }
        match domain {
            Ok(domain) if mistakes.is_empty() => Ok(domain),
            _ => Err(SettingsError(mistakes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let settings = Settings::try_parse_from([
            "weft-control",
            "--manifests=/does/not/exist",
            "--state-dir=/tmp/x",
            "--trust-domain=UPPER",
            "--cert-lifetime=1s",
            "--kubernetes",
            "--namespace=Weft",
            "--watch-time=1s",
        ])
        .unwrap();
        let error = settings.validate().unwrap_err().to_string();
        for part in
            ["--manifests", "--trust-domain", "--cert-lifetime", "exclude", "--namespace", "--watch-time"]
        {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn an_address_is_read_as_kubernetes_puts_it_together() {
        for (text, address) in
            [("10.0.0.1:15012", "10.0.0.1:15012"), ("fd00::1:15012", "[fd00::1]:15012"), ("[::]:1", "[::]:1")]
        {
            let flag = format!("--listen={text}");
            let settings = Settings::try_parse_from(["weft-control", "--kubernetes", &flag]).unwrap();
            assert_eq!(settings.listen, address.parse().unwrap(), "{text}");
        }
    }

    #[test]
    fn objects_come_from_one_place() {
        let of = |arguments: &[&str]| {
            let all = ["weft-control"].iter().chain(arguments);
            Settings::try_parse_from(all).unwrap().validate().map_err(|e| e.to_string())
        };
        assert!(of(&["--kubernetes"]).is_ok());
        assert!(of(&["--manifests=/", "--state-dir=/tmp/x"]).is_ok());
        assert!(of(&["--manifests=/"]).unwrap_err().contains("--state-dir"));
        assert!(of(&[]).unwrap_err().contains("must be given"));
    }
}
