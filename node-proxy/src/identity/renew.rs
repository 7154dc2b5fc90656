//! Keeps one identity's certificate fresh: asks, retries, renews at half-life, until told to stop.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

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
/// How often the wall clock is looked at: one that jumps is noticed within this.
const CLOCK_CHECK: Duration = Duration::from_secs(5);

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
        let pause = match obtained {
            Ok(svid) => {
                failures = 0;
                shared.obtained.fetch_add(1, Relaxed);
                info!(%identity, serial = svid.serial, "certificate obtained");
                let now = (Instant::now(), (shared.wall)());
                let renewal = Renewal::new(svid.not_before, svid.not_after, now, rand::random());
                entry.obtained(svid);
                Pause::Until(renewal)
            }
            Err(reason) => {
                failures = failures.saturating_add(1);
                shared.failed.fetch_add(1, Relaxed);
                warn!(%identity, reason, failures, "no certificate");
                entry.failed(reason);
                Pause::For(retry_pause(failures, rand::random()))
            }
        };
        let over = async {
            match pause {
                Pause::Until(renewal) => renewal.due(&*shared.wall).await,
                Pause::For(time) => tokio::time::sleep(time).await,
            }
        };
        let mut bundle = shared.changes.subscribe();
        tokio::select! {
            () = entry.stop.cancelled() => return,
            () = over => {}
            // A new bundle may make possible what just failed, or want a certificate of the new root.
            () = chain_broken(&shared, &entry, &mut bundle) => {}
        }
    }
}

/// Before the next attempt.
enum Pause {
    Until(Renewal),
    For(Duration),
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

/// When a certificate is renewed: between 45 and 55 % of its life. Its times are the wall clock's, and that one may be wrong or jump
/// (a machine that slept, a clock that is set): whatever it says, a certificate is neither kept past its half-life by the clock that only
/// goes on, nor asked for again at once. One that was in time when it came and is so no longer, is of a clock that was wrong, here or at
/// the control plane: peers do not believe it either, and it is renewed as soon as that is seen.
#[derive(Debug, Clone)]
pub(crate) struct Renewal {
    at: SystemTime,
    /// None: it came out of time, as it will again while the clocks differ.
    in_time: Option<Range<SystemTime>>,
    /// For one that is out of time.
    soonest: Instant,
    /// For one that is past the half of its life by the wall clock.
    earliest: Instant,
    latest: Instant,
}

impl Renewal {
    /// `obtained`: by both clocks, when the certificate came.
    pub(crate) fn new(
        not_before: SystemTime,
        not_after: SystemTime,
        obtained: (Instant, SystemTime),
        random: u32,
    ) -> Self {
        let lifetime = not_after.duration_since(not_before).unwrap_or_default();
        let share = 0.45 + 0.1 * f64::from(random) / f64::from(u32::MAX);
        let whole = not_before..not_after;
        let in_time = whole.contains(&obtained.1).then_some(whole);
        let soonest = Duration::from_millis(RENEW_MS_MIN);
        let least = (lifetime / 10).max(soonest);
        let left = not_after.duration_since(obtained.1).unwrap_or_default().min(lifetime);
        // Of one that has little left when it comes, the clocks differ by nearly its life: it must not end before its successor is here.
        let floor = if in_time.is_some() { least.min(Duration::from_millis(RETRY_MS_MAX)) } else { least };
        Self {
            at: not_before + lifetime.mul_f64(share),
            in_time,
            soonest: obtained.0 + soonest,
            earliest: obtained.0 + least,
            latest: obtained.0 + left.mul_f64(share).max(floor),
        }
    }

    /// How long to wait before the clocks are looked at again. None: it is time.
    fn wait(&self, now: Instant, wall: SystemTime) -> Option<Duration> {
        let until = |at: Instant| at.saturating_duration_since(now);
        let by_wall = self.at.duration_since(wall).unwrap_or_default().max(until(self.earliest));
        let mut next = by_wall.min(until(self.latest));
        if self.in_time.as_ref().is_some_and(|whole| !whole.contains(&wall)) {
            next = next.min(until(self.soonest));
        }
        (!next.is_zero()).then(|| next.min(CLOCK_CHECK))
    }

    pub(crate) async fn due(&self, wall: impl Fn() -> SystemTime) {
        while let Some(wait) = self.wait(Instant::now(), wall()) {
            tokio::time::sleep(wait).await;
        }
    }
}

pub(crate) fn retry_pause(failures: u32, random: u32) -> Duration {
    let exponent = failures.saturating_sub(1).min(16);
    let whole = (RETRY_MS_MIN << exponent).min(RETRY_MS_MAX);
    Duration::from_millis(whole / 2 + u64::from(random) % (whole / 2 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds after it was obtained at which a certificate of 1000 s is renewed, if the wall clock is `ahead` when it comes and jumps
    /// by `jump` after so many seconds.
    fn renewed_after(ahead: i64, jump: i64, jumps_at: u64) -> u64 {
        let (start, now) = (SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000), Instant::now());
        let off = |by: i64| match u64::try_from(by) {
            Ok(by) => start + Duration::from_secs(by),
            Err(_) => start - Duration::from_secs(by.unsigned_abs()),
        };
        let renewal = Renewal::new(start, start + Duration::from_secs(1000), (now, off(ahead)), u32::MAX / 2);
        let due = |after: &u64| {
            let passed = i64::try_from(*after).unwrap();
            let wall = off(ahead + passed + if *after > jumps_at { jump } else { 0 });
            renewal.wait(now + Duration::from_secs(*after), wall).is_none()
        };
        (0..2000).find(due).unwrap()
    }

    #[test]
    fn a_certificate_is_renewed_in_time_whatever_the_wall_clock_does() {
        let close_at = |(ahead, jump), jumps_at, wanted: u64| {
            let after = renewed_after(ahead, jump, jumps_at);
            assert!(
                after.abs_diff(wanted) <= 1,
                "ahead {ahead}, jump {jump} at {jumps_at}: {after} and not {wanted}"
            );
        };
        let close = |clocks, wanted| close_at(clocks, 100, wanted);
        close((0, 0), 500);
        // Forward: at once, for the certificate may be over now.
        close((0, 300), 200);
        close((0, 5_000), 101);
        close((0, 1_000_000), 101);
        // Backward: the clock that only goes on counts, until the certificate is one of the future.
        close((0, -50), 500);
        close((0, -5_000), 101);
        // Forward past its end before a tenth of its life is over, or back again after it came by a clock that was ahead.
        close_at((0, 5_000), 5, 6);
        close_at((-10, -5_000), 5, 500);
        // Wrong from the start: neither every second nor never.
        close((600, 0), 100);
        // So much that little of it is left: before that is over.
        close((980, 0), 10);
        close((1_000_000, 0), 100);
        close((-1_000_000, 0), 500);
    }

    #[test]
    fn the_clocks_are_looked_at_often_enough_to_notice_a_jump() {
        let (start, now) = (SystemTime::now(), Instant::now());
        let renewal = Renewal::new(start, start + Duration::from_secs(86_400), (now, start), 0);
        assert_eq!(renewal.wait(now, start), Some(CLOCK_CHECK));
        // A minute in the past, as the authority writes it: the half-life of short ones is over when they come.
        let short =
            Renewal::new(start - Duration::from_secs(60), start + Duration::from_secs(30), (now, start), 0);
        assert!(short.wait(now + Duration::from_secs(8), start).is_some());
        assert!(short.wait(now + Duration::from_secs(9), start).is_none());
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
