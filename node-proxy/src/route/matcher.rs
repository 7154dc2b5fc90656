//! One match of a rule: path, method, headers, query; and its rank among others.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderName, Method};
use regex::Regex;
use weft_proto::model::{HttpMatch, PathMatch, Pattern, ValueMatch};

use super::RequestHead;

#[derive(Debug)]
pub(super) struct Matcher {
    path: Path,
    method: Option<Method>,
    headers: Vec<(HeaderName, Value)>,
    query: Vec<(Arc<str>, Value)>,
}

#[derive(Debug)]
enum Path {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Regex(Regex),
    Grpc { service: Option<Value>, method: Option<Value> },
}

#[derive(Debug)]
enum Value {
    Exact(Arc<str>),
    Regex(Regex),
}

impl Value {
    fn new(value: &ValueMatch) -> Self {
        match value {
            ValueMatch::Exact(text) => Self::Exact(Arc::clone(text)),
            ValueMatch::Regex(pattern) => Self::Regex(whole(pattern)),
        }
    }
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(want) => **want == *text,
            Self::Regex(pattern) => pattern.is_match(text),
        }
    }
}

/// The pattern, held to match the whole text.
fn whole(pattern: &Pattern) -> Regex {
    // Only the size limit could refuse what was compiled before without the anchors.
    Regex::new(&format!("^(?:{})$", pattern.0.as_str())).unwrap_or_else(|_| pattern.0.clone())
}

/// The larger goes first. Routes of different kinds are never compared.
pub(super) type Precedence = (Specificity, bool, usize, usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Specificity {
    /// `/` and no other condition. Below a regular expression, which otherwise could never match.
    CatchAll,
    Regex,
    Prefix(usize),
    Exact(usize),
    /// Of the service, then of the method.
    Grpc(Named, Named),
}

/// How much of a name is given, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Named {
    Any,
    /// Says less than any name.
    Regex,
    Exact(usize),
}

impl Named {
    fn of(value: Option<&Value>) -> Self {
        match value {
            None => Self::Any,
            Some(Value::Regex(_)) => Self::Regex,
            Some(Value::Exact(name)) => Self::Exact(name.chars().count()),
        }
    }
}

impl Matcher {
    pub(super) fn new(from: &HttpMatch) -> Self {
        let path = match &from.path {
            None => Path::Prefix("/".into()),
            Some(PathMatch::Exact(path)) => Path::Exact(Arc::clone(path)),
            Some(PathMatch::Prefix(path)) => Path::Prefix(Arc::clone(path)),
            Some(PathMatch::Regex(pattern)) => Path::Regex(whole(pattern)),
            Some(PathMatch::Grpc(call)) => Path::Grpc {
                service: call.service.as_ref().map(Value::new),
                method: call.method.as_ref().map(Value::new),
            },
        };
        // Of entries with the same name only the first counts, as the specification says.
        let mut headers: Vec<(HeaderName, Value)> = Vec::new();
        for (name, value) in &from.headers {
            if !headers.iter().any(|(have, _)| have == name) {
                headers.push((name.clone(), Value::new(value)));
            }
        }
        let mut query: Vec<(Arc<str>, Value)> = Vec::new();
        for (name, value) in &from.query {
            if !query.iter().any(|(have, _)| have == name) {
                query.push((Arc::clone(name), Value::new(value)));
            }
        }
        Self { path, method: from.method.clone(), headers, query }
    }

    pub(super) fn precedence(&self) -> Precedence {
        let bare = self.method.is_none() && self.headers.is_empty() && self.query.is_empty();
        let specificity = match &self.path {
            Path::Exact(path) => Specificity::Exact(path.chars().count()),
            Path::Prefix(path) if bare && matches!(&**path, "" | "/") => Specificity::CatchAll,
            Path::Prefix(path) => Specificity::Prefix(path.trim_end_matches('/').chars().count()),
            Path::Regex(_) => Specificity::Regex,
            Path::Grpc { service, method } => {
                Specificity::Grpc(Named::of(service.as_ref()), Named::of(method.as_ref()))
            }
        };
        (specificity, self.method.is_some(), self.headers.len(), self.query.len())
    }

    pub(super) fn prefix(&self) -> Option<&Arc<str>> {
        match &self.path {
            Path::Prefix(prefix) => Some(prefix),
            Path::Exact(_) | Path::Regex(_) | Path::Grpc { .. } => None,
        }
    }

    pub(super) fn matches(&self, request: &RequestHead<'_>) -> bool {
        self.method.as_ref().is_none_or(|method| method == request.method)
            && self.path_matches(request.path)
            && self.headers.iter().all(|(name, value)| header_matches(name, value, request))
            && self.query.iter().all(|(name, value)| query_matches(name, value, request.query))
    }

    fn path_matches(&self, path: &str) -> bool {
        match &self.path {
            Path::Exact(want) => **want == *path,
            Path::Prefix(prefix) => has_prefix(path, prefix),
            Path::Regex(pattern) => pattern.is_match(path),
            Path::Grpc { service, method } => called(path).is_some_and(|(called, on)| {
                service.as_ref().is_none_or(|want| want.matches(called))
                    && method.as_ref().is_none_or(|want| want.matches(on))
            }),
        }
    }
}

/// Service and method of a gRPC call.
fn called(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
}

/// By element: `/a` is a prefix of `/a` and `/a/b`, not of `/ab`.
fn has_prefix(path: &str, prefix: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.is_empty())
}

/// A header sent several times is one list, joined by commas (RFC 9110, section 5.3).
fn header_matches(name: &HeaderName, want: &Value, request: &RequestHead<'_>) -> bool {
    let mut values = request.headers.get_all(name).iter();
    let Some(first) = values.next().and_then(|value| std::str::from_utf8(value.as_bytes()).ok()) else {
        return false;
    };
    let mut all = Cow::Borrowed(first);
    for value in values {
        let Ok(text) = std::str::from_utf8(value.as_bytes()) else { return false };
        let all = all.to_mut();
        all.push(',');
        all.push_str(text);
    }
    want.matches(&all)
}

/// The first parameter of the name decides.
fn query_matches(name: &str, want: &Value, query: Option<&str>) -> bool {
    query
        .unwrap_or("")
        .split('&')
        .find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key) == name).then(|| decode(value))
        })
        .is_some_and(|value| want.matches(&value))
}

/// `%XX` and `+`, as forms encode them; what is not UTF-8 then stays as it was.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|b| b == b'%' || b == b'+') {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', _, _) => out.push(b' '),
            (byte, _, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).map_or(Cow::Borrowed(text), Cow::Owned)
}
