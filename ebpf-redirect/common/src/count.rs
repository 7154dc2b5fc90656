//! The counters: one for each outcome of each hook. Index of `COUNTERS`, a per-CPU array of `u64`.

macro_rules! outcomes {
    ($($variant:ident = $name:literal: $doc:literal,)*) => {
        /// An outcome of a hook.
        #[repr(u32)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Outcome { $(#[doc = $doc] $variant,)* }

        impl Outcome {
            /// All of them, in the order of their index.
            pub const ALL: &'static [Outcome] = &[$(Outcome::$variant,)*];

            /// Name for metrics and logs; the hook is its first word.
            pub const fn name(self) -> &'static str {
                match self { $(Outcome::$variant => $name,)* }
            }
        }
    };
}

outcomes! {
    ConnectNotEnrolled = "connect_not_enrolled":
        "The namespace is not enrolled.",
    ConnectNotTcp = "connect_not_tcp":
        "Enrolled, but not TCP.",
    ConnectProxy = "connect_proxy":
        "The proxy's own connection.",
    ConnectLocal = "connect_local":
        "To loopback, to the pod itself, or to an IPv6 link-local address (whose scope the proxy could not repeat).",
    ConnectExcludedPort = "connect_excluded_port":
        "Excluded by port.",
    ConnectExcludedCidr = "connect_excluded_cidr":
        "Excluded by prefix.",
    ConnectRedirected = "connect_redirected":
        "Sent to the proxy.",
    ConnectRefusedFull = "connect_refused_full":
        "Refused because the flow map is full.",
    ConnectRefusedShare = "connect_refused_share":
        "Refused because the pod holds its share of the flow map.",
    ProbeFiled = "probe_filed":
        "A process of the node connects to a probed port of a pod: filed, to be let through to the application.",
    ProbeNotNode = "probe_not_node":
        "The same from a pod that shares the node's network namespace: not filed.",
    ProbeRefusedFull = "probe_refused_full":
        "A probe could not be filed, the map being full: it goes to the proxy like any other connection.",
    PeerNamed = "peer_named":
        "getpeername or accept answered with the address that the other side of the mesh has.",
    PeerUnchanged = "peer_unchanged":
        "getpeername or accept of an enrolled pod left alone.",
    PeerRefusedFull = "peer_refused_full":
        "The proxy's connection to an application could not be named, the map being full: it is not made.",
    PeerRefusedShare = "peer_refused_share":
        "The proxy's connection to an application was refused: the pod holds its share of the map.",
    AcceptedUnnamed = "accepted_unnamed":
        "An application's socket could not be named, the map being full: it shows the pod's own address.",
    AcceptedRefusedShare = "accepted_refused_share":
        "The same because the pod holds its share of the map.",
    FlowStored = "flow_stored":
        "An original destination was published to the proxy before the SYN left.",
    FlowRefusedFull = "flow_refused_full":
        "It was not, the map being full: the proxy closes the connection.",
    FlowRefusedShare = "flow_refused_share":
        "The same because the pod holds its share of the map.",
    FlowRemoved = "flow_removed":
        "An original destination was removed at close.",
    SocketInserted = "socket_inserted":
        "A socket of a local leg may be redirected.",
    SocketRefusedBusy = "socket_refused_busy":
        "Not inserted: another sk_msg user holds the socket (EBUSY).",
    SocketRefusedFull = "socket_refused_full":
        "Not inserted: map full.",
    SocketRefusedShare = "socket_refused_share":
        "Not inserted: the pod holds its share of the map.",
    SocketSkippedMptcp = "socket_skipped_mptcp":
        "Not inserted: MPTCP.",
    SocketSkippedSent = "socket_skipped_sent":
        "Not inserted: it had sent data before it was established (TCP Fast Open).",
    MessageRedirected = "message_redirected":
        "Messages put straight into the peer's receive queue.",
    MessageStack = "message_stack":
        "Messages of inserted sockets that went through TCP/IP.",
    MessageBroken = "message_broken":
        "Messages refused because the sender went on though the application did not read: the connection breaks.",
    MessageDropped = "message_dropped":
        "Messages whose peer was gone: the sender sees an error, as after a reset.",
    BytesRedirected = "bytes_redirected":
        "Bytes offered to redirection.",
    BytesStack = "bytes_stack":
        "Bytes of inserted sockets that went through TCP/IP.",
    LookupNotTcp = "lookup_not_tcp":
        "Inbound, not TCP.",
    LookupLocal = "lookup_local":
        "Inbound from the pod itself or over loopback: the application is reached directly.",
    LookupExcluded = "lookup_excluded":
        "Inbound to an excluded port.",
    LookupProbe = "lookup_probe":
        "Inbound, a probe of the node that was filed: the application is reached directly.",
    LookupSteered = "lookup_steered":
        "Inbound, handed to the proxy's listener.",
    LookupDropped = "lookup_dropped":
        "Inbound without a listener of the proxy: refused.",
    LookupForeignLoopback = "lookup_foreign_loopback":
        "Inbound to a loopback address from outside the pod (route_localnet): refused.",
}

/// Entries of `COUNTERS`.
pub const OUTCOMES: u32 = Outcome::ALL.len() as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_found_at_its_own_index() {
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index, "{}", outcome.name());
        }
    }
}
