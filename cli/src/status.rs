//! `weft status`: what the control plane and the nodes answer on `/status`, side by side.

use std::time::SystemTime;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Map, Value};
use weft_e2e::lab::Admin;

use crate::Format;
use crate::kubernetes;
use crate::mesh::{Chosen, Mesh, WHO_IS_ASKED};
use crate::replicas::join;
use crate::summary::{place_and_message, summaries};
use crate::table::table;

#[derive(Debug, Args)]
#[command(after_help = WHO_IS_ASKED)]
pub(crate) struct Arguments {
    #[command(flatten)]
    mesh: Mesh,
    /// Admin endpoint to ask: unix:/path or address:port; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    admin: Vec<Admin>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Everything that was answered, not only the summary
    #[arg(short, long)]
    verbose: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut answers = asked(arguments)?;
    join(answers.iter_mut().filter_map(|(name, answer)| Some((name.as_str(), answer.as_mut().ok()?))));
    match arguments.output {
        Format::Json => {
            let of = |answer: &Result<Value>| match answer {
                Ok(value) => value.clone(),
                Err(e) => serde_json::json!({"error": format!("{e:#}")}),
            };
            let all: Map<String, Value> = answers.iter().map(|(n, a)| (n.clone(), of(a))).collect();
            say!("{}", serde_json::to_string_pretty(&all)?)?;
        }
        Format::Table if arguments.verbose => {
            answers.iter().try_for_each(|(name, answer)| crate::write(&whole(name, answer)))?;
        }
        Format::Table => {
            let now_unix_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
            let answers = answers
                .iter()
                .map(|(name, answer)| (name.as_str(), answer.as_ref().map_err(|error| format!("{error:#}"))));
            crate::write(&summaries(answers, now_unix_s))?;
        }
    }
    let silent: Vec<&str> = answers.iter().filter(|(_, a)| a.is_err()).map(|(n, _)| n.as_str()).collect();
    if !silent.is_empty() {
        bail!("no answer from {}", silent.join(", "));
    }
    Ok(())
}

/// What everybody who was asked answered, by name.
fn asked(arguments: &Arguments) -> Result<Vec<(String, Result<Value>)>> {
    if !arguments.admin.is_empty() {
        return Ok(arguments.admin.iter().map(|a| (a.argument(), a.json("/status"))).collect());
    }
    match arguments.mesh.choose()? {
        Chosen::Lab(lab) => {
            let mut all = vec![("control".to_owned(), lab.control_admin().json("/status"))];
            all.extend(
                lab.nodes().into_iter().map(|node| (node.clone(), lab.node_admin(&node).json("/status"))),
            );
            Ok(all)
        }
        Chosen::Cluster(target) => {
            let (server, answers) = kubernetes::cluster_statuses(target)?;
            eprintln!("cluster {server}");
            Ok(answers)
        }
    }
}

fn whole(name: &str, answer: &Result<Value>) -> String {
    let shown = match answer {
        Ok(Value::Object(fields)) => indented(&render(fields)),
        Ok(other) => format!("  {other}\n"),
        Err(e) => format!("  no answer: {e:#}\n"),
    };
    format!("{name}\n{shown}\n")
}

/// Plain fields as a list; each list of objects as a table of its own, what is in it or above it indented.
fn render(fields: &Map<String, Value>) -> String {
    let mut text = String::new();
    for (key, value) in fields.iter().filter(|(_, v)| !has_table(v)) {
        let shown = match value {
            Value::Object(inner) => {
                let parts = inner.iter().map(|(k, v)| format!("{k}={}", cell(v)));
                parts.collect::<Vec<_>>().join(" ")
            }
            other => cell(other),
        };
        text.push_str(&format!("{key}: {shown}\n"));
    }
    for (key, value) in fields.iter().filter(|(_, v)| has_table(v)) {
        let block = match value {
            Value::Object(rows) if rows.values().all(Value::is_object) => object_table(&named(rows)),
            Value::Object(inner) => render(inner),
            list => problems(list).unwrap_or_else(|| object_table(list)),
        };
        text.push_str(&format!("{key}:\n{}", indented(&block)));
    }
    text
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

/// A list of objects, objects by name, or an object that has such.
fn has_table(value: &Value) -> bool {
    match value {
        Value::Array(items) => !items.is_empty() && items.iter().all(Value::is_object),
        Value::Object(fields) => {
            fields.values().any(has_table) || (!fields.is_empty() && fields.values().all(Value::is_object))
        }
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

fn object_table(rows: &Value) -> String {
    let rows: Vec<&Map<String, Value>> =
        rows.as_array().into_iter().flatten().filter_map(Value::as_object).collect();
    let mut columns: Vec<&str> = Vec::new();
    for key in rows.iter().flat_map(|r| r.keys()) {
        if !columns.contains(&key.as_str()) {
            columns.push(key);
        }
    }
    let upper: Vec<String> = columns.iter().map(|c| c.to_uppercase()).collect();
    let header: Vec<&str> = upper.iter().map(String::as_str).collect();
    let line = |row: &&Map<String, Value>| {
        columns.iter().map(|c| row.get(*c).map(cell).unwrap_or_default()).collect()
    };
    table(&header, rows.iter().map(line))
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
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
            "probe": {"redirect": true},
            "pods": [{"pod": "shop/a", "state": "enrolled"}, {"pod": "shop/bb"}],
            "nodes": {"node1": {"acks": 2}},
            "source": {"files": 1, "errors": [{"file": "/a.yaml", "line": 7, "message": "wrong"},
                {"file": "Pod shop/a", "line": 0, "message": "odd"}]},
        });
        let text = render(status.as_object().unwrap());
        assert_eq!(
            text,
            "probe: redirect=true\nrevision: 7\nnodes:\n  ACKS  NAME\n  2     node1\npods:\n  POD      STATE\n  shop/a   enrolled\n  shop/bb\n\
             source:\n  files: 1\n  errors:\n    /a.yaml:7: wrong\n    Pod shop/a: odd\n"
        );
    }
}
