//! The wall clock, that certificates are judged by: what time it has ([`unix_s`]), and when it jumps ([`Clock`]).

use std::time::{Duration, Instant, SystemTime};

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Less is a clock that is being set right, and no certificate is so close.
const JUMP_MIN: Duration = Duration::from_secs(5);
/// Of the two readings that belong together: with more between them this thread did not run.
const READING_MAX: Duration = Duration::from_millis(100);

/// Seconds since 1970.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Watches the wall clock by the one that only goes on, which does not count the time that a machine sleeps.
#[derive(Debug)]
pub struct Clock {
    before: (Instant, SystemTime),
}

impl Clock {
    pub fn new() -> Self {
        Self { before: (Instant::now(), SystemTime::now()) }
    }

    /// Returns when it was seen to have jumped: by how many seconds, backward if negative.
    pub async fn jump(&mut self) -> i64 {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = (Instant::now(), SystemTime::now());
            if now.0.elapsed() > READING_MAX {
                continue;
            }
            let seconds = jumped(self.before, now);
            self.before = now;
            if let Some(seconds) = seconds {
                return seconds;
            }
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// Pure. None: both clocks went on alike.
fn jumped(before: (Instant, SystemTime), now: (Instant, SystemTime)) -> Option<i64> {
    let expected = before.1 + now.0.saturating_duration_since(before.0);
    let (by, forward) = match now.1.duration_since(expected) {
        Ok(by) => (by, true),
        Err(error) => (error.duration(), false),
    };
    let seconds = i64::try_from((by + Duration::from_millis(500)).as_secs()).unwrap_or(i64::MAX);
    (by >= JUMP_MIN).then_some(if forward { seconds } else { -seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_what_the_wall_clock_went_otherwise_than_the_other_one() {
        let before = (Instant::now(), SystemTime::now());
        let later = |went_ms: u64, wall_ms: i64| {
            let wall = Duration::from_millis(wall_ms.unsigned_abs());
            let wall = if wall_ms < 0 { before.1 - wall } else { before.1 + wall };
            jumped(before, (before.0 + Duration::from_millis(went_ms), wall))
        };
        assert_eq!(later(5_000, 5_000), None);
        // However late it was looked at.
        assert_eq!(later(90_000, 90_100), None);
        assert_eq!(later(5_000, 9_000), None);
        assert_eq!(later(5_000, 5_000 + 172_800_400), Some(172_800));
        assert_eq!(later(5_000, 5_000 - 172_799_800), Some(-172_800));
    }
}
