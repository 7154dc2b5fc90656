//! A bound on how long an HTTP/2 client may take to send a request's head, as `head.rs` has it for HTTP/1.
//!
//! h2 bounds the bytes and the number of frames of a head, not its time, and while one is unfinished no other stream of
//! the connection goes on. So the time runs from the first byte of the preface or of a frame until that frame, and the
//! head that it may begin, are whole. DATA may come as slowly as it likes: that is a body. [`Frames`] is pure.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::head::HeadClock;
use crate::forward_writes::forward_writes;

/// What a client sends before its first frame.
const PREFACE_BYTES: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const HEADER_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Where a stream of bytes stands between the frames of a client.
#[derive(Debug)]
struct Frames {
    preface_left: usize,
    header: [u8; HEADER_BYTES],
    header_read: usize,
    payload_left: usize,
    /// The payload is a body's.
    data: bool,
    /// A head has begun whose last frame has not.
    head_open: bool,
}

impl Frames {
    fn new() -> Self {
        Self {
            preface_left: PREFACE_BYTES,
            header: [0; HEADER_BYTES],
            header_read: 0,
            payload_left: 0,
            data: false,
            head_open: false,
        }
    }

    /// Nothing is begun that must be whole soon.
    fn at_rest(&self) -> bool {
        let payload = self.payload_left > 0 && !self.data;
        self.preface_left == 0 && self.header_read == 0 && !payload && !self.head_open
    }

    /// Takes what was read. True: at some point of it, nothing was begun.
    fn read(&mut self, mut bytes: &[u8]) -> bool {
        let mut rested = self.at_rest();
        while !bytes.is_empty() {
            if self.preface_left > 0 {
                skip(&mut bytes, &mut self.preface_left);
            } else if self.payload_left > 0 {
                skip(&mut bytes, &mut self.payload_left);
            } else {
                let taken = bytes.len().min(HEADER_BYTES - self.header_read);
                self.header[self.header_read..self.header_read + taken].copy_from_slice(&bytes[..taken]);
                self.header_read += taken;
                bytes = &bytes[taken..];
                if self.header_read == HEADER_BYTES {
                    self.header_read = 0;
                    self.begin();
                }
            }
            rested |= self.at_rest();
        }
        rested
    }

    fn begin(&mut self) {
        let [a, b, c, kind, flags, ..] = self.header;
        self.payload_left = u32::from_be_bytes([0, a, b, c]) as usize;
        self.data = kind == DATA;
        if kind == HEADERS || kind == CONTINUATION {
            self.head_open = flags & END_HEADERS == 0;
        }
    }
}

fn skip(bytes: &mut &[u8], left: &mut usize) {
    let skipped = bytes.len().min(*left);
    *bytes = &bytes[skipped..];
    *left -= skipped;
}

/// Ends a connection whose frame or head is late, with `TimedOut`.
pub(super) struct FramesTimed<IO> {
    io: IO,
    clock: HeadClock,
    frames: Frames,
    /// When what must be whole soon began.
    since: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<IO> FramesTimed<IO> {
    /// The preface is due from now on.
    pub(super) fn new(io: IO, clock: HeadClock) -> Self {
        Self { io, clock, frames: Frames::new(), since: Instant::now(), timer: None }
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.frames.at_rest() {
            return Poll::Pending;
        }
        self.clock.poll_late(self.since, &mut self.timer, cx)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for FramesTimed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = into.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, into);
        let new = &into.filled()[before..];
        if !new.is_empty() && this.frames.read(new) {
            this.since = Instant::now();
        }
        match this.poll_late(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => read,
        }
    }
}

forward_writes!(FramesTimed);

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.resize(HEADER_BYTES + payload, 0xff);
        frame
    }

    #[test]
    fn only_what_must_be_whole_soon_is_begun() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let (ping, settings) = (6, 4);
        for (bytes, at_rest) in [
            (vec![], true),
            (frame(settings, 0, 36), true),
            (frame(DATA, 0, 5), true),
            (frame(HEADERS, END_HEADERS, 5), true),
            (frame(HEADERS, 0, 5), false),
            ([frame(HEADERS, 0, 5), frame(CONTINUATION, 0, 5)].concat(), false),
            ([frame(HEADERS, 0, 5), frame(CONTINUATION, END_HEADERS, 0)].concat(), true),
            // What would be an error, and h2 says so: here it must only not look like the head's end.
            ([frame(HEADERS, 0, 5), frame(DATA, END_HEADERS, 0)].concat(), false),
            (frame(HEADERS, END_HEADERS, 5)[..HEADER_BYTES + 4].to_vec(), false),
            (frame(ping, 0, 8)[..HEADER_BYTES].to_vec(), false),
            // The length of a header is not known yet, nor of what.
            (frame(DATA, 0, 5)[..HEADER_BYTES - 1].to_vec(), false),
            // A body may take its time.
            (frame(DATA, 0, 5)[..HEADER_BYTES].to_vec(), true),
        ] {
            let whole = [preface.clone(), bytes].concat();
            let mut at_once = Frames::new();
            at_once.read(&whole);
            assert_eq!(at_once.at_rest(), at_rest, "{:?}", &whole[PREFACE_BYTES..]);
            let mut by_bytes = Frames::new();
            for byte in &whole {
                by_bytes.read(&[*byte]);
            }
            assert_eq!(by_bytes.at_rest(), at_rest, "byte by byte: {:?}", &whole[PREFACE_BYTES..]);
        }
        assert!(!Frames::new().at_rest(), "the preface is due");
    }

    #[test]
    fn a_busy_client_begins_anew_with_each_head() {
        let mut frames = Frames::new();
        frames.read(&[0; PREFACE_BYTES]);
        assert!(frames.read(&frame(HEADERS, 0, 5)), "at rest before it");
        assert!(!frames.read(&frame(CONTINUATION, 0, 5)), "the same head goes on");
        assert!(frames.read(&[frame(CONTINUATION, END_HEADERS, 5), frame(HEADERS, 0, 1)].concat()));
        assert!(!frames.at_rest());
    }
}
