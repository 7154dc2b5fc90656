//! The token that the API server is shown, in a file that the kubelet renews.
//!
//! The library would read the file again when the wall clock says so: after one that was ahead and is set right, days later, and the
//! token is over by then. Here the clock that only goes on decides.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, header};
use parking_lot::Mutex;

/// A kubelet renews a token long before its end: at 80 % of its life, or of a day.
const READ_EVERY: Duration = Duration::from_secs(10);

/// The file, and what it held.
#[derive(Clone)]
pub(crate) struct TokenFile {
    path: PathBuf,
    last: Arc<Mutex<(Instant, HeaderValue)>>,
}

impl TokenFile {
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let header = read(&path)?;
        Ok(Self { path, last: Arc::new(Mutex::new((Instant::now(), header))) })
    }

    /// The request with the token. The last one that could be read stays.
    pub(crate) fn shown<B>(&self, mut request: Request<B>) -> Request<B> {
        let mut last = self.last.lock();
        if last.0.elapsed() >= READ_EVERY {
            last.0 = Instant::now();
            match read(&self.path) {
                Ok(header) => last.1 = header,
                Err(error) => tracing::warn!(file = %self.path.display(), %error, "the last token stays"),
            }
        }
        request.headers_mut().insert(header::AUTHORIZATION, last.1.clone());
        request
    }
}

fn read(path: &PathBuf) -> io::Result<HeaderValue> {
    let text = std::fs::read_to_string(path)?;
    let header = format!("Bearer {}", text.trim()).parse();
    let mut header: HeaderValue =
        header.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "has characters that no token has"))?;
    header.set_sensitive(true);
    Ok(header)
}
