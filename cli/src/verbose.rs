//! All that was answered, for people: plain fields as a list, lists of objects as tables, times as times.
//!
//! It knows no field of an answer but the few that come first in a table: what weft-node and weft-control say anew is shown
//! without a change here.

use anyhow::Result;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value};

use crate::summary::place_and_message;
use crate::table::table;

/// What a row is about comes first; the other columns follow in the order of their names.
const FIRST_COLUMNS: [&str; 5] = ["namespace", "name", "identity", "map", "probe"];

/// One answer, below the name of who gave it.
pub(crate) fn whole(name: &str, answer: &Result<Value>) -> String {
    let shown = match answer {
        Ok(Value::Object(fields)) => indented(&render(fields)),
        Ok(other) => format!("  {other}\n"),
        Err(e) => format!("  no answer: {e:#}\n"),
    };
    format!("{name}\n{shown}\n")
}

fn render(fields: &Map<String, Value>) -> String {
    let mut text = String::new();
    for (key, value) in fields.iter().filter(|(_, v)| !is_block(v)) {
        let shown = match value {
            Value::Object(inner) => plain(inner),
            other => cell(key, other),
        };
        text.push_str(&format!("{}: {shown}\n", title(key)));
    }
    for (key, value) in fields.iter().filter(|(_, v)| is_block(v)) {
        let block = match value {
            Value::Object(rows) if rows.values().all(Value::is_object) => object_table(&named(rows)),
            Value::Object(inner) => render(inner),
            list => problems(list).unwrap_or_else(|| object_table(list)),
        };
        text.push_str(&format!("{key}:\n{}", indented(&block)));
    }
    text
}

/// Fields in one line.
fn plain(fields: &Map<String, Value>) -> String {
    let parts = fields.iter().map(|(key, value)| format!("{}={}", title(key), cell(key, value)));
    parts.collect::<Vec<_>>().join(" ")
}

/// Objects by name, as a list of objects that know their names.
fn named(rows: &Map<String, Value>) -> Value {
    let row = |(name, value): (&String, &Value)| {
        let mut row = value.clone();
        row["name"] = name.as_str().into();
        row
    };
    rows.iter().map(row).collect()
}

/// What one line is too short for: objects in a list or in an object.
fn is_block(value: &Value) -> bool {
    match value {
        Value::Array(items) => !items.is_empty() && items.iter().all(Value::is_object),
        Value::Object(fields) => fields.values().any(|inner| inner.is_object() || is_block(inner)),
        _ => false,
    }
}

/// None: a list of something else.
fn problems(list: &Value) -> Option<String> {
    let line = |problem: &Value| {
        let is_problem = ["file", "line", "message"].iter().all(|field| !problem[*field].is_null());
        is_problem.then(|| format!("{}\n", place_and_message(problem)))
    };
    list.as_array()?.iter().map(line).collect()
}

/// A row for each object; what is a list of objects itself comes below the table.
fn object_table(rows: &Value) -> String {
    let rows: Vec<&Map<String, Value>> =
        rows.as_array().into_iter().flatten().filter_map(Value::as_object).collect();
    let mut columns: Vec<&str> =
        FIRST_COLUMNS.into_iter().filter(|c| rows.iter().any(|r| r.contains_key(*c))).collect();
    for key in rows.iter().flat_map(|r| r.keys()) {
        if !columns.contains(&key.as_str()) && !rows.iter().any(|r| r.get(key).is_some_and(is_block)) {
            columns.push(key);
        }
    }
    let upper: Vec<String> = columns.iter().map(|c| title(c).to_uppercase()).collect();
    let header: Vec<&str> = upper.iter().map(String::as_str).collect();
    let line = |row: &&Map<String, Value>| {
        columns.iter().map(|c| row.get(*c).map(|value| cell(c, value)).unwrap_or_default()).collect()
    };
    let below = rows.iter().flat_map(|row| below(row));
    table(&header, rows.iter().map(line)) + &below.collect::<String>()
}

/// The lists of a row, with what it is about.
fn below(row: &Map<String, Value>) -> Vec<String> {
    let about =
        FIRST_COLUMNS.iter().filter_map(|c| row.get(*c)?.as_str()).take(2).collect::<Vec<_>>().join("/");
    let lists = row.iter().filter(|(_, value)| is_block(value));
    let list = |(key, value): (&String, &Value)| {
        let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let lines = items.iter().filter_map(Value::as_object).map(|item| format!("  {}\n", happened(item)));
        format!("{key} of {about}:\n{}", lines.collect::<String>())
    };
    lists.map(list).collect()
}

/// An event as a line of a log, anything else as its fields.
fn happened(item: &Map<String, Value>) -> String {
    match (item.get("unix_ms"), item.get("text").and_then(Value::as_str)) {
        (Some(at), Some(text)) if item.len() == 2 => format!("{} {text}", cell("unix_ms", at)),
        _ => plain(item),
    }
}

/// A field's name without the unit of a time, which is shown as a time.
fn title(key: &str) -> &str {
    ["_unix_s", "_unix_ms"].iter().find_map(|unit| key.strip_suffix(unit)).unwrap_or(key)
}

fn cell(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".into(),
        Value::Array(items) => items.iter().map(|item| cell("", item)).collect::<Vec<_>>().join(" "),
        other => time(key, other).unwrap_or_else(|| other.to_string()),
    }
}

fn time(key: &str, value: &Value) -> Option<String> {
    let number = value.as_i64()?;
    let time = match key {
        _ if key.ends_with("unix_ms") => Timestamp::from_millisecond(number),
        _ if key.ends_with("unix_s") => Timestamp::from_second(number),
        _ => return None,
    };
    time.ok().map(|time| format!("{time:.0}"))
}

fn indented(text: &str) -> String {
    text.lines().map(|l| format!("  {l}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_fields_are_listed_and_lists_become_tables() {
        let status = serde_json::json!({
            "revision": 7,
            "unready": [],
            "applied_unix_ms": 1_795_401_561_060_u64,
            "probe": {"redirect": true},
            "pods": [{"addresses": ["10.0.0.1", "fd00::1"], "name": "a", "state": "enrolled"}, {"name": "bb"}],
            "nodes": {"node1": {"acks": 2}},
            "source": {"files": 1, "errors": [{"file": "/a.yaml", "line": 7, "message": "wrong"},
                {"file": "Pod shop/a", "line": 0, "message": "odd"}]},
        });
        let text = render(status.as_object().unwrap());
        assert_eq!(
            text,
            "applied: 2026-11-23T02:39:21Z\nprobe: redirect=true\nrevision: 7\nunready: -\nnodes:\n  NAME   ACKS\n  node1  2\npods:\n  \
             NAME  ADDRESSES         STATE\n  a     10.0.0.1 fd00::1  enrolled\n  bb\n\
             source:\n  files: 1\n  errors:\n    /a.yaml:7: wrong\n    Pod shop/a: odd\n"
        );
    }

    #[test]
    fn the_lists_of_a_row_come_below_its_table() {
        let status = serde_json::json!({
            "control": {"connected": true, "certificate": {"not_after_unix_s": 1_795_401_561, "last_error": null}},
            "pods": [
                {"namespace": "shop", "name": "a", "events": [{"text": "enrolled", "unix_ms": 1_795_401_561_060_u64}], "state": "enrolled"},
                {"namespace": "shop", "name": "b", "events": [], "state": "closed"},
            ],
        });
        let text = render(status.as_object().unwrap());
        assert_eq!(
            text,
            "control:\n  certificate: last_error=- not_after=2026-11-23T02:39:21Z\n  connected: true\n\
             pods:\n  NAMESPACE  NAME  STATE\n  shop       a     enrolled\n  shop       b     closed\n  \
             events of shop/a:\n    2026-11-23T02:39:21Z enrolled\n"
        );
    }
}
