//! The certificate authority: its own key and chain, the trust bundle, certificates of workloads, nodes and the listener.
//!
//! Names come from the pod or from the token, never from the request. Start at [`Authority::sign`]; who may ask is in `service`,
//! which node asks in `authenticate`, whom the listener believes in `bundle`, where the authority is kept in `store`, what it is made of
//! in `material`.
//!
//! Another authority in the store takes over in two steps ([`Authority::follow`], [`Authority::advance`]): its roots are trusted
//! everywhere before anything is signed by it.

mod authenticate;
mod bundle;
mod csr;
mod join_tokens;
mod live;
mod material;
mod review;
#[cfg(test)]
mod rotation_tests;
mod service;
mod store;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use serde::Serialize;
use time::OffsetDateTime;
use weft_proto::identity::{NodeId, SpiffeId, TrustDomain};
use x509_parser::prelude::{FromDer, X509Certificate};

pub use self::authenticate::{Authenticate, NotVouched};
pub(crate) use self::bundle::{Bundle, NodeVerifier};
pub use self::csr::CSR_BYTES_MAX;
pub(crate) use self::join_tokens::JoinTokens;
pub(crate) use self::live::LivePods;
use self::material::{Issuing, merged, over};
pub(crate) use self::review::TokenReviews;
pub use self::service::CertificateService;
use self::store::{Created, Store};
pub(crate) use self::store::{Directory, InCluster};
use crate::settings::Settings;

/// Clocks of nodes may be behind by this much.
const BACKDATE: Duration = Duration::from_secs(60);

/// The root of an authority before this one is kept for this long after its end.
const PREVIOUS_KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Lifetimes that are not settings.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    /// Of the listener's certificate, which is renewed at half of it.
    pub server: Duration,
    /// Of a node's, at most (never above that of workloads): within this, a node that can no longer show a good token is out. Half of
    /// it is how long whoever judges tokens may be away.
    pub node_max: Duration,
    /// How long the roots of a new authority are trusted before it signs: after every connected node has acknowledged them, for
    /// what cannot be asked. Nodes of other replicas get them within seconds; the kubelets bring the ConfigMap into the node agents'
    /// pods within two minutes.
    pub issuer_settle: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            server: Duration::from_secs(7 * 24 * 3600),
            node_max: Duration::from_secs(3600),
            issuer_settle: Duration::from_secs(180),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("{file}: {source}")]
    File { file: String, source: std::io::Error },
    #[error("{file}: {problem}")]
    Unusable { file: String, problem: String },
    #[error("{0}")]
    Bundle(String),
    #[error("the authority's own certificate has expired")]
    Expired,
    #[error("certificate request: {0}")]
    Csr(&'static str),
    #[error("signing: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("no random numbers")]
    Random,
}

/// A signed certificate of a workload or a node.
#[derive(Debug)]
pub struct Signed {
    pub chain_der: Vec<Vec<u8>>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

/// The listener's certificate with its key.
pub struct ServerKey {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// From its beginning to the half of its life.
    pub good: Range<OffsetDateTime>,
}

/// With less than this left of the present authority, the next one signs, come what may.
const LAST_MOMENT: Duration = Duration::from_secs(600);

/// Replicas that start together may be in each other's way when they publish the bundle.
const START_TRIES: u32 = 5;
const START_PAUSE: Duration = Duration::from_millis(300);

#[derive(Default)]
struct Rotation {
    /// In the store, and not signing yet.
    next: Option<Arc<Issuing>>,
    /// When roots were last added to the bundle.
    grew_at: Option<Instant>,
    /// Why the store is not followed.
    problem: Option<String>,
}

pub struct Authority {
    store: Box<dyn Store>,
    issuing: ArcSwap<Issuing>,
    rotation: Mutex<Rotation>,
    lifetime: Duration,
    lifetimes: Lifetimes,
    domain: TrustDomain,
    server_names: Vec<String>,
    bundle: Arc<ArcSwap<Bundle>>,
    provider: Arc<CryptoProvider>,
}

/// What `/status` says of the authority.
#[derive(Debug, Serialize)]
pub struct AuthorityStatus {
    pub store: String,
    pub not_after_unix_s: i64,
    pub expired: bool,
    /// The authority in the store is another one, which signs once the nodes trust it.
    pub rotating: bool,
    /// Why the store is not followed; the last good authority and bundle stay.
    pub problem: Option<String>,
    pub roots: Vec<RootStatus>,
}

#[derive(Debug, Serialize)]
pub struct RootStatus {
    pub subject: String,
    pub not_after_unix_s: i64,
    pub expired: bool,
}

impl Authority {
    /// Reads the authority of the settings' files (or makes it), and publishes the bundle.
    pub async fn open(
        settings: &Settings,
        client: Option<kube::Client>,
        domain: TrustDomain,
        lifetimes: Lifetimes,
    ) -> Result<Self, AuthorityError> {
        let store: Box<dyn Store> = match client {
            Some(client) => Box::new(InCluster::new(client, &settings.namespace)),
            None => Box::new(Directory::new(settings)?),
        };
        let stored = match store.read().await? {
            Some(stored) => stored,
            None => made(&*store, &domain).await?,
        };
        store.warn();
        let issuing = Issuing::new(&stored)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let bundle = usable_bundle(issuing.roots.clone(), &provider)?;
        let authority = Self {
            store,
            issuing: ArcSwap::from_pointee(issuing),
            rotation: Mutex::default(),
            lifetime: settings.cert_lifetime,
            lifetimes,
            domain,
            server_names: settings.server_names.clone(),
            bundle: Arc::new(ArcSwap::from_pointee(bundle)),
            provider,
        };
        // Nobody waits for a rotation yet: what is in the store signs.
        let mut tries = 0;
        while let Err(error) = authority.look().await {
            tries += 1;
            if tries == START_TRIES {
                return Err(error);
            }
            tracing::warn!(%error, "the authority is not ready yet");
            tokio::time::sleep(START_PAUSE).await;
        }
        authority.rotation.lock().grew_at = None;
        Ok(authority)
    }

    pub fn look_every(&self) -> Duration {
        self.store.look_every()
    }

    /// Every root that nodes shall trust. DER.
    pub fn bundle(&self) -> Vec<Vec<u8>> {
        self.bundle.load().roots.clone()
    }

    pub(crate) fn current_bundle(&self) -> Arc<Bundle> {
        self.bundle.load_full()
    }

    /// Whom the listener believes.
    pub(crate) fn node_verifier(&self) -> NodeVerifier {
        NodeVerifier::new(self.domain.clone(), Arc::clone(&self.bundle))
    }

    /// The node of a client's chain, believed at a time under a bundle, and the end of its certificate.
    pub(crate) fn node_of(
        &self,
        chain: &[CertificateDer<'_>],
        at: UnixTime,
        bundle: &Bundle,
    ) -> Result<(NodeId, i64), rustls::Error> {
        let id = bundle.node(&self.domain, chain, at)?;
        let (_, leaf) = X509Certificate::from_der(&chain[0])
            .map_err(|_| rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
        Ok((id, leaf.validity().not_after.timestamp()))
    }

    /// Looks at the store again; the new bundle, if it changed. On failure the last good authority and bundle stay.
    pub async fn follow(&self) -> Result<Option<Vec<Vec<u8>>>, AuthorityError> {
        let found = self.look().await;
        self.rotation.lock().problem = found.as_ref().err().map(ToString::to_string);
        found
    }

    async fn look(&self) -> Result<Option<Vec<Vec<u8>>>, AuthorityError> {
        let gone = || AuthorityError::Unusable { file: self.store.name(), problem: "is gone".into() };
        let stored = Arc::new(Issuing::new(&self.store.read().await?.ok_or_else(gone)?)?);
        let present = self.issuing.load_full();
        let replaced = stored.own != present.own;
        let mut previous = self.store.previous().await?;
        if replaced {
            previous = merged([previous, present.roots.clone()]);
        }
        // By a clock that is ahead one seems over that is not: it is not trusted then, and not forgotten yet either.
        previous.retain(|root| !over(root, PREVIOUS_KEPT) && !stored.roots.contains(root));
        let trusted = previous.iter().filter(|root| !over(root, Duration::ZERO)).cloned().collect();
        let bundle = usable_bundle(merged([stored.roots.clone(), trusted]), &self.provider)?;
        self.prove(&stored, &bundle)?;
        self.store.publish(&bundle.roots, &previous).await?;
        let before = self.bundle.load_full();
        let grew = bundle.roots.iter().any(|root| !before.roots.contains(root));
        let changed = (bundle.roots != before.roots).then(|| bundle.roots.clone());
        if changed.is_some() {
            self.bundle.store(Arc::new(bundle));
        }
        let mut rotation = self.rotation.lock();
        if grew {
            rotation.grew_at = Some(Instant::now());
        }
        if replaced {
            rotation.next = Some(stored);
        } else {
            rotation.next = None;
            self.issuing.store(stored);
        }
        Ok(changed)
    }

    /// Lets the authority in the store sign, if it is another one and may. `trusted`: every connected node has acknowledged the
    /// bundle. True: it signs from now on.
    pub fn advance(&self, trusted: bool) -> bool {
        let mut rotation = self.rotation.lock();
        let settled = rotation.grew_at.is_none_or(|at| at.elapsed() >= self.lifetimes.issuer_settle);
        let ending = self.issuing.load().not_after <= OffsetDateTime::now_utc() + LAST_MOMENT;
        if !((trusted && settled) || ending) {
            return false;
        }
        let Some(next) = rotation.next.take() else { return false };
        self.issuing.store(next);
        true
    }

    pub fn status(&self) -> AuthorityStatus {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let bundle = self.bundle.load();
        let roots = bundle.roots.iter().filter_map(|root| {
            let (_, root) = X509Certificate::from_der(root).ok()?;
            let not_after_unix_s = root.validity().not_after.timestamp();
            let subject = root.subject().to_string();
            Some(RootStatus { subject, not_after_unix_s, expired: not_after_unix_s <= now })
        });
        let roots = roots.collect();
        let not_after_unix_s = self.issuing.load().not_after.unix_timestamp();
        let rotation = self.rotation.lock();
        AuthorityStatus {
            store: self.store.name(),
            not_after_unix_s,
            expired: not_after_unix_s <= now,
            rotating: rotation.next.is_some(),
            problem: rotation.problem.clone(),
            roots,
        }
    }

    /// That what an authority signs is believed under a bundle: path lengths, name constraints and expired intermediates show here
    /// and not at the first handshake.
    fn prove(&self, issuing: &Issuing, bundle: &Bundle) -> Result<(), AuthorityError> {
        let name = NodeId::new(self.domain.clone(), "proof").expect("it is the name of an object");
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params =
            self.leaf(issuing, vec![SanType::URI(name.to_string().try_into()?)], self.lifetime)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &issuing.issuer)?.der().clone();
        let chain: Vec<_> =
            std::iter::once(leaf).chain(issuing.chain.iter().cloned().map(CertificateDer::from)).collect();
        bundle.node(&self.domain, &chain, UnixTime::now()).map(drop).map_err(|error| {
            AuthorityError::Unusable {
                file: self.store.name(),
                problem: format!("what it signs would not be believed: {error}"),
            }
        })
    }

    /// Signs a certificate for a workload: only the public key is taken from the request.
    pub fn sign(&self, csr_der: &[u8], identity: &SpiffeId) -> Result<Signed, AuthorityError> {
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(csr_der, &identity.to_string(), usages, self.lifetime)
    }

    /// Signs a node's certificate for its connections to the control plane: a client's only.
    pub fn sign_node(&self, csr_der: &[u8], node: &NodeId) -> Result<Signed, AuthorityError> {
        let lifetime = self.lifetime.min(self.lifetimes.node_max);
        self.issue(csr_der, &node.to_string(), vec![ExtendedKeyUsagePurpose::ClientAuth], lifetime)
    }

    fn issue(
        &self,
        csr_der: &[u8],
        uri: &str,
        usages: Vec<ExtendedKeyUsagePurpose>,
        lifetime: Duration,
    ) -> Result<Signed, AuthorityError> {
        let public_key = csr::public_key(csr_der)?;
        let issuing = self.issuing.load_full();
        let mut params = self.leaf(&issuing, vec![SanType::URI(uri.to_owned().try_into()?)], lifetime)?;
        params.extended_key_usages = usages;
        let (not_before, not_after) = (params.not_before, params.not_after);
        let leaf = params.signed_by(&public_key, &issuing.issuer)?;
        let mut chain_der = vec![leaf.der().to_vec()];
        chain_der.extend(issuing.chain.iter().cloned());
        Ok(Signed { chain_der, not_before, not_after })
    }

    /// For the listener that nodes connect to.
    pub fn server_certificate(&self) -> Result<ServerKey, AuthorityError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut names = vec![SanType::DnsName("weft-control".to_owned().try_into()?)];
        for name in &self.server_names {
            names.push(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.clone().try_into()?),
            });
        }
        let issuing = self.issuing.load_full();
        let mut params = self.leaf(&issuing, names, self.lifetimes.server)?;
        let now = OffsetDateTime::now_utc();
        let (not_before, half) = (params.not_before, now + (params.not_after - now) / 2);
        params.distinguished_name.push(DnType::CommonName, "weft-control");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &issuing.issuer)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(issuing.chain.iter().cloned().map(CertificateDer::from));
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Ok(ServerKey { chain, key, good: not_before..half })
    }

    fn leaf(
        &self,
        issuing: &Issuing,
        names: Vec<SanType>,
        lifetime: Duration,
    ) -> Result<CertificateParams, AuthorityError> {
        let now = OffsetDateTime::now_utc();
        if issuing.not_after <= now {
            return Err(AuthorityError::Expired);
        }
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = now - BACKDATE;
        params.not_after = (now + lifetime).min(issuing.not_after);
        params.serial_number = Some(serial()?);
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name = DistinguishedName::new();
        Ok(params)
    }
}

/// Makes a root where there is none. Of several that try, one succeeds, and all go by what is there then.
async fn made(store: &dyn Store, domain: &TrustDomain) -> Result<material::Material, AuthorityError> {
    let created = store.create(&material::new_root(domain.as_str())?).await?;
    match created {
        Created::Made => tracing::info!(store = store.name(), "a root was made"),
        Created::AlreadyThere => tracing::info!(store = store.name(), "another replica made the root"),
    }
    let gone = || AuthorityError::Unusable { file: store.name(), problem: "was made and is gone".into() };
    store.read().await?.ok_or_else(gone)
}

fn usable_bundle(roots: Vec<Vec<u8>>, provider: &Arc<CryptoProvider>) -> Result<Bundle, AuthorityError> {
    Bundle::new(roots, provider).map_err(AuthorityError::Bundle)
}

/// 127 random bits: positive, and never used twice.
fn serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0u8; 16];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| AuthorityError::Random)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
