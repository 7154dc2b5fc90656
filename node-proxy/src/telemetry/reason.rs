//! The closed list of ways in which a connection or request ends: the only source of metric labels and log codes.

/// Why it ended. Every stage's error maps to exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Both directions ended as they should.
    Ok,
    ClientReset,
    ServerReset,
    /// The client went away before the end.
    Cancelled,
    ConnectRefused,
    ConnectTimeout,
    /// Unreachable host or network, or another error of connect().
    ConnectFailed,
    TlsFailed,
    /// The peer's certificate is not whom we wanted to reach.
    PeerIdentity,
    NoCertificate,
    /// The tunnel answered other than 200.
    TunnelRefused,
    TunnelLost,
    PolicyDenied,
    /// Plaintext towards a STRICT workload.
    PlaintextRefused,
    NoEndpoints,
    NoRoute,
    UnknownDestination,
    /// A proxy port as target, a malformed authority or an address that does not match.
    BadTarget,
    /// Not the protocol that the port or a policy demands.
    ProtocolError,
    RequestTimeout,
    AttemptTimeout,
    /// A bound was hit: connections, pending requests, queue.
    Overloaded,
    Draining,
    /// The pod was deleted or left the mesh, or an identity was withdrawn.
    PodGone,
    Internal,
}

impl CloseReason {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::Ok,
        Self::ClientReset,
        Self::ServerReset,
        Self::Cancelled,
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::ConnectFailed,
        Self::TlsFailed,
        Self::PeerIdentity,
        Self::NoCertificate,
        Self::TunnelRefused,
        Self::TunnelLost,
        Self::PolicyDenied,
        Self::PlaintextRefused,
        Self::NoEndpoints,
        Self::NoRoute,
        Self::UnknownDestination,
        Self::BadTarget,
        Self::ProtocolError,
        Self::RequestTimeout,
        Self::AttemptTimeout,
        Self::Overloaded,
        Self::Draining,
        Self::PodGone,
        Self::Internal,
    ];

    /// The label `response_flags`: Envoy's codes where one fits, `-` where none does.
    pub fn response_flags(self) -> &'static str {
        match self {
            Self::Ok | Self::PolicyDenied | Self::PlaintextRefused | Self::PodGone | Self::Internal => "-",
            Self::ClientReset | Self::Cancelled => "DC",
            Self::ServerReset | Self::TunnelLost => "UC",
            Self::ConnectRefused
            | Self::ConnectTimeout
            | Self::ConnectFailed
            | Self::TlsFailed
            | Self::PeerIdentity
            | Self::NoCertificate
            | Self::TunnelRefused => "UF",
            Self::NoEndpoints => "UH",
            Self::NoRoute | Self::UnknownDestination | Self::BadTarget => "NR",
            Self::ProtocolError => "DPE",
            Self::RequestTimeout | Self::AttemptTimeout => "UT",
            Self::Overloaded => "UO",
            Self::Draining => "LR",
        }
    }

    /// The name in logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientReset => "client_reset",
            Self::ServerReset => "server_reset",
            Self::Cancelled => "cancelled",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectFailed => "connect_failed",
            Self::TlsFailed => "tls_failed",
            Self::PeerIdentity => "peer_identity",
            Self::NoCertificate => "no_certificate",
            Self::TunnelRefused => "tunnel_refused",
            Self::TunnelLost => "tunnel_lost",
            Self::PolicyDenied => "policy_denied",
            Self::PlaintextRefused => "plaintext_refused",
            Self::NoEndpoints => "no_endpoints",
            Self::NoRoute => "no_route",
            Self::UnknownDestination => "unknown_destination",
            Self::BadTarget => "bad_target",
            Self::ProtocolError => "protocol_error",
            Self::RequestTimeout => "request_timeout",
            Self::AttemptTimeout => "attempt_timeout",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::PodGone => "pod_gone",
            Self::Internal => "internal",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::CloseReason;

    #[test]
    fn all_are_listed_once_and_named_differently() {
        let names: std::collections::BTreeSet<&str> =
            CloseReason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), CloseReason::ALL.len());
        for (position, reason) in CloseReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, position, "{reason:?} is not in the order of the declaration");
        }
        assert_eq!(CloseReason::Internal as usize + 1, CloseReason::ALL.len());
    }
}
