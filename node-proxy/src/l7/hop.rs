//! Headers that concern one connection only, and requests that leave HTTP (Upgrade, CONNECT).

use std::sync::atomic::Ordering::Relaxed;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::limits;
use crate::telemetry::{ByteCounts, CloseReason};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

/// Whether the request asks to leave HTTP after its answer.
pub(super) fn wants_upgrade(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::CONNECT || headers.contains_key(header::UPGRADE)
}

/// Whether the answer does leave HTTP.
pub(super) fn upgraded(method: &Method, status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || (method == Method::CONNECT && status.is_success())
}

/// Takes away what `Connection` names and what concerns one connection. `Transfer-Encoding` stays: hyper frames bodies
/// by it. With `upgrade`, `Connection: upgrade` and `Upgrade` are part of the message and stay.
pub(super) fn strip(headers: &mut HeaderMap, upgrade: bool) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|list| list.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .filter(|name| *name != header::UPGRADE && *name != header::TE && !framing(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(header::UPGRADE);
    }
}

/// Never taken away on a client's word: what the message is made of.
fn framing(name: &HeaderName) -> bool {
    [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::HOST, header::CONNECTION].contains(name)
}

/// After both sides have left HTTP: bytes both ways, each direction to its own end.
pub(super) async fn relay(client: OnUpgrade, server: OnUpgrade, bytes: &ByteCounts) -> CloseReason {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(both) => both,
        Err(_) => return CloseReason::Cancelled,
    };
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    let size = limits::UPGRADED_BUFFER_BYTES;
    match tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, size, size).await {
        Ok((sent, received)) => {
            bytes.sent.fetch_add(sent, Relaxed);
            bytes.received.fetch_add(received, Relaxed);
            CloseReason::Ok
        }
        Err(_) => CloseReason::ServerReset,
    }
}
