//! Files that others write in their place, as `cp` does: a reading from between its truncation and its last byte must not count.

use std::time::Duration;

use parking_lot::Mutex;

use super::super::AuthorityError;

/// Two readings that agree, so far apart, are of a file that nobody is writing.
const PAUSE: Duration = Duration::from_millis(300);
/// After so many that did not, the next look goes on.
const READINGS_MAX: u32 = 5;

/// The last reading that counted.
pub(super) struct Settled<T> {
    last: Mutex<Option<T>>,
    pause: Duration,
}

impl<T> Default for Settled<T> {
    fn default() -> Self {
        Self { last: Mutex::new(None), pause: PAUSE }
    }
}

impl<T: Clone + PartialEq> Settled<T> {
    /// The first reading counts as it is: there is nothing that it could replace.
    pub(super) async fn read(
        &self,
        file: &str,
        read: impl Fn() -> Result<T, AuthorityError>,
    ) -> Result<T, AuthorityError> {
        let mut found = read()?;
        if self.last.lock().as_ref().is_some_and(|last| *last != found) {
            let mut readings = 1;
            loop {
                tokio::time::sleep(self.pause).await;
                let again = read()?;
                readings += 1;
                if again == found {
                    break;
                }
                if readings == READINGS_MAX {
                    let problem = "is being written".to_owned();
                    return Err(AuthorityError::Unusable { file: file.to_owned(), problem });
                }
                found = again;
            }
        }
        *self.last.lock() = Some(found.clone());
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is made of these readings, one after the other, where `whole` counted before.
    fn made_of(readings: &[&'static str]) -> (Result<&'static str, AuthorityError>, usize) {
        let (settled, next) = (Settled { pause: Duration::ZERO, ..Settled::default() }, Mutex::new(0));
        let read = || {
            let mut next = next.lock();
            let text = readings[(*next).min(readings.len() - 1)];
            *next += 1;
            Ok(text)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let found = runtime.block_on(async {
            settled.read("f", || Ok("whole")).await.unwrap();
            settled.read("f", read).await
        });
        let asked = *next.lock();
        (found, asked)
    }

    #[test]
    fn what_is_read_while_it_is_written_does_not_count() {
        for (readings, expected, asked) in [
            (&["whole"][..], "whole", 1),
            (&["next"], "next", 2),
            (&["", "next"], "next", 3),
            (&["", "ne", "next", "next"], "next", 4),
            (&["ne", "whole", "whole"], "whole", 3),
        ] {
            let (found, times) = made_of(readings);
            assert_eq!((found.unwrap(), times), (expected, asked), "{readings:?}");
        }
        let (found, times) = made_of(&["", "n", "ne", "nex", "next"]);
        assert_eq!((found.unwrap_err().to_string().as_str(), times), ("f: is being written", 5));
    }
}
