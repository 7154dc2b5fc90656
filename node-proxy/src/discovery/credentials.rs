//! What the node shows to the control plane and whom it believes there: files that others renew, and its own certificate.
//!
//! The files are read again whenever they are needed. One that cannot be used, or is just being written, leaves the last good one in
//! place.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Identity;
use weft_proto::v1;

use super::channel::ControlError;
use crate::identity::Request;

/// Of a token or of a bundle of authorities: beyond any that is one.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Two readings that agree, so far apart, are of a file that nobody is writing.
const SETTLE: Duration = Duration::from_millis(300);

/// The files of the settings.
pub(super) struct Files {
    authority: PathBuf,
    token: PathBuf,
    /// The last authority that could be used.
    good: ArcSwapOption<String>,
}

impl Files {
    pub(super) fn new(authority: PathBuf, token: PathBuf) -> Self {
        Self { authority, token, good: ArcSwapOption::empty() }
    }

    /// Whom to believe, as PEM.
    pub(super) async fn authority(&self) -> Result<Arc<String>, ControlError> {
        let text = match self.settled_authority(SETTLE).await {
            Ok(text) => Arc::new(text),
            Err(error) => {
                let Some(good) = self.good.load_full() else { return Err(error) };
                tracing::warn!(%error, "the last good authority of the control plane stays");
                return Ok(good);
            }
        };
        self.good.store(Some(Arc::clone(&text)));
        Ok(text)
    }

    /// The first counts as it is: there is nothing that it could replace.
    async fn settled_authority(&self, pause: Duration) -> Result<String, ControlError> {
        let text = self.read_authority().await?;
        if self.good.load().as_deref().is_none_or(|good| *good == text) {
            return Ok(text);
        }
        tokio::time::sleep(pause).await;
        match self.read_authority().await? == text {
            true => Ok(text),
            false => Err(ControlError::BeingWritten(self.authority.clone())),
        }
    }

    async fn read_authority(&self) -> Result<String, ControlError> {
        let text = read("the control plane's authority", &self.authority).await?;
        let mut blocks = CertificateDer::pem_slice_iter(text.as_bytes()).peekable();
        if blocks.peek().is_none() || blocks.any(|block| block.is_err()) {
            return Err(ControlError::Authority(self.authority.clone()));
        }
        Ok(text)
    }

    /// As the metadata has it.
    pub(super) async fn token(&self) -> Result<MetadataValue<Ascii>, ControlError> {
        let text = read("the node's token", &self.token).await?;
        let bad_token = || ControlError::Token(self.token.clone());
        let mut token: MetadataValue<Ascii> = match text.trim() {
            "" => return Err(bad_token()),
            token => format!("Bearer {token}").parse().map_err(|_| bad_token())?,
        };
        token.set_sensitive(true);
        Ok(token)
    }
}

async fn read(what: &'static str, path: &Path) -> Result<String, ControlError> {
    let file_error = |source| ControlError::File { what, path: path.to_owned(), source };
    if tokio::fs::metadata(path).await.map_err(file_error)?.len() > FILE_BYTES_MAX {
        return Err(file_error(io::Error::other("is too large")));
    }
    tokio::fs::read_to_string(path).await.map_err(file_error)
}

/// Whom a connection to the control plane believes: the file's authorities, and the roots that the control plane has pushed since the
/// file was last another one. In a rotation the push comes at once, and the kubelet brings the file minutes later; a control plane
/// that restarts in between already shows the new authority. What was pushed before the file changed does not count: a root that
/// was taken out of the file is out.
#[derive(Default)]
pub(super) struct Believed {
    file: Option<Arc<String>>,
    before: BTreeSet<Vec<u8>>,
}

impl Believed {
    /// As PEM.
    pub(super) fn by(&mut self, file: &Arc<String>, pushed: &[Vec<u8>]) -> String {
        if self.file.as_ref() != Some(file) {
            self.file = Some(Arc::clone(file));
            self.before = pushed.iter().cloned().collect();
        }
        let new = pushed.iter().filter(|root| !self.before.contains(*root));
        let new: Vec<_> = new.map(|root| pem::Pem::new("CERTIFICATE", root.clone())).collect();
        format!("{file}\n{}", pem::encode_many(&new))
    }
}

/// The node's own certificate, with its key.
pub(super) struct NodeCertificate {
    pub(super) identity: Identity,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// When it came, by both clocks.
    pub(super) obtained: (Instant, SystemTime),
}

impl NodeCertificate {
    /// With the control plane's answer. Whether it is any good, the control plane itself says at the next handshake.
    pub(super) fn new(request: &Request, answer: v1::SignResponse) -> Self {
        let at = |unix_s: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_s).unwrap_or_default())
        };
        let blocks: Vec<_> =
            answer.chain_der.into_iter().map(|der| pem::Pem::new("CERTIFICATE", der)).collect();
        Self {
            identity: Identity::from_pem(pem::encode_many(&blocks), request.key.serialize_pem()),
            not_before: at(answer.not_before_unix_s),
            not_after: at(answer.not_after_unix_s),
            obtained: (Instant::now(), SystemTime::now()),
        }
    }

    pub(super) fn expired(&self) -> bool {
        SystemTime::now() >= self.not_after
    }

    pub(super) fn status(&self) -> NodeCertificateStatus {
        let unix_s =
            |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        NodeCertificateStatus {
            not_before_unix_s: unix_s(self.not_before),
            not_after_unix_s: unix_s(self.not_after),
            last_error: None,
        }
    }
}

/// What `/status` says about the node's own certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeCertificateStatus {
    pub not_before_unix_s: u64,
    pub not_after_unix_s: u64,
    /// Of the last attempt to renew it; None: it went well.
    pub last_error: Option<String>,
}
