//! From this machine's loopback into the control plane's namespace: the process lives in the namespace, its listening socket in
//! the machine's.

use std::net::SocketAddr;
use std::os::fd::{FromRawFd as _, RawFd};

use anyhow::{Context as _, Result};
use tokio::net::{TcpListener, TcpStream};

/// Connects each client of the inherited listener with `to`, until killed.
pub async fn run(listener: RawFd, to: SocketAddr) -> Result<()> {
    // SAFETY: whoever started this process left it this descriptor, and nothing else here uses it.
    let listener = unsafe { std::net::TcpListener::from_raw_fd(listener) };
    let listener =
        TcpListener::from_std(listener).context("the inherited descriptor is no listening socket")?;
    loop {
        let (mut client, _) = listener.accept().await?;
        tokio::spawn(async move {
            // The client sees its connection closed, and tries again.
            let Ok(mut server) = TcpStream::connect(to).await else { return };
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
    }
}
