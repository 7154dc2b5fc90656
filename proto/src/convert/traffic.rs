//! TrafficPolicy.

use crate::convert::field::{self, Invalid};
use crate::model::{Ejection, RetryPolicy, TrafficPolicy};
use crate::v1;

/// More attempts than this are an outage amplifier, whatever the budget says.
pub(super) const RETRY_ATTEMPTS_MAX: u32 = 10;

pub fn traffic_policy(wire: v1::TrafficPolicy) -> Result<TrafficPolicy, Invalid> {
    Ok(TrafficPolicy {
        id: field::namespaced(&wire.namespace, &wire.name)?,
        created_unix_s: wire.created_unix_s,
        services: field::list("services", wire.services, |name| field::object_name("", &name))?,
        retry: wire.retry.map(retry).transpose().map_err(|e| e.within("retry"))?,
        connect_timeout: field::optional_duration("connect_timeout_ms", wire.connect_timeout_ms)?,
        ejection: wire.ejection.map(ejection).transpose().map_err(|e| e.within("ejection"))?,
        max_connections: (wire.max_connections != 0).then_some(wire.max_connections),
        max_pending_requests: (wire.max_pending_requests != 0).then_some(wire.max_pending_requests),
    })
}

pub(super) fn attempts(value: u32) -> Result<u32, Invalid> {
    if value > RETRY_ATTEMPTS_MAX {
        return Err(Invalid::new("attempts", value, format!("is more than {RETRY_ATTEMPTS_MAX}")));
    }
    Ok(value)
}

fn percent(field: &str, value: u32) -> Result<u32, Invalid> {
    if value > 100 {
        return Err(Invalid::new(field, value, "is not a percentage from 0 to 100"));
    }
    Ok(value)
}

fn retry(wire: v1::RetryPolicy) -> Result<RetryPolicy, Invalid> {
    Ok(RetryPolicy {
        codes: field::statuses("codes", wire.codes)?,
        attempts: attempts(wire.attempts)?,
        backoff: field::optional_duration("backoff_ms", wire.backoff_ms)?,
        methods: field::methods("methods", wire.methods)?,
        budget_percent: percent("budget_percent", wire.budget_percent)?,
        budget_min_per_s: wire.budget_min_per_s,
        per_try_timeout: field::optional_duration("per_try_timeout_ms", wire.per_try_timeout_ms)?,
    })
}

fn ejection(wire: v1::Ejection) -> Result<Ejection, Invalid> {
    if wire.consecutive_failures == 0 {
        return Err(Invalid::new("consecutive_failures", 0, "is not at least 1"));
    }
    let base_ejection = field::optional_duration("base_ejection_ms", wire.base_ejection_ms)?
        .ok_or_else(|| Invalid::new("base_ejection_ms", 0, "is not at least 1"))?;
    Ok(Ejection {
        consecutive_failures: wire.consecutive_failures,
        base_ejection,
        max_ejected_percent: percent("max_ejected_percent", wire.max_ejected_percent)?,
    })
}

pub(super) fn traffic_policy_to_wire(policy: &TrafficPolicy) -> v1::TrafficPolicy {
    v1::TrafficPolicy {
        namespace: policy.id.namespace.to_string(),
        name: policy.id.name.to_string(),
        services: field::texts(&policy.services),
        retry: policy.retry.as_ref().map(retry_to_wire),
        connect_timeout_ms: field::duration_to_wire(policy.connect_timeout),
        ejection: policy.ejection.map(|ejection| v1::Ejection {
            consecutive_failures: ejection.consecutive_failures,
            base_ejection_ms: field::duration_to_wire(Some(ejection.base_ejection)),
            max_ejected_percent: ejection.max_ejected_percent,
        }),
        max_connections: policy.max_connections.unwrap_or(0),
        max_pending_requests: policy.max_pending_requests.unwrap_or(0),
        created_unix_s: policy.created_unix_s,
    }
}

fn retry_to_wire(retry: &RetryPolicy) -> v1::RetryPolicy {
    v1::RetryPolicy {
        codes: retry.codes.iter().map(|code| code.as_u16().into()).collect(),
        attempts: retry.attempts,
        backoff_ms: field::duration_to_wire(retry.backoff),
        methods: field::texts(&retry.methods),
        budget_percent: retry.budget_percent,
        budget_min_per_s: retry.budget_min_per_s,
        per_try_timeout_ms: field::duration_to_wire(retry.per_try_timeout),
    }
}
