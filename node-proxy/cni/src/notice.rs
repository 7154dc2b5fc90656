//! What the agent leaves beside its socket for a plugin that finds nobody there: the namespaces whose pods have to wait for it.
//!
//! Fields may be added; anything else needs a new [`VERSION`]. A plugin that cannot read the notice keeps every pod waiting.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;
/// Appended to the socket's name.
const EXTENSION: &str = "waiting";
/// 10,000 namespaces of the longest names are less than 1 MiB.
const BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    version: u32,
    /// Of the mesh, when the agent last had word.
    namespaces: Vec<String>,
}

impl Notice {
    pub fn new(namespaces: impl IntoIterator<Item = String>) -> Self {
        Self { version: VERSION, namespaces: namespaces.into_iter().collect() }
    }

    /// Where the notice of the agent at this socket is.
    pub fn path(socket: &Path) -> PathBuf {
        let mut path = socket.as_os_str().to_owned();
        path.push(".");
        path.push(EXTENSION);
        path.into()
    }

    pub fn read(socket: &Path) -> io::Result<Self> {
        let mut text = String::new();
        File::open(Self::path(socket))?.take(BYTES_MAX).read_to_string(&mut text)?;
        let notice: Self = serde_json::from_str(&text)?;
        if notice.version != VERSION {
            let other = format!("it is of version {}, not {VERSION}", notice.version);
            return Err(io::Error::new(io::ErrorKind::InvalidData, other));
        }
        Ok(notice)
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and strings")
    }

    /// A pod of this namespace may belong into the mesh.
    pub fn must_wait(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|waits| waits == namespace)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_notice_is_read_as_it_was_left_and_nothing_else_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("cni.sock");
        assert_eq!(Notice::read(&socket).unwrap_err().kind(), io::ErrorKind::NotFound);
        let notice = Notice::new(["bank".to_owned(), "shop".to_owned()]);
        fs::write(Notice::path(&socket), notice.to_json()).unwrap();
        assert_eq!(Notice::read(&socket).unwrap(), notice);
        assert!(notice.must_wait("shop") && !notice.must_wait("sho"));
        for text in ["", "{}", r#"{"version":1}"#, r#"{"version":2,"namespaces":[]}"#] {
            fs::write(Notice::path(&socket), text).unwrap();
            assert!(Notice::read(&socket).is_err(), "{text}");
        }
    }
}
