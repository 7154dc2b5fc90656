//! So many log lines a second about what strangers can cause; the rest is counted and told with the next.

use std::time::Instant;

use parking_lot::Mutex;

/// A cluster whose nodes all fail for one reason shows it with this many lines.
const LINES_PER_SECOND_MAX: u32 = 20;

#[derive(Debug)]
struct Second {
    since: Instant,
    lines: u32,
    left_out: u64,
}

#[derive(Debug)]
pub struct LineQuota(Mutex<Second>);

impl Default for LineQuota {
    fn default() -> Self {
        Self(Mutex::new(Second { since: Instant::now(), lines: 0, left_out: 0 }))
    }
}

impl LineQuota {
    /// Whether a line may be written now.
    pub fn admit(&self) -> bool {
        let left_out = {
            let mut second = self.0.lock();
            if second.since.elapsed().as_secs() >= 1 {
                let left_out = second.left_out;
                *second = Second { since: Instant::now(), lines: 1, left_out: 0 };
                left_out
            } else if second.lines < LINES_PER_SECOND_MAX {
                second.lines += 1;
                0
            } else {
                second.left_out += 1;
                return false;
            }
        };
        if left_out > 0 {
            tracing::warn!(left_out, "further refusals were not logged");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_room_for_so_many_lines() {
        let quota = LineQuota::default();
        let admitted = (0..1000).filter(|_| quota.admit()).count();
        assert!((20..=60).contains(&admitted), "{admitted}");
    }
}
