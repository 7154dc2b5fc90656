//! OTLP over gRPC (tonic) or HTTP with protobuf bodies (hyper), plaintext or TLS. One call per batch; no queue, no repeats
//! here. Start at [`Transport::send`].

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::TelemetryError;
use super::environment::{ExportProtocol, ExportSettings};

/// Where Debian, Fedora and Alpine keep the authorities; the first that exists is used.
const SYSTEM_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// Of an answer: it holds a count and a message.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(super) struct TransportError {
    what: String,
    /// By OTLP's list of transient failures.
    pub(super) repeatable: bool,
}

impl TransportError {
    fn transient(what: impl std::fmt::Display) -> Self {
        Self { what: what.to_string(), repeatable: true }
    }
}

pub(super) enum Transport {
    Grpc { channel: Channel, metadata: MetadataMap, gzip: bool, timeout: Duration },
    Http(Http),
}

pub(super) struct Http {
    endpoint: Uri,
    headers: HeaderMap,
    gzip: bool,
    timeout: Duration,
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Transport {
    /// Connects to nothing yet. Needs a runtime.
    pub(super) fn new(settings: &ExportSettings) -> Result<Self, TelemetryError> {
        let headers: HeaderMap = settings.headers.iter().cloned().collect();
        let timeout = settings.timeout;
        let secure = settings.endpoint.scheme_str() == Some("https");
        if settings.protocol == ExportProtocol::HttpProtobuf {
            let tls = secure.then(|| http_tls(settings)).transpose()?;
            let endpoint = settings.endpoint.clone();
            return Ok(Self::Http(Http { endpoint, headers, gzip: settings.gzip, timeout, tls }));
        }
        let mut endpoint = Endpoint::from(settings.endpoint.clone()).connect_timeout(timeout);
        if secure {
            endpoint = endpoint
                .tls_config(grpc_tls(settings)?)
                .map_err(|error| TelemetryError::ExporterTls(format!("{}: {error}", settings.endpoint)))?;
        }
        Ok(Self::Grpc {
            channel: endpoint.connect_lazy(),
            metadata: MetadataMap::from_headers(headers),
            gzip: settings.gzip,
            timeout,
        })
    }

    /// Sends one batch; gives how many of its spans the collector refused.
    pub(super) async fn send(&self, request: &ExportTraceServiceRequest) -> Result<u64, TransportError> {
        let (timeout, call) = match self {
            Self::Grpc { timeout, .. } => (*timeout, futures_util::future::Either::Left(self.grpc(request))),
            Self::Http(http) => (http.timeout, futures_util::future::Either::Right(http.post(request))),
        };
        match tokio::time::timeout(timeout, call).await {
            Ok(sent) => sent.map(|answer| refused(&answer)),
            Err(_elapsed) => Err(TransportError::transient("the collector did not answer in time")),
        }
    }

    async fn grpc(
        &self,
        request: &ExportTraceServiceRequest,
    ) -> Result<ExportTraceServiceResponse, TransportError> {
        use tonic::Code;
        let Self::Grpc { channel, metadata, gzip, .. } = self else {
            return Err(TransportError { what: "not a gRPC transport".into(), repeatable: false });
        };
        let mut client = TraceServiceClient::new(channel.clone());
        if *gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let mut call = tonic::Request::new(request.clone());
        *call.metadata_mut() = metadata.clone();
        client.export(call).await.map(tonic::Response::into_inner).map_err(|status| TransportError {
            repeatable: matches!(
                status.code(),
                Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::Aborted
                    | Code::OutOfRange
                    | Code::Unavailable
                    | Code::DataLoss
                    | Code::ResourceExhausted
            ),
            what: status.to_string(),
        })
    }
}

fn refused(answer: &ExportTraceServiceResponse) -> u64 {
    let rejected = answer.partial_success.as_ref().map_or(0, |partial| partial.rejected_spans);
    u64::try_from(rejected).unwrap_or(0)
}

impl Http {
    /// A connection per batch: one every few seconds is not worth a pool.
    async fn post(
        &self,
        request: &ExportTraceServiceRequest,
    ) -> Result<ExportTraceServiceResponse, TransportError> {
        let host = self.endpoint.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = self.endpoint.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let tcp = TcpStream::connect((host, port)).await.map_err(TransportError::transient)?;
        match &self.tls {
            None => self.post_over(tcp, request).await,
            Some(config) => {
                let name = ServerName::try_from(host.to_owned())
                    .map_err(|error| TransportError { what: error.to_string(), repeatable: false })?;
                let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
                let tls = connector.connect(name, tcp).await.map_err(TransportError::transient)?;
                self.post_over(tls, request).await
            }
        }
    }

    async fn post_over<IO>(
        &self,
        io: IO,
        request: &ExportTraceServiceRequest,
    ) -> Result<ExportTraceServiceResponse, TransportError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
            .await
            .map_err(TransportError::transient)?;
        // Drives the connection until its answer is read; it ends with `sender`.
        let driver = tokio::spawn(connection);
        let answer = self.exchange(&mut sender, request).await;
        driver.abort();
        answer
    }

    async fn exchange(
        &self,
        sender: &mut hyper::client::conn::http1::SendRequest<Full<Bytes>>,
        request: &ExportTraceServiceRequest,
    ) -> Result<ExportTraceServiceResponse, TransportError> {
        let response = sender.send_request(self.request(request)?).await;
        let (head, body) = response.map_err(TransportError::transient)?.into_parts();
        if !head.status.is_success() {
            return Err(TransportError {
                what: format!("the collector answered {}", head.status),
                repeatable: matches!(head.status.as_u16(), 429 | 502 | 503 | 504),
            });
        }
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(TransportError::transient)?;
        // An answer that is not OTLP says nothing about refused spans.
        Ok(ExportTraceServiceResponse::decode(body.to_bytes()).unwrap_or_default())
    }

    fn request(&self, request: &ExportTraceServiceRequest) -> Result<Request<Full<Bytes>>, TransportError> {
        let permanent = |what: String| TransportError { what, repeatable: false };
        let mut body = request.encode_to_vec();
        let mut post = Request::post(self.endpoint.path_and_query().map_or("/", |path| path.as_str()));
        if self.gzip {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&body).map_err(|error| permanent(error.to_string()))?;
            body = encoder.finish().map_err(|error| permanent(error.to_string()))?;
            post = post.header(header::CONTENT_ENCODING, "gzip");
        }
        let authority = self.endpoint.authority().map_or("", |authority| authority.as_str());
        let mut post = post
            .header(header::HOST, authority)
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| permanent(error.to_string()))?;
        let headers = post.headers_mut();
        headers.extend(self.headers.clone());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        Ok(post)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TelemetryError> {
    std::fs::read(path).map_err(|error| TelemetryError::ExporterTls(format!("{}: {error}", path.display())))
}

/// `OTEL_EXPORTER_OTLP_CERTIFICATE`, or what the system trusts.
fn authorities(settings: &ExportSettings) -> Result<Vec<u8>, TelemetryError> {
    match &settings.ca_file {
        Some(path) => read(path),
        None => SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists()).map_or_else(
            || {
                Err(TelemetryError::ExporterTls(
                    "the system has no bundle of authorities: set OTEL_EXPORTER_OTLP_CERTIFICATE".into(),
                ))
            },
            read,
        ),
    }
}

/// Certificate chain and key, both PEM.
type PemPair = (Vec<u8>, Vec<u8>);

fn client(settings: &ExportSettings) -> Result<Option<PemPair>, TelemetryError> {
    match (&settings.client_certificate_file, &settings.client_key_file) {
        (Some(certificate), Some(key)) => Ok(Some((read(certificate)?, read(key)?))),
        _ => Ok(None),
    }
}

fn grpc_tls(settings: &ExportSettings) -> Result<ClientTlsConfig, TelemetryError> {
    let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities(settings)?));
    Ok(match client(settings)? {
        None => config,
        Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
    })
}

/// Not a workload's TLS, so not `identity`'s: a collector is an ordinary server with a DNS name.
fn http_tls(settings: &ExportSettings) -> Result<Arc<rustls::ClientConfig>, TelemetryError> {
    let bad = |error: &dyn std::fmt::Display| TelemetryError::ExporterTls(error.to_string());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&authorities(settings)?) {
        // A system's bundle may hold a certificate that rustls does not read: the others still count.
        let _ = roots.add(certificate.map_err(|error| bad(&error))?);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&error))?
        .with_root_certificates(roots);
    let config = match client(settings)? {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate).collect();
            let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| bad(&error))?;
            builder
                .with_client_auth_cert(chain.map_err(|error| bad(&error))?, key)
                .map_err(|error| bad(&error))?
        }
    };
    Ok(Arc::new(config))
}
