//! Is this the end of one weft-node, or of Weft on this node? Asked of the API server at SIGTERM, because the signal is the same for an
//! upgrade, after which everything must still be in place, and for an uninstall, after which nothing may be.
//!
//! Nothing but a clear answer counts as an uninstall: what is left in place wrongly keeps pods closed until somebody removes it, what is
//! removed wrongly lets them talk in the clear. Start at [`Cluster::was_removed`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::{info, warn};
use weft_proto::identity::NamespacedName;

/// Where Kubernetes puts a pod's credentials for its API.
const CREDENTIALS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// For one answer.
const ANSWER_WAIT: Duration = Duration::from_secs(3);
/// Questions at the end, and the pause between them: some seconds of the time that the kubelet gives us.
const QUESTIONS_MAX: u32 = 4;
const QUESTION_PAUSE: Duration = Duration::from_millis(500);
/// Between questions at the start, until there is a good answer.
const START_PAUSE: Duration = Duration::from_secs(15);
/// A DaemonSet has some KiB.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// The API server, and what to ask it for.
#[derive(Debug)]
pub struct Cluster {
    host: String,
    port: u16,
    credentials: PathBuf,
    daemonset: NamespacedName,
    /// It was there, and we were allowed to look, at some time of this process.
    seen: AtomicBool,
}

/// What the API server said.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Present,
    Deleting,
    Gone,
    /// Our permission or our identity is gone.
    Refused(StatusCode),
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("{path}: {source}")]
    Credentials { path: PathBuf, source: io::Error },
    #[error("{0} is not a certificate that can be used")]
    Authority(PathBuf),
    #[error("{0:?} is not a name or an address of a server")]
    Host(String),
    #[error("the API server cannot be reached: {0}")]
    Connect(#[from] io::Error),
    #[error("the exchange with the API server failed: {0}")]
    Http(Box<dyn std::error::Error + Send + Sync>),
    #[error("the API server answers {0}")]
    Status(StatusCode),
    #[error("the API server's answer is not about what was asked for")]
    Unexpected,
    #[error("the API server did not answer in {} s", ANSWER_WAIT.as_secs())]
    Late,
}

/// Of what the API server answers, what matters here.
#[derive(Deserialize)]
struct Object {
    kind: String,
    #[serde(default)]
    metadata: Metadata,
    /// Of a Status.
    #[serde(default)]
    reason: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    name: String,
    deletion_timestamp: Option<String>,
}

impl Cluster {
    /// None outside of Kubernetes.
    pub fn from_environment(daemonset: NamespacedName) -> Option<Self> {
        let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
        let port = std::env::var("KUBERNETES_SERVICE_PORT").ok()?.parse().ok()?;
        let credentials = PathBuf::from(CREDENTIALS);
        let seen = AtomicBool::new(false);
        credentials.exists().then_some(Self { host, port, credentials, daemonset, seen })
    }

    /// Returns once we know that we may ask. Without that, no later answer counts.
    pub async fn verify(&self) {
        let mut told = None;
        loop {
            let problem = match self.ask().await {
                Ok(Answer::Present | Answer::Deleting) => {
                    self.seen.store(true, Ordering::Relaxed);
                    return;
                }
                Ok(Answer::Gone) => format!("there is no DaemonSet {}", self.daemonset),
                Ok(Answer::Refused(status)) => {
                    format!("the API server answers {status} about the DaemonSet {}", self.daemonset)
                }
                Err(error) => error.to_string(),
            };
            if told.as_ref() != Some(&problem) {
                warn!(
                    problem,
                    "as long as this lasts, an uninstall will leave hooks and CNI plugin on this node"
                );
                told = Some(problem);
            }
            tokio::time::sleep(START_PAUSE).await;
        }
    }

    /// Weft is being removed from this node. Takes some seconds at most.
    pub async fn was_removed(&self) -> bool {
        if !self.seen.load(Ordering::Relaxed) {
            info!("the DaemonSet was never seen: everything stays in place");
            return false;
        }
        let mut refused = 0;
        for question in 0..QUESTIONS_MAX {
            if question > 0 {
                tokio::time::sleep(QUESTION_PAUSE).await;
            }
            match self.ask().await {
                Ok(Answer::Present) => return false,
                Ok(answer @ (Answer::Deleting | Answer::Gone)) => {
                    info!(daemonset = %self.daemonset, ?answer, "Weft is being removed from this node");
                    return true;
                }
                // Not at the first time: an authorizer may be out of breath.
                Ok(Answer::Refused(_)) => refused += 1,
                Err(error) => {
                    warn!(%error, "cannot ask whether the DaemonSet is still there");
                    refused = 0;
                }
            }
        }
        // It was allowed before, so the permission or the account went with the installation.
        let removed = refused == QUESTIONS_MAX;
        info!(removed, daemonset = %self.daemonset, "no answer about the DaemonSet but this");
        removed
    }

    async fn ask(&self) -> Result<Answer, AskError> {
        tokio::time::timeout(ANSWER_WAIT, self.answer()).await.unwrap_or(Err(AskError::Late))
    }

    /// About the DaemonSet and, while it is there, its namespace: of one that is being deleted, pods may go before their DaemonSet.
    async fn answer(&self) -> Result<Answer, AskError> {
        let NamespacedName { namespace, name } = &self.daemonset;
        let path = format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}");
        let answer = self.exchange(&path, "DaemonSet", name).await?;
        if answer != Answer::Present {
            return Ok(answer);
        }
        let path = format!("/api/v1/namespaces/{namespace}");
        match self.exchange(&path, "Namespace", namespace).await? {
            Answer::Deleting => Ok(Answer::Deleting),
            // Refused: by a role that does not know of this question.
            _ => Ok(Answer::Present),
        }
    }

    async fn exchange(&self, path: &str, kind: &str, name: &str) -> Result<Answer, AskError> {
        let token = self.credential("token").await?;
        let token = String::from_utf8_lossy(&token).trim().to_owned();
        let tls = TlsConnector::from(Arc::new(self.tls().await?));
        let server =
            ServerName::try_from(self.host.clone()).map_err(|_| AskError::Host(self.host.clone()))?;
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let io = TokioIo::new(tls.connect(server, tcp).await?);
        let request = Request::get(path)
            .header(header::HOST, &self.host)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())
            .map_err(|error| AskError::Http(error.into()))?;
        let http = |error: hyper::Error| AskError::Http(error.into());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(http)?;
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
        connection.abort();
        understood(kind, name, status, &body.map_err(AskError::Http)?.to_bytes())
    }

    async fn credential(&self, name: &str) -> Result<Vec<u8>, AskError> {
        let path = self.credentials.join(name);
        tokio::fs::read(&path).await.map_err(|source| AskError::Credentials { path, source })
    }

    async fn tls(&self) -> Result<ClientConfig, AskError> {
        let unusable = || AskError::Authority(self.credentials.join("ca.crt"));
        let pem = self.credential("ca.crt").await?;
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(&pem) {
            roots.add(root.map_err(|_| unusable())?).map_err(|_| unusable())?;
        }
        if roots.is_empty() {
            return Err(unusable());
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        Ok(builder.map_err(|_| unusable())?.with_root_certificates(roots).with_no_client_auth())
    }
}

/// Pure: what an answer about the object of this kind and name means.
fn understood(kind: &str, name: &str, status: StatusCode, body: &[u8]) -> Result<Answer, AskError> {
    let object = || serde_json::from_slice::<Object>(body).map_err(|_| AskError::Unexpected);
    match status {
        StatusCode::OK => {
            let object = object()?;
            if object.kind != kind || object.metadata.name != name {
                return Err(AskError::Unexpected);
            }
            Ok(if object.metadata.deletion_timestamp.is_some() { Answer::Deleting } else { Answer::Present })
        }
        // Not any 404: a proxy in between may say that too.
        StatusCode::NOT_FOUND => {
            let object = object()?;
            let clear = object.kind == "Status" && object.reason == "NotFound";
            if clear { Ok(Answer::Gone) } else { Err(AskError::Unexpected) }
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(Answer::Refused(status)),
        other => Err(AskError::Status(other)),
    }
}

/// The sockets, what lies beside them for the CNI plugin, and their directory if nothing else is in it (where it is a mount point, it stays).
pub fn remove_sockets<'a>(sockets: impl IntoIterator<Item = &'a Path>) {
    for socket in sockets {
        // Best effort: whoever comes next replaces a dead socket.
        let _ = std::fs::remove_file(socket);
        let _ = socket.parent().map(std::fs::remove_dir);
    }
}

#[cfg(test)]
mod tests;
