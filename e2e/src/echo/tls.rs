//! HTTPS, as far as a kubelet's probe asks for it: any certificate will do.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use hyper_util::server::graceful::Watcher;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::{Server, http};

/// With a key and a certificate that are made here and now.
pub(super) fn acceptor() -> Result<TlsAcceptor> {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

pub(super) async fn serve(
    server: Arc<Server>,
    open: Watcher,
    tls: TlsAcceptor,
    stream: TcpStream,
    from: SocketAddr,
) {
    // Who speaks no TLS gets no answer.
    if let Ok(stream) = tls.accept(stream).await {
        http::serve(server, open, stream, from).await;
    }
}
