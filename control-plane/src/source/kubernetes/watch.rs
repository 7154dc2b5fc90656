//! The watch of one kind: list by pages, follow with bookmarks, begin again where the API server asks for it.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use kube::api::Api;
use kube::runtime::watcher::{self, Config, Event};
use kube::{Client, Resource};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::kinds::Watched;
use super::raw::{Item, Raw, key_of, reduce};
use super::state::Told;

const RETRY_MIN: Duration = Duration::from_millis(200);
/// Two replicas with eleven watches each are no burden at this pace, and a change after an outage should not wait long.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// What a busy API server asks for is granted up to this: a wrong `Retry-After` must not end the watch for good.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// A kind that is not there may be installed at any time.
const ABSENT_RETRY: Duration = Duration::from_secs(5);
/// Answers of "no such kind" in a row before what was known of it is let go: an API server that starts may say so too early.
const ABSENT_ANSWERS_MIN: u32 = 3;
/// Of an error in the log and in status.
const WORDS_CHARS_MAX: usize = 300;
/// No new error for this long after one: the watch works again.
const WELL_AFTER: Duration = Duration::from_secs(6);

pub(super) type Out = mpsc::Sender<(usize, Told)>;

pub(super) async fn run(
    client: Client,
    at: usize,
    watched: Watched,
    watch_time: Duration,
    out: Out,
    stop: CancellationToken,
) {
    let resource = watched.resource();
    let api: Api<Raw> = Api::all_with(client, &resource);
    let config = Config::default().timeout(u32::try_from(watch_time.as_secs()).unwrap_or(u32::MAX));
    let mut following =
        Following { at, watched, out, failures: 0, told: String::new(), absences: 0, listed: false };
    while !stop.is_cancelled() {
        let ended = if watched.metadata_only {
            let stream = watcher::metadata_watcher(api.clone(), config.clone());
            following.follow(stream, |object| Raw::of_metadata(&object.metadata), &stop).await
        } else {
            let stream = watcher::watcher(api.clone(), config.clone());
            following.follow(stream, |object| object, &stop).await
        };
        if ended.is_err() {
            return;
        }
    }
}

/// Nobody listens any more.
struct Closed;

struct Following {
    at: usize,
    watched: Watched,
    out: Out,
    failures: u32,
    /// The last failure in the log.
    told: String,
    absences: u32,
    /// The kind was listed, or known to be absent.
    listed: bool,
}

impl Following {
    /// Returns when the list has to be asked for anew.
    async fn follow<K: Resource<DynamicType = kube::api::ApiResource> + Debug>(
        &mut self,
        stream: impl Stream<Item = watcher::Result<Event<K>>>,
        raw: impl Fn(K) -> Raw,
        stop: &CancellationToken,
    ) -> Result<(), Closed> {
        let mut stream = pin!(stream);
        let mut listing: Vec<Item> = Vec::new();
        loop {
            let next = async {
                if self.failures > 0 {
                    tokio::time::timeout(WELL_AFTER, stream.next()).await.ok()
                } else {
                    Some(stream.next().await)
                }
            };
            let next = tokio::select! {
                () = stop.cancelled() => return Err(Closed),
                next = next => next,
            };
            let Some(next) = next else {
                self.well().await?;
                continue;
            };
            match next {
                None => return Ok(()),
                Some(Ok(event)) => {
                    if !matches!(event, Event::Init) {
                        self.well().await?;
                    }
                    match event {
                        Event::Init => listing.clear(),
                        Event::InitApply(object) => listing.extend(reduce(&self.watched, raw(object))),
                        Event::InitDone => {
                            self.listed = true;
                            self.tell(Told::Listed(std::mem::take(&mut listing))).await?;
                        }
                        Event::Apply(object) => {
                            if let Some(item) = reduce(&self.watched, raw(object)) {
                                self.tell(Told::Applied(Box::new(item))).await?;
                            }
                        }
                        Event::Delete(object) => {
                            if let Some(key) = key_of(self.watched.kind, object.meta()) {
                                self.tell(Told::Deleted(key)).await?;
                            }
                        }
                    }
                }
                Some(Err(error)) => {
                    let anew = self.failed(&error, stop).await?;
                    if anew {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn tell(&self, told: Told) -> Result<(), Closed> {
        self.out.send((self.at, told)).await.map_err(|_| Closed)
    }

    async fn well(&mut self) -> Result<(), Closed> {
        self.absences = 0;
        if self.failures == 0 {
            return Ok(());
        }
        self.failures = 0;
        self.told.clear();
        tracing::info!(kind = self.watched.name(), "watching again");
        self.tell(Told::Well).await
    }

    /// Waits as long as is due. True: the list has to be asked for anew.
    async fn failed(&mut self, error: &watcher::Error, stop: &CancellationToken) -> Result<bool, Closed> {
        let status = status_of(error);
        let (code, retry_after) = status.map_or((0, None), |status| {
            let after = status.details.as_ref().map(|details| details.retry_after_seconds).filter(|s| *s > 0);
            (status.code, after.map(|s| Duration::from_secs(s.into())))
        });
        let wait = if code == 404 && self.watched.from_crd {
            self.absences += 1;
            if !self.listed || self.absences == ABSENT_ANSWERS_MIN {
                tracing::warn!(kind = self.watched.name(), "not installed; asking again until it is");
                self.listed = true;
                self.tell(Told::Absent).await?;
            }
            ABSENT_RETRY
        } else {
            self.failures += 1;
            // An end of the watch that asks for a new list is how the API works, and no trouble.
            if code == 410 {
                tracing::info!(kind = self.watched.name(), "the API server asks for a new list");
            } else {
                let problem = words(error);
                if self.told != problem || self.failures.is_multiple_of(60) {
                    tracing::warn!(kind = self.watched.name(), problem, "watch failed; trying again");
                    self.told.clone_from(&problem);
                }
                self.tell(Told::Trouble(problem)).await?;
            }
            let doubled = RETRY_MIN.saturating_mul(1 << self.failures.min(6));
            doubled.min(RETRY_MAX).max(retry_after.unwrap_or_default().min(RETRY_AFTER_MAX))
        };
        tokio::select! {
            () = stop.cancelled() => return Err(Closed),
            () = tokio::time::sleep(wait) => {}
        }
        Ok(asks_for_a_list(error, code))
    }
}

/// The error with its causes: the library's own words are only what it was doing.
fn words(error: &watcher::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    // An answer that is a page of HTML is quoted whole.
    text.chars().take(WORDS_CHARS_MAX).collect()
}

/// Within a watch the library itself lists anew after 410; a watch that cannot even begin would ask for the same version for
/// ever. What cannot be read was a change that is lost for good: the library goes on behind it. A connection that broke loses
/// nothing, since the watch is resumed from the last change that came.
fn asks_for_a_list(error: &watcher::Error, code: u16) -> bool {
    match error {
        watcher::Error::WatchStartFailed(_) => matches!(code, 404 | 410),
        watcher::Error::WatchFailed(kube::Error::ReadEvents(_)) => false,
        watcher::Error::WatchFailed(_) => true,
        _ => false,
    }
}

fn status_of(error: &watcher::Error) -> Option<&kube::core::Status> {
    match error {
        watcher::Error::WatchError(status) => Some(status),
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status),
        _ => None,
    }
}
