//! PING from both ends: a tunnel whose other end vanished is given up.

use h2::{Ping, PingPong};

use super::limits::Timing;

/// Returns when the peer did not answer in time.
pub(super) async fn until_dead(pings: Option<PingPong>, timing: Timing) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(timing.ping_interval).await;
        match tokio::time::timeout(timing.ping_timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
