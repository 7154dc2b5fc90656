//! Keeps one identity's certificate fresh: asks, retries, renews at half-life, until told to stop.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use rustls_pki_types::{CertificateDer, UnixTime};
use tracing::{info, warn};
use weft_proto::identity::{PodUid, SpiffeId};

use super::request::Request;
use super::svid::Svid;
use super::{Entry, Shared};

/// Longest wait for one answer: a slow control plane must not stop the retries.
const SIGN_MS_MAX: u64 = 10_000;
/// First pause after a failure, doubled up to the longest. Half of each is random, lest a thousand nodes come back at
/// the same moment.
const RETRY_MS_MIN: u64 = 200;
const RETRY_MS_MAX: u64 = 10_000;
/// Never renew more often, whatever the certificate's times say.
const RENEW_MS_MIN: u64 = 1_000;

/// Why the control plane did not sign.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct SignError(pub String);

/// Signs requests: the control plane, or a test's authority.
pub trait Signer: Send + Sync + 'static {
    /// Leaf first, then intermediates. `pod`: a live pod of the wanted identity.
    fn sign(
        &self,
        pod: PodUid,
        csr_der: Vec<u8>,
    ) -> BoxFuture<'static, Result<Vec<CertificateDer<'static>>, SignError>>;
}

/// Until the entry is stopped.
pub(super) async fn keep_fresh(shared: Arc<Shared>, identity: SpiffeId, entry: Arc<Entry>) {
    let mut failures = 0_u32;
    loop {
        let obtained = tokio::select! {
            () = entry.stop.cancelled() => return,
            obtained = obtain(&shared, &identity, &entry, failures) => obtained,
        };
        let wait = match obtained {
            Ok(svid) => {
                failures = 0;
                shared.obtained.fetch_add(1, Relaxed);
                info!(%identity, serial = svid.serial, "certificate obtained");
                let wait = until_renewal(svid.not_before, svid.not_after, SystemTime::now(), rand::random());
                entry.obtained(svid);
                wait
            }
            Err(reason) => {
                failures = failures.saturating_add(1);
                shared.failed.fetch_add(1, Relaxed);
                warn!(%identity, reason, failures, "no certificate");
                entry.failed(reason);
                retry_pause(failures, rand::random())
            }
        };
        let mut bundle = shared.changes.subscribe();
        tokio::select! {
            () = entry.stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            // A new bundle may make possible what just failed, or want a certificate of the new root.
            () = chain_broken(&shared, &entry, &mut bundle) => {}
        }
    }
}

/// Returns when the bundle changed and the present certificate, if any, is of no root of it.
async fn chain_broken(shared: &Shared, entry: &Entry, bundle: &mut tokio::sync::watch::Receiver<u64>) {
    loop {
        if bundle.changed().await.is_err() {
            return std::future::pending().await;
        }
        let (Some(trust), Some(svid)) = (shared.trust.load_full(), entry.svid()) else { continue };
        let chain = svid.chain();
        if trust.verify_client(&chain[0], &chain[1..], UnixTime::now()).is_err() {
            return;
        }
    }
}

async fn obtain(
    shared: &Shared,
    identity: &SpiffeId,
    entry: &Entry,
    failures: u32,
) -> Result<Arc<Svid>, String> {
    let pod = entry.pod(failures as usize).ok_or("no pod has this identity any more")?;
    let request = Request::new().map_err(|error| format!("the key could not be made: {error}"))?;
    let answer = shared.signer.sign(pod, request.csr_der.clone());
    let chain = tokio::time::timeout(Duration::from_millis(SIGN_MS_MAX), answer)
        .await
        .map_err(|_| format!("no answer from the control plane within {SIGN_MS_MAX} ms"))?
        .map_err(|error| error.to_string())?;
    let trust = shared.trust.load_full().ok_or("the trust bundle is not known yet")?;
    let svid = Svid::new(identity, &request, chain, &shared.trust, &trust, &shared.provider)
        .map_err(|error| error.to_string())?;
    Ok(Arc::new(svid))
}

/// How long to wait before renewing: to between 45 and 55 % of the lifetime.
pub(crate) fn until_renewal(
    not_before: SystemTime,
    not_after: SystemTime,
    now: SystemTime,
    random: u32,
) -> Duration {
    let lifetime = not_after.duration_since(not_before).unwrap_or_default();
    let share = 0.45 + 0.1 * f64::from(random) / f64::from(u32::MAX);
    let at = not_before + lifetime.mul_f64(share);
    at.duration_since(now).unwrap_or_default().max(Duration::from_millis(RENEW_MS_MIN))
}

pub(crate) fn retry_pause(failures: u32, random: u32) -> Duration {
    let exponent = failures.saturating_sub(1).min(16);
    let whole = (RETRY_MS_MIN << exponent).min(RETRY_MS_MAX);
    Duration::from_millis(whole / 2 + u64::from(random) % (whole / 2 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_around_its_half_life() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let end = start + Duration::from_secs(1000);
        let wait = |now, random| until_renewal(start, end, now, random).as_secs();
        assert_eq!((wait(start, 0), wait(start, u32::MAX)), (450, 550));
        assert_eq!(wait(start + Duration::from_secs(400), 0), 50);
        assert_eq!(wait(end, 0), 1, "late, but not in a tight loop");
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        assert_eq!(retry_pause(1, 0).as_millis(), 100);
        assert!(retry_pause(3, 0) > retry_pause(2, 0));
        for failures in [1, 6, 7, 60, u32::MAX] {
            for random in [0, 1, u32::MAX / 2, u32::MAX] {
                let pause = retry_pause(failures, random).as_millis();
                assert!((100..=u128::from(RETRY_MS_MAX)).contains(&pause), "{failures} {random}: {pause}");
            }
        }
    }
}
