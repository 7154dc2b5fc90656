//! The workload identities of this node: keys, certificates, rotation, and the rustls configurations made of them.
//!
//! Keys are made here and never leave. rustls set-up for the mesh lives in this module only. `peer` says who is
//! believed, `tls` what is spoken, `svid` holds one certificate, `renew` keeps it fresh. Live connections are never
//! touched by a rotation; who must react to a withdrawn root or identity watches [`Identities::subscribe`].

mod peer;
mod renew;
mod request;
mod svid;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_proto::identity::{PodUid, SpiffeId};
use weft_proto::model::Mesh;

pub use peer::PeerError;
pub(crate) use renew::{Renewal, retry_pause};
pub use renew::{SignError, Signer};
pub(crate) use request::Request;

use crate::telemetry::CloseReason;
use peer::{Trust, TrustCell};
use svid::Svid;

/// How long a connection waits for the first certificate of its pod: a pod that was just enrolled asks for it now.
const CERTIFICATE_WAIT_MS_MAX: u64 = 3_000;

/// Why no TLS configuration can be had for an identity, or a peer is not believed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityError {
    #[error("no pod of this node has the identity {identity}")]
    NotHere { identity: SpiffeId },
    #[error("no certificate for {identity} yet: {reason}")]
    NotReady { identity: SpiffeId, reason: String },
    #[error("the certificate of {identity} has expired; the last attempt to renew it: {reason}")]
    Expired { identity: SpiffeId, reason: String },
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
    #[error(transparent)]
    Peer(#[from] PeerError),
}

impl IdentityError {
    pub fn close_reason(&self) -> CloseReason {
        match self {
            Self::NotHere { .. } => CloseReason::PodGone,
            Self::NotReady { .. } | Self::Expired { .. } => CloseReason::NoCertificate,
            Self::Tls(_) => CloseReason::TlsFailed,
            Self::Peer(_) => CloseReason::PeerIdentity,
        }
    }
}

/// Why a handshake failed: the peer is not whom we believe, or anything else.
pub fn handshake_close_reason(error: &std::io::Error) -> CloseReason {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            CloseReason::PeerIdentity
        }
        _ => CloseReason::TlsFailed,
    }
}

/// A handshake's failure in words, for logs.
pub fn handshake_detail(error: &std::io::Error) -> String {
    use rustls::{CertificateError::Other, Error::InvalidCertificate};
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        // rustls shows only the insides of what it did not find wrong itself.
        Some(InvalidCertificate(Other(reason))) => reason.0.to_string(),
        _ => error.to_string(),
    }
}

/// A peer whose certificate was verified: chain, times, usages, exactly one URI SAN, trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VerifiedPeer(SpiffeId);

impl VerifiedPeer {
    pub fn id(&self) -> &SpiffeId {
        &self.0
    }
}

/// Which side of a connection the peer is: decides which usage its certificate must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerSide {
    Client,
    Server,
}

/// What the renewing tasks share.
struct Shared {
    trust: TrustCell,
    provider: Arc<CryptoProvider>,
    signer: Arc<dyn Signer>,
    /// The wall clock, that certificates are to be renewed by.
    wall: Box<dyn Fn() -> SystemTime + Send + Sync>,
    /// Counts up when the bundle changes or an identity is withdrawn.
    changes: watch::Sender<u64>,
    obtained: AtomicU64,
    failed: AtomicU64,
}

#[derive(Default)]
struct State {
    svid: Option<Arc<Svid>>,
    last_error: Option<String>,
}

/// One identity of this node.
struct Entry {
    state: watch::Sender<State>,
    /// Any of them may be named when asking.
    pods: Mutex<BTreeSet<PodUid>>,
    stop: CancellationToken,
}

impl Entry {
    fn svid(&self) -> Option<Arc<Svid>> {
        self.state.borrow().svid.clone()
    }
    fn obtained(&self, svid: Arc<Svid>) {
        self.state.send_replace(State { svid: Some(svid), last_error: None });
    }
    fn failed(&self, reason: String) {
        self.state.send_modify(|state| state.last_error = Some(reason));
    }
    /// A different one after each failure: the one asked with may just have ended.
    fn pod(&self, turn: usize) -> Option<PodUid> {
        let pods = self.pods.lock();
        pods.iter().nth(turn % pods.len().max(1)).cloned()
    }
}

/// What `/status` says about a certificate.
#[derive(Debug, Clone, serde::Serialize)]
pub struct CertificateStatus {
    pub identity: String,
    pub serial: Option<String>,
    pub not_before_unix_s: Option<u64>,
    pub not_after_unix_s: Option<u64>,
    pub last_error: Option<String>,
}

/// The certificates of this node's pods.
pub struct Identities {
    shared: Arc<Shared>,
    entries: Mutex<HashMap<SpiffeId, Arc<Entry>>>,
    runtime: tokio::runtime::Handle,
}

impl Identities {
    /// To be called inside a tokio runtime, on which the renewing tasks will run.
    pub fn new(signer: Arc<dyn Signer>) -> Self {
        Self::by_clock(signer, SystemTime::now)
    }

    fn by_clock(signer: Arc<dyn Signer>, wall: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        let shared = Shared {
            trust: TrustCell::default(),
            provider: tls::provider(),
            signer,
            wall: Box::new(wall),
            changes: watch::Sender::new(0),
            obtained: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        };
        Self {
            shared: Arc::new(shared),
            entries: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    /// Makes a bundle current; new handshakes follow it at once. A bundle with a broken root changes nothing.
    pub fn trust(&self, mesh: &Mesh) -> Result<(), PeerError> {
        let trust = Trust::new(mesh, &self.shared.provider)?;
        self.shared.trust.store(Some(Arc::new(trust)));
        self.shared.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Whether a bundle could be made current, without doing so.
    pub fn check_trust(&self, mesh: &Mesh) -> Result<(), PeerError> {
        Trust::new(mesh, &self.shared.provider).map(|_| ())
    }

    /// Says which identities this node has, and which pods have them. New ones are asked for, missing ones dropped.
    pub fn want(&self, wanted: &HashMap<SpiffeId, BTreeSet<PodUid>>) {
        let mut entries = self.entries.lock();
        let mut withdrawn = false;
        entries.retain(|identity, entry| {
            let keep = wanted.contains_key(identity);
            if !keep {
                entry.stop.cancel();
                withdrawn = true;
            }
            keep
        });
        for (identity, pods) in wanted {
            if let Some(entry) = entries.get(identity) {
                entry.pods.lock().clone_from(pods);
                continue;
            }
            let entry = Arc::new(Entry {
                state: watch::Sender::new(State::default()),
                pods: Mutex::new(pods.clone()),
                stop: CancellationToken::new(),
            });
            entries.insert(identity.clone(), Arc::clone(&entry));
            self.runtime.spawn(renew::keep_fresh(Arc::clone(&self.shared), identity.clone(), entry));
        }
        drop(entries);
        if withdrawn {
            self.shared.changes.send_modify(|count| *count += 1);
        }
    }

    /// TLS client side of `source`, accepting only servers whose SPIFFE ID is one of `expected`.
    pub async fn client_config(
        &self,
        source: &SpiffeId,
        expected: &[SpiffeId],
    ) -> Result<Arc<rustls::ClientConfig>, IdentityError> {
        self.valid_svid(source).await?.client(expected).map_err(IdentityError::Tls)
    }

    /// TLS server side of `identity`: any client of the same trust domain.
    pub async fn server_config(
        &self,
        identity: &SpiffeId,
    ) -> Result<Arc<rustls::ServerConfig>, IdentityError> {
        Ok(Arc::clone(&self.valid_svid(identity).await?.server))
    }

    /// The certificate, waited for if it was never had; never an expired one.
    async fn valid_svid(&self, identity: &SpiffeId) -> Result<Arc<Svid>, IdentityError> {
        let entry = self.entries.lock().get(identity).cloned();
        let entry = entry.ok_or_else(|| IdentityError::NotHere { identity: identity.clone() })?;
        let valid = |state: &State| state.svid.as_ref().is_some_and(|svid| !svid.expired(SystemTime::now()));
        let mut state = entry.state.subscribe();
        let wait = Duration::from_millis(CERTIFICATE_WAIT_MS_MAX);
        let had = state.borrow().svid.is_some();
        if !had {
            // Whether it came, is looked at below.
            let _ = tokio::time::timeout(wait, state.wait_for(valid)).await;
        }
        let state = state.borrow();
        if valid(&state) {
            return Ok(Arc::clone(state.svid.as_ref().expect("a valid state has a certificate")));
        }
        let identity = identity.clone();
        let reason = state.last_error.clone().unwrap_or_else(|| "the control plane has not answered".into());
        Err(match state.svid {
            Some(_) => IdentityError::Expired { identity, reason },
            None => IdentityError::NotReady { identity, reason },
        })
    }

    /// The verified identity behind a finished handshake.
    pub fn peer(certificates: Option<&[CertificateDer<'_>]>) -> Result<VerifiedPeer, IdentityError> {
        let leaf = certificates.and_then(<[_]>::first).ok_or(PeerError::NoCertificate)?;
        Ok(VerifiedPeer(peer::spiffe_id(leaf)?))
    }

    /// Changes when the bundle changed or an identity was withdrawn: time to look again at live connections with
    /// [`Self::holds`] and [`Self::still_trusted`].
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Whether this node still has a pod with the identity.
    pub fn holds(&self, identity: &SpiffeId) -> bool {
        self.entries.lock().contains_key(identity)
    }

    /// Whether the chain that a live connection's peer showed at `handshake_at` would be believed under the present
    /// bundle. Judged by the time of its handshake: expiry does not end a live connection.
    pub fn still_trusted(
        &self,
        chain: &[CertificateDer<'_>],
        side: PeerSide,
        handshake_at: UnixTime,
    ) -> bool {
        let (Some(trust), Some((leaf, intermediates))) = (self.shared.trust.load_full(), chain.split_first())
        else {
            return false;
        };
        match side {
            PeerSide::Client => trust.verify_client(leaf, intermediates, handshake_at),
            PeerSide::Server => trust.verify_server(leaf, intermediates, handshake_at, &self.shared.provider),
        }
        .is_ok()
    }

    /// Certificates obtained, and attempts that failed.
    pub fn rotations(&self) -> (u64, u64) {
        (self.shared.obtained.load(Relaxed), self.shared.failed.load(Relaxed))
    }

    /// Sorted by identity.
    pub fn status(&self) -> Vec<CertificateStatus> {
        let unix_s =
            |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs());
        let entries = self.entries.lock();
        let mut all: Vec<_> = entries
            .iter()
            .map(|(identity, entry)| {
                let state = entry.state.borrow();
                let svid = state.svid.as_deref();
                CertificateStatus {
                    identity: identity.to_string(),
                    serial: svid.map(|svid| svid.serial.clone()),
                    not_before_unix_s: svid.and_then(|svid| unix_s(svid.not_before)),
                    not_after_unix_s: svid.and_then(|svid| unix_s(svid.not_after)),
                    last_error: state.last_error.clone(),
                }
            })
            .collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }
}

impl Drop for Identities {
    fn drop(&mut self) {
        for entry in self.entries.lock().values() {
            entry.stop.cancel();
        }
    }
}
