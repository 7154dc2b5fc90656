//! The connection to the control plane: TLS under its own authority, the node's join token, and the two services.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustls_pki_types::CertificateDer;
use tokio_stream::Stream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Streaming};
use weft_proto::identity::PodUid;
use weft_proto::v1;
use weft_proto::v1::certificates_client::CertificatesClient;
use weft_proto::v1::discovery_client::DiscoveryClient;

use crate::identity::{SignError, Signer};
use crate::settings::Settings;

/// The name in the control plane's certificate, whatever its address.
const SERVER_NAME: &str = "weft-control";
const CONNECT_TIME_OUT: Duration = Duration::from_secs(10);
/// A silent peer is noticed after 10 + 10 s.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIME_OUT: Duration = Duration::from_secs(10);
/// Largest message of a delta. The control plane cuts far below; this bounds what a wrong one can make us hold.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Why there is no connection to the control plane.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot read {what} from {path}: {source}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the join token in {0} is empty or has characters that a token cannot have")]
    Token(PathBuf),
    #[error("the address or authority of the control plane cannot be used: {0}")]
    Endpoint(tonic::transport::Error),
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("the control plane answered {:?}: {}", .0.code(), .0.message())]
    Status(Box<tonic::Status>),
    #[error("no answer within {} s", CONNECT_TIME_OUT.as_secs())]
    NoAnswer,
}

impl From<tonic::Status> for ControlError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Reaches the control plane. The files are read at each connect: both may be renewed.
pub struct ControlPlane {
    address: String,
    authority_file: PathBuf,
    token_file: PathBuf,
    current: ArcSwapOption<(Channel, MetadataValue<Ascii>)>,
}

impl ControlPlane {
    pub fn new(settings: &Settings) -> Self {
        Self::at(
            settings.control_address.clone(),
            settings.control_ca.clone(),
            settings.join_token_file.clone(),
        )
    }

    pub(super) fn at(address: String, authority_file: PathBuf, token_file: PathBuf) -> Self {
        Self { address, authority_file, token_file, current: ArcSwapOption::empty() }
    }

    /// Connects and opens the stream of deltas.
    pub(super) async fn subscribe(
        &self,
        outgoing: impl Stream<Item = v1::NodeMessage> + Send + 'static,
    ) -> Result<Streaming<v1::Delta>, ControlError> {
        let (channel, token) = self.connect().await?;
        self.current.store(Some(Arc::new((channel.clone(), token.clone()))));
        let mut client = DiscoveryClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = client.subscribe(authorized(outgoing, &token));
        let answer =
            tokio::time::timeout(CONNECT_TIME_OUT, answer).await.map_err(|_| ControlError::NoAnswer)??;
        Ok(answer.into_inner())
    }

    async fn connect(&self) -> Result<(Channel, MetadataValue<Ascii>), ControlError> {
        let read = |what, path: &PathBuf| {
            let path = path.clone();
            async move {
                let text = tokio::fs::read_to_string(&path).await;
                text.map_err(|source| ControlError::File { what, path, source })
            }
        };
        let authority = read("the control plane's authority", &self.authority_file).await?;
        let token = read("the join token", &self.token_file).await?;
        let bad_token = || ControlError::Token(self.token_file.clone());
        let mut token: MetadataValue<Ascii> = match token.trim() {
            "" => return Err(bad_token()),
            token => format!("Bearer {token}").parse().map_err(|_| bad_token())?,
        };
        token.set_sensitive(true);
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority)).domain_name(SERVER_NAME);
        let endpoint = Endpoint::from_shared(self.address.clone())
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(ControlError::Endpoint)?
            .connect_timeout(CONNECT_TIME_OUT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIME_OUT)
            .keep_alive_while_idle(true);
        let connect = tokio::time::timeout(CONNECT_TIME_OUT, endpoint.connect());
        let channel = connect.await.map_err(|_| ControlError::NoAnswer)?;
        Ok((channel.map_err(|error| ControlError::Connect(causes(&error)))?, token))
    }
}

/// tonic says "transport error" and keeps the reason below.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn authorized<T>(message: T, token: &MetadataValue<Ascii>) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", token.clone());
    request
}

impl Signer for ControlPlane {
    fn sign(
        &self,
        pod: PodUid,
        csr_der: Vec<u8>,
    ) -> BoxFuture<'static, Result<Vec<CertificateDer<'static>>, SignError>> {
        let current = self.current.load_full();
        async move {
            let current = current.ok_or_else(|| SignError("not connected to the control plane".into()))?;
            let (channel, token) = &*current;
            let request = v1::SignRequest { pod_uid: pod.to_string(), csr_der };
            let answer = CertificatesClient::new(channel.clone()).sign(authorized(request, token)).await;
            let answer = answer.map_err(|status| SignError(ControlError::from(status).to_string()))?;
            Ok(answer.into_inner().chain_der.into_iter().map(CertificateDer::from).collect())
        }
        .boxed()
    }
}
