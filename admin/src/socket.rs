//! A Unix socket for its owner alone, from its first moment.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::path::Path;

use tokio::net::UnixListener;

/// The socket is its owner's only.
const SOCKET_MODE: u32 = 0o600;
/// And so is a directory that is made for it.
const DIRECTORY_MODE: u32 = 0o700;

/// Takes the place of a socket that a dead process left; of nothing else. Only its owner may connect.
pub fn open_unix(path: &Path, backlog: i32) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)?;
    }
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        if somebody_listens(path)? {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves there"));
        }
        std::fs::remove_file(path)?;
    }
    // On Linux the file gets the mode of the unbound socket (and less by the umask): it is never open to others.
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    rustix::fs::fchmod(&socket, SOCKET_MODE.into())?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    socket.listen(backlog)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into())
}

/// Does not wait: one that hangs, and whose queue is full, listens too.
fn somebody_listens(path: &Path) -> io::Result<bool> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&socket2::SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        Err(error) => Ok(error.kind() == io::ErrorKind::WouldBlock),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const BACKLOG: i32 = 4;

    #[tokio::test]
    async fn the_socket_is_its_owners_and_replaces_nothing_but_a_dead_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made").join("admin.sock");
        let first = open_unix(&path, BACKLOG).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (SOCKET_MODE, DIRECTORY_MODE));
        assert_eq!(open_unix(&path, BACKLOG).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // Dropped: the file stays, nobody listens.
        drop(first);
        drop(open_unix(&path, BACKLOG).unwrap());
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        std::fs::write(&file, "kept").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(open_unix(&file, BACKLOG).is_err() && open_unix(&link, BACKLOG).is_err());
        assert_eq!(std::fs::read_to_string(file).unwrap(), "kept");
    }

    #[tokio::test]
    async fn a_predecessor_that_hangs_does_not_hang_its_successor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let _hangs = open_unix(&path, 0).unwrap();
        // As many as its queue takes; the connection after them would have to wait.
        let mut waiting = Vec::new();
        while let Ok(stream) = tokio::net::UnixStream::connect(&path).await {
            waiting.push(stream);
        }
        assert_eq!(open_unix(&path, BACKLOG).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
