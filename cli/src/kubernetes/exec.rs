//! A command in a container, as `kubectl exec` runs it: how the admin endpoints, which are Unix sockets, are asked.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::AttachParams;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::words::Words as _;
use super::{Cluster, NAMESPACE};

/// For one page of one pod. An admin endpoint answers from memory, and exec itself takes some hundred milliseconds on a busy node: what
/// takes longer hangs, and whoever asks wants to know of the others.
pub(super) const STATUS_WAIT_MAX: Duration = Duration::from_secs(3);
/// What one proxy holds for a pod, of which nobody else could tell: it is waited for.
pub(super) const CONFIG_WAIT_MAX: Duration = Duration::from_secs(20);
/// A dump of a large mesh; more is not an answer but an accident.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
/// What lies between the connection and its reader.
const BUFFER_BYTES: usize = 64 << 10;

/// What `<binary> admin <path>` prints in a pod of Weft, as JSON.
pub(super) async fn admin(
    cluster: &Cluster,
    pod: &str,
    binary: &str,
    path: &str,
    wait_max: Duration,
) -> Result<Value> {
    let asked = async {
        let text = run(cluster, pod, binary, &[&format!("/usr/local/bin/{binary}"), "admin", path]).await?;
        serde_json::from_str(&text).with_context(|| format!("{path} did not answer with JSON"))
    };
    let answer = tokio::time::timeout(wait_max, asked).await;
    answer
        .unwrap_or_else(|_| {
            bail!("no answer within {} s: {binary} hangs, or the kubelet of its node", wait_max.as_secs_f32())
        })
        .with_context(|| format!("{pod}: {binary} admin {path}"))
}

async fn run(cluster: &Cluster, pod: &str, container: &str, command: &[&str]) -> Result<String> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let parameters = AttachParams::default().container(container).max_stdout_buf_size(BUFFER_BYTES);
    let mut process = pods.exec(pod, command.iter().copied(), &parameters).await.doing("exec")?;
    let (out, err) = (process.stdout(), process.stderr());
    let status = process.take_status();
    let (out, err) = tokio::join!(read(out), read(err));
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    match status {
        Some(status) if status.status.as_deref() == Some("Success") => out,
        Some(status) => {
            let said = err.unwrap_or_default();
            let why = match said.trim() {
                "" => status.message.unwrap_or_default(),
                said => said.to_owned(),
            };
            bail!("{why}")
        }
        None => bail!("the connection ended before the command did"),
    }
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> Result<String> {
    let mut text = String::new();
    if let Some(stream) = stream {
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text).await?;
    }
    Ok(text)
}
