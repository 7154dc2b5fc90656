//! Why a stream of a tunnel could not be had. Cheap to clone: everybody who waited for one dial gets its error.

use std::io;
use std::sync::Arc;

use http::StatusCode;

use crate::identity::IdentityError;

#[derive(Debug, Clone, thiserror::Error)]
pub enum TunnelError {
    /// TCP.
    #[error("connect: {0}")]
    Connect(Arc<io::Error>),
    #[error("TLS: {0}")]
    Tls(Arc<io::Error>),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the peer does not speak h2")]
    Alpn,
    #[error("no answer in time")]
    TimedOut,
    /// The tunnel broke, or was given up, before the answer.
    #[error("HTTP/2: {0}")]
    Lost(Arc<h2::Error>),
    /// An answer other than 200.
    #[error("answered {status}{}", reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default())]
    Refused {
        status: StatusCode,
        reason: Option<String>,
        /// The policy that denied, as the other side names it.
        policy: Option<String>,
    },
    /// The bound on tunnels with this key was hit.
    #[error("too many tunnels")]
    Overloaded,
}

impl From<h2::Error> for TunnelError {
    fn from(error: h2::Error) -> Self {
        Self::Lost(Arc::new(error))
    }
}
