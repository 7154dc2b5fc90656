//! Checks of single values: each names the field and shows the value when it refuses.
//!
//! Every bound of the edge is a constant of this file.

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use regex::RegexBuilder;

use crate::identity::{NamespacedName, PodUid};
use crate::model::{Pattern, ResourceKey, TextMatch};
use crate::v1;

/// Longest list in a resource: beyond the 64 matches of a Gateway API rule and the ports of any sane Service.
pub const LIST_LENGTH_MAX: usize = 1024;
/// Longest text (path, header value, name) in bytes: what HTTP servers accept in a request line.
pub const TEXT_BYTES_MAX: usize = 8192;
/// Longest regular expression in bytes, as the Gateway API bounds paths.
pub const PATTERN_BYTES_MAX: usize = 1024;
/// Memory of one compiled regular expression: `\w{1000}` must not cost a node megabytes.
const PATTERN_COMPILED_BYTES_MAX: usize = 512 * 1024;
/// Longest duration: the Gateway API's format ends at 4 × 99999 h.
pub const DURATION_MS_MAX: u64 = 4 * 99_999 * 3_600_000;
/// How much of a refused value is shown.
const SHOWN_CHARS_MAX: usize = 128;

/// A value that was refused at the edge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{field}: {value:?} {problem}", .resource.as_ref().map(|r| format!("{r} ")).unwrap_or_default())]
pub struct Invalid {
    /// The resource, where it is known: `HTTPRoute shop/backend`.
    pub resource: Option<String>,
    /// Path of the field, such as `rules[0].matches[2].path`.
    pub field: String,
    pub value: String,
    pub problem: String,
}

impl Invalid {
    pub fn new(field: impl Into<String>, value: impl Display, problem: impl Into<String>) -> Self {
        let value = value.to_string().chars().take(SHOWN_CHARS_MAX).collect();
        Self { resource: None, field: field.into(), value, problem: problem.into() }
    }

    /// The same, seen from the message that holds the field.
    pub(crate) fn within(mut self, outer: &str) -> Self {
        self.field = if self.field.is_empty() { outer.to_owned() } else { format!("{outer}.{}", self.field) };
        self
    }

    pub(crate) fn of(mut self, key: &ResourceKey) -> Self {
        let wire = super::resource_key_to_wire(key);
        let kind = match key {
            ResourceKey::Mesh => "Mesh",
            ResourceKey::Workload(_) => "Workload",
            ResourceKey::Service(_) => "Service",
            ResourceKey::Endpoint { .. } => "Endpoint",
            ResourceKey::HttpRoute(_) => "HTTPRoute",
            ResourceKey::GrpcRoute(_) => "GRPCRoute",
            ResourceKey::AuthorizationPolicy(_) => "AuthorizationPolicy",
            ResourceKey::TrafficPolicy(_) => "TrafficPolicy",
        };
        self.resource = Some(format!("{kind} {}", wire.name));
        self
    }
}

/// Converts each element of a list of bounded length, naming the element that is refused.
pub(super) fn list<W, M>(
    field: &str,
    wire: Vec<W>,
    convert: impl Fn(W) -> Result<M, Invalid>,
) -> Result<Vec<M>, Invalid> {
    bounded(field, wire.len())?;
    wire.into_iter()
        .enumerate()
        .map(|(i, element)| convert(element).map_err(|e| e.within(&format!("{field}[{i}]"))))
        .collect()
}

/// `list` for an iterator of map entries or values that check themselves under the empty field name.
pub(super) fn bounded(field: &str, length: usize) -> Result<(), Invalid> {
    if length > LIST_LENGTH_MAX {
        return Err(Invalid::new(field, length, format!("elements are more than {LIST_LENGTH_MAX}")));
    }
    Ok(())
}

pub(super) fn text(field: &str, value: &str) -> Result<Arc<str>, Invalid> {
    if value.len() > TEXT_BYTES_MAX {
        return Err(Invalid::new(field, value, format!("is longer than {TEXT_BYTES_MAX} bytes")));
    }
    if value.chars().any(char::is_control) {
        return Err(Invalid::new(field, value, "contains control characters"));
    }
    Ok(value.into())
}

pub(super) fn required_text(field: &str, value: &str) -> Result<Arc<str>, Invalid> {
    if value.is_empty() {
        return Err(Invalid::new(field, value, "is empty"));
    }
    text(field, value)
}

/// A text that may be left out.
pub(super) fn optional_text(field: &str, value: &str) -> Result<Option<Arc<str>>, Invalid> {
    if value.is_empty() { Ok(None) } else { text(field, value).map(Some) }
}

pub(super) fn object_name(field: &str, value: &str) -> Result<Arc<str>, Invalid> {
    NamespacedName::new(value, value)
        .map(|n| n.name)
        .map_err(|_| Invalid::new(field, value, "is not a name of a Kubernetes object"))
}

pub(super) fn namespaced(namespace: &str, name: &str) -> Result<NamespacedName, Invalid> {
    object_name("namespace", namespace)?;
    object_name("name", name)?;
    NamespacedName::new(namespace, name).map_err(|e| Invalid::new("name", name, e.to_string()))
}

pub(super) fn namespaced_message(
    field: &str,
    wire: Option<v1::NamespacedName>,
) -> Result<NamespacedName, Invalid> {
    let wire = wire.ok_or_else(|| Invalid::new(field, "", "is missing"))?;
    namespaced(&wire.namespace, &wire.name).map_err(|e| e.within(field))
}

pub(super) fn namespaced_to_wire(id: &NamespacedName) -> v1::NamespacedName {
    v1::NamespacedName { namespace: id.namespace.to_string(), name: id.name.to_string() }
}

pub(super) fn parsed<T: FromStr>(field: &str, value: &str, what: &str) -> Result<T, Invalid> {
    value.parse().map_err(|_| Invalid::new(field, value, format!("is not {what}")))
}

pub(super) fn pod_uid(field: &str, value: &str) -> Result<PodUid, Invalid> {
    parsed(field, value, "a pod UID")
}

/// An address that packets can be sent to. IPv4-mapped addresses are refused: they would be a second name.
pub(super) fn ip(field: &str, value: &str) -> Result<IpAddr, Invalid> {
    let ip: IpAddr = parsed(field, value, "an IP address")?;
    let mapped = matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    if ip.is_unspecified() || ip.is_multicast() || mapped {
        return Err(Invalid::new(field, value, "is not a unicast address"));
    }
    Ok(ip)
}

pub(super) fn ips(field: &str, values: Vec<String>) -> Result<Vec<IpAddr>, Invalid> {
    list(field, values, |value| ip("", &value))
}

pub(super) fn cidrs(field: &str, values: Vec<String>) -> Result<Vec<IpNet>, Invalid> {
    list(field, values, |value| parsed("", &value, "a CIDR, such as 10.0.0.0/8"))
}

pub(super) fn port(field: &str, value: u32) -> Result<u16, Invalid> {
    u16::try_from(value)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| Invalid::new(field, value, "is not a port from 1 to 65535"))
}

/// A port, 0 meaning none.
pub(super) fn optional_port(field: &str, value: u32) -> Result<Option<u16>, Invalid> {
    if value == 0 { Ok(None) } else { port(field, value).map(Some) }
}

pub(super) fn ports(field: &str, values: Vec<u32>) -> Result<Vec<u16>, Invalid> {
    list(field, values, |value| port("", value))
}

/// Milliseconds, 0 meaning none.
pub(super) fn optional_duration(field: &str, ms: u64) -> Result<Option<Duration>, Invalid> {
    if ms > DURATION_MS_MAX {
        return Err(Invalid::new(field, ms, format!("is longer than {DURATION_MS_MAX} ms")));
    }
    Ok((ms != 0).then(|| Duration::from_millis(ms)))
}

/// Rounded up to a millisecond, because 0 would mean none.
pub(super) fn duration_to_wire(duration: Option<Duration>) -> u64 {
    let Some(duration) = duration else { return 0 };
    let ms = u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    ms.clamp(1, DURATION_MS_MAX)
}

pub(super) fn header_name(field: &str, value: &str) -> Result<HeaderName, Invalid> {
    parsed(field, value, "a header name")
}

pub(super) fn header_value(field: &str, value: &str) -> Result<HeaderValue, Invalid> {
    text(field, value)?;
    parsed(field, value, "a header value of visible ASCII characters")
}

pub(super) fn method(field: &str, value: &str) -> Result<Method, Invalid> {
    if value.len() > 64 {
        return Err(Invalid::new(field, value, "is longer than 64 bytes"));
    }
    parsed(field, value, "an HTTP method")
}

pub(super) fn methods(field: &str, values: Vec<String>) -> Result<Vec<Method>, Invalid> {
    list(field, values, |value| method("", &value))
}

/// Codes of answers that may be retried.
pub(super) fn statuses(field: &str, values: Vec<u32>) -> Result<Vec<StatusCode>, Invalid> {
    list(field, values, |value| {
        u16::try_from(value)
            .ok()
            .filter(|code| (400..=599).contains(code))
            .and_then(|code| StatusCode::from_u16(code).ok())
            .ok_or_else(|| Invalid::new("", value, "is not an HTTP status from 400 to 599"))
    })
}

/// Compiles a regular expression that must match the whole text, within bounds of size.
pub fn pattern(text: &str) -> Result<Pattern, Invalid> {
    if text.len() > PATTERN_BYTES_MAX {
        return Err(Invalid::new("", text, format!("is longer than {PATTERN_BYTES_MAX} bytes")));
    }
    let compile = |text: &str| {
        RegexBuilder::new(text)
            .size_limit(PATTERN_COMPILED_BYTES_MAX)
            .dfa_size_limit(PATTERN_COMPILED_BYTES_MAX)
            .build()
            .map_err(|e| Invalid::new("", text, format!("is not a usable regular expression: {e}")))
    };
    // By itself first: `a)|(?:b` must not become valid by the brackets put around it.
    compile(text)?;
    compile(&format!("{WHOLE_OPEN}{text}{WHOLE_CLOSE}")).map(Pattern)
}

/// Anchors by construction, so that `is_match` is a match of the whole text.
const WHOLE_OPEN: &str = r"\A(?:";
const WHOLE_CLOSE: &str = r")\z";

/// The regular expression as its author wrote it.
pub fn pattern_text(pattern: &Pattern) -> &str {
    let whole = pattern.0.as_str();
    whole.strip_prefix(WHOLE_OPEN).and_then(|rest| rest.strip_suffix(WHOLE_CLOSE)).unwrap_or(whole)
}

/// A matcher by character of a policy: exact, prefix, suffix or present.
pub(super) fn text_match(wire: v1::StringMatch) -> Result<TextMatch, Invalid> {
    use v1::string_match::Kind;
    Ok(match wire.kind {
        Some(Kind::Exact(value)) => TextMatch::Exact(text("exact", &value)?),
        Some(Kind::Prefix(value)) => TextMatch::Prefix(required_text("prefix", &value)?),
        Some(Kind::Suffix(value)) => TextMatch::Suffix(required_text("suffix", &value)?),
        Some(Kind::Present(true)) => TextMatch::Present,
        Some(Kind::Present(false)) => {
            return Err(Invalid::new("present", false, "has no meaning"));
        }
        Some(Kind::Regex(value)) => {
            return Err(Invalid::new("regex", value, "is not supported here"));
        }
        None => return Err(Invalid::new("", "", "is missing")),
    })
}

pub(super) fn text_match_to_wire(text: &TextMatch) -> v1::StringMatch {
    use v1::string_match::Kind;
    v1::StringMatch {
        kind: Some(match text {
            TextMatch::Exact(value) => Kind::Exact(value.to_string()),
            TextMatch::Prefix(value) => Kind::Prefix(value.to_string()),
            TextMatch::Suffix(value) => Kind::Suffix(value.to_string()),
            TextMatch::Present => Kind::Present(true),
        }),
    }
}

pub(super) fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

pub(super) fn numbers<T: Copy + Into<u32>>(values: &[T]) -> Vec<u32> {
    values.iter().map(|value| (*value).into()).collect()
}
