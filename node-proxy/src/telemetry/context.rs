//! Trace context on the wire: W3C `traceparent`/`tracestate`, and B3 where `OTEL_PROPAGATORS` asks for it.
//!
//! Parsing is strict and never panics: what is malformed counts as absent, so a new trace starts. Pure; randomness is
//! passed in. Start at [`Propagators::extract`].

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");

/// Members of a `tracestate` (W3C Trace Context, section 3.3.1.1).
const TRACESTATE_MEMBERS_MAX: usize = 32;
/// Bytes of a `tracestate` that are kept: the standard asks for 512 at least; more is not worth carrying per span.
const TRACESTATE_BYTES_MAX: usize = 512;
/// `00-<32>-<16>-<2>`
const TRACEPARENT_BYTES: usize = 55;

/// A trace's id; never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

/// A span's id; never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(u64);

impl TraceId {
    /// Zero, the invalid id, becomes one.
    pub fn from_random(random: u128) -> Self {
        Self(random.max(1))
    }
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
    /// What the ratio sampler compares, as every OpenTelemetry SDK does: the low 8 bytes.
    pub fn low(self) -> u64 {
        #[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
        let low = self.0 as u64;
        low
    }
}

impl SpanId {
    /// Zero, the invalid id, becomes one.
    pub fn from_random(random: u64) -> Self {
        Self(random.max(1))
    }
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A span as the next hop sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanContext {
    pub trace: TraceId,
    pub span: SpanId,
    pub sampled: bool,
}

/// What came with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    pub context: SpanContext,
    /// The valid `tracestate`, in one line; empty: none, or not valid.
    pub state: String,
}

/// The formats that are read and written (`OTEL_PROPAGATORS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Propagators {
    pub trace_context: bool,
    pub b3_single: bool,
    pub b3_multi: bool,
}

impl Default for Propagators {
    fn default() -> Self {
        Self { trace_context: true, b3_single: false, b3_multi: false }
    }
}

impl Propagators {
    /// The parent in these headers, if one valid context is there. W3C wins over B3.
    pub fn extract(self, headers: &HeaderMap) -> Option<Parent> {
        let w3c = || {
            let context = parse_traceparent(single(headers, &TRACEPARENT)?)?;
            Some(Parent { context, state: parse_tracestate(headers).unwrap_or_default() })
        };
        let stateless = |context| Parent { context, state: String::new() };
        let none = || None;
        (if self.trace_context { w3c() } else { none() })
            .or_else(|| self.b3_single.then(|| parse_b3(single(headers, &B3)?).map(stateless)).flatten())
            .or_else(|| self.b3_multi.then(|| parse_b3_multi(headers).map(stateless)).flatten())
    }

    /// Writes `context` as the parent of what is sent on. `state`: the trace's `tracestate`.
    pub fn inject(self, context: &SpanContext, state: &str, headers: &mut HeaderMap) {
        if self.trace_context {
            headers.insert(TRACEPARENT, ascii(&traceparent(context)));
            match HeaderValue::from_str(state) {
                Ok(value) if !state.is_empty() => drop(headers.insert(TRACESTATE, value)),
                _ => drop(headers.remove(TRACESTATE)),
            }
        }
        let sampled = if context.sampled { "1" } else { "0" };
        if self.b3_single {
            headers.insert(B3, ascii(&format!("{}-{}-{sampled}", context.trace, context.span)));
        }
        if self.b3_multi {
            headers.insert(B3_TRACE_ID, ascii(&context.trace.to_string()));
            headers.insert(B3_SPAN_ID, ascii(&context.span.to_string()));
            headers.insert(B3_SAMPLED, ascii(sampled));
            headers.remove(B3_PARENT);
            headers.remove(B3_FLAGS);
        }
    }
}

/// The W3C header of a context.
pub(super) fn traceparent(context: &SpanContext) -> String {
    format!("00-{}-{}-{:02x}", context.trace, context.span, u8::from(context.sampled))
}

fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("hexadecimal digits and dashes are a valid header value")
}

/// A header that must not repeat.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes())
}

/// Lower-case hexadecimal only; None also for zero, which both formats call invalid.
fn hex(text: &[u8]) -> Option<u128> {
    let mut value = 0u128;
    for byte in text {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        value = (value << 4) | u128::from(digit);
    }
    (value != 0).then_some(value)
}

fn ids(trace: &[u8], span: &[u8]) -> Option<(TraceId, SpanId)> {
    let span = u64::try_from(hex(span)?).ok()?;
    Some((TraceId(hex(trace)?), SpanId(span)))
}

/// W3C Trace Context, section 3.2: version 00 to the letter; later versions by their known prefix.
pub(super) fn parse_traceparent(text: &[u8]) -> Option<SpanContext> {
    let known = text.get(..TRACEPARENT_BYTES)?;
    let digit = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    let version = &known[..2];
    if !version.iter().all(digit) || version == b"ff" {
        return None;
    }
    let rest_ok = match text.get(TRACEPARENT_BYTES) {
        None => true,
        Some(next) => version != b"00" && *next == b'-',
    };
    let flags = &known[53..55];
    if !rest_ok || [known[2], known[35], known[52]].iter().any(|b| *b != b'-') || !flags.iter().all(digit) {
        return None;
    }
    let (trace, span) = ids(&known[3..35], &known[36..52])?;
    // The sampled flag is the lowest bit: an odd last digit.
    let sampled = hex(&flags[1..]).unwrap_or(0) & 1 == 1;
    Some(SpanContext { trace, span, sampled })
}

/// All `tracestate` headers as one list; None: not valid as a whole, so it is not passed on.
fn parse_tracestate(headers: &HeaderMap) -> Option<String> {
    let mut joined = String::new();
    let mut members = 0;
    for value in headers.get_all(&TRACESTATE) {
        for member in value.to_str().ok()?.split(',') {
            let member = member.trim_matches([' ', '\t']);
            if member.is_empty() {
                continue;
            }
            let (key, value) = member.split_once('=')?;
            members += 1;
            if members > TRACESTATE_MEMBERS_MAX || !state_key(key) || !state_value(value) {
                return None;
            }
            if joined.len() + member.len() + 1 > TRACESTATE_BYTES_MAX {
                return Some(joined);
            }
            if !joined.is_empty() {
                joined.push(',');
            }
            joined.push_str(member);
        }
    }
    Some(joined)
}

fn state_key(key: &str) -> bool {
    let part = |text: &str, bytes_max: usize| {
        !text.is_empty()
            && text.len() <= bytes_max
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/'))
            && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    match key.split_once('@') {
        None => part(key, 256),
        Some((tenant, system)) => part(tenant, 241) && part(system, 14),
    }
}

fn state_value(value: &str) -> bool {
    !value.is_empty()
        && value.len() <= 256
        && value.bytes().all(|b| matches!(b, 0x20..=0x7e) && b != b'=' && b != b',')
}

/// `{trace}-{span}[-{sampled}[-{parent}]]`; the trace id has 16 or 32 digits.
fn parse_b3(text: &[u8]) -> Option<SpanContext> {
    let mut parts = text.split(|b| *b == b'-');
    let (trace, span) = b3_ids(parts.next()?, parts.next()?)?;
    let sampled = b3_sampled(parts.next())?;
    if parts.next().is_some_and(|parent| parent.len() != 16) || parts.next().is_some() {
        return None;
    }
    Some(SpanContext { trace, span, sampled })
}

fn parse_b3_multi(headers: &HeaderMap) -> Option<SpanContext> {
    let (trace, span) = b3_ids(single(headers, &B3_TRACE_ID)?, single(headers, &B3_SPAN_ID)?)?;
    let debug = single(headers, &B3_FLAGS) == Some(b"1");
    let sampled = debug || b3_sampled(single(headers, &B3_SAMPLED))?;
    Some(SpanContext { trace, span, sampled })
}

fn b3_ids(trace: &[u8], span: &[u8]) -> Option<(TraceId, SpanId)> {
    if !matches!(trace.len(), 16 | 32) || span.len() != 16 {
        return None;
    }
    ids(trace, span)
}

/// Absent means that the decision is left to us: we take it as "yes", as the sampled flag has no third value.
fn b3_sampled(text: Option<&[u8]>) -> Option<bool> {
    match text {
        None | Some(b"1" | b"d" | b"true") => Some(true),
        Some(b"0" | b"false") => Some(false),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn traceparent_is_parsed_to_the_letter() {
        let valid = format!("00-{TRACE}-{SPAN}-01");
        let context = parse_traceparent(valid.as_bytes()).unwrap();
        assert_eq!((context.trace.to_string(), context.span.to_string()), (TRACE.into(), SPAN.into()));
        assert!(context.sampled);
        assert_eq!(traceparent(&context), valid);
        for (text, sampled) in [("00", false), ("02", false), ("03", true), ("ff", true), ("fe", false)] {
            let parsed = parse_traceparent(format!("00-{TRACE}-{SPAN}-{text}").as_bytes()).unwrap();
            assert_eq!(parsed.sampled, sampled, "{text}");
        }
        for later in [format!("cc-{TRACE}-{SPAN}-01"), format!("01-{TRACE}-{SPAN}-01-what-the-future")] {
            assert!(parse_traceparent(later.as_bytes()).is_some(), "{later}");
        }
        for bad in [
            String::new(),
            "00".into(),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-0x"),
            format!("0G-{TRACE}-{SPAN}-01"),
            format!("01-{TRACE}-{SPAN}-01.x"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00_{TRACE}_{SPAN}_01"),
            format!(" 00-{TRACE}-{SPAN}-01"),
        ] {
            assert_eq!(parse_traceparent(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn two_parents_are_none() {
        let one = format!("00-{TRACE}-{SPAN}-01");
        let w3c = Propagators::default();
        assert!(w3c.extract(&headers(&[("traceparent", &one)])).is_some());
        assert_eq!(w3c.extract(&headers(&[("traceparent", &one), ("traceparent", &one)])), None);
    }

    #[test]
    fn tracestate_is_joined_or_dropped_as_a_whole() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let state = |pairs: &[(&'static str, &str)]| {
            let mut map = headers(pairs);
            map.insert("traceparent", HeaderValue::from_str(&parent).unwrap());
            Propagators::default().extract(&map).unwrap().state
        };
        assert_eq!(state(&[("tracestate", "a=1, b@c=2 ,,"), ("tracestate", "d=x y")]), "a=1,b@c=2,d=x y");
        let many: Vec<String> = (0..33).map(|i| format!("k{i}=v")).collect();
        for bad in ["a", "A=1", "=1", "a=", "a=b=c", "@a=1", &many.join(",")] {
            assert_eq!(state(&[("tracestate", "ok=1"), ("tracestate", bad)]), "", "{bad}");
        }
        assert_eq!(state(&[]), "");
    }

    #[test]
    fn b3_is_read_only_when_asked_for() {
        let single = headers(&[("b3", &format!("{TRACE}-{SPAN}-0"))]);
        let multi =
            headers(&[("x-b3-traceid", "a3ce929d0e0e4736"), ("x-b3-spanid", SPAN), ("x-b3-flags", "1")]);
        assert_eq!(Propagators::default().extract(&single), None);
        let b3 = Propagators { trace_context: true, b3_single: true, b3_multi: true };
        let context = b3.extract(&single).unwrap().context;
        assert_eq!((context.trace.to_string().as_str(), context.sampled), (TRACE, false));
        let context = b3.extract(&multi).unwrap().context;
        assert_eq!(context.trace.to_string(), "0000000000000000a3ce929d0e0e4736");
        assert!(context.sampled);
        for bad in
            ["0", "1", &format!("{TRACE}-{SPAN}-x"), &format!("{TRACE}-{SPAN}-1-2"), &format!("{SPAN}-1")]
        {
            assert_eq!(b3.extract(&headers(&[("b3", bad)])), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse_traceparent(&bytes);
            let _ = parse_b3(&bytes);
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut map = HeaderMap::new();
                for name in ["traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled"] {
                    map.append(name, value.clone());
                }
                let all = Propagators { trace_context: true, b3_single: true, b3_multi: true };
                let _ = all.extract(&map);
                let _ = parse_tracestate(&map);
            }
        }

        #[test]
        fn what_is_injected_is_extracted(trace in 1u128.., span in 1u64.., sampled: bool, state in "([a-z]{1,5}=[!-+]{1,5})?") {
            let context = SpanContext { trace: TraceId(trace), span: SpanId(span), sampled };
            for propagators in [
                Propagators::default(),
                Propagators { trace_context: false, b3_single: true, b3_multi: false },
                Propagators { trace_context: false, b3_single: false, b3_multi: true },
            ] {
                let mut map = HeaderMap::new();
                propagators.inject(&context, &state, &mut map);
                let parent = propagators.extract(&map).unwrap();
                prop_assert_eq!(parent.context, context);
                if propagators.trace_context {
                    prop_assert_eq!(&parent.state, &state);
                }
            }
        }
    }
}
