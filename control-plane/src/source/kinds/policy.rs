//! `weft.dev/v1alpha1` AuthorizationPolicy.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_proto::identity::SpiffeId;
use weft_proto::{convert, v1};

use super::super::manifest::{Document, Refused};
use super::super::object::{AuthorizationPolicyObject, Object};
use super::bounds::{
    self, ENTRIES_MAX, RULES_MAX, Selector, VALUES_MAX, at_most, check_header_name, check_texts,
};
use super::crds::{PolicyStatus, some_field};
use super::edge::refused;
use super::{Envelope, id_of, read_strict};

/// Who may talk to the pods that are selected. Deny wins; with any ALLOW policy on a pod, what none of them allows is denied.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, kube::CustomResource)]
#[serde(deny_unknown_fields)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    namespaced,
    status = "PolicyStatus",
    shortname = "wap",
    category = "weft",
    doc = "Says who may talk to pods of its namespace: verified identities, addresses, ports and HTTP requests are allowed, denied or \
           audited. What is in force, and which nodes have it, is in its status.",
    printcolumn = r#"{"name": "Action", "type": "string", "jsonPath": ".spec.action"}"#,
    printcolumn = r#"{"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].reason"}"#,
    printcolumn = r#"{"name": "Programmed", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Programmed\")].status"}"#,
    printcolumn = r#"{"name": "Nodes", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Programmed\")].message"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
pub struct AuthorizationPolicySpec {
    /// The pods that are talked to, by their labels. Absent or empty: every pod of the namespace.
    selector: Option<Selector>,
    /// ALLOW lets in what a rule matches, DENY refuses it, AUDIT only notes it in the access log and on the span.
    action: Action,
    /// Any matches; at most 256. ALLOW without rules denies everything; DENY and AUDIT without rules do nothing.
    #[serde(default)]
    #[schemars(extend("maxItems" = RULES_MAX))]
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
enum Action {
    Allow,
    Deny,
    Audit,
}

/// Both `from` and `to` must match.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// Who talks. Any entry matches, at most 64; absent: everyone.
    #[serde(default)]
    #[schemars(extend("maxItems" = ENTRIES_MAX))]
    from: Vec<Source>,
    /// What is asked for. Any entry matches, at most 64; absent: everything.
    #[serde(default)]
    #[schemars(extend("maxItems" = ENTRIES_MAX))]
    to: Vec<Operation>,
}

/// All that is given must match; within a list any value.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = some_field(SOURCE_FIELDS)))]
struct Source {
    /// The client's verified SPIFFE ID, with or without `spiffe://`: exactly, `a*`, `*a`, or `*` (any). At most 256.
    #[schemars(schema_with = "bounds::starred_list")]
    principals: Vec<String>,
    /// Not these verified SPIFFE IDs, written as in `principals`; who has none is none of them. At most 256.
    #[schemars(schema_with = "bounds::starred_list")]
    not_principals: Vec<String>,
    /// The namespace in the client's verified SPIFFE ID, exactly. At most 256.
    #[schemars(schema_with = "bounds::names")]
    namespaces: Vec<String>,
    /// Not these namespaces of a verified SPIFFE ID; who has none is in none of them. At most 256.
    #[schemars(schema_with = "bounds::names")]
    not_namespaces: Vec<String>,
    /// The client's address is in one of these, such as 10.0.0.0/8 or fd00::/8. At most 256.
    #[schemars(schema_with = "bounds::cidrs")]
    cidrs: Vec<String>,
    /// The client's address is in none of these. At most 256.
    #[schemars(schema_with = "bounds::cidrs")]
    not_cidrs: Vec<String>,
}

const SOURCE_FIELDS: &[&str] =
    &["principals", "notPrincipals", "namespaces", "notNamespaces", "cidrs", "notCidrs"];

/// All that is given must match; within a list any value.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = some_field(OPERATION_FIELDS)))]
struct Operation {
    /// The port of the pod (not of the Service), 1 to 65535. At most 256.
    #[schemars(schema_with = "bounds::ports")]
    ports: Vec<u32>,
    /// None of these ports of the pod, 1 to 65535. At most 256.
    #[schemars(schema_with = "bounds::ports")]
    not_ports: Vec<u32>,
    /// The method of the HTTP request, with its case, such as GET. At most 256, of 64 characters.
    #[schemars(schema_with = "bounds::methods")]
    methods: Vec<String>,
    /// None of these methods of the HTTP request. At most 256, of 64 characters.
    #[schemars(schema_with = "bounds::methods")]
    not_methods: Vec<String>,
    /// The path of the HTTP request, without its query: exactly, `a*`, `*a`, or `*` (any). At most 256.
    #[schemars(schema_with = "bounds::starred_list")]
    paths: Vec<String>,
    /// None of these paths of the HTTP request, written as in `paths`. At most 256.
    #[schemars(schema_with = "bounds::starred_list")]
    not_paths: Vec<String>,
    /// Headers of the HTTP request: each name that is given must be there with its value, or one of its values. At most 64.
    #[schemars(extend("maxItems" = ENTRIES_MAX))]
    headers: Vec<Header>,
}

const OPERATION_FIELDS: &[&str] =
    &["ports", "notPorts", "methods", "notMethods", "paths", "notPaths", "headers"];

/// A header of the request.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Header {
    /// The header's name; its case does not matter. At most 256 characters.
    #[schemars(schema_with = "bounds::header_name")]
    name: String,
    /// Its value: exactly, `a*`, `*a`, or `*` (any that is there). At most 2048 characters.
    #[schemars(schema_with = "bounds::starred")]
    value: String,
}

/// `*`, `a*`, `*a` or exactly. A `*` anywhere else is refused by [`check_starred`].
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

/// What the schema says too, for manifests that no API server has seen.
fn check(document: &Document<'_>, rules: &[Rule]) -> Result<(), Refused> {
    at_most(document, "spec.rules", rules.len(), RULES_MAX)?;
    for (i, rule) in rules.iter().enumerate() {
        at_most(document, &format!("spec.rules.{i}.from"), rule.from.len(), ENTRIES_MAX)?;
        at_most(document, &format!("spec.rules.{i}.to"), rule.to.len(), ENTRIES_MAX)?;
        for (k, source) in rule.from.iter().enumerate() {
            check_source(document, &format!("spec.rules.{i}.from.{k}"), source)?;
        }
        for (k, operation) in rule.to.iter().enumerate() {
            check_operation(document, &format!("spec.rules.{i}.to.{k}"), operation)?;
        }
    }
    Ok(())
}

fn check_starred(document: &Document<'_>, path: &str, texts: &[String]) -> Result<(), Refused> {
    check_texts(document, path, texts)?;
    if let Some(text) = texts.iter().find(|text| star_misplaced(text)) {
        let message = format!("{path}: {text:?} has a * that is neither its first nor its last character");
        return Err(document.refuse(path, message));
    }
    Ok(())
}

fn check_some(document: &Document<'_>, at: &str, lengths: &[usize]) -> Result<(), Refused> {
    if lengths.iter().all(|length| *length == 0) {
        let message =
            format!("{at}: an entry without any value would match everything; leave the list out instead");
        return Err(document.refuse(at, message));
    }
    lengths.iter().try_for_each(|length| at_most(document, at, *length, VALUES_MAX))
}

fn check_source(document: &Document<'_>, at: &str, source: &Source) -> Result<(), Refused> {
    let lists = [
        &source.principals,
        &source.not_principals,
        &source.namespaces,
        &source.not_namespaces,
        &source.cidrs,
        &source.not_cidrs,
    ];
    check_some(document, at, &lists.map(Vec::len))?;
    check_starred(document, &format!("{at}.principals"), &source.principals)?;
    check_starred(document, &format!("{at}.notPrincipals"), &source.not_principals)
}

fn check_operation(document: &Document<'_>, at: &str, operation: &Operation) -> Result<(), Refused> {
    let Operation { ports, not_ports, methods, not_methods, paths, not_paths, headers } = operation;
    check_some(
        document,
        at,
        &[
            ports.len(),
            not_ports.len(),
            methods.len(),
            not_methods.len(),
            paths.len(),
            not_paths.len(),
            headers.len(),
        ],
    )?;
    check_starred(document, &format!("{at}.paths"), paths)?;
    check_starred(document, &format!("{at}.notPaths"), not_paths)?;
    at_most(document, &format!("{at}.headers"), headers.len(), ENTRIES_MAX)?;
    for (i, header) in headers.iter().enumerate() {
        check_header_name(document, &format!("{at}.headers.{i}.name"), &header.name)?;
        check_starred(document, &format!("{at}.headers.{i}.value"), std::slice::from_ref(&header.value))?;
    }
    Ok(())
}

/// Warns of what is allowed to be said and matches nobody: in a DENY it would forbid nothing without a word.
fn warn_of_no_match(document: &Document<'_>, rules: &[Rule], warn: &mut dyn FnMut(usize, String)) {
    for (i, rule) in rules.iter().enumerate() {
        for (k, source) in rule.from.iter().enumerate() {
            for (field, list) in
                [("principals", &source.principals), ("notPrincipals", &source.not_principals)]
            {
                let path = format!("spec.rules.{i}.from.{k}.{field}");
                for text in list.iter().filter(|text| !text.contains('*') && !is_principal(text)) {
                    let form = "<trust domain>/ns/<namespace>/sa/<service account>";
                    warn(
                        document.line_of(&path),
                        format!("{path}: {text:?} can be nobody, as a principal is {form}"),
                    );
                }
            }
        }
        for (k, operation) in rule.to.iter().enumerate() {
            for (field, list) in [("methods", &operation.methods), ("notMethods", &operation.not_methods)] {
                let path = format!("spec.rules.{i}.to.{k}.{field}");
                let capital = |text: &&String| METHODS.contains(&text.to_ascii_uppercase().as_str());
                for text in list.iter().filter(capital).filter(|text| !METHODS.contains(&text.as_str())) {
                    let instead = text.to_ascii_uppercase();
                    warn(document.line_of(&path), format!("{path}: {text:?} is not the method {instead}"));
                }
            }
        }
    }
}

/// Those that everybody knows. Methods are compared with their case.
const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

fn is_principal(text: &str) -> bool {
    let text = text.strip_prefix("spiffe://").unwrap_or(text);
    format!("spiffe://{text}").parse::<SpiffeId>().is_ok()
}

pub(super) fn authorization_policy(
    document: &Document<'_>,
    warn: &mut dyn FnMut(usize, String),
) -> Result<Object, Refused> {
    use v1::authorization_policy::Action as WireAction;
    let read: Envelope<AuthorizationPolicySpec> = read_strict(document)?;
    let id = id_of(document, &read.metadata)?;
    check(document, &read.spec.rules)?;
    warn_of_no_match(document, &read.spec.rules, warn);
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
        selector: Selector::labels(document, read.spec.selector)?,
    })))
}
