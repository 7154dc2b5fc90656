//! HTTP connections of either version, as a server and as a client: one set of limits for both directions of the mesh.

use hyper::{client, server};
use hyper_util::rt::TokioExecutor;

use super::limits;

pub(super) fn http1_server() -> server::conn::http1::Builder {
    let mut builder = server::conn::http1::Builder::new();
    builder.preserve_header_case(true).auto_date_header(false).max_buf_size(limits::H1_BUFFER_BYTES_MAX);
    builder
}

/// Without PINGs of its own: a peer that vanishes is noticed by the tunnel's, and an application of this node cannot.
pub(super) fn http2_server() -> server::conn::http2::Builder<TokioExecutor> {
    let mut builder = server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .auto_date_header(false)
        .initial_stream_window_size(limits::H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits::STREAMS_OF_CLIENT_MAX)
        .max_pending_accept_reset_streams(limits::PENDING_RESETS_MAX)
        .max_local_error_reset_streams(limits::ERROR_RESETS_MAX)
        .max_send_buf_size(limits::H2_SEND_BUFFER_BYTES_MAX)
        .max_header_list_size(limits::HEADER_BYTES_MAX);
    builder
}

pub(super) fn http1_client() -> client::conn::http1::Builder {
    let mut builder = client::conn::http1::Builder::new();
    builder.preserve_header_case(true).max_buf_size(limits::H1_BUFFER_BYTES_MAX);
    builder
}

pub(super) fn http2_client() -> client::conn::http2::Builder<TokioExecutor> {
    let mut builder = client::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .initial_stream_window_size(limits::H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(limits::H2_SEND_BUFFER_BYTES_MAX)
        .max_header_list_size(limits::HEADER_BYTES_MAX);
    builder
}
