//! The access log: one JSON line per connection or request, written by a thread of its own.
//!
//! Handing a line over never waits: the queue is bounded, and what does not fit, or what the sink refuses (disk full), is
//! dropped and counted. Lines are also formatted on that thread. Start at [`AccessLog::record`].

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::context::TraceId;
use super::lines::{self, Lines};
use super::live::{Live, pod_name};
use super::metrics::{Counter, Metrics, names};
use super::{CloseReason, LogLevel, Party, TelemetryError};

/// Lines waiting for the writer: at 10 k lines/s, the sink may stall for 0.4 s. About 1 MB.
const QUEUE_LINES_MAX: usize = 4096;

/// Where the lines go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LogSink {
    #[default]
    Stdout,
    /// Appended to.
    File(PathBuf),
}

/// What ended, handed to the writer.
pub(super) struct LogEntry {
    pub(super) live: Arc<Live>,
    pub(super) duration: Duration,
    pub(super) reason: CloseReason,
    pub(super) status: Option<u16>,
    pub(super) grpc_status: Option<u32>,
    pub(super) trace: Option<TraceId>,
    pub(super) detail: Option<String>,
}

enum Message {
    Entry(Box<LogEntry>),
    /// Answered when all before it is written.
    Flush(SyncSender<()>),
}

pub(super) struct AccessLog {
    level: LogLevel,
    queue: SyncSender<Message>,
    dropped_full: Counter,
}

impl AccessLog {
    /// None: switched off.
    pub(super) fn start(
        level: LogLevel,
        sink: &LogSink,
        metrics: &Metrics,
    ) -> Result<Option<Self>, TelemetryError> {
        if level == LogLevel::Off {
            return Ok(None);
        }
        let (sink, torn) = match sink {
            // Not through the library's buffer, which would keep what a full disk refused and write it later.
            LogSink::Stdout => {
                let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(TelemetryError::Stdout)?;
                (File::from(stdout), false)
            }
            LogSink::File(path) => lines::append(path)
                .map_err(|source| TelemetryError::LogFile { path: path.clone(), source })?,
        };
        let written = metrics.counter(&names::LOG_LINES, &[]);
        let lost = metrics.counter(&names::LOG_DROPPED, &[("cause", "sink")]);
        let lines = Lines::new(Box::new(sink), torn, written, lost);
        let (queue, entries) = sync_channel(QUEUE_LINES_MAX);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_all(&entries, lines))
            .map_err(TelemetryError::Thread)?;
        let dropped_full = metrics.counter(&names::LOG_DROPPED, &[("cause", "queue")]);
        Ok(Some(Self { level, queue, dropped_full }))
    }

    pub(super) fn record(&self, entry: LogEntry) {
        let failed = entry.reason != CloseReason::Ok
            || entry.status.is_some_and(|status| status >= 500)
            || entry.grpc_status.is_some_and(|status| status != 0);
        if (self.level == LogLevel::All || failed)
            && let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
                self.queue.try_send(Message::Entry(Box::new(entry)))
        {
            self.dropped_full.increment();
        }
    }

    /// Waits until what was recorded before is written. Blocks: not for the data path.
    pub(super) fn flush(&self, wait_max: Duration) -> bool {
        let (done, written) = sync_channel(1);
        let deadline = std::time::Instant::now() + wait_max;
        let mut message = Message::Flush(done);
        loop {
            match self.queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(back)) if std::time::Instant::now() < deadline => {
                    message = back;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(TrySendError::Full(_)) => return false,
            }
        }
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        !matches!(written.recv_timeout(left), Err(RecvTimeoutError::Timeout))
    }
}

fn write_all(queue: &Receiver<Message>, mut lines: Lines) {
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Entry(entry) => {
                    lines.push(|waiting| serde_json::to_writer(waiting, &Line::new(&entry)));
                }
                Message::Flush(done) => {
                    lines.flush();
                    // Who asked may be gone.
                    let _ = done.send(());
                }
            }
            next = queue.try_recv().ok();
        }
        lines.flush();
    }
}

/// The fields of a line, in their order. Absent ones are left out.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    kind: &'static str,
    reporter: &'static str,
    reason: &'static str,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_address: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_principal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_address: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_principal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    security: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    audited: Vec<String>,
    bytes_sent: u64,
    bytes_received: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn new(entry: &'a LogEntry) -> Self {
        let live = &*entry.live;
        let state = live.state.lock();
        let flow = &state.flow;
        let principal = |party: &Party| party.principal.as_ref().map(ToString::to_string);
        let request = live.request.as_ref();
        Self {
            time: rfc3339(live.started_at),
            kind: if request.is_some() { "request" } else { "connection" },
            reporter: flow.reporter.as_str(),
            reason: entry.reason.as_str(),
            duration_ms: (entry.duration.as_secs_f64() * 1e6).round() / 1e3,
            method: request.map(|request| request.method.as_str()),
            path: request.map(|request| &*request.path),
            authority: request.and_then(|request| request.authority.as_deref()),
            protocol: request.map(|request| super::version_name(request.version)),
            status: entry.status,
            grpc_status: entry.grpc_status,
            route: state.route.as_ref().map(ToString::to_string),
            attempts: request.filter(|_| state.attempts > 0).map(|_| state.attempts),
            source: pod_name(&flow.source),
            source_address: flow.source.address,
            source_principal: principal(&flow.source),
            destination: pod_name(&flow.destination),
            destination_address: flow.destination.address,
            destination_principal: principal(&flow.destination),
            service: flow.service.as_ref().map(ToString::to_string),
            security: flow.security.as_str(),
            policy: state.policy.as_ref().map(ToString::to_string),
            audited: state.audited.iter().map(ToString::to_string).collect(),
            bytes_sent: live.sent(),
            bytes_received: live.received(),
            trace_id: entry.trace.map(|trace| trace.to_string()),
            detail: entry.detail.as_deref(),
        }
    }
}

/// `2026-11-22T16:48:13.123Z`
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to year, month, day in the proleptic Gregorian calendar, with years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}
