//! Why a destination was not reached, and which one close reason that is.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use weft_proto::identity::SpiffeId;

use crate::identity::{self, IdentityError};
use crate::telemetry::CloseReason;
use crate::tunnel::TunnelError;

/// Why a destination was not reached. No byte of the client has been forwarded: trying another one is safe.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    #[error("{0} refused the connection")]
    Refused(SocketAddr),
    #[error("no answer from {0} in time")]
    TimedOut(SocketAddr),
    #[error("{to} cannot be reached: {cause}")]
    Failed { to: SocketAddr, cause: Arc<io::Error> },
    #[error("TLS with {to} failed: {cause}")]
    Tls { to: SocketAddr, cause: Arc<dyn std::error::Error + Send + Sync> },
    #[error("{to} is not {expected}: {cause}")]
    PeerIdentity { to: SocketAddr, expected: SpiffeId, cause: Arc<dyn std::error::Error + Send + Sync> },
    #[error(transparent)]
    NoCertificate(#[from] IdentityError),
    #[error("the proxy of {to} answered {status}: {detail}")]
    TunnelRefused { to: SocketAddr, status: u16, detail: String },
    #[error("the tunnel to {to} broke: {cause}")]
    TunnelLost { to: SocketAddr, cause: Arc<h2::Error> },
    /// `by`: the policy's name, or why there is none.
    #[error("denied by {by} at {to}")]
    Denied { to: SocketAddr, by: String },
    #[error("{0} is a port of the proxy itself")]
    BadTarget(SocketAddr),
    #[error("too many connections to {0}")]
    Overloaded(SocketAddr),
    #[error("the pod at {0} is going away")]
    PodGone(SocketAddr),
    #[error("the mesh is not configured yet")]
    NotReady,
}

impl ConnectError {
    /// The one reason that metrics and log show.
    pub fn reason(&self) -> CloseReason {
        match self {
            Self::Refused(_) => CloseReason::ConnectRefused,
            Self::TimedOut(_) => CloseReason::ConnectTimeout,
            Self::Failed { .. } => CloseReason::ConnectFailed,
            Self::Tls { .. } => CloseReason::TlsFailed,
            Self::PeerIdentity { .. } => CloseReason::PeerIdentity,
            Self::NoCertificate(error) => error.close_reason(),
            Self::TunnelRefused { .. } => CloseReason::TunnelRefused,
            Self::TunnelLost { .. } => CloseReason::TunnelLost,
            Self::Denied { .. } => CloseReason::PolicyDenied,
            Self::BadTarget(_) => CloseReason::BadTarget,
            Self::Overloaded(_) => CloseReason::Overloaded,
            Self::PodGone(_) => CloseReason::PodGone,
            Self::NotReady => CloseReason::UnknownDestination,
        }
    }

    /// Whether another endpoint may answer differently: not when the answer is about the client itself.
    pub fn worth_another_endpoint(&self) -> bool {
        !matches!(self, Self::Denied { .. } | Self::NoCertificate(_) | Self::BadTarget(_) | Self::NotReady)
    }

    pub(crate) fn tcp(to: SocketAddr, cause: Arc<io::Error>) -> Self {
        match cause.kind() {
            ErrorKind::ConnectionRefused => Self::Refused(to),
            ErrorKind::TimedOut => Self::TimedOut(to),
            _ => Self::Failed { to, cause },
        }
    }

    pub(super) fn tunnel(to: SocketAddr, expected: &SpiffeId, error: TunnelError) -> Self {
        match error {
            TunnelError::Connect(cause) => Self::tcp(to, cause),
            TunnelError::Tls(cause) => match identity::handshake_close_reason(&cause) {
                CloseReason::PeerIdentity => Self::PeerIdentity { to, expected: expected.clone(), cause },
                _ => Self::Tls { to, cause },
            },
            TunnelError::Identity(cause @ IdentityError::Peer(_)) => {
                Self::PeerIdentity { to, expected: expected.clone(), cause: Arc::new(cause) }
            }
            TunnelError::Identity(cause) => Self::NoCertificate(cause),
            TunnelError::Alpn => Self::Tls { to, cause: Arc::new(TunnelError::Alpn) },
            TunnelError::TimedOut => Self::TimedOut(to),
            TunnelError::Lost(cause) => Self::TunnelLost { to, cause },
            TunnelError::Refused { status: StatusCode::UNAUTHORIZED, policy, .. } => {
                Self::Denied { to, by: policy.unwrap_or_else(|| "default (no ALLOW policy matches)".into()) }
            }
            TunnelError::Refused { status, reason, .. } => Self::TunnelRefused {
                to,
                status: status.as_u16(),
                detail: reason.unwrap_or_else(|| "no reason given".into()),
            },
            TunnelError::Overloaded => Self::Overloaded(to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_other_proxy_says_is_kept() {
        let to = "10.0.0.2:80".parse().unwrap();
        let expected = "spiffe://cluster.local/ns/shop/sa/backend".parse().unwrap();
        let refused = |status, reason: Option<&str>, policy: Option<&str>| {
            let (reason, policy) = (reason.map(str::to_owned), policy.map(str::to_owned));
            ConnectError::tunnel(to, &expected, TunnelError::Refused { status, reason, policy })
        };
        let denied = refused(StatusCode::UNAUTHORIZED, Some("policy_denied"), Some("shop/no-frontend"));
        assert_eq!(denied.reason(), CloseReason::PolicyDenied);
        assert!(denied.to_string().contains("shop/no-frontend"), "{denied}");
        assert!(!denied.worth_another_endpoint());
        let down = refused(StatusCode::SERVICE_UNAVAILABLE, Some("connect_refused"), None);
        assert_eq!(down.reason(), CloseReason::TunnelRefused);
        assert!(down.to_string().contains("503: connect_refused"), "{down}");
        assert!(down.worth_another_endpoint());
        let tcp = |kind: ErrorKind| {
            ConnectError::tunnel(to, &expected, TunnelError::Connect(Arc::new(kind.into()))).reason()
        };
        assert_eq!(tcp(ErrorKind::ConnectionRefused), CloseReason::ConnectRefused);
        assert_eq!(tcp(ErrorKind::TimedOut), CloseReason::ConnectTimeout);
        assert_eq!(tcp(ErrorKind::HostUnreachable), CloseReason::ConnectFailed);
    }
}
