//! Which node shows a token. One interface, two ways: join tokens from manifests, ServiceAccount tokens of a cluster.
//!
//! A token is good for a node's certificate and for nothing else; everything after that goes by the certificate.

use std::sync::Arc;

use tonic::Status;
use tonic::metadata::MetadataMap;

/// Longer than any token of Kubernetes, and far below what HTTP/2 lets a header have.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Why a token does not stand for a node. The text goes to the log and to the caller: no secret is in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotVouched {
    /// Judged, and found wrong.
    #[error("{0}")]
    Refused(String),
    /// Nobody can judge it now. The caller keeps what it has and comes again.
    #[error("the token cannot be judged now: {0}")]
    Unavailable(String),
}

impl From<NotVouched> for Status {
    fn from(error: NotVouched) -> Self {
        match error {
            NotVouched::Refused(_) => Self::unauthenticated(error.to_string()),
            NotVouched::Unavailable(_) => Self::unavailable(error.to_string()),
        }
    }
}

#[tonic::async_trait]
pub trait Authenticate: Send + Sync + 'static {
    /// The node that the token belongs to.
    async fn node(&self, token: &str) -> Result<Arc<str>, NotVouched>;

    /// Whether a live session of the node may go on: asked again and again, so it must be cheap. What cannot be told
    /// without asking somebody else is told at the next renewal of the node's certificate.
    fn vouches_for(&self, node: &str) -> bool;
}

/// The bearer token of a request.
pub(super) fn bearer(metadata: &MetadataMap) -> Result<&str, NotVouched> {
    let refused = |what: &str| NotVouched::Refused(what.to_owned());
    let header = metadata.get("authorization").ok_or_else(|| refused("no token was shown"))?;
    let header = header.to_str().map_err(|_| refused("the token has characters that no token has"))?;
    let token = header.strip_prefix("Bearer ").map(str::trim).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| refused("the authorization is not a bearer token"))?;
    if token.len() > TOKEN_BYTES_MAX {
        return Err(refused("the token is too long"));
    }
    Ok(token)
}
