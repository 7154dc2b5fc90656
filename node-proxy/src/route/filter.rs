//! What a rule's filters do to a request or a response: header modifiers, redirects, rewrites. Pure.

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use weft_proto::model::{HeaderModifier, HttpFilter, PathModifier};

/// Applies set, then add, then remove.
pub fn modify(headers: &mut HeaderMap, by: &HeaderModifier) {
    for (name, value) in &by.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &by.add {
        add(headers, name, value);
    }
    for name in &by.remove {
        headers.remove(name);
    }
}

/// To what is there, joined by a comma.
fn add(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) {
    let before: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    let mut joined = before.join(&b","[..]);
    if !before.is_empty() && *name != header::SET_COOKIE {
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
        if let Ok(joined) = HeaderValue::from_bytes(&joined) {
            headers.insert(name, joined);
            return;
        }
    }
    headers.append(name, value.clone());
}

/// What a redirect starts from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Host, possibly with a port, as the client sent it.
    pub authority: &'a str,
    /// The Service port that was addressed.
    pub port: u16,
    pub path: &'a str,
    pub query: Option<&'a str>,
    /// The prefix that matched.
    pub prefix: Option<&'a str>,
}

/// The status and `Location` of the first redirect among the filters. The scheme is http: inside the mesh applications
/// speak plaintext.
pub fn redirect(filters: &[HttpFilter], origin: &Origin<'_>) -> Option<(StatusCode, String)> {
    filters.iter().find_map(|filter| {
        let HttpFilter::Redirect { scheme, hostname, port, path, status } = filter else { return None };
        let to_scheme = scheme.as_deref().unwrap_or("http");
        let well_known = |scheme: &str| match scheme {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        };
        // Without a port: the scheme's own if a scheme is given, else the one that was addressed.
        let to_port = port.unwrap_or_else(|| match scheme {
            Some(scheme) => well_known(scheme).unwrap_or(origin.port),
            None => origin.port,
        });
        let host = hostname.as_deref().unwrap_or_else(|| host_of(origin.authority));
        let new_path = path.as_ref().map(|path| modified_path(origin.path, origin.prefix, path));
        let mut location = format!("{to_scheme}://{host}");
        if well_known(to_scheme) != Some(to_port) {
            location.push_str(&format!(":{to_port}"));
        }
        location.push_str(new_path.as_deref().unwrap_or(origin.path));
        if let Some(query) = origin.query {
            location.push('?');
            location.push_str(query);
        }
        Some((*status, location))
    })
}

fn host_of(authority: &str) -> &str {
    match authority.rfind(':') {
        // The colons of a bare `[::1]` are inside the brackets.
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    }
}

/// Changes host and path. Header `Host` follows when there is one.
pub fn rewrite(
    uri: &mut Uri,
    headers: &mut HeaderMap,
    prefix: Option<&str>,
    hostname: Option<&str>,
    path: Option<&PathModifier>,
) {
    let mut parts = std::mem::take(uri).into_parts();
    if let Some(hostname) = hostname {
        if parts.authority.is_some()
            && let Ok(authority) = hostname.parse::<Authority>()
        {
            parts.authority = Some(authority);
        }
        if (headers.contains_key(header::HOST) || parts.authority.is_none())
            && let Ok(value) = HeaderValue::from_str(hostname)
        {
            headers.insert(header::HOST, value);
        }
    }
    if let (Some(path), Some(before)) = (path, &parts.path_and_query) {
        let mut after = modified_path(before.path(), prefix, path);
        if let Some(query) = before.query() {
            after.push('?');
            after.push_str(query);
        }
        if let Ok(after) = PathAndQuery::try_from(after) {
            parts.path_and_query = Some(after);
        }
    }
    // Only changed parts that parse were put in, so the whole is as valid as it was.
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

fn modified_path(path: &str, prefix: Option<&str>, by: &PathModifier) -> String {
    match by {
        PathModifier::ReplaceFull(full) => rooted(full.to_string()),
        PathModifier::ReplacePrefix(replacement) => {
            let Some(prefix) = prefix else { return path.to_owned() };
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            match path.strip_prefix(prefix) {
                None => path.to_owned(),
                Some("") => rooted(replacement.to_string()),
                Some(rest) => {
                    let replacement = replacement.strip_suffix('/').unwrap_or(replacement);
                    rooted(format!("{replacement}{rest}"))
                }
            }
        }
    }
}

fn rooted(path: String) -> String {
    if path.starts_with('/') { path } else { format!("/{path}") }
}
