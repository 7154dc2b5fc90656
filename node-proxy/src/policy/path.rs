//! The forms in which a policy looks at a path, so that spelling it otherwise does not get around a policy.

use std::borrow::Cow;

/// Longest path that is brought into its normal form, in bytes. HTTP/1 heads are bounded well below; a longer path is
/// compared as it came.
const PATH_BYTES_MAX: usize = 64 * 1024;

/// The path without its query.
pub(super) fn without_query(target: &str) -> &str {
    match target.find(['?', '#']) {
        Some(end) => &target[..end],
        None => target,
    }
}

/// The path as most servers understand it: percent-encoded letters, digits, `-._~/\` decoded, `\` read as `/`, `//` merged, `.` and `..`
/// resolved. Borrowed when that changes nothing.
pub(super) fn normal(path: &str) -> Cow<'_, str> {
    let plain = !path.contains("//")
        && !path.contains("/.")
        && !path.bytes().any(|b| matches!(b, b'%' | b'\\' | b';'));
    if plain || path.len() > PATH_BYTES_MAX {
        return Cow::Borrowed(path);
    }
    let decoded = decode(path);
    let mut parts: Vec<&str> = Vec::new();
    let mut directory = false;
    for part in decoded.split(['/', '\\']) {
        directory = matches!(part, "" | "." | "..");
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut normal = String::with_capacity(decoded.len());
    for part in &parts {
        normal.push('/');
        normal.push_str(part);
    }
    if directory || normal.is_empty() {
        normal.push('/');
    }
    Cow::Owned(normal)
}

/// Decodes what needs no escape, and the separators; other escapes stay.
fn decode(path: &str) -> String {
    let bytes = path.as_bytes();
    let digit = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte == b'%'
            && let (Some(high), Some(low)) = (digit(bytes.get(at + 1)), digit(bytes.get(at + 2)))
        {
            let value = high * 16 + low;
            let value = value as u8;
            if value.is_ascii_alphanumeric() || b"-._~/\\".contains(&value) {
                out.push(value);
                at += 3;
                continue;
            }
        }
        out.push(byte);
        at += 1;
    }
    // Only whole ASCII characters were put in place of ASCII: still UTF-8.
    String::from_utf8(out).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_normal_form() {
        for (path, want) in [
            ("/", "/"),
            ("/admin", "/admin"),
            ("//admin", "/admin"),
            ("/./admin", "/admin"),
            ("/a/../admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/a/%2e%2e/admin", "/admin"),
            ("/a%2fadmin", "/a/admin"),
            ("/a\\admin", "/a/admin"),
            ("/../..", "/"),
            ("/a/..", "/"),
            ("/a/b/.", "/a/b/"),
            ("/a//", "/a/"),
            ("/%zz", "/%zz"),
            ("/%ff", "/%ff"),
            ("/a%20b", "/a%20b"),
            ("/ü", "/ü"),
        ] {
            assert_eq!(normal(path), want, "{path}");
        }
    }
}
