//! `weft.dev/v1alpha1` TrafficPolicy.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use weft_proto::model::InboundMode;
use weft_proto::{convert, v1};

use super::super::manifest::{Document, Refused};
use super::super::object::{Inbound, Object, TrafficPolicyObject};
use super::policy::Selector;
use super::route::duration_ms;
use super::{id_of, refused};

/// Retries may be a fifth of live requests where a budget is not given.
const BUDGET_PERCENT_DEFAULT: u32 = 20;
/// ... and always ten a second, or a quiet service would never be retried.
const BUDGET_MIN_PER_S_DEFAULT: u32 = 10;
const EJECTION_BASE_DEFAULT: &str = "30s";
const EJECTED_PERCENT_DEFAULT: u32 = 50;

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
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    target_refs: Vec<TargetRef>,
    selector: Option<Selector>,
    inbound: Option<InboundSpec>,
    retry: Option<Retry>,
    connect_timeout: Option<String>,
    ejection: Option<Ejection>,
    max_connections: Option<u32>,
    max_pending_requests: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetRef {
    #[serde(default)]
    group: String,
    #[serde(default = "service")]
    kind: String,
    name: String,
}

fn service() -> String {
    "Service".to_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InboundSpec {
    mode: Mode,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Mode {
    Strict,
    Permissive,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Retry {
    #[serde(default)]
    codes: Vec<u32>,
    attempts: Option<u32>,
    backoff: Option<String>,
    #[serde(default)]
    methods: Vec<String>,
    budget: Option<Budget>,
    per_try_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Budget {
    percent: Option<u32>,
    min_per_second: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Ejection {
    consecutive_failures: u32,
    base_ejection_time: Option<String>,
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
    let read: Wire = document.read(|_, _| {})?;
    let id = id_of(document, &read.metadata)?;
    let spec = read.spec;
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
                .refuse(path, format!("{path}: 0 would refuse everything; leave it out for no limit")));
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
    };
    let policy = convert::traffic_policy(wire).map_err(|invalid| refused(document, &invalid))?;
    let selector = Selector::labels(spec.selector);
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
