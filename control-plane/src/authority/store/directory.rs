//! An authority in files: key (0600) and certificate, made on first start or an operator's; the published bundle (0644).
//!
//! Every file is written whole: next to its place, synced, renamed. Those of others need not be: see `settled`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::AuthorityError;
use super::super::material::{Material, PEM_BYTES_MAX, Part, certificates, to_pem};
use super::settled::Settled;
use super::{Created, Store};
use crate::settings::Settings;

const ROOT_FILE: &str = "root.pem";
const PREVIOUS_FILE: &str = "previous.pem";
const KEY_FILE: &str = "ca.key";
const CERT_FILE: &str = "ca.pem";
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// All that a file of further roots holds where there shall be none: one without a certificate may be half of another.
const NO_ROOTS: &str = "# none";

pub(crate) struct Directory {
    certificate: PathBuf,
    key: PathBuf,
    /// The files are an operator's: nothing is made in their place.
    given: bool,
    roots: Option<PathBuf>,
    published: PathBuf,
    previous: PathBuf,
    material: Settled<Material>,
    earlier: Settled<Part>,
}

fn file_error(file: &Path) -> impl FnOnce(std::io::Error) -> AuthorityError + '_ {
    move |source| AuthorityError::File { file: file.display().to_string(), source }
}

impl Directory {
    pub(crate) fn new(settings: &Settings) -> Result<Self, AuthorityError> {
        let directory = settings.state_dir.as_deref().ok_or_else(|| AuthorityError::Unusable {
            file: "--state-dir".into(),
            problem: "is not given".into(),
        })?;
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(file_error(directory))?;
        let given = settings.ca_cert.clone().zip(settings.ca_key.clone());
        let own = || (directory.join(CERT_FILE), directory.join(KEY_FILE));
        let is_given = given.is_some();
        let (certificate, key) = given.unwrap_or_else(own);
        Ok(Self {
            certificate,
            key,
            given: is_given,
            roots: settings.extra_roots.clone(),
            published: directory.join(ROOT_FILE),
            previous: directory.join(PREVIOUS_FILE),
            material: Settled::default(),
            earlier: Settled::default(),
        })
    }

    fn material(&self) -> Result<Material, AuthorityError> {
        let roots = match &self.roots {
            Some(file) => further_roots(file)?,
            None => Part { of: "--extra-roots".into(), text: String::new() },
        };
        Ok(Material { certificate: read(&self.certificate)?, key: read(&self.key)?, roots })
    }
}

fn further_roots(file: &Path) -> Result<Part, AuthorityError> {
    let mut part = read(file)?;
    if part.text.trim() == NO_ROOTS {
        part.text.clear();
    } else if !part.text.contains("-----BEGIN") {
        return Err(part.unusable(format!(
            "holds no certificate; the one line `{NO_ROOTS}` says that there shall be none"
        )));
    }
    Ok(part)
}

fn read(file: &Path) -> Result<Part, AuthorityError> {
    let of = file.display().to_string();
    if fs::metadata(file).map_err(file_error(file))?.len() > PEM_BYTES_MAX {
        return Err(AuthorityError::Unusable { file: of, problem: "is too large".into() });
    }
    Ok(Part { of, text: fs::read_to_string(file).map_err(file_error(file))? })
}

#[tonic::async_trait]
impl Store for Directory {
    fn name(&self) -> String {
        self.certificate.display().to_string()
    }

    fn look_every(&self) -> Duration {
        LOOK_EVERY
    }

    async fn read(&self) -> Result<Option<Material>, AuthorityError> {
        if !self.given && !self.certificate.exists() {
            return Ok(None);
        }
        self.material.read(&self.name(), || self.material()).await.map(Some)
    }

    async fn create(&self, material: &Material) -> Result<Created, AuthorityError> {
        // A key without a certificate is left from a start that was cut short: it has signed nothing yet.
        write_whole(&self.key, material.key.text.as_bytes(), 0o600)?;
        write_whole(&self.certificate, material.certificate.text.as_bytes(), 0o644)?;
        Ok(Created::Made)
    }

    /// The key may be an operator's, so a mode that shows it to others is told and not refused (a mounted Secret has one).
    fn warn(&self) {
        let mode = fs::metadata(&self.key).map_or(0, |found| found.permissions().mode() & 0o777);
        if mode & 0o077 != 0 {
            let (file, mode) = (self.key.display(), format!("{mode:o}"));
            tracing::warn!(%file, mode, "the authority's key is open to others");
        }
    }

    async fn previous(&self) -> Result<Vec<Vec<u8>>, AuthorityError> {
        let of = self.previous.display().to_string();
        let once = || match self.previous.exists() {
            true => read(&self.previous),
            false => Ok(Part { of: of.clone(), text: String::new() }),
        };
        let part = self.earlier.read(&of, once).await?;
        if part.text.trim().is_empty() { Ok(Vec::new()) } else { certificates(&part) }
    }

    async fn publish(&self, bundle: &[Vec<u8>], previous: &[Vec<u8>]) -> Result<(), AuthorityError> {
        let keep = |file: &Path, text: String| {
            if fs::read_to_string(file).is_ok_and(|present| present == text) {
                return Ok(());
            }
            write_whole(file, text.as_bytes(), 0o644)
        };
        if !previous.is_empty() || self.previous.exists() {
            keep(&self.previous, to_pem(previous))?;
        }
        keep(&self.published, to_pem(bundle))
    }
}

fn write_whole(file: &Path, bytes: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let next = file.with_extension("next");
    let write = || -> std::io::Result<()> {
        let _ = fs::remove_file(&next);
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&next)?;
        out.write_all(bytes)?;
        out.sync_all()?;
        fs::rename(&next, file)?;
        fs::File::open(file.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(file_error(file))
}
