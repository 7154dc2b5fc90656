//! Places for the listener's connections: so many in all, so many from one address. Whoever connects has shown no token
//! yet, so a stranger must not be able to take the nodes' places.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use crate::caller::Caller;

/// The nodes of a large cluster, each with a connection that ends while the next one begins.
const CONNECTIONS_MAX: usize = 20_000;
/// A node needs one, and one more while it reconnects: enough for some nodes behind one address, and few enough that an
/// address cannot take all the handshakes.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 64;
/// Of a connection whose client showed no certificate: it is there to get one, which takes a second. Without this bound a stranger
/// could keep what he may take of the places for ever, by answering PINGs.
const STRANGER_TIME_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Counts the connections; what is free of them, is forgotten.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<Taken>);

/// One connection's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    /// None: none is free for this address.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let mut taken = self.0.lock();
        let of_address = taken.by_address.get(&address).copied().unwrap_or(0);
        if taken.all >= CONNECTIONS_MAX || of_address >= CONNECTIONS_PER_ADDRESS_MAX {
            return None;
        }
        taken.all += 1;
        taken.by_address.insert(address, of_address + 1);
        Some(Place { places: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock();
        taken.all -= 1;
        if let Some(of_address) = taken.by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

/// A stream that holds its place, and knows who is at its other end.
pub(crate) struct Counted<IO> {
    io: IO,
    caller: Caller,
    /// When a stranger has to be gone.
    end: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl<IO> Counted<IO> {
    pub(crate) fn new(io: IO, caller: Caller, place: Place) -> Self {
        let stranger = caller.certificate().is_none();
        let end = stranger.then(|| Box::pin(tokio::time::sleep(STRANGER_TIME_MAX)));
        Self { io, caller, end, _place: place }
    }
}

impl<IO> Connected for Counted<IO> {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(end) = &mut self.end
            && end.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counted<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, buffers)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_the_places_of_the_others() {
        let places = Arc::new(Places::default());
        let (greedy, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mut held: Vec<Place> =
            (0..CONNECTIONS_PER_ADDRESS_MAX).map(|_| places.take(greedy).unwrap()).collect();
        assert!(places.take(greedy).is_none());
        assert!(places.take("::ffff:10.0.0.1".parse().unwrap()).is_none(), "mapped is the same address");
        assert!(places.take(other).is_some());
        held.pop();
        held.push(places.take(greedy).unwrap());
        drop(held);
        let taken = places.0.lock();
        assert!(taken.all == 0 && taken.by_address.is_empty(), "{taken:?}");
    }
}
