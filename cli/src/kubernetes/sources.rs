//! What the parts of Weft in a cluster answer on their admin endpoints, asked all at once.

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use serde_json::Value;

use super::readiness::{Workload, pods};
use super::standing::{Passing, passing};
use super::words::{Words as _, is_missing};
use super::{Cluster, NAMESPACE, Target, exec};

/// Each `exec` is a connection through the API server and a process on a node. So many pods that hang cost no more than one.
const ASKED_AT_ONCE_MAX: usize = 32;

/// What one part of Weft answered.
pub(crate) struct Answer {
    /// The node for weft-node, the pod for weft-control.
    pub(crate) name: String,
    pub(crate) value: Result<Value>,
    /// The pod begins or ends: what it says, or that it says nothing, is no fault.
    pub(crate) passing: bool,
}

/// What each answered, by its name.
pub(crate) type Statuses = Vec<(String, Result<Value>)>;

/// `/status` of every weft-control and weft-node, by name, and the address of the API server.
pub(crate) fn cluster_statuses(target: &Target) -> Result<(String, Statuses)> {
    super::block_on(async {
        let cluster = target.connect().await?;
        let of = |workload| statuses(&cluster, workload, exec::STATUS_WAIT_MAX);
        let (controls, nodes) = tokio::try_join!(of(Workload::Control), of(Workload::Node))?;
        if controls.is_empty() && nodes.is_empty() {
            bail!(
                "Weft is not installed on {}: no pod of it is in {NAMESPACE}; see `weft install`",
                cluster.server
            );
        }
        let mut all = Statuses::new();
        for (of, answers) in [(Workload::Control, controls), (Workload::Node, nodes)] {
            if answers.is_empty() {
                all.push((of.name().to_owned(), Err(anyhow!("it has no pod; see `weft check`"))));
            }
            all.extend(answers.into_iter().map(|answer| (answer.name, answer.value)));
        }
        Ok((cluster.server, all))
    })
}

/// What the proxy of a pod's node holds for it, and the name of that node. No namespace: as kubectl, that of the kubeconfig's context.
pub(crate) fn cluster_config(
    target: &Target,
    namespace: Option<&str>,
    pod: &str,
    service: Option<&str>,
) -> Result<(String, Value)> {
    super::block_on(async {
        let cluster = target.connect().await?;
        let by_default = namespace.is_none();
        let namespace = namespace.unwrap_or(cluster.client.default_namespace()).to_owned();
        let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
        let found = match api.get(pod).await {
            Err(error) if is_missing(&error) => {
                let whose = match by_default {
                    true => "; that is the namespace of the context, say another one with --namespace",
                    false => "",
                };
                bail!("there is no pod {namespace}/{pod} on {}{whose}", cluster.server)
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
        let path = crate::config::page(&namespace, pod, service);
        let binary = Workload::Node.name();
        let answer = exec::admin(&cluster, &pod_name(proxy), binary, &path, exec::CONFIG_WAIT_MAX).await?;
        Ok((node, answer))
    })
}

/// `/status` of every pod of a workload, in the order of their names; one that hangs is named after `wait_max`, and delays no other.
pub(super) async fn statuses(cluster: &Cluster, of: Workload, wait_max: Duration) -> Result<Vec<Answer>> {
    let now = Timestamp::now();
    let ask = |pod: Pod| async move {
        let name = pod_name(&pod);
        let passing = passing(&pod, now);
        let value = match (running(&pod), passing) {
            (true, _) => exec::admin(cluster, &name, of.name(), "/status", wait_max).await,
            (false, Some(Passing::Begins)) => Err(anyhow!("{name} does not run yet")),
            (false, _) => Err(anyhow!("{name} does not run")),
        };
        let shown = match of {
            Workload::Control => name,
            Workload::Node => on_node(&pod).cloned().unwrap_or(name),
        };
        Answer { name: shown, value, passing: passing.is_some() }
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Instant;

    use http::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    /// Two more of these are room for a machine that stops for a while, and less than one pod after the other would take.
    const WAIT_MAX: Duration = Duration::from_secs(2);

    /// An API server that knows pods, and never answers to an exec in one but `n0`'s, which is refused.
    async fn answer(request: Request<Body>, pods: usize) -> Result<Response<Body>, Infallible> {
        let (path, of) = (request.uri().path(), |n| {
            json!({"metadata": {"name": format!("weft-node-{n}")}, "spec": {"nodeName": format!("n{n}"), "containers": []},
                   "status": {"phase": if n == 1 { "Pending" } else { "Running" }}})
        });
        let (code, body) = match path {
            _ if path.ends_with("/pods") => {
                (200, json!({"metadata": {}, "items": (0..pods).map(of).collect::<Vec<_>>()}))
            }
            _ if path.ends_with("/weft-node-0/exec") => (403, json!({"message": "not you", "code": 403})),
            _ => std::future::pending().await,
        };
        Ok(Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).unwrap())
    }

    #[test]
    fn pods_that_hang_are_named_after_one_wait_in_all_and_the_others_are_told() {
        const PODS: usize = 10;
        let told = super::super::block_on(async {
            let service = tower::service_fn(|request| answer(request, PODS));
            let cluster = Cluster { client: Client::new(service, "default"), server: "fake".to_owned() };
            let began = Instant::now();
            let told = statuses(&cluster, Workload::Node, WAIT_MAX).await?;
            assert!((WAIT_MAX..3 * WAIT_MAX).contains(&began.elapsed()), "{:?}", began.elapsed());
            Ok(told)
        })
        .unwrap();
        let rows: Vec<String> =
            told.iter().map(|one| format!("{}: {:#}", one.name, one.value.as_ref().unwrap_err())).collect();
        assert_eq!(rows.len(), PODS);
        assert!(rows[0].starts_with("n0: weft-node-0: ") && !rows[0].contains("hangs"), "{}", rows[0]);
        assert_eq!(rows[1], "n1: weft-node-1 does not run");
        for (n, row) in rows.iter().enumerate().skip(2) {
            let hung = format!(
                "n{n}: weft-node-{n}: weft-node admin /status: no answer within 2 s: weft-node hangs, or the kubelet of its node"
            );
            assert_eq!(*row, hung);
        }
    }
}
