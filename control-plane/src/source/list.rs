//! `kind: List`, as kubectl prints it: one document per item, each keeping its place in the file where its text can be cut
//! out. What was cut is compared with what the YAML or JSON reader says, so a cut is either right or not used.

use std::borrow::Cow;

use serde::Deserialize;
use serde_yaml_ng::Value;

use super::manifest::{Document, Refused};

/// Items of one list; a file is read whole.
const ITEMS_MAX: usize = 10_000;

#[derive(Deserialize)]
struct List {
    items: Vec<Value>,
}

pub(super) fn is_list(api_version: &str, kind: &str) -> bool {
    (api_version, kind) == ("v1", "List")
}

/// The items as documents of their own.
pub(super) fn items<'a>(list: &Document<'a>) -> Result<Vec<Document<'a>>, Refused> {
    let List { items } = list.read(|_, _| {})?;
    if items.len() > ITEMS_MAX {
        return Err(list.refuse("items", format!("more than {ITEMS_MAX} items")));
    }
    let cut = if list.text.trim_start().starts_with('{') { cut_flow(list) } else { cut_block(list) };
    let same = |document: &Document<'_>, item: &Value| {
        document.read::<Value>(|_, _| {}).is_ok_and(|read| read == *item)
    };
    if cut.len() == items.len() && cut.iter().zip(&items).all(|(document, item)| same(document, item)) {
        return Ok(cut);
    }
    // Anchors that cross items, unusual layout: every item stands on the line of `items`.
    let line = list.line_of("items") - 1;
    let rewritten = items.iter().map(|item| {
        let text = serde_json::to_string(item).map_err(|e| list.refuse("items", e.to_string()))?;
        Ok(Document::new(Cow::Owned(text), line, true))
    });
    rewritten.collect()
}

/// Items of a block sequence under a top-level `items:`, moved to the left margin.
fn cut_block<'a>(list: &Document<'a>) -> Vec<Document<'a>> {
    let mut documents: Vec<Document<'a>> = Vec::new();
    let mut lines = list.text.split_inclusive('\n').enumerate();
    if !lines.any(|(_, line)| line.trim_end() == "items:") {
        return documents;
    }
    let (mut dash, mut margin) = (None, 0);
    for (number, line) in lines {
        let text = line.trim_start();
        let column = line.len() - text.len();
        let blank = text.is_empty() || text.starts_with('#');
        let starts = text.starts_with("- ") && dash.is_none_or(|at| at == column);
        if starts {
            dash = Some(column);
            let body = text[1..].trim_start_matches(' ');
            margin = column + text.len() - body.len();
            let text = Cow::Owned(body.to_owned());
            documents.push(Document::new(text, list.line + number, false));
        } else if !blank && dash.is_none_or(|at| column <= at) {
            break;
        } else if let Some(item) = documents.last_mut() {
            // Nothing but white space: a line all the same, as within a block scalar.
            let outside = if text.is_empty() { "\n" } else { text };
            let inside = line.get(margin..).filter(|rest| column >= margin && !rest.is_empty());
            item.text.to_mut().push_str(inside.unwrap_or(outside));
        }
    }
    documents
}

/// Elements of the array `items` of a JSON object.
fn cut_flow<'a>(list: &Document<'a>) -> Vec<Document<'a>> {
    let text: &str = &list.text;
    let mut documents = Vec::new();
    let (mut depth, mut in_items, mut start) = (0usize, false, None);
    let (mut string, mut last_string, mut escaped) = (None, "", false);
    for (at, byte) in text.bytes().enumerate() {
        if let Some(opened) = string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    last_string = &text[opened + 1..at];
                    string = None;
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => string = Some(at),
            b'{' | b'[' => {
                in_items |= depth == 1 && byte == b'[' && last_string == "items";
                depth += 1;
                if in_items && depth == 3 {
                    start = Some(at);
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if let (2, Some(start)) = (depth, start.take_if(|_| depth == 2)) {
                    let line = list.line + text[..start].matches('\n').count();
                    let text = Cow::Owned(text[start..=at].to_owned());
                    documents.push(Document::new(text, line, list.json));
                }
                in_items &= depth >= 2;
            }
            _ => {}
        }
    }
    documents
}

#[cfg(test)]
mod tests {
    use super::super::manifest;

    const BLOCK: &str = "apiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata:\n    name: a\n    annotations:\n      \
                         note: |\n        - not an item\n\n        items:\n# between\n- apiVersion: v1\n  kind: Service\n  \
                         metadata: {name: s, namespace: a}\n  spec:\n    clusterIP: None\n    selectr: {x: y}\nkind: List\n\
                         metadata:\n  resourceVersion: ''\n";

    fn lines(file: &str, text: &str) -> Vec<usize> {
        manifest::parse(file, text).unwrap().objects.iter().map(|located| located.line).collect()
    }

    #[test]
    fn items_of_any_kind_keep_their_lines() {
        let manifest = manifest::parse("f.yaml", BLOCK).unwrap();
        assert_eq!(manifest.objects.iter().map(|located| located.line).collect::<Vec<_>>(), [4, 14]);
        assert_eq!(manifest.warnings.len(), 1, "{:?}", manifest.warnings);
        assert_eq!(manifest.warnings[0].line, 18);
        assert!(manifest.warnings[0].message.contains("spec.selectr"));
        let indented = BLOCK.replace("items:\n- ", "items:\n  - ").replace("\n- api", "\n  - api");
        let indented = indented.replace("\n  ", "\n    ").replace("\n    - api", "\n  - api");
        assert_eq!(lines("f.yaml", &indented), [4, 14]);
        // Behind another document.
        assert_eq!(lines("f.yaml", &format!("# none\n---\n{BLOCK}")), [6, 16]);
    }

    #[test]
    fn json_lists_keep_their_lines() {
        let text = "{\n  \"apiVersion\": \"v1\", \"kind\": \"List\",\n  \"items\": [\n    {\n      \"apiVersion\": \"v1\",\n      \
                    \"kind\": \"Namespace\",\n      \"metadata\": {\"name\": \"a\\\"]}\"}\n    }\n  ]\n}\n";
        let errors = manifest::parse("f.json", text).unwrap_err();
        assert_eq!(errors[0].line, 7, "{}", errors[0]);
        let text = text.replace("\\\"]}", "");
        assert_eq!((lines("f.json", &text), lines("f.yaml", &text)), (vec![6], vec![6]));
    }

    #[test]
    fn an_item_in_error_is_named_by_its_line_and_refuses_the_file() {
        let broken = BLOCK.replace("name: s, namespace", "name: S_, namespace");
        let errors = manifest::parse("f.yaml", &broken).unwrap_err();
        assert_eq!((errors.len(), errors[0].line), (1, 15), "{}", errors[0]);
        let typed = BLOCK.replace("clusterIP: None", "ports: 5");
        assert_eq!(manifest::parse("f.yaml", &typed).unwrap_err()[0].line, 17);
        let nested = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: List\n  items: []\n";
        assert!(manifest::parse("f.yaml", nested).unwrap_err()[0].message.contains("within"));
        assert!(manifest::parse("f.yaml", "apiVersion: v1\nkind: List\n").is_err());
    }

    #[test]
    fn a_layout_that_cannot_be_cut_is_read_all_the_same() {
        let flow =
            "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Namespace, metadata: {name: a}}]\n";
        assert_eq!(lines("f.yaml", flow), [3]);
        let anchored = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a, labels: \
                        &l {x: y}}\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: b, labels: *l}\n";
        assert_eq!(lines("f.yaml", anchored), [3, 3]);
    }
}
