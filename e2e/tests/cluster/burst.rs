//! Two hundred Pods and fifty Services at once, and gone at once: the nodes agree with the API server, and nothing leaks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weft_e2e::cluster::Cluster;
use weft_e2e::lab::wait;

use crate::fixture::{Shop, alone, states, wait_others_gone};

const SERVICES: usize = 50;
const PODS_PER_SERVICE: usize = 4;
/// Two hundred sandboxes on two processors: for the kubelets and the API server.
const BURST_WAIT_MAX: Duration = Duration::from_secs(300);
/// For the nodes after it: "within seconds".
const AGREE_WAIT_MAX: Duration = Duration::from_secs(10);

/// The maps that have entries for as long as a pod is in the mesh.
const OF_PODS: [&str; 3] = ["pods", "inbound_listeners", "probe_ports"];

/// Tasks of a node come and go with tunnels; one that each pod of the burst left would be a hundred.
const TASKS_MORE_MAX: u64 = 50;

/// Fill of the nodes' kernel maps, the programs in pods, and the resources of their configuration.
fn held(cluster: &Cluster) -> Result<Vec<String>> {
    let mut held = Vec::new();
    for node in cluster.nodes() {
        let status = cluster.node_admin(&node)?.json("/status")?;
        held.push(format!("{node} holds {} resources", status["resources"]));
        held.push(format!("{node} has programs in {} pods", status["kernel"]["lookups"]));
        for map in status["kernel"]["maps"].as_array().into_iter().flatten() {
            // Flows come and go with connections: pods' entries are what a burst could leave.
            if OF_PODS.iter().any(|of_pods| map["map"].as_str() == Some(of_pods)) {
                held.push(format!("{node} {} has {}", map["map"], map["entries"]));
            }
        }
        ensure!(held.len().is_multiple_of(2 + OF_PODS.len()), "a map has another name now: {held:?}");
    }
    Ok(held)
}

fn tasks(cluster: &Cluster) -> Result<Vec<u64>> {
    let of = |node: String| {
        let status = cluster.node_admin(&node)?.json("/status")?;
        status["tasks_live"].as_u64().with_context(|| format!("{node} tells no tasks: {status}"))
    };
    cluster.nodes().into_iter().map(of).collect()
}

/// The burst's pods that the API server has, by a filter of theirs.
fn pods_of_api(cluster: &Cluster, filter: &str) -> Result<BTreeSet<String>> {
    let names = format!("jsonpath={{range .items[{filter}]}}burst/{{.metadata.name}} {{end}}");
    let pods = cluster.kubectl(&["-n", "burst", "get", "pods", "-o", &names])?;
    Ok(pods.split_whitespace().map(Into::into).collect())
}

/// Those that nodes have, by their state.
fn pods_of_nodes(cluster: &Cluster, wanted: impl Fn(&str) -> bool) -> Result<BTreeSet<String>> {
    let states = states(cluster)?.into_iter();
    Ok(states
        .filter(|(name, state)| name.starts_with("burst/") && wanted(state))
        .map(|(name, _)| name)
        .collect())
}

/// The burst's Services that a node has, with the number of their endpoints.
fn services(cluster: &Cluster, node: &str) -> Result<BTreeMap<String, usize>> {
    let dump = cluster.node_admin(node)?.json("/config_dump")?;
    let mut found = BTreeMap::new();
    for resource in dump["resources"].as_array().into_iter().flatten() {
        let (service, endpoints) = match resource["kind"].as_str() {
            Some("Service") => (&resource["key"], 0),
            Some("Endpoint") => (&resource["content"]["service"], 1),
            _ => continue,
        };
        let service = service.as_str().unwrap_or_default();
        if service.starts_with("burst/") {
            *found.entry(service.to_owned()).or_default() += endpoints;
        }
    }
    Ok(found)
}

#[test]
fn a_burst_of_pods_and_services_comes_and_goes_and_leaves_nothing() -> Result<()> {
    let cluster = alone()?;
    // What they still hold would be missing afterwards.
    wait_others_gone(&cluster)?;
    let shop = Shop::enrolled(&cluster, "steady")?;
    let (before, tasks_before) = (held(&cluster)?, tasks(&cluster)?);
    let mut manifests =
        "{apiVersion: v1, kind: Namespace, metadata: {name: burst, labels: {weft.dev/mesh: enabled}}}\n"
            .to_owned();
    for n in 0..SERVICES {
        write!(
            manifests,
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{n}, namespace: burst}}, spec: {{selector: {{app: s{n}}}, ports: [{{port: 80, targetPort: 8080}}]}}}}
---\n{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: s{n}, namespace: burst}}, spec: {{replicas: {PODS_PER_SERVICE}, selector: {{matchLabels: {{app: s{n}}}}}, template: {{
               metadata: {{labels: {{app: s{n}}}}}, spec: {{terminationGracePeriodSeconds: 1, automountServiceAccountToken: false, containers: [{{name: pause, image: 'weft.local/pause:1'}}]}}}}}}}}\n",
        )?;
    }
    cluster.apply(&manifests)?;
    let mut pods = BTreeSet::new();
    wait::until(BURST_WAIT_MAX, || {
        pods = pods_of_api(&cluster, "?(@.status.phase==\"Running\")")?;
        ensure!(pods.len() == SERVICES * PODS_PER_SERVICE, "{} pods run", pods.len());
        Ok(())
    })?;
    wait::until(AGREE_WAIT_MAX, || {
        let enrolled = pods_of_nodes(&cluster, |state| state == "enrolled")?;
        ensure!(enrolled == pods, "nodes have {} pods enrolled", enrolled.len());
        for node in cluster.nodes() {
            let found = services(&cluster, &node)?;
            let whole = found.values().filter(|endpoints| **endpoints == PODS_PER_SERVICE).count();
            ensure!(
                found.len() == SERVICES && whole == SERVICES,
                "{node}: {whole} of {} Services",
                found.len()
            );
        }
        Ok(())
    })?;
    shop.reach("client1", "http://server/")?;

    cluster.kubectl(&["delete", "namespace", "burst", "--wait=false"])?;
    wait::until(BURST_WAIT_MAX, || {
        let left = cluster.kubectl(&["get", "namespace", "burst", "-o", "name", "--ignore-not-found"])?;
        ensure!(left.is_empty(), "{} pods are left", pods_of_api(&cluster, "*")?.len());
        Ok(())
    })?;
    wait::until(AGREE_WAIT_MAX, || {
        let left = pods_of_nodes(&cluster, |_| true)?;
        ensure!(left.is_empty(), "nodes still know {left:?}");
        let now = held(&cluster)?;
        ensure!(now == before, "before: {before:?}, now: {now:?}");
        let tasks_now = tasks(&cluster)?;
        let mut more = tasks_before.iter().zip(&tasks_now);
        ensure!(
            more.all(|(before, now)| *now <= before + TASKS_MORE_MAX),
            "tasks before: {tasks_before:?}, now: {tasks_now:?}"
        );
        Ok(())
    })?;
    shop.reach("client2", "http://server/").map(drop)
}
