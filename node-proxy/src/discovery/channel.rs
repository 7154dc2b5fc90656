//! The connection to the control plane: TLS under its own authority, with the node's certificate, and the two services.
//!
//! The token is shown only to get that certificate, over a connection of its own at first, and over the living one when it is
//! renewed: the control plane then lets the living connection go on. A certificate is kept until it expires or until a connection with it
//! came to nothing, so that a node comes back also while nobody can judge its token.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Streaming};
use weft_proto::identity::PodUid;
use weft_proto::model::Workload;
use weft_proto::v1;
use weft_proto::v1::certificates_client::CertificatesClient;
use weft_proto::v1::discovery_client::DiscoveryClient;

use super::ControlStatus;
use super::credentials::{Believed, Files, NodeCertificate};
use crate::identity::{self, Renewal, SignError, Signer, retry_pause};
use crate::settings::Settings;
use crate::snapshot::SnapshotHandle;

/// The name in the control plane's certificate, whatever its address.
const SERVER_NAME: &str = "weft-control";
const CONNECT_TIME_OUT: Duration = Duration::from_secs(10);
/// A silent peer is noticed after 10 + 10 s.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIME_OUT: Duration = Duration::from_secs(10);
/// Largest message of a delta. The control plane cuts far below; this bounds what a wrong one can make us hold.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// How often the file of the control plane's authority is looked at: a withdrawn one ends the connection within this.
const AUTHORITY_CHECK: Duration = Duration::from_secs(5);

/// Why there is no connection to the control plane.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot read {what} from {path}: {source}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the token in {0} is empty or has characters that a token cannot have")]
    Token(PathBuf),
    #[error("{0} holds no certificate, or something that is not one")]
    Authority(PathBuf),
    #[error("{0} is being written")]
    BeingWritten(PathBuf),
    #[error("a key cannot be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error("the address or authority of the control plane cannot be used: {0}")]
    Endpoint(tonic::transport::Error),
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("the control plane answered {:?}: {}", .0.code(), causes(.0.as_ref()))]
    Status(Box<tonic::Status>),
    #[error("no certificate for this node: {0}")]
    NodeCertificate(Box<ControlError>),
    #[error("no answer within {} s", CONNECT_TIME_OUT.as_secs())]
    NoAnswer,
    #[error("the control plane's authority has changed; connecting again under the new one")]
    AuthorityChanged,
}

impl From<tonic::Status> for ControlError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Reaches the control plane.
pub struct ControlPlane {
    address: String,
    files: Files,
    /// Where a pod that is asked a certificate for is named.
    snapshot: Arc<SnapshotHandle>,
    believed: Mutex<Believed>,
    certificate: ArcSwapOption<NodeCertificate>,
    /// A connection with the certificate came to nothing: it may be the certificate.
    doubted: AtomicBool,
    /// The living connection, and the authority that it was opened under.
    current: ArcSwapOption<(Channel, Arc<String>)>,
}

impl ControlPlane {
    pub fn new(settings: &Settings, snapshot: Arc<SnapshotHandle>) -> Self {
        let files = Files::new(settings.control_ca.clone(), settings.join_token_file.clone());
        Self::at(settings.control_address.clone(), files, snapshot)
    }

    pub(super) fn at(address: String, files: Files, snapshot: Arc<SnapshotHandle>) -> Self {
        Self {
            address,
            files,
            snapshot,
            believed: Mutex::default(),
            certificate: ArcSwapOption::empty(),
            doubted: AtomicBool::new(false),
            current: ArcSwapOption::empty(),
        }
    }

    /// Connects and opens the stream of deltas.
    pub(super) async fn subscribe(
        &self,
        outgoing: impl Stream<Item = v1::NodeMessage> + Send + 'static,
        status: &watch::Sender<ControlStatus>,
    ) -> Result<Streaming<v1::Delta>, ControlError> {
        let authority = self.files.authority().await?;
        let certificate = self.certificate(&authority, status).await?;
        let channel = self.open(&authority, Some(&certificate)).await?;
        // Until a delta arrives: a refused certificate shows only after the client's part of the handshake.
        self.doubted.store(true, Ordering::Relaxed);
        self.current.store(Some(Arc::new((channel.clone(), authority))));
        let mut client = DiscoveryClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = tokio::time::timeout(CONNECT_TIME_OUT, client.subscribe(outgoing));
        Ok(answer.await.map_err(|_| ControlError::NoAnswer)??.into_inner())
    }

    /// The control plane believed the certificate.
    pub(super) fn believed(&self) {
        self.doubted.store(false, Ordering::Relaxed);
    }

    /// The stream ended: whether for the certificate's sake.
    pub(super) fn ended(&self, error: &tonic::Status) {
        if error.code() == tonic::Code::Unauthenticated {
            self.doubted.store(true, Ordering::Relaxed);
        }
    }

    /// A certificate to connect with: the present one if there is no reason against it, or else a new one.
    async fn certificate(
        &self,
        authority: &Arc<String>,
        status: &watch::Sender<ControlStatus>,
    ) -> Result<Arc<NodeCertificate>, ControlError> {
        let present = self.certificate.load_full().filter(|present| !present.expired());
        if let Some(present) = &present
            && !self.doubted.load(Ordering::Relaxed)
        {
            return Ok(Arc::clone(present));
        }
        let asked = async { self.ask(self.open(authority, None).await?, status).await };
        match (asked.await, present) {
            (Ok(certificate), _) => Ok(certificate),
            (Err(error), Some(present)) => {
                tracing::warn!(%error, "no new certificate for this node; trying with the present one");
                Ok(present)
            }
            (Err(error), None) => Err(ControlError::NodeCertificate(Box::new(error))),
        }
    }

    /// Asks for a certificate of this node, with the token as it is now.
    async fn ask(
        &self,
        channel: Channel,
        status: &watch::Sender<ControlStatus>,
    ) -> Result<Arc<NodeCertificate>, ControlError> {
        let token = self.files.token().await?;
        let key = identity::Request::new()?;
        let mut request = Request::new(v1::SignNodeRequest { csr_der: key.csr_der.clone() });
        request.metadata_mut().insert("authorization", token);
        let mut client = CertificatesClient::new(channel);
        let answer = tokio::time::timeout(CONNECT_TIME_OUT, client.sign_node(request));
        let answer = answer.await.map_err(|_| ControlError::NoAnswer)??.into_inner();
        let certificate = Arc::new(NodeCertificate::new(&key, answer));
        tracing::info!(not_after = ?certificate.not_after, "node certificate obtained");
        status.send_modify(|status| status.certificate = Some(certificate.status()));
        self.certificate.store(Some(Arc::clone(&certificate)));
        self.doubted.store(false, Ordering::Relaxed);
        Ok(certificate)
    }

    /// Runs beside the stream of the living connection: renews the node's certificate over it, and returns when the
    /// connection should be opened anew.
    pub(super) async fn upkeep(&self, status: &watch::Sender<ControlStatus>) -> ControlError {
        tokio::select! {
            () = self.renew(status) => ControlError::NoAnswer,
            () = self.authority_changed() => ControlError::AuthorityChanged,
        }
    }

    async fn renew(&self, status: &watch::Sender<ControlStatus>) {
        let mut failures = 0_u32;
        loop {
            match self.certificate.load_full() {
                Some(present) if failures == 0 => {
                    let (not_before, not_after) = (present.not_before, present.not_after);
                    let renewal = Renewal::new(not_before, not_after, present.obtained, rand::random());
                    renewal.due(SystemTime::now).await;
                }
                _ => tokio::time::sleep(retry_pause(failures, rand::random())).await,
            }
            let Some(current) = self.current.load_full() else { continue };
            failures = match self.ask(current.0.clone(), status).await {
                Ok(_) => 0,
                Err(error) => {
                    let reason = error.to_string();
                    tracing::warn!(reason, failures, "the node's certificate was not renewed");
                    status.send_modify(|status| {
                        if let Some(certificate) = &mut status.certificate {
                            certificate.last_error = Some(reason);
                        }
                    });
                    failures.saturating_add(1)
                }
            };
        }
    }

    /// Returns when the file holds another usable authority than that of the living connection.
    async fn authority_changed(&self) {
        loop {
            tokio::time::sleep(AUTHORITY_CHECK).await;
            let (Ok(now), Some(current)) = (self.files.authority().await, self.current.load_full()) else {
                continue;
            };
            if now != current.1 {
                return;
            }
        }
    }

    async fn open(
        &self,
        authority: &Arc<String>,
        certificate: Option<&NodeCertificate>,
    ) -> Result<Channel, ControlError> {
        let believed = {
            let snapshot = self.snapshot.load();
            let pushed = snapshot.mesh().map_or(&[][..], |mesh| &mesh.roots);
            self.believed.lock().by(authority, pushed)
        };
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(believed)).domain_name(SERVER_NAME);
        if let Some(certificate) = certificate {
            tls = tls.identity(certificate.identity.clone());
        }
        let endpoint = Endpoint::from_shared(self.address.clone())
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(ControlError::Endpoint)?
            .connect_timeout(CONNECT_TIME_OUT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIME_OUT)
            .keep_alive_while_idle(true);
        let connect = tokio::time::timeout(CONNECT_TIME_OUT, endpoint.connect());
        let channel = connect.await.map_err(|_| ControlError::NoAnswer)?;
        channel.map_err(|error| ControlError::Connect(causes(&error)))
    }
}

/// tonic says "transport error" and keeps the reason below.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<tonic::Status>() {
        Some(status) => status.message().to_owned(),
        None => error.to_string(),
    };
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

impl Signer for ControlPlane {
    fn sign(
        &self,
        pod: PodUid,
        csr_der: Vec<u8>,
    ) -> BoxFuture<'static, Result<Vec<CertificateDer<'static>>, SignError>> {
        let current = self.current.load_full();
        let workload = self.snapshot.load().workload(&pod).cloned();
        async move {
            let current = current.ok_or_else(|| SignError("not connected to the control plane".into()))?;
            let name = |part: fn(&Workload) -> &str| {
                workload.as_deref().map_or_else(String::new, |workload| part(workload).to_owned())
            };
            let request = v1::SignRequest {
                pod_uid: pod.to_string(),
                csr_der,
                pod_namespace: name(|workload| &workload.namespace),
                pod_name: name(|workload| &workload.name),
            };
            let answer = CertificatesClient::new(current.0.clone()).sign(request).await;
            let answer = answer.map_err(|status| SignError(ControlError::from(status).to_string()))?;
            Ok(answer.into_inner().chain_der.into_iter().map(CertificateDer::from).collect())
        }
        .boxed()
    }
}
