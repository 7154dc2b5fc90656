//! Handshakes under way: so many in all, so many from one address. A stranger who connects and says nothing holds one for its whole
//! time, so he may hold few, and where all are taken the oldest gives way: an honest one takes milliseconds.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Handshakes at the same time: a restart brings every node at once. Some ten KiB each.
const HANDSHAKES_MAX: usize = 1024;
/// Nodes behind a translating gateway come as one address: what is beyond is closed, and comes again.
const HANDSHAKES_PER_ADDRESS_MAX: usize = 16;

#[derive(Debug, Default)]
struct UnderWay {
    by_address: HashMap<IpAddr, usize>,
    /// By age.
    all: BTreeMap<u64, CancellationToken>,
    begun: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Handshakes(Mutex<UnderWay>);

/// One handshake, until it is dropped.
#[derive(Debug)]
pub(crate) struct Handshake {
    handshakes: Arc<Handshakes>,
    address: IpAddr,
    number: u64,
    /// Cancelled: another one needs the place.
    pub(crate) displaced: CancellationToken,
}

impl Handshakes {
    /// None: this address has as many as it may.
    pub(crate) fn begin(self: &Arc<Self>, address: IpAddr) -> Option<Handshake> {
        let address = address.to_canonical();
        let mut under_way = self.0.lock();
        let of_address = under_way.by_address.entry(address).or_default();
        if *of_address >= HANDSHAKES_PER_ADDRESS_MAX {
            return None;
        }
        *of_address += 1;
        if under_way.all.len() >= HANDSHAKES_MAX
            && let Some((_, oldest)) = under_way.all.pop_first()
        {
            oldest.cancel();
        }
        let (number, displaced) = (under_way.begun, CancellationToken::new());
        under_way.begun += 1;
        under_way.all.insert(number, displaced.clone());
        Some(Handshake { handshakes: Arc::clone(self), address, number, displaced })
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut under_way = self.handshakes.0.lock();
        under_way.all.remove(&self.number);
        if let Some(of_address) = under_way.by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                under_way.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: usize) -> IpAddr {
        IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + u32::try_from(number).unwrap()))
    }

    #[test]
    fn an_address_has_its_share_and_no_more() {
        let handshakes = Arc::new(Handshakes::default());
        let mut held: Vec<_> =
            (0..HANDSHAKES_PER_ADDRESS_MAX).map(|_| handshakes.begin(address(1)).unwrap()).collect();
        assert!(handshakes.begin(address(1)).is_none());
        assert!(handshakes.begin("::ffff:10.0.0.1".parse().unwrap()).is_none(), "mapped is the same address");
        assert!(handshakes.begin(address(2)).is_some());
        held.pop();
        held.push(handshakes.begin(address(1)).unwrap());
        drop(held);
        let under_way = handshakes.0.lock();
        assert!(under_way.all.is_empty() && under_way.by_address.is_empty(), "{under_way:?}");
    }

    #[test]
    fn where_all_are_taken_the_oldest_gives_way() {
        let handshakes = Arc::new(Handshakes::default());
        let held: Vec<_> = (0..HANDSHAKES_MAX)
            .map(|number| handshakes.begin(address(number / HANDSHAKES_PER_ADDRESS_MAX)).unwrap())
            .collect();
        let newest = handshakes.begin(address(HANDSHAKES_MAX)).unwrap();
        assert!(held[0].displaced.is_cancelled() && !held[1].displaced.is_cancelled());
        assert!(!newest.displaced.is_cancelled());
        drop(held);
        assert_eq!(handshakes.0.lock().all.len(), 1);
    }
}
