//! `weft.dev/v1alpha1` AuthorizationPolicy.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use weft_proto::{convert, v1};

use super::super::manifest::{Document, Refused};
use super::super::object::{AuthorizationPolicyObject, Object};
use super::{id_of, refused};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: ObjectMeta,
    spec: Spec,
    #[serde(rename = "status")]
    _status: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    selector: Option<Selector>,
    action: Action,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Selector {
    pub(super) match_labels: BTreeMap<String, String>,
}

impl Selector {
    /// None: everything, as an empty selector is in Kubernetes.
    pub(super) fn labels(selector: Option<Self>) -> Option<BTreeMap<String, String>> {
        selector.map(|s| s.match_labels).filter(|labels| !labels.is_empty())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Action {
    Allow,
    Deny,
    Audit,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    from: Vec<Source>,
    #[serde(default)]
    to: Vec<Operation>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[derive(Default)]
struct Source {
    principals: Vec<String>,
    not_principals: Vec<String>,
    namespaces: Vec<String>,
    not_namespaces: Vec<String>,
    cidrs: Vec<String>,
    not_cidrs: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Operation {
    ports: Vec<u32>,
    not_ports: Vec<u32>,
    methods: Vec<String>,
    not_methods: Vec<String>,
    paths: Vec<String>,
    not_paths: Vec<String>,
    headers: Vec<Header>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    value: String,
}

/// `*`, `a*`, `*a` or exactly. A `*` anywhere else is refused by [`star_misplaced`].
fn text_match(text: &str) -> v1::StringMatch {
    use v1::string_match::Kind;
    let kind = if text == "*" {
        Kind::Present(true)
    } else if let Some(prefix) = text.strip_suffix('*') {
        Kind::Prefix(prefix.to_owned())
    } else if let Some(suffix) = text.strip_prefix('*') {
        Kind::Suffix(suffix.to_owned())
    } else {
        Kind::Exact(text.to_owned())
    };
    v1::StringMatch { kind: Some(kind) }
}

/// Whether a `*` stands where it would be compared as a character: almost certainly not what was meant.
fn star_misplaced(text: &str) -> bool {
    let inner = text.strip_suffix('*').or_else(|| text.strip_prefix('*')).unwrap_or(text);
    inner.contains('*')
}

fn texts(list: &[String]) -> Vec<v1::StringMatch> {
    list.iter().map(|text| text_match(text)).collect()
}

/// Principals may be written with `spiffe://` and are compared without.
fn principals(list: &[String]) -> Vec<v1::StringMatch> {
    list.iter().map(|text| text_match(text.strip_prefix("spiffe://").unwrap_or(text))).collect()
}

fn source_to_wire(source: Source) -> v1::Source {
    v1::Source {
        principals: principals(&source.principals),
        not_principals: principals(&source.not_principals),
        namespaces: source.namespaces,
        not_namespaces: source.not_namespaces,
        cidrs: source.cidrs,
        not_cidrs: source.not_cidrs,
    }
}

fn operation_to_wire(operation: Operation) -> v1::Operation {
    let headers = operation
        .headers
        .into_iter()
        .map(|h| v1::NamedMatch { value: Some(text_match(&h.value)), name: h.name })
        .collect();
    v1::Operation {
        ports: operation.ports,
        not_ports: operation.not_ports,
        methods: operation.methods,
        not_methods: operation.not_methods,
        paths: texts(&operation.paths),
        not_paths: texts(&operation.not_paths),
        headers,
    }
}

fn check_stars(document: &Document<'_>, rules: &[Rule]) -> Result<(), Refused> {
    for (i, rule) in rules.iter().enumerate() {
        let from = rule.from.iter().flat_map(|s| s.principals.iter().chain(&s.not_principals));
        let to = rule.to.iter().flat_map(|o| {
            o.paths.iter().chain(&o.not_paths).chain(o.headers.iter().map(|header| &header.value))
        });
        if let Some(text) = from.chain(to).find(|text| star_misplaced(text)) {
            let message =
                format!("spec.rules[{i}]: {text:?} has a * that is neither its first nor its last character");
            return Err(document.refuse(&format!("spec.rules.{i}"), message));
        }
    }
    Ok(())
}

pub(super) fn authorization_policy(document: &Document<'_>) -> Result<Object, Refused> {
    use v1::authorization_policy::Action as WireAction;
    let read: Wire = document.read(|_, _| {})?;
    let id = id_of(document, &read.metadata)?;
    check_stars(document, &read.spec.rules)?;
    let wire = v1::AuthorizationPolicy {
        namespace: id.namespace.to_string(),
        name: id.name.to_string(),
        action: match read.spec.action {
            Action::Allow => WireAction::Allow,
            Action::Deny => WireAction::Deny,
            Action::Audit => WireAction::Audit,
        }
        .into(),
        rules: read
            .spec
            .rules
            .into_iter()
            .map(|rule| v1::PolicyRule {
                from: rule.from.into_iter().map(source_to_wire).collect(),
                to: rule.to.into_iter().map(operation_to_wire).collect(),
            })
            .collect(),
    };
    let policy = convert::authorization_policy(wire).map_err(|invalid| refused(document, &invalid))?;
    Ok(Object::AuthorizationPolicy(Arc::new(AuthorizationPolicyObject {
        policy: Arc::new(policy),
        selector: Selector::labels(read.spec.selector),
    })))
}
