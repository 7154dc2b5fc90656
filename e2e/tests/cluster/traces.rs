//! Traces of the cluster's traffic arrive at an OpenTelemetry collector that runs in the cluster.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weft_e2e::cluster::weft::NAMESPACE;
use weft_e2e::lab::{traces, wait};
use weft_e2e::tools::repository;

use crate::fixture::{START_WAIT_MAX, Shop, alone};

const COLLECTOR: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: telemetry}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: collector, namespace: telemetry}
data:
  config.yaml: |
    receivers: {otlp: {protocols: {grpc: {endpoint: '0.0.0.0:4317'}}}}
    exporters: {debug: {verbosity: detailed}}
    service: {pipelines: {traces: {receivers: [otlp], exporters: [debug]}}, telemetry: {metrics: {level: none}}}
---
# Of its own: the one that every namespace gets comes some time after the namespace, and no pod before it.
{apiVersion: v1, kind: ServiceAccount, metadata: {name: collector, namespace: telemetry}}
---
{apiVersion: v1, kind: Pod, metadata: {name: collector, namespace: telemetry, labels: {app: collector}}, spec: {serviceAccountName: collector, terminationGracePeriodSeconds: 1,
  containers: [{name: otelcol, image: 'weft.local/otelcol:1', args: [--config, /etc/otelcol/config.yaml], volumeMounts: [{name: config, mountPath: /etc/otelcol}]}],
  volumes: [{name: config, configMap: {name: collector}}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: collector, namespace: telemetry}, spec: {selector: {app: collector}, ports: [{port: 4317}]}}";

#[test]
fn spans_of_a_request_between_pods_arrive_at_a_collector_in_the_cluster() -> Result<()> {
    let cluster = alone()?;
    let binary = traces::collector().context("no collector: `make setup-tests` builds it")?;
    let image = cluster.directory().join("images/otelcol.tar");
    let packed = Command::new(repository().join("e2e/cluster/images/pack.sh"))
        .args(["weft.local/otelcol:1"])
        .args([&image])
        .arg(format!("{}=/otelcol", binary.display()))
        .args(["--", "/otelcol"])
        .status()?;
    ensure!(packed.success(), "packing the collector's image: {packed}");
    cluster.load_image(&image)?;
    cluster.apply(COLLECTOR)?;
    cluster.wait_field(
        &["-n", "telemetry", "pod", "collector"],
        "{.status.phase}",
        "Running",
        START_WAIT_MAX,
    )?;
    let endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT";
    let set = |value: &str| {
        cluster.kubectl(&["-n", NAMESPACE, "set", "env", "ds/weft-node", value])?;
        cluster.wait_rollout(NAMESPACE, "ds/weft-node", START_WAIT_MAX)
    };
    set(&format!("{endpoint}=http://collector.telemetry.svc.cluster.local:4317"))?;
    let shop = Shop::enrolled(&cluster, "traced")?;
    wait::until(Duration::from_secs(60), || {
        shop.reach("client1", "http://server-0.servers:8080/traced-path")?;
        let told = cluster.kubectl(&["-n", "telemetry", "logs", "collector"])?;
        let spans = ["k8s.pod.name: Str(client1)", "k8s.pod.name: Str(server-0)", "/traced-path"];
        let missing: Vec<_> = spans.iter().filter(|text| !told.contains(**text)).collect();
        ensure!(
            missing.is_empty(),
            "the collector was not told {missing:?}; it has {} bytes of log",
            told.len()
        );
        Ok(())
    })?;
    set(&format!("{endpoint}-"))?;
    cluster.kubectl(&["delete", "namespace", "telemetry", "--wait=false"]).map(drop)
}
