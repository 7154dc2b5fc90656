//! Bounds of Weft's own kinds, said twice from one place: in the CRDs' schema and by the parser.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::manifest::{Document, Refused};

/// Rules of one policy; with [`ENTRIES_MAX`] and [`VALUES_MAX`] it keeps an object below what etcd takes (1.5 MiB).
pub(super) const RULES_MAX: usize = 256;
/// `from` or `to` entries of one rule.
pub(super) const ENTRIES_MAX: usize = 64;
/// Values of one list.
pub(super) const VALUES_MAX: usize = 256;
/// Labels of a selector.
pub(super) const LABELS_MAX: usize = 64;
/// Characters of a text; at four bytes each the edge to the nodes takes them (8192 bytes).
pub(super) const TEXT_CHARS_MAX: usize = 2048;
const HEADER_NAME_CHARS_MAX: usize = 256;
const METHOD_CHARS_MAX: usize = 64;
/// Of a name of a Kubernetes object.
const NAME_CHARS_MAX: usize = 253;

/// Exactly, `a*`, `*a`, or `*`; no control character.
const STARRED: &str = r"^(\*|\*?[^*\p{Cc}]+|[^*\p{Cc}]+\*)$";
const TOKEN: &str = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$";
const NAME: &str = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$";
const DURATION: &str = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$";

fn text(pattern: &str, chars_max: usize) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": chars_max, "pattern": pattern })
}

fn texts(pattern: &str, chars_max: usize) -> Schema {
    json_schema!({ "type": "array", "maxItems": VALUES_MAX, "items": text(pattern, chars_max) })
}

pub(super) fn starred(_: &mut SchemaGenerator) -> Schema {
    text(STARRED, TEXT_CHARS_MAX)
}

pub(super) fn starred_list(_: &mut SchemaGenerator) -> Schema {
    texts(STARRED, TEXT_CHARS_MAX)
}

pub(super) fn header_name(_: &mut SchemaGenerator) -> Schema {
    text(TOKEN, HEADER_NAME_CHARS_MAX)
}

pub(super) fn methods(_: &mut SchemaGenerator) -> Schema {
    texts(TOKEN, METHOD_CHARS_MAX)
}

pub(super) fn name(_: &mut SchemaGenerator) -> Schema {
    text(NAME, NAME_CHARS_MAX)
}

pub(super) fn names(_: &mut SchemaGenerator) -> Schema {
    texts(NAME, NAME_CHARS_MAX)
}

pub(super) fn cidrs(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": VALUES_MAX, "items": { "type": "string", "format": "cidr", "maxLength": 64 } })
}

pub(super) fn ports(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": VALUES_MAX, "items": { "type": "integer", "minimum": 1, "maximum": 65535 } })
}

pub(super) fn statuses(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": VALUES_MAX, "items": { "type": "integer", "minimum": 400, "maximum": 599 } })
}

pub(super) fn duration(_: &mut SchemaGenerator) -> Schema {
    // Four times five digits and two letters.
    text(DURATION, 28)
}

pub(super) fn positive_duration(_: &mut SchemaGenerator) -> Schema {
    let mut schema = text(DURATION, 28);
    let positive = json!([{ "rule": "self.matches('[1-9]')", "message": "must be longer than 0" }]);
    schema.insert("x-kubernetes-validations".to_owned(), positive);
    schema
}

/// Which pods, by their labels; empty: all.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Selector {
    /// Labels that a pod must have, all of them with these values. At most 64; empty: every pod.
    #[schemars(extend("maxProperties" = LABELS_MAX))]
    pub match_labels: std::collections::BTreeMap<String, String>,
}

impl Selector {
    /// None: everything, as an empty selector is in Kubernetes.
    pub(super) fn labels(
        document: &Document<'_>,
        selector: Option<Self>,
    ) -> Result<Option<super::super::object::Labels>, Refused> {
        let labels = selector.map(|s| s.match_labels).filter(|labels| !labels.is_empty());
        at_most(
            document,
            "spec.selector.matchLabels",
            labels.as_ref().map_or(0, std::collections::BTreeMap::len),
            LABELS_MAX,
        )?;
        Ok(labels)
    }
}

pub(super) fn at_most(document: &Document<'_>, path: &str, found: usize, max: usize) -> Result<(), Refused> {
    if found > max {
        return Err(document.refuse(path, format!("{path}: {found} elements are more than {max}")));
    }
    Ok(())
}

/// Length of a list and of its texts; an empty text would match nothing.
pub(super) fn check_texts(document: &Document<'_>, path: &str, texts: &[String]) -> Result<(), Refused> {
    at_most(document, path, texts.len(), VALUES_MAX)?;
    texts.iter().enumerate().try_for_each(|(i, text)| check_text(document, &format!("{path}.{i}"), text))
}

pub(super) fn check_text(document: &Document<'_>, path: &str, text: &str) -> Result<(), Refused> {
    if text.is_empty() {
        return Err(document.refuse(path, format!("{path}: is empty")));
    }
    if text.chars().count() > TEXT_CHARS_MAX {
        return Err(document.refuse(path, format!("{path}: is longer than {TEXT_CHARS_MAX} characters")));
    }
    Ok(())
}

/// Names of headers: shorter than other texts.
pub(super) fn check_header_name(document: &Document<'_>, path: &str, name: &str) -> Result<(), Refused> {
    if name.len() > HEADER_NAME_CHARS_MAX {
        let message = format!("{path}: is longer than {HEADER_NAME_CHARS_MAX} characters");
        return Err(document.refuse(path, message));
    }
    Ok(())
}
