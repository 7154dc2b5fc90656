//! The line of a field in a manifest, for messages. YAML values carry no position once they are parsed, so the field's
//! name is searched within the lines of its parents. Must never fail: without a better answer it is the last parent's line.

/// Line, counting from 0, of `path` (`spec.containers.0.foo`, as serde_ignored prints it) in a block-style document.
pub fn line_of(document: &str, path: &str) -> usize {
    let lines: Vec<&str> = document.lines().collect();
    let (mut at, mut end, mut indent) = (0, lines.len(), None::<usize>);
    for segment in path.split('.').filter(|s| *s != "?" && !s.is_empty()) {
        let found = match segment.parse::<usize>() {
            // The line of the list's own key may be the first of an item itself.
            Ok(nth) => lines.get(at + 1..end).and_then(|below| item(below, nth)).map(|offset| offset + 1),
            Err(_) => lines[at..end].iter().position(|line| {
                let (key_indent, text) = key_text(line);
                indent.is_none_or(|outer| key_indent > outer || key_indent == 0) && is_key(text, segment)
            }),
        };
        let Some(offset) = found else { return at };
        at += offset;
        let own = key_text(lines[at]).0;
        indent = Some(if segment.parse::<usize>().is_ok() { own.saturating_sub(1) } else { own });
        // A sibling or a parent ends the block; the items of a list may stand at their key's own column.
        let closes = |line: &&str| {
            let text = line.trim_start();
            let column = line.len() - text.len();
            !text.is_empty()
                && !text.starts_with('#')
                && (column < own || (column == own && !text.starts_with('-')))
        };
        if let Some(close) = lines[at + 1..end].iter().position(closes) {
            // An item's further keys stand at its own column.
            if segment.parse::<usize>().is_err() {
                end = at + 1 + close;
            }
        }
    }
    at
}

/// Column and text of the first key of a line, behind `- ` if it starts an item.
fn key_text(line: &str) -> (usize, &str) {
    let text = line.trim_start_matches([' ', '-']);
    (line.len() - text.len(), text)
}

fn is_key(text: &str, key: &str) -> bool {
    let text = text.trim_start_matches(['{', '"', '\'', ' ']);
    text.strip_prefix(key)
        .is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(':'))
}

/// The `nth` item of the outermost list in these lines.
fn item(lines: &[&str], nth: usize) -> Option<usize> {
    let column = |line: &str| line.len() - line.trim_start().len();
    let mut items = lines.iter().enumerate().filter(|(_, line)| line.trim_start().starts_with('-'));
    let (first, line) = items.next()?;
    if nth == 0 {
        return Some(first);
    }
    let outermost = column(line);
    items.filter(|(_, line)| column(line) == outermost).nth(nth - 1).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_within_its_parents() {
        let text = "kind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - name: x\n    image: i\n  - name: y\n    \
                    imag: z\n  extra: 1\n";
        assert_eq!(line_of(text, "metadata.name"), 2);
        assert_eq!(line_of(text, "spec.containers.0.name"), 5);
        assert_eq!(line_of(text, "spec.containers.1.imag"), 8);
        assert_eq!(line_of(text, "spec.extra"), 9);
        let nested =
            "spec:\n  rules:\n  - refs:\n    - name: x\n    - name: y\n      weight: 1\n  - refs: []\n";
        assert_eq!(line_of(nested, "spec.rules.0.refs.1.weight"), 5);
        assert_eq!(line_of(nested, "spec.rules.0.refs.2"), 2);
        assert_eq!(line_of(nested, "spec.rules.1.refs.0.weight"), 6);
        assert_eq!(line_of(text, "spec.missing"), 3);
        assert_eq!(line_of("", "a.b"), 0);
    }
}
