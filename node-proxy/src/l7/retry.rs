//! Whether a failed attempt may be repeated. Pure: no I/O, no clock, randomness passed in.
//!
//! Two questions are kept apart. Did the request reach an application? If certainly not ([`Failure::Unsent`]), any
//! request may go to another endpoint. If perhaps, only a method that may be repeated, and only if the route or the
//! TrafficPolicy asks for it.

use std::time::Duration;

use http::{Method, StatusCode};
use weft_proto::model::{HttpRule, TrafficPolicy};

/// Codes that are retried when a retry is configured without naming any: those that a proxy or an overloaded server
/// gives, and that say nothing about the request.
const CODES_DEFAULT: [StatusCode; 3] =
    [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
/// First pause before a retry, when none is configured (Envoy's and Istio's default as well).
const BACKOFF_DEFAULT: Duration = Duration::from_millis(25);
/// Pauses double up to this.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Attempts that failed before the application saw a byte and are repeated without being asked to: enough to get past
/// a few dead endpoints, few enough to fail soon when all are.
pub(super) const UNSENT_RETRIES_MAX: u32 = 4;
/// Bounds what a route may ask for.
const ATTEMPTS_MAX: u32 = 16;

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// No byte reached the application.
    Unsent,
    /// Sent, perhaps in part, and the connection ended without an answer: closed for idleness while the request was on
    /// its way, or its server ended.
    Broken,
    /// The attempt's time-out.
    TimedOut,
    /// Nobody would answer differently: policy, no certificate, no endpoint.
    Refused,
    /// An answer; gRPC's as its HTTP equivalent.
    Answered(StatusCode),
}

/// What has been tried, and whether trying again is possible at all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tried {
    /// Repetitions for [`Failure::Unsent`] so far.
    pub unsent: u32,
    /// Repetitions for other reasons so far.
    pub answered: u32,
    /// The request's body can be sent again.
    pub replayable: bool,
    /// There is an endpoint that was not tried.
    pub elsewhere: bool,
}

/// The rules for one request.
#[derive(Debug, Clone)]
pub(super) struct RetryRules<'a> {
    codes: &'a [StatusCode],
    attempts: u32,
    backoff: Duration,
    may_repeat: bool,
    idempotent: bool,
    pub per_try: Option<Duration>,
}

impl<'a> RetryRules<'a> {
    /// The route's `retry` counts before the TrafficPolicy's; which methods may be repeated only the latter can widen.
    pub(super) fn new(
        method: &Method,
        rule: Option<&'a HttpRule>,
        traffic: Option<&'a TrafficPolicy>,
    ) -> Self {
        let policy = traffic.and_then(|traffic| traffic.retry.as_ref());
        let route = rule.and_then(|rule| rule.retry.as_ref());
        let (codes, attempts, backoff) = match (route, policy) {
            (Some(retry), _) => (&retry.codes[..], retry.attempts, retry.backoff),
            (None, Some(policy)) => (&policy.codes[..], policy.attempts, policy.backoff),
            (None, None) => (&[][..], 0, None),
        };
        let named = policy.map_or(&[][..], |policy| &policy.methods[..]);
        let may_repeat = if named.is_empty() {
            [Method::GET, Method::HEAD, Method::OPTIONS].contains(method)
        } else {
            named.contains(method)
        };
        let per_try = rule
            .and_then(|rule| rule.timeouts.backend_request)
            .or_else(|| policy.and_then(|policy| policy.per_try_timeout))
            .filter(|limit| !limit.is_zero());
        Self {
            codes: if codes.is_empty() { &CODES_DEFAULT } else { codes },
            attempts: attempts.min(ATTEMPTS_MAX),
            backoff: backoff.unwrap_or(BACKOFF_DEFAULT),
            may_repeat,
            idempotent: method.is_idempotent(),
            per_try,
        }
    }

    /// Whether an answer could lead to a repetition, so that the body must be kept.
    pub(super) fn may_repeat_answered(&self) -> bool {
        self.attempts > 0 && self.may_repeat
    }

    /// The pause before another attempt (zero: at once), or None: what failed is final. The budget is the caller's.
    pub(super) fn again(&self, failure: Failure, tried: Tried, random: u64) -> Option<Duration> {
        if !tried.replayable {
            return None;
        }
        let configured = self.may_repeat_answered() && tried.answered < self.attempts;
        let pause = || self.pause(tried.answered + tried.unsent, random);
        match failure {
            Failure::Unsent if tried.unsent < UNSENT_RETRIES_MAX => {
                if tried.elsewhere {
                    Some(Duration::ZERO)
                } else {
                    // The same endpoint again: only if asked to, and not at once.
                    (self.attempts > tried.unsent).then(pause)
                }
            }
            Failure::Unsent | Failure::Refused => None,
            // Once more by itself: a proxy may do so with what is idempotent by definition (RFC 9110, 9.2.2), and no more often,
            // for the request may be what made the server end.
            Failure::Broken if self.idempotent && tried.answered == 0 => Some(Duration::ZERO),
            Failure::Broken => configured.then(pause),
            Failure::TimedOut => {
                (configured && self.codes.contains(&StatusCode::GATEWAY_TIMEOUT)).then(Duration::default)
            }
            Failure::Answered(status) => (configured && self.codes.contains(&status)).then(pause),
        }
    }

    /// Doubling, with full jitter between half and the whole.
    fn pause(&self, repetition: u32, random: u64) -> Duration {
        let whole = self.backoff.saturating_mul(1 << repetition.min(16)).min(BACKOFF_MAX.max(self.backoff));
        whole / 2 + (whole / 2).mul_f64(random as f64 / u64::MAX as f64)
    }
}

/// What a gRPC status means in HTTP, for comparing with codes; None: not a failure of the server.
pub(super) fn http_status_of_grpc(status: u32) -> Option<StatusCode> {
    match status {
        4 => Some(StatusCode::GATEWAY_TIMEOUT),
        8 => Some(StatusCode::TOO_MANY_REQUESTS),
        13 | 2 => Some(StatusCode::INTERNAL_SERVER_ERROR),
        14 => Some(StatusCode::SERVICE_UNAVAILABLE),
        _ => None,
    }
}

/// `grpc-timeout`: up to eight digits and a unit.
pub(super) fn grpc_timeout(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_proto::model::{Retry, Timeouts};

    use super::*;

    fn rule(codes: &[u16], attempts: u32) -> HttpRule {
        HttpRule {
            name: Arc::from(""),
            matches: vec![],
            filters: vec![],
            backends: vec![],
            timeouts: Timeouts::default(),
            retry: Some(Retry {
                codes: codes.iter().map(|c| StatusCode::from_u16(*c).unwrap()).collect(),
                attempts,
                backoff: None,
            }),
        }
    }

    const FRESH: Tried = Tried { unsent: 0, answered: 0, replayable: true, elsewhere: true };

    #[test]
    fn a_request_that_reached_nobody_goes_elsewhere_whatever_its_method() {
        let rules = RetryRules::new(&Method::POST, None, None);
        assert_eq!(rules.again(Failure::Unsent, FRESH, 0), Some(Duration::ZERO));
        assert_eq!(rules.again(Failure::Unsent, Tried { elsewhere: false, ..FRESH }, 0), None);
        assert_eq!(rules.again(Failure::Unsent, Tried { unsent: UNSENT_RETRIES_MAX, ..FRESH }, 0), None);
        assert_eq!(rules.again(Failure::Unsent, Tried { replayable: false, ..FRESH }, 0), None);
    }

    #[test]
    fn an_answer_is_repeated_only_as_configured_and_never_a_post() {
        let bad = Failure::Answered(StatusCode::SERVICE_UNAVAILABLE);
        let configured = rule(&[503], 2);
        let get = RetryRules::new(&Method::GET, Some(&configured), None);
        assert!(get.again(bad, FRESH, 0).is_some());
        assert_eq!(get.again(bad, Tried { answered: 2, ..FRESH }, 0), None);
        assert_eq!(get.again(Failure::Answered(StatusCode::NOT_FOUND), FRESH, 0), None);
        assert_eq!(get.again(Failure::Answered(StatusCode::BAD_GATEWAY), FRESH, 0), None);
        let post = RetryRules::new(&Method::POST, Some(&configured), None);
        for failure in [bad, Failure::TimedOut, Failure::Broken] {
            assert_eq!(post.again(failure, FRESH, 0), None, "{failure:?}");
        }
        assert_eq!(RetryRules::new(&Method::GET, None, None).again(bad, FRESH, 0), None);
    }

    #[test]
    fn a_connection_that_ended_without_an_answer_is_forgiven_once_for_idempotent_methods() {
        for (method, want) in [(Method::GET, true), (Method::PUT, true), (Method::POST, false)] {
            let rules = RetryRules::new(&method, None, None);
            assert_eq!(rules.again(Failure::Broken, FRESH, 0).is_some(), want, "{method}");
            assert_eq!(rules.again(Failure::Broken, Tried { answered: 1, ..FRESH }, 0), None);
        }
    }

    #[test]
    fn pauses_grow_within_their_bounds() {
        let configured = rule(&[503], 16);
        let rules = RetryRules::new(&Method::GET, Some(&configured), None);
        let ms = Duration::from_millis;
        assert_eq!(rules.pause(0, 0), Duration::from_micros(12_500));
        assert_eq!(rules.pause(0, u64::MAX), ms(25));
        assert_eq!(rules.pause(2, u64::MAX), ms(100));
        assert_eq!(rules.pause(16, u64::MAX), ms(1000));
    }

    #[test]
    fn grpc_time_outs_are_read() {
        for (text, want) in [
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("2H", Some(Duration::from_secs(7200))),
            ("S", None),
            ("123456789S", None),
            ("1x", None),
            ("", None),
        ] {
            let mut headers = http::HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(grpc_timeout(&headers), want, "{text}");
        }
    }
}
