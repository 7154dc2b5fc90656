//! Two hundred Pods and fifty Services at once, and gone at once: the nodes agree with the API server, and nothing leaks.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use weft_e2e::cluster::Cluster;
use weft_e2e::lab::wait;

use crate::fixture::{Shop, alone, states, wait_others_gone};

const SERVICES: usize = 50;
const PODS_PER_SERVICE: usize = 4;
/// Two hundred sandboxes on two processors.
const BURST_WAIT_MAX: Duration = Duration::from_secs(300);

/// The maps that have entries for as long as a pod is in the mesh.
const OF_PODS: [&str; 3] = ["pods", "inbound_listeners", "probe_ports"];

/// Fill of the nodes' kernel maps, and the resources of their configuration.
fn held(cluster: &Cluster) -> Result<Vec<String>> {
    let mut held = Vec::new();
    for node in cluster.nodes() {
        let status = cluster.node_admin(&node)?.json("/status")?;
        held.push(format!("{node} holds {} resources", status["resources"]));
        for map in status["kernel"]["maps"].as_array().into_iter().flatten() {
            // Flows come and go with connections: pods' entries are what a burst could leave.
            if OF_PODS.iter().any(|of_pods| map["map"].as_str() == Some(of_pods)) {
                held.push(format!("{node} {} has {}", map["map"], map["entries"]));
            }
        }
        ensure!(held.len().is_multiple_of(1 + OF_PODS.len()), "a map has another name now: {held:?}");
    }
    Ok(held)
}

#[test]
fn a_burst_of_pods_and_services_comes_and_goes_and_leaves_nothing() -> Result<()> {
    let cluster = alone()?;
    // What they still hold would be missing afterwards.
    wait_others_gone(&cluster)?;
    let shop = Shop::enrolled(&cluster, "steady")?;
    let before = held(&cluster)?;
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
    wait::until(BURST_WAIT_MAX, || {
        let names = "jsonpath={range .items[?(@.status.phase==\"Running\")]}burst/{.metadata.name} {end}";
        let running = cluster.kubectl(&["-n", "burst", "get", "pods", "-o", names])?;
        let running: BTreeSet<String> = running.split_whitespace().map(Into::into).collect();
        ensure!(running.len() == SERVICES * PODS_PER_SERVICE, "{} pods run", running.len());
        let known =
            states(&cluster)?.into_iter().filter(|(_, state)| state == "enrolled").map(|(name, _)| name);
        let known: BTreeSet<String> = known.filter(|name| name.starts_with("burst/")).collect();
        ensure!(known == running, "nodes have {} pods enrolled", known.len());
        Ok(())
    })?;
    shop.reach("client1", "http://server/")?;
    cluster.kubectl(&["delete", "namespace", "burst", "--wait=false"])?;
    wait::until(BURST_WAIT_MAX, || {
        let left = states(&cluster)?.iter().filter(|(name, _)| name.starts_with("burst/")).count();
        ensure!(left == 0, "nodes still know {left} pods");
        let now = held(&cluster)?;
        ensure!(now == before, "before: {before:?}, now: {now:?}");
        Ok(())
    })?;
    shop.reach("client2", "http://server/").map(drop)
}
