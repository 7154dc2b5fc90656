//! `weft.dev/v1alpha1` TrafficPolicy.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_proto::model::InboundMode;
use weft_proto::{convert, v1};

use super::super::manifest::{Document, Refused};
use super::super::object::{Inbound, Object, TrafficPolicyObject};
use super::bounds::{self, Selector, VALUES_MAX, at_most};
use super::crds::PolicyStatus;
use super::edge::refused;
use super::route::duration_ms;
use super::{Envelope, id_of, read_strict};

/// Retries may be a fifth of live requests where a budget is not given.
const BUDGET_PERCENT_DEFAULT: u32 = 20;
/// ... and always ten a second, or a quiet service would never be retried.
const BUDGET_MIN_PER_S_DEFAULT: u32 = 10;
const EJECTION_BASE_DEFAULT: &str = "30s";
const EJECTED_PERCENT_DEFAULT: u32 = 50;

/// How clients reach the Services of the namespace, and how its pods take connections in.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, kube::CustomResource)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "TrafficPolicy",
    namespaced,
    status = "PolicyStatus",
    shortname = "wtp",
    category = "weft",
    doc = "Says how clients of the mesh reach Services of its namespace (retries, time-outs, endpoints that fail, bounds on connections), \
           and how pods take connections in (mutual TLS only, or plaintext too). What is in force, and which nodes have it, is in its \
           status.",
    printcolumn = r#"{"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].reason"}"#,
    printcolumn = r#"{"name": "Programmed", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Programmed\")].status"}"#,
    printcolumn = r#"{"name": "Nodes", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Programmed\")].message"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.selector) || has(self.inbound)",
        "message": "spec.selector chooses the pods of spec.inbound, which is missing",
    },
    {
        "rule": "has(self.inbound) || has(self.retry) || has(self.connectTimeout) || has(self.ejection) || \
                 has(self.maxConnections) || has(self.maxPendingRequests)",
        "message": "spec asks for nothing",
    },
]))]
pub struct TrafficPolicySpec {
    /// The Services that clients shall reach this way, at most 256; absent: every Service of the namespace.
    #[serde(default)]
    #[schemars(extend("maxItems" = VALUES_MAX))]
    target_refs: Vec<TargetRef>,
    /// The pods that `inbound` is for; absent or empty: every pod of the namespace.
    selector: Option<Selector>,
    /// How pods take connections in. Absent: as the namespace's label weft.dev/mtls says, else STRICT.
    inbound: Option<InboundSpec>,
    /// When a request is repeated. Absent: never once it was answered, unless the HTTPRoute has a `retry` of its own.
    retry: Option<Retry>,
    /// How long a connection to an endpoint may take, such as 500ms; more than 10s counts as 10s. Default 2s while there are others to try, else 10s.
    #[serde(default)]
    #[schemars(schema_with = "bounds::duration")]
    connect_timeout: Option<String>,
    /// When an endpoint that fails is left out for a while. Absent: after 5 failures in a row, for 5s, at most half of the endpoints.
    ejection: Option<Ejection>,
    /// Connections at a time, per client pod and endpoint; from 1. Default 1024 for HTTP; others are bounded only where it is set.
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    max_connections: Option<u32>,
    /// Requests that wait for one of `maxConnections`, per client pod and endpoint; from 1. Default 1024.
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    max_pending_requests: Option<u32>,
}

/// A Service of the policy's namespace.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TargetRef {
    /// Empty, the core group; which is the default.
    #[serde(default)]
    #[schemars(extend("enum" = [""]))]
    group: String,
    /// Service, which is the default.
    #[serde(default = "service")]
    #[schemars(extend("enum" = ["Service"]))]
    kind: String,
    /// The Service's name. One that is not there (yet) is told in the status.
    #[schemars(schema_with = "bounds::name")]
    name: String,
}

fn service() -> String {
    "Service".to_owned()
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct InboundSpec {
    /// STRICT: only mutual TLS. PERMISSIVE: plaintext too.
    mode: Mode,
}

/// STRICT: only mutual TLS. PERMISSIVE: plaintext too.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
enum Mode {
    Strict,
    Permissive,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Retry {
    /// The HTTP statuses that are repeated, 400 to 599, at most 256; default 502, 503, 504. A time-out of an attempt counts as 504.
    #[serde(default)]
    #[schemars(schema_with = "bounds::statuses")]
    codes: Vec<u32>,
    /// Retries after the first attempt, 0 to 10; default 1.
    #[schemars(range(max = 10))]
    attempts: Option<u32>,
    /// The pause before the first retry, such as 25ms (the default); it doubles up to 1s, with jitter.
    #[serde(default)]
    #[schemars(schema_with = "bounds::duration")]
    backoff: Option<String>,
    /// The methods that may be repeated, with their case, at most 256; default GET, HEAD, OPTIONS. A gRPC call is a POST.
    #[serde(default)]
    #[schemars(schema_with = "bounds::methods")]
    methods: Vec<String>,
    /// How many retries there may be beside the requests, for all methods together.
    budget: Option<Budget>,
    /// How long an attempt may take up to the head of its response, such as 1s. Default: no bound but the request's own.
    #[serde(default)]
    #[schemars(schema_with = "bounds::duration")]
    per_try_timeout: Option<String>,
}

/// Retries may be this share of the requests, and this many in any case.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Budget {
    /// Of the requests of the last 10s, in percent, 0 to 100; default 20.
    #[schemars(range(max = 100))]
    percent: Option<u32>,
    /// Retries per second that there may be in any case, from 0; default 10.
    #[schemars(range(max = 4_294_967_295_u32))]
    min_per_second: Option<u32>,
}

/// An endpoint that fails is left out for a while.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Ejection {
    /// After so many failures in a row; from 1.
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    consecutive_failures: u32,
    /// How long it is left out the first time, such as 30s (the default), longer than 0; each further time doubles it, up to 5m.
    #[serde(default)]
    #[schemars(schema_with = "bounds::positive_duration")]
    base_ejection_time: Option<String>,
    /// Of the endpoints, how many may be left out at a time, in percent, 0 to 100; default 50. One always stays.
    #[schemars(range(max = 100))]
    max_ejected_percent: Option<u32>,
}

fn optional_ms(document: &Document<'_>, path: &str, text: Option<&str>) -> Result<u64, Refused> {
    text.map_or(Ok(0), |text| duration_ms(document, path, text))
}

fn retry_to_wire(document: &Document<'_>, retry: Retry) -> Result<v1::RetryPolicy, Refused> {
    let budget = retry.budget.unwrap_or(Budget { percent: None, min_per_second: None });
    Ok(v1::RetryPolicy {
        codes: retry.codes,
        attempts: retry.attempts.unwrap_or(1),
        backoff_ms: optional_ms(document, "spec.retry.backoff", retry.backoff.as_deref())?,
        methods: retry.methods,
        budget_percent: budget.percent.unwrap_or(BUDGET_PERCENT_DEFAULT),
        budget_min_per_s: budget.min_per_second.unwrap_or(BUDGET_MIN_PER_S_DEFAULT),
        per_try_timeout_ms: optional_ms(
            document,
            "spec.retry.perTryTimeout",
            retry.per_try_timeout.as_deref(),
        )?,
    })
}

fn ejection_to_wire(document: &Document<'_>, ejection: &Ejection) -> Result<v1::Ejection, Refused> {
    let base = ejection.base_ejection_time.as_deref().unwrap_or(EJECTION_BASE_DEFAULT);
    Ok(v1::Ejection {
        consecutive_failures: ejection.consecutive_failures,
        base_ejection_ms: duration_ms(document, "spec.ejection.baseEjectionTime", base)?,
        max_ejected_percent: ejection.max_ejected_percent.unwrap_or(EJECTED_PERCENT_DEFAULT),
    })
}

pub(super) fn traffic_policy(document: &Document<'_>) -> Result<Object, Refused> {
    let read: Envelope<TrafficPolicySpec> = read_strict(document)?;
    let id = id_of(document, &read.metadata)?;
    let spec = read.spec;
    at_most(document, "spec.targetRefs", spec.target_refs.len(), VALUES_MAX)?;
    if let Some(retry) = &spec.retry {
        at_most(document, "spec.retry.codes", retry.codes.len(), VALUES_MAX)?;
        at_most(document, "spec.retry.methods", retry.methods.len(), VALUES_MAX)?;
    }
    for (i, target) in spec.target_refs.iter().enumerate() {
        if !target.group.is_empty() || target.kind != "Service" {
            let path = format!("spec.targetRefs.{i}");
            let message = format!("spec.targetRefs[{i}]: {} {:?} is not a Service", target.kind, target.name);
            return Err(document.refuse(&path, message));
        }
    }
    if spec.selector.is_some() && spec.inbound.is_none() {
        return Err(document
            .refuse("spec.selector", "spec.selector chooses the pods of spec.inbound, which is missing"));
    }
    let for_clients = spec.retry.is_some()
        || spec.connect_timeout.is_some()
        || spec.ejection.is_some()
        || spec.max_connections.is_some()
        || spec.max_pending_requests.is_some();
    if !for_clients && spec.inbound.is_none() {
        return Err(document.refuse("spec", "spec asks for nothing"));
    }
    for (path, value) in [
        ("spec.maxConnections", spec.max_connections),
        ("spec.maxPendingRequests", spec.max_pending_requests),
    ] {
        if value == Some(0) {
            return Err(document
                .refuse(path, format!("{path}: 0 would refuse everything; leave it out for the default")));
        }
    }
    let wire = v1::TrafficPolicy {
        namespace: id.namespace.to_string(),
        name: id.name.to_string(),
        services: spec.target_refs.into_iter().map(|target| target.name).collect(),
        retry: spec.retry.map(|retry| retry_to_wire(document, retry)).transpose()?,
        connect_timeout_ms: optional_ms(document, "spec.connectTimeout", spec.connect_timeout.as_deref())?,
        ejection: spec.ejection.map(|ejection| ejection_to_wire(document, &ejection)).transpose()?,
        max_connections: spec.max_connections.unwrap_or(0),
        max_pending_requests: spec.max_pending_requests.unwrap_or(0),
        created_unix_s: read.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
    };
    let policy = convert::traffic_policy(wire).map_err(|invalid| refused(document, &invalid))?;
    let selector = Selector::labels(document, spec.selector)?;
    let inbound = spec.inbound.map(|inbound| Inbound {
        selector,
        mode: match inbound.mode {
            Mode::Strict => InboundMode::Strict,
            Mode::Permissive => InboundMode::Permissive,
        },
    });
    Ok(Object::TrafficPolicy(Arc::new(TrafficPolicyObject {
        policy: Arc::new(policy),
        for_clients,
        inbound,
    })))
}
