//! Weft on a Kubernetes cluster: install, check, uninstall, and what its parts say of themselves.
//!
//! It speaks to the API server as the user of the kubeconfig, and to weft-control and weft-node by `exec` in their pods, as
//! kubectl would: they have no port that could be asked. It must not decide anything for them. Start at [`Target::connect`].

mod check;
mod exec;
#[cfg(test)]
mod fake;
mod install;
mod manifest;
mod parents;
mod readiness;
mod release;
mod sources;
mod standing;
mod uninstall;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

pub(crate) use check::Arguments as CheckArguments;
pub(crate) use install::Arguments as InstallArguments;
pub(crate) use sources::{cluster_config, cluster_statuses};
pub(crate) use uninstall::Arguments as UninstallArguments;

/// Weft's own namespace. Fixed: the nodes' identity and the CNI plugin's exclusions name it.
const NAMESPACE: &str = "weft-system";
const CONTROL: &str = "weft-control";
const NODE: &str = "weft-node";
/// The label that every object of Weft has.
const PART_OF: &str = "app.kubernetes.io/part-of=weft";
const NAME_LABEL: &str = "app.kubernetes.io/name";
const VERSION_LABEL: &str = "app.kubernetes.io/version";
/// An API server that does not take a connection by then is not there.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(10);

/// Which cluster.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Target {
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// File to read instead of $KUBECONFIG or ~/.kube/config
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// A cluster that was named; nothing has been asked of it yet.
#[derive(Clone)]
struct Cluster {
    client: Client,
    server: String,
}

impl Target {
    pub(crate) fn is_named(&self) -> bool {
        self.context.is_some() || self.kubeconfig.is_some()
    }

    async fn connect(&self) -> Result<Cluster> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut config = self.config().await?;
        config.connect_timeout = Some(CONNECT_WAIT_MAX);
        let server = config.cluster_url.to_string();
        let client =
            Client::try_from(config).with_context(|| format!("the kubeconfig's entry for {server}"))?;
        Ok(Cluster { client, server })
    }

    async fn config(&self) -> Result<Config> {
        let read = match &self.kubeconfig {
            Some(file) => Kubeconfig::read_from(file),
            None => Kubeconfig::read(),
        };
        let kubeconfig = match read {
            Ok(kubeconfig) => kubeconfig,
            Err(_) if !self.is_named() && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
                return Config::incluster().context("the ServiceAccount of this pod");
            }
            Err(KubeconfigError::FindPath) => bail!(NO_KUBECONFIG),
            Err(KubeconfigError::ReadConfig(error, path)) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("no kubeconfig: {} does not exist; {NAME_ONE}", path.display())
            }
            Err(error) => return Err(error).context("the kubeconfig cannot be used"),
        };
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        match Config::from_custom_kubeconfig(kubeconfig, &options).await {
            Ok(config) => Ok(config),
            Err(KubeconfigError::LoadContext(name)) => bail!("the kubeconfig has no context {name:?}"),
            Err(KubeconfigError::CurrentContextNotSet) => {
                bail!("the kubeconfig has no current context; say --context <name>")
            }
            Err(error) => Err(error).context("the kubeconfig cannot be used"),
        }
    }
}

const NAME_ONE: &str = "name one with --kubeconfig <file> or $KUBECONFIG";
const NO_KUBECONFIG: &str = "no kubeconfig: neither --kubeconfig, nor $KUBECONFIG, nor ~/.kube/config is there, and this is no pod of a cluster";

/// Runs one command against a cluster.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

pub(crate) fn install(arguments: &InstallArguments) -> Result<()> {
    block_on(install::run(arguments))
}

pub(crate) fn uninstall(arguments: &UninstallArguments) -> Result<()> {
    block_on(uninstall::run(arguments))
}

pub(crate) fn check(arguments: &CheckArguments) -> Result<ExitCode> {
    Ok(if check::run(arguments)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
