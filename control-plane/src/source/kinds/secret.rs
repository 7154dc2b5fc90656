//! Secrets of type `weft.dev/join-token`. The token's text goes nowhere but into the typed object.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as k8s;

use super::super::manifest::{Document, Refused};
use super::super::object::{JoinToken, Object};
use super::{id_of, read_core};

pub(crate) const JOIN_TOKEN_TYPE: &str = "weft.dev/join-token";
/// A shorter token could be guessed.
const TOKEN_BYTES_MIN: usize = 16;
const TOKEN_BYTES_MAX: usize = 4096;

pub(super) fn secret(
    document: &Document<'_>,
    warn: &mut dyn FnMut(usize, String),
) -> Result<Option<Object>, Refused> {
    // The parser's message quotes what it did not expect, which may be the token.
    let read: k8s::Secret = read_core(document, warn).map_err(|refused| Refused {
        line: refused.line,
        message: "this Secret is not one: every value of stringData must be a quoted string, of data base64 \
                  (values are not shown)"
            .to_owned(),
    })?;
    if read.type_.as_deref() != Some(JOIN_TOKEN_TYPE) {
        warn(document.line_of("type"), format!("Secret of a type other than {JOIN_TOKEN_TYPE} is ignored"));
        return Ok(None);
    }
    let id = id_of(document, &read.metadata)?;
    let field = |name: &str| -> Result<String, Refused> {
        let plain = read.string_data.as_ref().and_then(|data| data.get(name)).cloned();
        let encoded = || {
            let bytes = read.data.as_ref()?.get(name)?.0.clone();
            String::from_utf8(bytes).ok()
        };
        let text = plain.or_else(encoded).unwrap_or_default().trim().to_owned();
        if text.is_empty() {
            return Err(document.refuse("stringData", format!("stringData.{name} is missing")));
        }
        Ok(text)
    };
    let (node, token) = (field("node")?, field("token")?);
    let valid = token.bytes().all(|b| b.is_ascii_graphic());
    if !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len()) || !valid {
        let message = format!(
            "stringData.token is not {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} visible ASCII characters"
        );
        return Err(document.refuse("stringData.token", message));
    }
    Ok(Some(Object::JoinToken(Arc::new(JoinToken { id, node: node.into(), token: token.into() }))))
}
