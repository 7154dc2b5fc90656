//! Edits network configuration lists as text: only the plugin's own entry is put in or taken out, and every other byte stays, so that
//! whoever owns the file finds it as it was. Pure.
//!
//! The text is first read whole as JSON; then the places of the plugins are looked up in it. Start at [`with_entry`].

use std::ops::Range;

use serde_json::Value;

/// Why a configuration cannot be edited. Runtimes cannot use such a file either.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ConfError {
    #[error("it is not JSON: {0}")]
    NotJson(String),
    #[error("it is not a JSON object")]
    NotObject,
    #[error("it has no list \"plugins\"")]
    NoPlugins,
    #[error("it has \"plugins\" twice")]
    PluginsTwice,
    #[error("its list \"plugins\" is empty")]
    EmptyPlugins,
    #[error("its plugin {0} has no \"type\"")]
    NoType(usize),
    #[error("the network has no \"name\" or no \"type\"")]
    NoNetwork,
}

/// The list with the entry last, or the entry that is there already replaced where it stands. None: nothing to change.
pub(super) fn with_entry(text: &str, entry: &Value) -> Result<Option<String>, ConfError> {
    let plugins = plugins(text)?;
    let kind = &entry["type"];
    match plugins.iter().find(|plugin| plugin.value["type"] == *kind) {
        Some(there) if there.value == *entry => Ok(None),
        Some(there) => Ok(Some(spliced(text, there.at.clone(), &entry.to_string()))),
        None => {
            let last = plugins.last().ok_or(ConfError::EmptyPlugins)?;
            let addition = format!(",{}{entry}", last.indent);
            Ok(Some(spliced(text, last.at.end..last.at.end, &addition)))
        }
    }
}

/// The types of the list's plugins, in their order.
pub(super) fn types(text: &str) -> Result<Vec<String>, ConfError> {
    let types =
        plugins(text)?.into_iter().filter_map(|plugin| Some(plugin.value["type"].as_str()?.to_owned()));
    Ok(types.collect())
}

/// The list without the plugin's entries. None: there is none.
pub(super) fn without_entry(text: &str, kind: &str) -> Result<Option<String>, ConfError> {
    let mut text = text.to_owned();
    let mut changed = false;
    loop {
        let plugins = plugins(&text)?;
        let Some(index) = plugins.iter().position(|plugin| plugin.value["type"] == kind) else {
            return Ok(changed.then_some(text));
        };
        let cut = match (index.checked_sub(1), plugins.get(index + 1)) {
            (Some(before), _) => plugins[before].at.end..plugins[index].at.end,
            (None, Some(after)) => plugins[index].at.start..after.at.start,
            (None, None) => plugins[index].at.clone(),
        };
        text = spliced(&text, cut, "");
        changed = true;
    }
}

/// A list of one network's configuration and the entry.
pub(super) fn wrapped(conf: &str, entry: &Value) -> Result<String, ConfError> {
    let value = object(conf)?;
    let (Some(name), Some(_)) =
        (value["name"].as_str().filter(|name| !name.is_empty()), value["type"].as_str())
    else {
        return Err(ConfError::NoNetwork);
    };
    let version = value["cniVersion"].as_str().unwrap_or("0.3.1");
    let (version, name) = (Value::from(version), Value::from(name));
    let conf = conf.trim();
    Ok(format!(
        "{{\n\"cniVersion\": {version},\n\"name\": {name},\n\"plugins\": [\n{conf},\n{entry}\n]\n}}\n"
    ))
}

fn object(text: &str) -> Result<Value, ConfError> {
    let value: Value = serde_json::from_str(text).map_err(|error| ConfError::NotJson(error.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(ConfError::NotObject) }
}

fn spliced(text: &str, at: Range<usize>, by: &str) -> String {
    format!("{}{by}{}", &text[..at.start], &text[at.end..])
}

/// A plugin of the list.
#[derive(Debug)]
struct Plugin {
    value: Value,
    at: Range<usize>,
    /// The white space before it.
    indent: String,
}

fn plugins(text: &str) -> Result<Vec<Plugin>, ConfError> {
    object(text)?;
    let mut lists = members(text, skip_space(text, 0)).filter(|(key, _)| key == "plugins");
    let (_, list) = lists.next().ok_or(ConfError::NoPlugins)?;
    if lists.next().is_some() {
        return Err(ConfError::PluginsTwice);
    }
    if !text[list.clone()].starts_with('[') {
        return Err(ConfError::NoPlugins);
    }
    let plugins: Vec<Plugin> = elements(text, list.start).collect();
    let typed = |plugin: &Plugin| plugin.value["type"].is_string();
    match plugins.iter().position(|plugin| !typed(plugin)) {
        _ if plugins.is_empty() => Err(ConfError::EmptyPlugins),
        Some(index) => Err(ConfError::NoType(index)),
        None => Ok(plugins),
    }
}

// From here on the text is known to be valid JSON.

/// Keys and the places of their values, of the object that begins at `start`.
fn members(text: &str, start: usize) -> impl Iterator<Item = (String, Range<usize>)> {
    let mut at = start + 1;
    std::iter::from_fn(move || {
        at = skip_space(text, at);
        if text[at..].starts_with(',') {
            at = skip_space(text, at + 1);
        }
        if !text[at..].starts_with('"') {
            return None;
        }
        let key = at..value_end(text, at);
        let colon = skip_space(text, key.end);
        let value = skip_space(text, colon + 1);
        at = value_end(text, value);
        Some((serde_json::from_str(&text[key]).ok()?, value..at))
    })
}

/// The elements of the list that begins at `start`.
fn elements(text: &str, start: usize) -> impl Iterator<Item = Plugin> {
    let mut at = start + 1;
    std::iter::from_fn(move || {
        at = skip_space_and_comma(text, at);
        let begin = skip_space(text, at);
        if text[begin..].starts_with(']') {
            return None;
        }
        let (indent, end) = (text[at..begin].to_owned(), value_end(text, begin));
        at = end;
        Some(Plugin { value: serde_json::from_str(&text[begin..end]).ok()?, at: begin..end, indent })
    })
}

/// Past a comma, if one comes next.
fn skip_space_and_comma(text: &str, at: usize) -> usize {
    let next = skip_space(text, at);
    if text[next..].starts_with(',') { next + 1 } else { at }
}

fn skip_space(text: &str, at: usize) -> usize {
    let rest = &text[at..];
    at + rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len()
}

/// Where the value that begins at `at` ends: brackets are counted, and what is in strings is skipped.
fn value_end(text: &str, at: usize) -> usize {
    let bytes = text.as_bytes();
    let (mut i, mut depth, mut in_string) = (at, 0_usize, false);
    while i < bytes.len() {
        match bytes[i] {
            b'\\' if in_string => i += 1,
            b'"' if in_string && depth == 0 => return i + 1,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' if depth == 1 => return i + 1,
            b']' | b'}' if depth > 1 => depth -= 1,
            b']' | b'}' | b',' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => return i,
            _ => {}
        }
        i += 1;
    }
    i
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn entry() -> Value {
        json!({"type": "weft-cni", "socket": "/run/weft/cni.sock", "excludeNamespaces": ["kube-system"]})
    }

    const BRIDGE: &str = r#"{
  "name": "pods, \"quoted] name",
  "x": [{"plugins": [1]}],
  "cniVersion": "1.0.0",
  "plugins": [
    {
      "type": "bridge", "isGateway": true,
      "ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}]], "weird": "]},{\\"}
    },
    {"type":"portmap"}
  ]
}
"#;

    #[test]
    fn the_entry_comes_last_and_nothing_else_changes() {
        let with = with_entry(BRIDGE, &entry()).unwrap().unwrap();
        let value: Value = serde_json::from_str(&with).unwrap();
        let kinds: Vec<_> = value["plugins"].as_array().unwrap().iter().map(|p| p["type"].clone()).collect();
        assert_eq!(kinds, ["bridge", "portmap", "weft-cni"]);
        assert!(with.contains("},\n    {\"excludeNamespaces\""), "{with}");
        assert_eq!(with_entry(&with, &entry()).unwrap(), None, "again: nothing to do");
        assert_eq!(without_entry(&with, "weft-cni").unwrap().unwrap(), BRIDGE, "byte for byte");
        assert_eq!(without_entry(BRIDGE, "weft-cni").unwrap(), None);
    }

    #[test]
    fn an_entry_of_another_version_is_replaced_where_it_stands() {
        let old = json!({"type": "weft-cni", "socket": "/old"});
        let with = with_entry(BRIDGE, &old).unwrap().unwrap();
        // Somebody chained a plugin behind it.
        let with = with_entry(&with, &json!({"type": "istio-cni"})).unwrap().unwrap();
        assert_eq!(types(&with).unwrap()[types(BRIDGE).unwrap().len()..], ["weft-cni", "istio-cni"]);
        let with = with_entry(&with, &entry()).unwrap().unwrap();
        assert!(!with.contains("/old"));
        let without = without_entry(&with, "weft-cni").unwrap().unwrap();
        assert_eq!(without_entry(&without, "istio-cni").unwrap().unwrap(), BRIDGE);
    }

    #[test]
    fn an_entry_is_taken_out_wherever_it_stands() {
        for (with, without) in [
            (r#"{"plugins":[{"type":"weft-cni"},{"type":"a"}]}"#, r#"{"plugins":[{"type":"a"}]}"#),
            (r#"{"plugins":[{"type":"a"} , {"type":"weft-cni"}]}"#, r#"{"plugins":[{"type":"a"}]}"#),
            (
                r#"{"plugins":[{"type":"weft-cni"},{"type":"a"},{"type":"weft-cni"}]}"#,
                r#"{"plugins":[{"type":"a"}]}"#,
            ),
        ] {
            assert_eq!(without_entry(with, "weft-cni").unwrap().unwrap(), without);
        }
    }

    #[test]
    fn a_file_that_no_runtime_could_use_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "not JSON"),
            (&BRIDGE[..200], "not JSON"),
            (r#"{"plugins":[{"type":"a"}]} trailing"#, "not JSON"),
            ("[]", "not a JSON object"),
            ("{}", "no list"),
            (r#"{"plugins":{}}"#, "no list"),
            (r#"{"plugins":[]}"#, "empty"),
            (r#"{"plugins":[{"type":"a"},{"name":"b"}]}"#, "plugin 1 has no"),
            (r#"{"plugins":[{"type":"a"}],"plugins":[{"type":"b"}]}"#, "twice"),
        ] {
            let error = with_entry(text, &entry()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(without_entry(text, "weft-cni").is_err());
        }
    }

    #[test]
    fn a_single_network_becomes_a_list() {
        let conf = r#"{"cniVersion": "0.4.0", "name": "n\"1", "type": "bridge"}"#;
        let list = wrapped(conf, &entry()).unwrap();
        let value: Value = serde_json::from_str(&list).unwrap();
        assert_eq!((&value["name"], &value["cniVersion"]), (&json!("n\"1"), &json!("0.4.0")));
        assert_eq!(value["plugins"][0], serde_json::from_str::<Value>(conf).unwrap());
        assert_eq!(value["plugins"][1], entry());
        assert_eq!(with_entry(&list, &entry()).unwrap(), None);
        assert_eq!(wrapped("{}", &entry()), Err(ConfError::NoNetwork));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[ -~]{0,8}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[ -~]{0,5}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_else_is_in_the_file_stays(
            before in any_json(), after in any_json(),
            plugins in proptest::collection::vec(any_json(), 1..4), pretty in any::<bool>(),
        ) {
            let plugins: Vec<Value> =
                plugins.into_iter().map(|extra| json!({"type": "p", "extra": extra})).collect();
            let list = json!({"a": before, "plugins": plugins, "z": after});
            let text = if pretty { format!("{list:#}") } else { list.to_string() };
            let with = with_entry(&text, &entry()).unwrap().unwrap();
            let mut expected = list;
            expected["plugins"].as_array_mut().unwrap().push(entry());
            prop_assert_eq!(serde_json::from_str::<Value>(&with).unwrap(), expected);
            prop_assert_eq!(without_entry(&with, "weft-cni").unwrap().unwrap(), text);
        }
    }
}
