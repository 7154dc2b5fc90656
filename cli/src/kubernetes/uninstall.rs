//! `weft uninstall`: the nodes first, because each must take its hooks away itself; then everything else.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};

use super::manifest::{self, Images, kind, name};
use super::readiness::{Workload, pods};
use super::standing::{is_ready, why_not_ready};
use super::words::{Words as _, is_missing};
use super::{Cluster, NAMESPACE, PART_OF, Target, parents, release};

/// How often the API server is asked.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// What weft-control made itself, besides what was applied.
const MADE_BY_CONTROL: [(&str, &str, &str, &str); 3] = [
    ("", "v1", "Secret", "weft-ca"),
    ("", "v1", "ConfigMap", "weft-trust-bundle"),
    ("coordination.k8s.io", "v1", "Lease", "weft-control"),
];
/// The trust bundle, where the cluster has the kind: weft-control publishes it in the newest version that is served. One that is not served
/// answers as if the object were not there, so each is asked.
const TRUST_BUNDLE: &str = "weft.dev:mesh:root";
const TRUST_BUNDLE_VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

#[derive(Debug, Args)]
#[command(after_help = "\
The order: weft-node, and with it on every node the hooks, maps, the CNI plugin and its entry; then weft-control, its authority's \
key, the roles, the namespace weft-system and, unless --keep-crds says otherwise, the kinds weft.dev with every policy of theirs; \
last, Weft's entries in the status of routes. \
Pods go on running; their connections through the mesh end, and new ones bypass it.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Leave the kinds AuthorizationPolicy and TrafficPolicy, and so everybody's policies
    #[arg(long)]
    keep_crds: bool,
    /// Delete it even where weft-node does not run, and leave what an earlier one left on those nodes
    #[arg(long)]
    force: bool,
    /// How long the nodes may take to clean up, and the rest to disappear
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    wait_seconds: u64,
}

pub(super) async fn run(arguments: &Arguments) -> Result<()> {
    let cluster = arguments.target.connect().await?;
    tell!("cluster {}", cluster.server);
    from(&cluster, arguments).await
}

/// Takes all of Weft out of a cluster.
pub(super) async fn from(cluster: &Cluster, arguments: &Arguments) -> Result<()> {
    let wait_max = Duration::from_secs(arguments.wait_seconds);
    let mut objects = manifest::objects(&manifest::text(&Images::default())?)?;
    if arguments.keep_crds {
        objects.retain(|object| kind(object) != "CustomResourceDefinition");
    }
    let (down, idle) = idle(cluster).await?;
    if !idle.is_empty() && !arguments.force {
        let repair = match release::find(cluster).await? {
            Some(release) => format!("{} --set image.tag=<one that works>", release.upgrade()),
            None => "weft install --tag <one that works>".to_owned(),
        };
        bail!(
            "nothing was deleted: weft-node does not run on\n  {}\nWhat an earlier one may have left there (hooks that keep pods of the mesh shut, \
             maps, the CNI entry) only a running one takes away. Start nodes that are down, repair what does not run, as by `{repair}`, \
             and run this again; if none ever ran there, or the nodes are given up: --force",
            idle.join("\n  ")
        );
    }
    let mut removed = 0;
    for nodes in objects.extract_if(.., |object| kind(object) == "DaemonSet") {
        if remove(cluster, &nodes).await? {
            give_up(cluster, &down).await?;
            nodes_gone(cluster, wait_max).await?;
            if idle.is_empty() {
                tell!("every node has removed its hooks, maps and CNI entry");
            } else {
                let left = idle.join("\n  ");
                tell!("removed hooks, maps and CNI entry, but for what may be left on\n  {left}");
            }
            removed += 1;
        }
    }
    objects.extend(made_by_control());
    // Backwards: what uses a thing goes before the thing. The Deployment goes first, so that nothing is made again.
    objects.reverse();
    objects.sort_by_key(|object| match kind(object) {
        "Deployment" => 0,
        "Namespace" => 2,
        "CustomResourceDefinition" => 3,
        _ => 1,
    });
    for object in &objects {
        removed += usize::from(remove(cluster, object).await?);
    }
    if removed > 0 {
        gone(cluster, &objects, wait_max).await?;
    }
    // Now nobody writes them again. Also those that are left of an installation that went by another way.
    if removed + parents::withdraw(cluster).await == 0 {
        tell!("nothing of Weft is installed");
        return Ok(());
    }
    tell_what_is_left(cluster, arguments.keep_crds).await
}

/// What no manifest has.
pub(super) fn made_by_control() -> Vec<DynamicObject> {
    let own = MADE_BY_CONTROL
        .iter()
        .map(|(group, version, of_kind, name)| bare(group, version, of_kind, name, Some(NAMESPACE)));
    let bundle = |version| bare("certificates.k8s.io", version, "ClusterTrustBundle", TRUST_BUNDLE, None);
    own.chain(TRUST_BUNDLE_VERSIONS.into_iter().map(bundle)).collect()
}

fn bare(group: &str, version: &str, kind: &str, name: &str, namespace: Option<&str>) -> DynamicObject {
    let object =
        DynamicObject::new(name, &ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind)));
    match namespace {
        Some(namespace) => object.within(namespace),
        None => object,
    }
}

fn api(cluster: &Cluster, object: &DynamicObject) -> Result<Api<DynamicObject>> {
    let resource = manifest::resource(object)?;
    Ok(match object.metadata.namespace.as_deref() {
        Some(namespace) => Api::namespaced_with(cluster.client.clone(), namespace, &resource),
        None => Api::all_with(cluster.client.clone(), &resource),
    })
}

/// Whether it was there. Its dependents are gone before it is.
async fn remove(cluster: &Cluster, object: &DynamicObject) -> Result<bool> {
    let shown = format!("{} {}", kind(object), name(object));
    match api(cluster, object)?.delete(name(object), &DeleteParams::foreground()).await {
        Ok(_) => {
            tell!("deleted {shown}");
            Ok(true)
        }
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error).doing(&format!("delete {shown}")),
    }
}

/// The pods of weft-node on nodes that are down; and all without a process that could clean up its node, with the reason.
async fn idle(cluster: &Cluster) -> Result<(Vec<Pod>, Vec<String>)> {
    let all = pods(cluster, Workload::Node).await?;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let nodes = nodes.list(&ListParams::default()).await.doing("list nodes")?.items;
    let is_down = |pod: &Pod| down(pod, &nodes).is_some();
    let (of_down, others): (Vec<Pod>, Vec<Pod>) = all.into_iter().partition(is_down);
    let mut told: Vec<String> = of_down.iter().filter_map(|pod| down(pod, &nodes)).collect();
    told.extend(not_running(&others));
    Ok((of_down, told))
}

/// Why a pod's node does nothing that it is told: nobody hears from its kubelet. One that is not ready for another reason ends pods. Pure.
fn down(pod: &Pod, nodes: &[Node]) -> Option<String> {
    let name = pod.spec.as_ref()?.node_name.as_ref()?;
    let node = nodes.iter().find(|node| node.metadata.name.as_ref() == Some(name))?;
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    let why = ready.message.as_deref().unwrap_or("no reason given");
    (ready.status == "Unknown").then(|| format!("{name}: the node is down: {why}"))
}

/// What is left of pods on nodes that are down would hold up their namespace's end.
async fn give_up(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    for pod in pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match api.delete(name, &DeleteParams::default().grace_period(0)).await {
            Ok(_) => {
                tell!("deleted Pod {name}, of a node that is down");
            }
            Err(error) if is_missing(&error) => {}
            Err(error) => Err(error).doing(&format!("delete Pod {name}"))?,
        }
    }
    Ok(())
}

/// Pods of weft-node without a process that could clean up its node, with the reason.
fn not_running(pods: &[Pod]) -> Vec<String> {
    let idle = |pod: &&Pod| {
        let status = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()?.first());
        let runs =
            status.is_some_and(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()));
        // One that ends and is started over and over has not come as far as to know what it should take away.
        let crashes = status.is_some_and(|status| status.restart_count > 0) && !is_ready(pod);
        pod.metadata.deletion_timestamp.is_none() && (!runs || crashes)
    };
    let told = |pod: &Pod| {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let place = node.or(pod.metadata.name.as_deref()).unwrap_or_default();
        format!("{place}: {}", why_not_ready(pod, &[]))
    };
    pods.iter().filter(idle).map(told).collect()
}

/// Each weft-node cleans up its node when it ends; its pod is there until it has.
async fn nodes_gone(cluster: &Cluster, wait_max: Duration) -> Result<()> {
    let started = Instant::now();
    let mut shown = BTreeSet::new();
    loop {
        let waiting: BTreeSet<String> = pods(cluster, Workload::Node)
            .await?
            .iter()
            .filter_map(|pod| pod.spec.as_ref()?.node_name.clone())
            .collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let nodes = waiting.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        if started.elapsed() > wait_max {
            bail!(
                "weft-node has not ended on {nodes}; everything else is still there. A node that went down meanwhile comes back without a \
                 weft-node that could take its CNI entry away, at which new pods wait: once it is back, `weft install` and then this again; \
                 if it is gone for good, delete the Node and run this again"
            );
        }
        if waiting != shown {
            tell!("waiting for weft-node to clean up on {nodes}");
            shown = waiting;
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

async fn gone(cluster: &Cluster, objects: &[DynamicObject], wait_max: Duration) -> Result<()> {
    let started = Instant::now();
    for object in objects {
        let api = api(cluster, object)?;
        // A kind that is gone answers as an object that is.
        while let Some(found) = match api.get_opt(name(object)).await {
            Err(error) if is_missing(&error) => None,
            other => other.doing(&format!("read {} {}", kind(object), name(object)))?,
        } {
            if started.elapsed() > wait_max {
                let finalizers = found.metadata.finalizers.unwrap_or_default().join(", ");
                bail!("{} {} does not disappear (finalizers: {finalizers})", kind(object), name(object));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
    Ok(())
}

/// What somebody else made for Weft, or Weft cannot take away.
async fn tell_what_is_left(cluster: &Cluster, keep_crds: bool) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let labelled =
        namespaces.list(&ListParams::default().labels("weft.dev/mesh")).await.doing("list namespaces")?;
    let names: Vec<String> =
        labelled.items.into_iter().filter_map(|namespace| namespace.metadata.name).collect();
    if !names.is_empty() {
        tell!("left: the label weft.dev/mesh of the namespaces {} (without effect now)", names.join(", "));
    }
    if keep_crds {
        tell!("left: the kinds weft.dev and their objects, as --keep-crds says");
    }
    for resource in ["ClusterRole", "ClusterRoleBinding"] {
        let gvk = GroupVersionKind::gvk("rbac.authorization.k8s.io", "v1", resource);
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &ApiResource::from_gvk(&gvk));
        for object in
            api.list(&ListParams::default().labels(PART_OF)).await.doing(&format!("list {resource}s"))?
        {
            tell!("left: {resource} {}, which this version of Weft did not make", name(&object));
        }
    }
    tell!("Weft is uninstalled");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use serde_json::json;

    use super::super::fake;
    use super::*;

    #[test]
    fn the_trust_bundle_is_deleted_in_whichever_versions_the_cluster_serves() {
        const SERVED: [&[&str]; 5] = [&[], &["v1"], &["v1beta1"], &["v1alpha1"], &["v1", "v1beta1"]];
        for served in SERVED {
            let deleted = super::super::block_on(async move {
                let is_there = AtomicBool::new(!served.is_empty());
                let (cluster, _) = fake::cluster(move |method, path| {
                    let version = path.strip_prefix("/apis/certificates.k8s.io/")?;
                    let version = version.strip_suffix("/clustertrustbundles/weft.dev:mesh:root")?;
                    let found = served.contains(&version) && is_there.load(Ordering::Relaxed);
                    if method == "DELETE" && found {
                        is_there.store(false, Ordering::Relaxed);
                    }
                    let api_version = format!("certificates.k8s.io/{version}");
                    let bundle = json!({"apiVersion": api_version, "kind": "ClusterTrustBundle", "metadata": {"name": TRUST_BUNDLE}});
                    found.then_some(bundle)
                });
                let bundles = made_by_control();
                let mut deleted = 0;
                for object in &bundles {
                    deleted += usize::from(remove(&cluster, object).await?);
                }
                gone(&cluster, &bundles, Duration::ZERO).await?;
                Ok(deleted)
            });
            assert_eq!(deleted.unwrap(), usize::from(!served.is_empty()), "{served:?}");
        }
    }

    #[test]
    fn a_weft_node_that_does_not_run_can_take_nothing_away() {
        let pod = |node: &str, ready: bool, restarts: u32, state: serde_json::Value| -> Pod {
            let ready = if ready { "True" } else { "False" };
            serde_json::from_value(json!({
                "metadata": {"name": format!("weft-node-{node}")}, "spec": {"nodeName": node, "containers": []},
                "status": {"conditions": [{"type": "Ready", "status": ready}],
                    "containerStatuses": [{"name": "weft-node", "image": "", "imageID": "", "ready": false,
                        "restartCount": restarts, "state": state}]},
            }))
            .unwrap()
        };
        let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}});
        let (running, ended) = (json!({"running": {}}), json!({"terminated": {"exitCode": 1}}));
        let mut ending = pod("ending", false, 0, waiting.clone());
        ending.metadata.deletion_timestamp = serde_json::from_value(json!("2026-11-23T00:00:00Z")).unwrap();
        let all = [
            pod("well", true, 0, running.clone()),
            pod("replaced-once", true, 1, running.clone()),
            // It may have no configuration: it knows all the same what to take away.
            pod("unready", false, 0, running.clone()),
            pod("pulls", false, 0, waiting),
            pod("ended", false, 0, ended),
            pod("crashes", false, 3, running),
            ending,
        ];
        let told = not_running(&all);
        let nodes: Vec<_> = told.iter().filter_map(|line| Some(line.split_once(':')?.0)).collect();
        assert_eq!(nodes, ["pulls", "ended", "crashes"]);
        assert!(told[0].contains("ImagePullBackOff: no such image"), "{told:?}");
    }

    /// A cluster of two nodes with a weft-node each, of which the second is down; what is deleted is gone, but no pod on it by itself.
    fn with_a_node_down(method: &str, path: &str, gone: &AtomicBool) -> Option<serde_json::Value> {
        let pod = |node: &str| {
            json!({"metadata": {"name": format!("weft-node-{node}")}, "spec": {"nodeName": node, "containers": []},
                "status": {"conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [{"name": "weft-node", "image": "", "imageID": "", "ready": true, "restartCount": 3,
                        "state": {"running": {}}}]}})
        };
        let node = |name: &str, ready: &str| {
            json!({"metadata": {"name": name}, "status": {"conditions":
                [{"type": "Ready", "status": ready, "message": "Kubelet stopped posting node status."}]}})
        };
        match (method, path) {
            ("GET", "/api/v1/nodes") => {
                Some(json!({"metadata": {}, "items": [node("node1", "False"), node("node2", "Unknown")]}))
            }
            ("GET", "/api/v1/namespaces/weft-system/pods") => {
                let items = if gone.load(Ordering::Relaxed) {
                    json!([])
                } else {
                    json!([pod("node1"), pod("node2")])
                };
                Some(json!({"metadata": {}, "items": items}))
            }
            ("DELETE", "/api/v1/namespaces/weft-system/pods/weft-node-node2") => {
                gone.store(true, Ordering::Relaxed);
                Some(pod("node2"))
            }
            ("DELETE", _) => Some(json!({"metadata": {}})),
            _ => fake::bare(method, path),
        }
    }

    #[test]
    fn nothing_is_deleted_while_a_node_is_down_unless_it_is_given_up() {
        use clap::Parser;

        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            arguments: Arguments,
        }
        let done = super::super::block_on(async {
            let gone = AtomicBool::new(false);
            let (cluster, asked) = fake::cluster(move |method, path| with_a_node_down(method, path, &gone));
            let refused = from(&cluster, &Line::parse_from(["uninstall"]).arguments).await.unwrap_err();
            let told = refused.to_string();
            let down = "weft-node does not run on\n  node2: the node is down: Kubelet stopped posting node status.\n";
            assert!(told.contains(down) && told.contains("Start nodes that are down"), "{told}");
            assert!(asked.lock().unwrap().iter().all(|one| one.starts_with("GET ")), "nothing is changed");

            from(&cluster, &Line::parse_from(["uninstall", "--force"]).arguments).await?;
            let pods = "DELETE /api/v1/namespaces/weft-system/pods/";
            let asked = asked.lock().unwrap();
            let deleted: Vec<_> = asked.iter().filter_map(|one| one.strip_prefix(pods)).collect();
            assert_eq!(deleted, ["weft-node-node2"]);
            assert!(asked.iter().any(|one| one == "DELETE /api/v1/namespaces/weft-system"));
            Ok(())
        });
        done.unwrap();
    }
}
