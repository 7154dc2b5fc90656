//! What a CONNECT request says: authority, `forwarded`, `baggage`, `traceparent`. Formatting and strict parsing. Pure.

use std::fmt::Write;
use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use weft_proto::identity::NamespacedName;
use weft_proto::model::Workload;

pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
pub const FORWARDED: HeaderName = http::header::FORWARDED;
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Why a Weft proxy refused: a name of `CloseReason`. Others ignore it.
pub const REASON: HeaderName = HeaderName::from_static("x-weft-reason");
/// Which policy denied, by name.
pub const POLICY: HeaderName = HeaderName::from_static("x-weft-policy");
/// `opaque`: the client's proxy has looked at the first bytes, or need not, and they are not HTTP. A hint that spares
/// the server's proxy the wait for the first bytes; it never widens what policy allows.
pub const INNER: HeaderName = HeaderName::from_static("x-weft-inner");
pub const INNER_OPAQUE: HeaderValue = HeaderValue::from_static("opaque");
/// Longest text that is parsed at all. Real ones are below 100 bytes.
const FORWARDED_BYTES_MAX: usize = 512;
const BAGGAGE_BYTES_MAX: usize = 8192;

/// What goes into a CONNECT request.
#[derive(Debug, Clone)]
pub struct ConnectHead {
    /// The chosen workload's address and port.
    pub authority: SocketAddr,
    /// The client pod's own address.
    pub client: SocketAddr,
    /// The Service that the client addressed.
    pub service: Option<NamespacedName>,
    pub baggage: String,
    pub traceparent: Option<String>,
    /// The bytes inside are not HTTP.
    pub opaque: bool,
}

impl ConnectHead {
    pub fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.version_mut() = http::Version::HTTP_2;
        // Printing a socket address gives `1.2.3.4:80` or `[::1]:80`: authority form, no scheme, no path.
        *request.uri_mut() =
            Uri::try_from(authority(self.authority)).expect("a socket address is an authority");
        let headers = request.headers_mut();
        let mut insert = |name: HeaderName, text: &str| {
            if let Ok(value) = HeaderValue::from_str(text)
                && !text.is_empty()
            {
                headers.insert(name, value);
            }
        };
        insert(FORWARDED, &forwarded(self.client, self.service.as_ref()));
        insert(BAGGAGE, &self.baggage);
        insert(TRACEPARENT, self.traceparent.as_deref().unwrap_or_default());
        if self.opaque {
            headers.insert(INNER, INNER_OPAQUE);
        }
        request
    }
}

/// Without an IPv6 scope: it means nothing on another host.
fn authority(address: SocketAddr) -> String {
    SocketAddr::new(address.ip(), address.port()).to_string()
}

/// `ip:port` or `[ip]:port`, in the one spelling that Weft and ztunnel produce: no name, no user, port required.
pub fn parse_authority(uri: &Uri) -> Option<SocketAddr> {
    if uri.scheme().is_some() || uri.path_and_query().is_some_and(|rest| !rest.as_str().is_empty()) {
        return None;
    }
    let address: SocketAddr = uri.authority()?.as_str().parse().ok()?;
    let scoped = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
    (!scoped && address.port() != 0).then(|| SocketAddr::new(address.ip().to_canonical(), address.port()))
}

pub fn forwarded(client: SocketAddr, service: Option<&NamespacedName>) -> String {
    let mut text = format!("for=\"{}\"", authority(client));
    if let Some(service) = service {
        // Cannot fail: writing to a String.
        let _ = write!(text, ";host={}.{}", service.name, service.namespace);
    }
    text
}

/// The client's address out of `forwarded` (RFC 7239, one element). None: absent or malformed.
pub fn forwarded_for(headers: &HeaderMap) -> Option<SocketAddr> {
    let text = headers.get(FORWARDED)?.to_str().ok()?;
    if text.len() > FORWARDED_BYTES_MAX || text.contains(',') {
        return None;
    }
    let node = text.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then_some(value)
    })?;
    let node = node.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(node);
    node.parse().ok()
}

/// Who the source is, for the other side's telemetry: never for a decision. Absent values are left out.
pub fn baggage(workload: &Workload) -> String {
    let kind = match &*workload.workload_kind.to_ascii_lowercase() {
        "deployment" => "k8s.deployment.name",
        "job" => "k8s.job.name",
        "cronjob" => "k8s.cronjob.name",
        _ => "k8s.pod.name",
    };
    let name = if workload.workload_name.is_empty() { &workload.name } else { &workload.workload_name };
    let members = [
        ("k8s.namespace.name", &workload.namespace),
        (kind, name),
        ("service.name", &workload.canonical_service),
        ("service.version", &workload.canonical_revision),
        ("cloud.availability_zone", &workload.zone),
    ];
    let present = members.iter().filter(|(_, value)| !value.is_empty());
    present.map(|(key, value)| format!("{key}={}", percent_encoded(value))).collect::<Vec<_>>().join(",")
}

/// As W3C baggage wants it: what is not a plain visible ASCII character is percent-encoded.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\' | b'%' | b'=') {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// The value of one member of `baggage`, decoded. None: absent or malformed.
pub fn baggage_member(headers: &HeaderMap, key: &str) -> Option<String> {
    let text = headers.get(BAGGAGE)?.to_str().ok()?;
    if text.len() > BAGGAGE_BYTES_MAX {
        return None;
    }
    let value = text.split(',').find_map(|member| {
        let (name, value) = member.split(';').next()?.split_once('=')?;
        (name.trim() == key).then_some(value.trim())
    })?;
    percent_decoded(value)
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Option<SocketAddr> {
        parse_authority(&text.parse().ok()?)
    }

    #[test]
    fn only_an_address_and_a_port_is_an_authority() {
        assert_eq!(parsed("10.0.0.1:80"), Some("10.0.0.1:80".parse().unwrap()));
        assert_eq!(parsed("[fd00::1]:80"), Some("[fd00::1]:80".parse().unwrap()));
        assert_eq!(parsed("[::ffff:10.0.0.1]:80"), parsed("10.0.0.1:80"), "mapped is the same address");
        for bad in [
            "10.0.0.1",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "10.0.0.1:",
            ":80",
            "example:80",
            "fd00::1:80",
            "*",
            "/",
            "http://10.0.0.1:80",
            "http://10.0.0.1:80/",
            "user@10.0.0.1:80",
            "010.0.0.1:80",
            "10.0.0.1:80/x",
            "[fd00::1%25eth0]:80",
            "10.1:80",
            "0x0a000001:80",
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_request_is_what_ztunnel_expects() {
        let head = ConnectHead {
            authority: "[fd00::2]:8080".parse().unwrap(),
            client: "10.0.0.1:41000".parse().unwrap(),
            service: Some(NamespacedName::new("shop", "backend").unwrap()),
            baggage: String::new(),
            traceparent: None,
            opaque: false,
        };
        let request = head.request();
        assert_eq!(
            (request.method(), request.uri().to_string()),
            (&Method::CONNECT, "[fd00::2]:8080".into())
        );
        assert_eq!(request.headers()[FORWARDED], "for=\"10.0.0.1:41000\";host=backend.shop");
        assert!(!request.headers().contains_key(BAGGAGE), "absent ones are left out");
        assert!(!request.headers().contains_key(TRACEPARENT));
    }

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn forwarded_takes_one_quoted_or_bare_address() {
        let of = |text: &str| forwarded_for(&headers(FORWARDED, text));
        assert_eq!(of("for=\"10.0.0.1:5\""), Some("10.0.0.1:5".parse().unwrap()));
        assert_eq!(of("host=x;For=10.0.0.1:5"), Some("10.0.0.1:5".parse().unwrap()));
        assert_eq!(of("for=\"[fd00::1]:5\";host=x"), Some("[fd00::1]:5".parse().unwrap()));
        for bad in
            ["", "for", "for=", "for=unknown", "for=\"10.0.0.1:5\", for=\"10.0.0.2:5\"", "by=10.0.0.1:5"]
        {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_address_survives_authority_and_forwarded(address: SocketAddr) {
            let plain = SocketAddr::new(address.ip(), address.port());
            prop_assume!(plain.port() != 0);
            let read = parsed(&authority(plain)).unwrap();
            prop_assert_eq!(read, SocketAddr::new(plain.ip().to_canonical(), plain.port()));
            prop_assert_eq!(forwarded_for(&headers(FORWARDED, &forwarded(plain, None))), Some(plain));
        }
        #[test]
        fn every_value_survives_baggage(value in ".{0,40}") {
            let text = format!("a=1,key={};property=2,b=2", percent_encoded(&value));
            prop_assert_eq!(baggage_member(&headers(BAGGAGE, &text), "key"), Some(value));
        }
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let map = HeaderMap::from_iter([(FORWARDED, value.clone()), (BAGGAGE, value)]);
                let _ = forwarded_for(&map);
                let _ = baggage_member(&map, "k");
            }
            if let Ok(uri) = Uri::try_from(bytes.as_slice()) {
                let _ = parse_authority(&uri);
            }
        }
    }
}
