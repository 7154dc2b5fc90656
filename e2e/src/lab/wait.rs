//! Waiting for a level: a condition is tried again until it holds or its time is up. No test sleeps for a guess.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

/// Short enough not to show in a test's time.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// A try may be a `kubectl`: what is waited for should have most of the machine. So a pause is as long as the try was, up to this.
const PAUSE_MAX: Duration = Duration::from_millis(300);

/// An error that no further try can mend.
#[derive(Debug)]
pub struct Hopeless(pub String);

impl fmt::Display for Hopeless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Hopeless {}

/// Tries until `condition` gives a value; when the time is up, the last error says what was still wrong.
pub fn until<T>(wait_max: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + wait_max;
    loop {
        let started = Instant::now();
        match condition() {
            Ok(value) => return Ok(value),
            Err(e) if e.is::<Hopeless>() => return Err(e),
            Err(e) if Instant::now() >= deadline => {
                return Err(e).with_context(|| format!("still so after {:.1} s", wait_max.as_secs_f32()));
            }
            Err(_) => std::thread::sleep(started.elapsed().clamp(PAUSE_MIN, PAUSE_MAX)),
        }
    }
}

/// Like [`until`], where the time is a promise: the last try, too, must have ended by then. Tells how long it took.
pub fn within<T>(promised: Duration, condition: impl FnMut() -> Result<T>) -> Result<(T, Duration)> {
    let started = Instant::now();
    let value = until(promised, condition)?;
    let took = started.elapsed();
    anyhow::ensure!(
        took <= promised,
        "after {} ms, and {} are promised",
        took.as_millis(),
        promised.as_millis()
    );
    Ok((value, took))
}

/// Like [`until`], for a plain condition; `what` completes "waited in vain until ...".
pub fn until_true(wait_max: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    until(wait_max, || condition().then_some(()).ok_or_else(|| anyhow!("waited in vain until {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_tells_what_was_still_wrong() {
        let (mut tries, long) = (0, Duration::from_secs(60));
        let third = until(long, || {
            tries += 1;
            if tries < 3 { Err(anyhow!("try {tries}")) } else { Ok(tries) }
        });
        assert_eq!(third.unwrap(), 3);
        let error = until::<()>(Duration::from_millis(50), || {
            tries += 1;
            Err(anyhow!("try {tries}"))
        });
        assert!(format!("{:#}", error.unwrap_err()).contains(&format!("try {tries}")));
    }

    #[test]
    fn a_promise_is_broken_by_a_try_that_ends_too_late() {
        assert!(within(Duration::from_secs(60), || Ok(())).is_ok());
        let promised = Duration::from_millis(5);
        let late = within(promised, || {
            std::thread::sleep(promised * 2);
            Ok(())
        });
        assert!(late.unwrap_err().to_string().contains("5 are promised"));
    }

    #[test]
    fn a_hopeless_error_ends_the_wait_at_once() {
        let mut tries = 0;
        let error = until::<()>(Duration::from_secs(60), || {
            tries += 1;
            Err(Hopeless("dead".into()).into())
        });
        assert_eq!((tries, error.unwrap_err().to_string().as_str()), (1, "dead"));
    }
}
