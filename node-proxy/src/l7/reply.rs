//! Answers that the proxy itself gives, in the form that the client understands.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use crate::telemetry::CloseReason;

/// Says that the proxy answered, and why: a name of [`CloseReason`].
pub(super) const REASON_HEADER: &str = "x-weft-reason";
/// Longest explanation in a gRPC message, in bytes.
const GRPC_MESSAGE_BYTES_MAX: usize = 512;

pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The status that a reason is told by.
pub(super) fn status_of(reason: CloseReason) -> StatusCode {
    match reason {
        CloseReason::PolicyDenied | CloseReason::PlaintextRefused => StatusCode::FORBIDDEN,
        CloseReason::NoRoute => StatusCode::NOT_FOUND,
        CloseReason::RequestTimeout | CloseReason::AttemptTimeout => StatusCode::GATEWAY_TIMEOUT,
        CloseReason::ServerReset | CloseReason::ProtocolError => StatusCode::BAD_GATEWAY,
        CloseReason::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn grpc_status_of(status: StatusCode, reason: CloseReason) -> u32 {
    match status.as_u16() {
        // The Gateway API wants UNAVAILABLE where it wants 500 of HTTP: for a backend that cannot be resolved.
        500 if reason == CloseReason::NoEndpoints => 14,
        403 => 7,
        404 => 12,
        504 => 4,
        500 => 13,
        _ => 14,
    }
}

/// For gRPC a trailers-only answer, else a line of text.
pub(super) fn local(
    grpc: bool,
    status: StatusCode,
    reason: CloseReason,
    detail: &str,
) -> (Response<Bytes>, Option<u32>) {
    let text = format!("weft: {detail}\n");
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(REASON_HEADER, HeaderValue::from_static(reason.as_str()));
    if grpc {
        let number = grpc_status_of(status, reason);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(number));
        let printable: String = text
            .trim_end()
            .chars()
            .filter(|c| matches!(c, ' '..='~') && *c != '%')
            .take(GRPC_MESSAGE_BYTES_MAX)
            .collect();
        if let Ok(message) = HeaderValue::from_str(&printable) {
            headers.insert("grpc-message", message);
        }
        return (response, Some(number));
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    *response.status_mut() = status;
    *response.body_mut() = Bytes::from(text);
    (response, None)
}

/// The `grpc-status` of a head or of trailers.
pub(super) fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
