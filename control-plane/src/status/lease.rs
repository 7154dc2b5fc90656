//! Which replica writes status: whoever holds the Lease `weft-control`.
//!
//! A holder is taken for gone when its Lease did not change for [`DURATION`] by this replica's own clock, so that clocks
//! that disagree or jump do no harm.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const NAME: &str = "weft-control";
const DURATION: Duration = Duration::from_secs(15);
/// A third of it: two renewals may fail.
const RENEWAL: Duration = Duration::from_secs(5);
/// Between two looks of a replica that waits for it: what passes beyond [`DURATION`] after a holder was killed.
const LOOK: Duration = Duration::from_secs(2);
/// Of one attempt, its two requests together: an API server that hangs must not keep a holder from noticing that its time is over.
const ATTEMPT_WAIT_MAX: Duration = Duration::from_secs(4);
/// A holder that could not renew for this long stops writing, before another one begins.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Observed {
    version: Option<String>,
    since: Option<Instant>,
}

/// Keeps `leads` true while this replica holds the Lease; gives it back at the end.
pub(super) async fn elect(
    api: Api<Lease>,
    identity: String,
    leads: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let mut observed = Observed::default();
    let mut renewed = None::<Instant>;
    let mut trouble = false;
    loop {
        let attempted = attempt(&api, &identity, &mut observed, false);
        let failure = match tokio::time::timeout(ATTEMPT_WAIT_MAX, attempted).await {
            Ok(Ok(true)) => {
                renewed = Some(Instant::now());
                None
            }
            Ok(Ok(false)) => {
                renewed = None;
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the API server did not answer in time".to_owned()),
        };
        tell(failure, &mut trouble);
        let leading = renewed.is_some_and(|at| at.elapsed() < DEADLINE);
        if leads.send_if_modified(|leads| std::mem::replace(leads, leading) != leading) {
            tracing::info!(leading, %identity, "who writes status");
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(if leading { RENEWAL } else { LOOK }) => {}
        }
    }
    if *leads.borrow() {
        let _ = tokio::time::timeout(ATTEMPT_WAIT_MAX, attempt(&api, &identity, &mut observed, true)).await;
    }
}

/// The first failure of several, and their end.
fn tell(failure: Option<String>, trouble: &mut bool) {
    match (failure, *trouble) {
        (Some(error), false) => {
            tracing::warn!(lease = NAME, error, "the Lease cannot be read or renewed; trying again");
            *trouble = true;
        }
        (None, true) => {
            tracing::info!(lease = NAME, "the Lease is read and renewed again");
            *trouble = false;
        }
        _ => {}
    }
}

/// Takes, renews or (`release`) gives back the Lease. Ok(true): held now.
async fn attempt(
    api: &Api<Lease>,
    identity: &str,
    observed: &mut Observed,
    release: bool,
) -> kube::Result<bool> {
    let Some(mut lease) = api.get_opt(NAME).await? else {
        let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
        let lease = Lease { metadata, spec: Some(held_by(identity, 0)) };
        return settled(api.create(&PostParams::default(), &lease).await);
    };
    if observed.version != lease.metadata.resource_version {
        *observed =
            Observed { version: lease.metadata.resource_version.clone(), since: Some(Instant::now()) };
    }
    let spec = lease.spec.take().unwrap_or_default();
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let expired = observed.since.is_some_and(|since| since.elapsed() >= DURATION);
    if holder != identity && !holder.is_empty() && !expired {
        return Ok(false);
    }
    let transitions = spec.lease_transitions.unwrap_or_default();
    lease.spec = Some(if release {
        LeaseSpec { holder_identity: Some(String::new()), ..spec }
    } else if holder == identity {
        LeaseSpec { acquire_time: spec.acquire_time, ..held_by(identity, transitions) }
    } else {
        held_by(identity, transitions + 1)
    });
    // The version that was read makes this fail where another one was faster.
    let done = settled(api.replace(NAME, &PostParams::default(), &lease).await)?;
    Ok(done && !release)
}

fn settled(result: kube::Result<Lease>) -> kube::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn held_by(identity: &str, transitions: i32) -> LeaseSpec {
    let now = MicroTime(Timestamp::now());
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: Some(now.clone()),
        renew_time: Some(now),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    }
}
