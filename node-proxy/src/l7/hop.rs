//! Headers that concern one connection only. What happens after an upgrade is in `upgrade.rs`.

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
