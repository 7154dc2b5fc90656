//! Who is at the other end of a connection, and until when: a node by its certificate, or somebody who showed none yet.
//!
//! A node's certificate is short-lived. A connection lives no longer than the newest certificate that was granted over it, so
//! a node that can no longer show a good token is out within one lifetime, and a stream that renews in time is not interrupted.
//! How long that is, is counted from the handshake or the grant by the clock that only goes on: a wall clock that jumps ends no session
//! and prolongs none.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, UnixTime};
use tonic::{Request, Status};
use weft_proto::identity::NodeId;

use crate::authority::{Authority, Bundle};
use crate::world::World;

/// How often a live session is asked whether it may go on: what takes a node's trust away, ends its session within this.
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Of a connection; every request on it carries one.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) peer: SocketAddr,
    certificate: Option<Arc<Certificate>>,
}

/// What a node showed at the handshake.
#[derive(Debug)]
pub(crate) struct Certificate {
    id: NodeId,
    chain: Vec<CertificateDer<'static>>,
    handshake_at: UnixTime,
    /// The end of the newest certificate that was granted over this connection, or of the one that was shown.
    until: Mutex<Instant>,
    /// The bundle that the chain was last verified under.
    bundle: Mutex<Arc<Bundle>>,
}

impl Caller {
    /// After a handshake that succeeded. None: the certificate is not a node's after all.
    pub(crate) fn new(
        peer: SocketAddr,
        shown: Option<&[CertificateDer<'static>]>,
        authority: &Authority,
    ) -> Option<Self> {
        let certificate = match shown {
            None | Some([]) => None,
            Some(chain) => {
                let handshake_at = UnixTime::now();
                let bundle = authority.current_bundle();
                let (id, until_unix_s) = authority.node_of(chain, handshake_at, &bundle).ok()?;
                Some(Arc::new(Certificate {
                    id,
                    chain: chain.to_vec(),
                    handshake_at,
                    until: Mutex::new(from_now(until_unix_s, handshake_at)),
                    bundle: Mutex::new(bundle),
                }))
            }
        };
        Some(Self { peer, certificate })
    }

    pub(crate) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        request.extensions().get::<Self>().cloned().ok_or_else(|| Status::internal("the caller is not known"))
    }

    pub(crate) fn certificate(&self) -> Option<&Arc<Certificate>> {
        self.certificate.as_ref()
    }

    /// The node that calls, if it still may.
    pub(crate) fn node(&self, world: &World) -> Result<&Arc<Certificate>, Status> {
        let certificate = self.certificate.as_ref();
        let certificate =
            certificate.ok_or_else(|| Status::unauthenticated("a node's client certificate is needed"))?;
        match certificate.over(world) {
            None => Ok(certificate),
            Some(reason) => Err(Status::unauthenticated(reason)),
        }
    }
}

impl Certificate {
    pub(crate) fn node(&self) -> &Arc<str> {
        self.id.node()
    }

    /// A newer certificate of the same node was granted over this connection.
    pub(crate) fn prolong(&self, until_unix_s: i64) {
        let granted = from_now(until_unix_s, UnixTime::now());
        let mut until = self.until.lock();
        *until = granted.max(*until);
    }

    /// Why the node is no longer believed; None: it is.
    fn over(&self, world: &World) -> Option<&'static str> {
        if Instant::now() >= *self.until.lock() {
            return Some("the node's certificate has expired and was not renewed");
        }
        if !world.authenticate.vouches_for(self.node()) {
            return Some("the node's join token was removed");
        }
        let mut verified = self.bundle.lock();
        let bundle = world.authority.current_bundle();
        if !Arc::ptr_eq(&verified, &bundle) {
            // By the time of the handshake: a renewed connection may be older than its first certificate.
            if world.authority.node_of(&self.chain, self.handshake_at, &bundle).is_err() {
                return Some("the root of the node's certificate is no longer trusted");
            }
            *verified = bundle;
        }
        None
    }

    /// Returns when the node may not go on, with the reason.
    pub(crate) async fn ended(&self, world: &World) -> Status {
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            if let Some(reason) = self.over(world) {
                return Status::unauthenticated(reason);
            }
        }
    }
}

/// A time of the wall clock, as one of the clock that only goes on. `wall`: now.
fn from_now(unix_s: i64, wall: UnixTime) -> Instant {
    let left = u64::try_from(unix_s).unwrap_or_default().saturating_sub(wall.as_secs());
    Instant::now() + Duration::from_secs(left)
}
