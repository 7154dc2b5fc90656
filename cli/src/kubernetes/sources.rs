//! What the parts of Weft in a cluster answer on their admin endpoints, asked all at once.

use anyhow::{Result, anyhow, bail};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::Value;

use super::readiness::{Workload, pods};
use super::words::{Words as _, is_missing};
use super::{Cluster, NAMESPACE, Target, exec};

/// Each `exec` is a connection through the API server and a process on a node.
const ASKED_AT_ONCE_MAX: usize = 16;

/// What one part of Weft answered.
pub(crate) struct Answer {
    /// The node for weft-node, the pod for weft-control.
    pub(crate) name: String,
    pub(crate) value: Result<Value>,
}

/// What each answered, by its name.
pub(crate) type Statuses = Vec<(String, Result<Value>)>;

/// `/status` of every weft-control and weft-node, by name, and the address of the API server.
pub(crate) fn cluster_statuses(target: &Target) -> Result<(String, Statuses)> {
    super::block_on(async {
        let cluster = target.connect().await?;
        let mut all = answers(&cluster, Workload::Control, "/status").await?;
        all.extend(answers(&cluster, Workload::Node, "/status").await?);
        if all.is_empty() {
            bail!(
                "Weft is not installed on {}: no pod of it is in {NAMESPACE}; see `weft install`",
                cluster.server
            );
        }
        Ok((cluster.server, all.into_iter().map(|answer| (answer.name, answer.value)).collect()))
    })
}

/// What the proxy of a pod's node holds for it, and the name of that node.
pub(crate) fn cluster_config(target: &Target, namespace: &str, pod: &str) -> Result<(String, Value)> {
    super::block_on(async {
        let cluster = target.connect().await?;
        let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        let found = match api.get(pod).await {
            Err(error) if is_missing(&error) => {
                bail!("there is no pod {namespace}/{pod} on {}", cluster.server)
            }
            other => other.doing(&format!("read pod {namespace}/{pod}"))?,
        };
        let Some(node) = found.spec.and_then(|spec| spec.node_name) else {
            bail!("the pod {namespace}/{pod} is not scheduled to a node yet");
        };
        let proxies = pods(&cluster, Workload::Node).await?;
        let proxy = proxies.iter().find(|proxy| on_node(proxy) == Some(&node)).ok_or_else(|| {
            anyhow!("no weft-node runs on {node}, where {namespace}/{pod} is; see `weft check`")
        })?;
        let path = format!("/pod/{namespace}/{pod}");
        let answer = exec::admin(&cluster, &pod_name(proxy), Workload::Node.name(), &path).await?;
        Ok((node, answer))
    })
}

/// One path, asked of every pod of a workload; in the order of their names.
pub(super) async fn answers(cluster: &Cluster, of: Workload, path: &str) -> Result<Vec<Answer>> {
    let ask = |pod: Pod| async move {
        let name = pod_name(&pod);
        let value = match running(&pod) {
            true => exec::admin(cluster, &name, of.name(), path).await,
            false => Err(anyhow!("{name} does not run")),
        };
        let shown = match of {
            Workload::Control => name,
            Workload::Node => on_node(&pod).cloned().unwrap_or(name),
        };
        Answer { name: shown, value }
    };
    let listed = pods(cluster, of).await?;
    let mut all: Vec<Answer> =
        futures_util::stream::iter(listed).map(ask).buffer_unordered(ASKED_AT_ONCE_MAX).collect().await;
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

fn running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

fn on_node(pod: &Pod) -> Option<&String> {
    pod.spec.as_ref()?.node_name.as_ref()
}

fn pod_name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}
