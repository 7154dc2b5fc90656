//! Headers that concern one connection only. What happens after an upgrade is in `upgrade.rs`.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

/// Whether the request asks to leave HTTP after its answer. Asking for another version of HTTP is not that: requests
/// behind it would pass as bytes that no policy sees ("h2c smuggling"). A server may ignore `Upgrade`, and so do we then.
pub(super) fn wants_upgrade(method: &Method, headers: &HeaderMap) -> bool {
    let mut named = headers.get_all(header::UPGRADE).iter().peekable();
    method == Method::CONNECT || (named.peek().is_some() && !named.any(names_http))
}

/// `h2c`, `HTTP/2.0`, `h2`, ...; and what cannot be read as a list of protocols.
fn names_http(value: &HeaderValue) -> bool {
    let Ok(list) = value.to_str() else { return true };
    list.split(',').any(|protocol| {
        let name = protocol.split('/').next().unwrap_or_default().trim();
        ["http", "h2", "h2c", "h3"].iter().any(|http| name.eq_ignore_ascii_case(http))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leaves_http_is_an_upgrade() {
        let wants = |method: Method, values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::UPGRADE, HeaderValue::from_bytes(value).unwrap());
            }
            wants_upgrade(&method, &headers)
        };
        assert!(wants(Method::CONNECT, &[]) && !wants(Method::GET, &[]));
        assert!(wants(Method::GET, &[b"websocket"]) && wants(Method::GET, &[b"x", b"y/1"]));
        let smuggled: [&[&[u8]]; 7] = [
            &[b"h2c"],
            &[b"H2C"],
            &[b"HTTP/2.0"],
            &[b" h2c , websocket"],
            &[b"websocket", b"h2c"],
            &[b"websocket,\th2c"],
            &[b"websocket\xff"],
        ];
        for values in smuggled {
            assert!(!wants(Method::GET, values), "{values:?}");
        }
    }
}
