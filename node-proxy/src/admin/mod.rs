//! The admin endpoint: health, readiness, metrics, configuration dump, connections. Unix socket or loopback only.
