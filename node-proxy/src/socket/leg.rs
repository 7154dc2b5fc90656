//! A leg between an application and the proxy, for those who want `AsyncRead` and `AsyncWrite`; how a redirected one is
//! held back ([`Pace`]).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use weft_ebpf::{Kernel, UNREAD_BYTES_MAX};

/// Bytes sent between two looks at how far behind the application is: short exchanges never look.
const LOOK_EVERY_BYTES: usize = 256 << 10;
/// Pauses while it is behind, each twice the last. The kernel tells nobody when such a queue gets shorter.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(16);

/// The one that has the hooks of this process.
static KERNEL: OnceLock<Arc<Kernel>> = OnceLock::new();

/// From now on [`Pace`] asks here. The first one stays.
pub fn ask(kernel: Arc<Kernel>) {
    let _ = KERNEL.set(kernel);
}

/// Holds back who sends to an application past the TCP/IP stack, whose window would do so otherwise (`docs/kernel.md`).
#[derive(Default)]
pub struct Pace {
    sent: usize,
    /// The stack holds back by itself: for the life of the connection.
    by_stack: bool,
    pause: Option<Pin<Box<Sleep>>>,
    /// How long the last pause was.
    paused: Duration,
}

impl Pace {
    /// Ready when more may be sent.
    pub fn poll_room(&mut self, tcp: &TcpStream, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            if self.by_stack || self.sent < LOOK_EVERY_BYTES {
                return Poll::Ready(());
            }
            match KERNEL.get().and_then(|kernel| kernel.unread(tcp)) {
                None => self.by_stack = true,
                Some(unread) if u64::from(unread) < UNREAD_BYTES_MAX => {
                    (self.sent, self.paused) = (0, Duration::ZERO);
                }
                Some(_) => {
                    self.paused = (2 * self.paused).clamp(PAUSE_MIN, PAUSE_MAX);
                    self.pause = Some(Box::pin(tokio::time::sleep(self.paused)));
                }
            }
        }
    }

    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
    }
}

/// A socket that takes nothing for drained until the kernel says so.
///
/// `TcpStream` takes a read that did not fill the buffer for the last one and waits for the next event. On a leg that the
/// kernel has redirected for a while and then left to the stack, that is wrong: `recv` stops where the redirected
/// queue ends, while bytes whose event has passed lie in the other queue. The next event may never come.
pub struct LegIo {
    tcp: TcpStream,
    pace: Pace,
}

impl LegIo {
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, pace: Pace::default() }
    }
}

impl AsyncRead for LegIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.tcp.poll_read_ready(cx))?;
            // Unlike `poll_read`, it forgets the readiness only when the kernel would block.
            match self.tcp.try_read_buf(into) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for LegIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { tcp, pace } = &mut *self;
        ready!(pace.poll_room(tcp, cx));
        let written = ready!(Pin::new(tcp).poll_write(cx, bytes))?;
        pace.sent(written);
        Poll::Ready(Ok(written))
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { tcp, pace } = &mut *self;
        ready!(pace.poll_room(tcp, cx));
        let written = ready!(Pin::new(tcp).poll_write_vectored(cx, slices))?;
        pace.sent(written);
        Poll::Ready(Ok(written))
    }
    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
