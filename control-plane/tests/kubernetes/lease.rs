//! How long status waits where its writer was killed and could not give its Lease back.

use std::time::{Duration, Instant};

use super::api_server::ApiServer;
use super::cluster::{POLICY, apply, conditions, label, shop};
use super::control::Control;

/// docs/kubernetes.md: the Lease runs for 15 s, and who waits for it looks every 2 s. The rest is for its first round of writing (2.5 s)
/// and for a busy machine: less than another run of the Lease.
const WAIT_MAX: Duration = Duration::from_secs(15 + 2 + 12);

#[tokio::test]
async fn a_killed_writer_is_followed_when_its_lease_has_run_out() {
    let server = ApiServer::start(&[]).await;
    let client = shop(&server).await;
    apply(&client, &label("enabled")).await.unwrap();
    let killed = Control::start(&server, "killed");
    killed.says("who writes status").await;
    drop(killed);
    let next = Control::start(&server, "next");
    next.says("weft-control is up").await;
    let up = Instant::now();
    apply(&client, POLICY).await.unwrap();
    conditions(&client, POLICY, &[("Accepted", "True", "")]).await;
    assert!(up.elapsed() < WAIT_MAX, "{:?}", up.elapsed());
}
