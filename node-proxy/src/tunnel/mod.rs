//! HBONE: mutual TLS and HTTP/2 CONNECT between nodes. Client pool, server, and the byte stream over an h2 stream.

/// A byte stream over one CONNECT stream.
pub struct TunnelStream {
    _private: (),
}

/// Open tunnels by (source identity, destination identities, destination address, source address).
pub struct Pool {
    _private: (),
}
