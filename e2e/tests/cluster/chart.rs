//! What the chart makes of its values, and which it refuses. Needs helm and no cluster.

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize as _;
use serde_json::Value;
use weft_e2e::cluster::weft::rendered;

/// Values as `--set` takes them, or a flag of `helm template`.
type Values = &'static [&'static str];

/// In the text of an object's JSON, without spaces.
struct Good {
    values: Values,
    has: &'static [(&'static str, &'static str)],
    lacks: &'static [(&'static str, &'static str)],
}

/// All that the roles for users give.
const VIEW: &str = concat!(
    "\"rbac.authorization.k8s.io/aggregate-to-view\":\"true\"},\"name\":\"weft-view\"},\"rules\":[{\"apiGroups\":[\"weft.dev\"],",
    "\"resources\":[\"authorizationpolicies\",\"trafficpolicies\"],\"verbs\":[\"get\",\"list\",\"watch\"]}]}"
);
const EDIT: &str = concat!(
    "\"rbac.authorization.k8s.io/aggregate-to-edit\":\"true\"},\"name\":\"weft-edit\"},\"rules\":[{\"apiGroups\":[\"weft.dev\"],",
    "\"resources\":[\"authorizationpolicies\",\"trafficpolicies\"],\"verbs\":[\"create\",\"delete\",\"deletecollection\",",
    "\"patch\",\"update\"]}]}"
);

const GOOD: [Good; 16] = [
    Good {
        values: &[],
        has: &[
            ("Namespace", "\"pod-security.kubernetes.io/enforce\":\"privileged\""),
            ("Deployment", "\"replicas\":2"),
            ("Deployment", "\"terminationMessagePolicy\":\"FallbackToLogsOnError\""),
            ("DaemonSet", "\"terminationMessagePolicy\":\"FallbackToLogsOnError\""),
            ("DaemonSet", "\"--connections-per-pod=16384\""),
            ("DaemonSet", "\"--flows-max=65536\""),
            ("DaemonSet", "\"--cni-exclude-namespaces=kube-system,weft-system\""),
            ("ClusterRole", VIEW),
            ("ClusterRole", EDIT),
        ],
        lacks: &[
            ("DaemonSet", "metrics"),
            ("Deployment", "metrics"),
            ("DaemonSet", "imagePullSecrets"),
            ("DaemonSet", "OTEL_"),
        ],
    },
    Good {
        values: &["cni.enabled=false"],
        has: &[("DaemonSet", "\"--pin-dir=/sys/fs/bpf/weft\"")],
        lacks: &[("DaemonSet", "cni")],
    },
    Good {
        values: &["cni.binDir=/var/lib/cni/bin", "cni.confDir=/var/lib/cni/net.d"],
        has: &[
            ("DaemonSet", "\"--cni-bin-dir=/var/lib/cni/bin\""),
            ("DaemonSet", "{\"mountPath\":\"/var/lib/cni/bin\",\"name\":\"cni-bin\"}"),
            ("DaemonSet", "{\"path\":\"/var/lib/cni/bin\",\"type\":\"DirectoryOrCreate\"}"),
            ("DaemonSet", "\"--cni-conf-dir=/var/lib/cni/net.d\""),
            ("DaemonSet", "{\"mountPath\":\"/var/lib/cni/net.d\",\"name\":\"cni-conf\"}"),
        ],
        lacks: &[("DaemonSet", "/opt/cni"), ("DaemonSet", "/etc/cni")],
    },
    Good {
        values: &["cni.excludeNamespaces={weft-system,builds}"],
        has: &[("DaemonSet", "\"--cni-exclude-namespaces=weft-system,builds\"")],
        lacks: &[],
    },
    Good {
        values: &[
            "node.otel.OTEL_EXPORTER_OTLP_ENDPOINT=http://collector.telemetry.svc:4317",
            "--set-string=node.otel.OTEL_TRACES_SAMPLER_ARG=0.1",
        ],
        has: &[
            (
                "DaemonSet",
                "{\"name\":\"OTEL_EXPORTER_OTLP_ENDPOINT\",\"value\":\"http://collector.telemetry.svc:4317\"}",
            ),
            ("DaemonSet", "{\"name\":\"OTEL_TRACES_SAMPLER_ARG\",\"value\":\"0.1\"}"),
        ],
        lacks: &[("Deployment", "OTEL_")],
    },
    Good {
        values: &[
            "image.registry=mirror.example:5000/mesh",
            "image.tag=1.2.3",
            "image.pullPolicy=Always",
            "image.pullSecrets={one,two}",
        ],
        has: &[
            ("DaemonSet", "\"image\":\"mirror.example:5000/mesh/weft-node:1.2.3\""),
            ("DaemonSet", "\"imagePullPolicy\":\"Always\""),
            ("DaemonSet", "\"imagePullSecrets\":[{\"name\":\"one\"},{\"name\":\"two\"}]"),
            ("Deployment", "\"image\":\"mirror.example:5000/mesh/weft-control:1.2.3\""),
            ("Deployment", "\"imagePullSecrets\":[{\"name\":\"one\"},{\"name\":\"two\"}]"),
        ],
        lacks: &[],
    },
    Good {
        values: &["metrics.enabled=true", "metrics.port=9100", "node.podAnnotations.team=mesh"],
        has: &[
            ("DaemonSet", "\"--metrics-address=$(HOST_IP):9100\""),
            ("DaemonSet", "{\"containerPort\":9100,\"name\":\"http-metrics\"}"),
            ("DaemonSet", "\"prometheus.io/port\":\"9100\""),
            ("DaemonSet", "\"team\":\"mesh\""),
            ("Deployment", "\"--metrics-address=$(POD_IP):9100\""),
            ("Deployment", "\"prometheus.io/scrape\":\"true\""),
        ],
        lacks: &[("Deployment", "\"team\"")],
    },
    Good {
        values: &["metrics.enabled=true", "metrics.annotations=false"],
        has: &[("DaemonSet", "\"--metrics-address=$(HOST_IP):15020\"")],
        lacks: &[("DaemonSet", "prometheus.io"), ("Deployment", "prometheus.io")],
    },
    Good {
        values: &["node.connectionsPerPod=1048576", "node.flowsMax=1048576"],
        has: &[("DaemonSet", "\"--connections-per-pod=1048576\""), ("DaemonSet", "\"--flows-max=1048576\"")],
        lacks: &[],
    },
    Good { values: &["createNamespace=false"], has: &[], lacks: &[("Namespace", "")] },
    Good {
        values: &["userRoles=false"],
        has: &[("ClusterRole", "\"name\":\"weft-control\"")],
        lacks: &[("ClusterRole", "aggregate-to-"), ("ClusterRole", EDIT)],
    },
    Good {
        values: &["--namespace=weft-system"],
        has: &[("DaemonSet", "\"namespace\":\"weft-system\"")],
        lacks: &[("Namespace", "")],
    },
    Good {
        values: &[
            "node.drainSeconds=3600",
            "node.maxUnavailable=25%",
            "node.redirect=off",
            "node.accessLog=errors",
        ],
        has: &[
            ("DaemonSet", "\"--drain-seconds=3600\""),
            ("DaemonSet", "\"terminationGracePeriodSeconds\":3625"),
            ("DaemonSet", "\"maxUnavailable\":\"25%\""),
            ("DaemonSet", "\"--redirect=off\""),
            ("DaemonSet", "\"--access-log=errors\""),
        ],
        lacks: &[],
    },
    Good {
        values: &[
            "trustDomain=mesh.example",
            "clusterDomain=c1.example",
            "certLifetime=90d",
            "control.replicas=3",
        ],
        has: &[
            ("Deployment", "\"--trust-domain=mesh.example\""),
            ("Deployment", "\"--cert-lifetime=90d\""),
            ("Deployment", "\"replicas\":3"),
            ("DaemonSet", "\"--cluster-domain=c1.example\""),
        ],
        lacks: &[],
    },
    Good {
        values: &[
            "node.nodeSelector.pool=apps",
            "node.tolerations[0].key=gpu",
            "node.tolerations[0].operator=Exists",
            "node.priorityClassName=mine",
            "node.resources.limits.memory=1Gi",
            "node.log=debug",
            "node.seLinuxOptions.type=null",
        ],
        has: &[
            ("DaemonSet", "\"nodeSelector\":{\"kubernetes.io/os\":\"linux\",\"pool\":\"apps\"}"),
            ("DaemonSet", "\"tolerations\":[{\"key\":\"gpu\",\"operator\":\"Exists\"}]"),
            ("DaemonSet", "\"priorityClassName\":\"mine\""),
            ("DaemonSet", "\"limits\":{\"memory\":\"1Gi\"}"),
            ("DaemonSet", "{\"name\":\"WEFT_LOG\",\"value\":\"debug\"}"),
        ],
        lacks: &[("DaemonSet", "seLinuxOptions"), ("Deployment", "gpu"), ("Deployment", "\"pool\"")],
    },
    Good {
        values: &[
            "control.tolerations[0].operator=Exists",
            "control.podAnnotations.team=mesh",
            "control.resources.requests.cpu=1",
            "control.log=debug",
        ],
        has: &[
            ("Deployment", "\"tolerations\":[{\"operator\":\"Exists\"}]"),
            ("Deployment", "\"annotations\":{\"team\":\"mesh\"}"),
            ("Deployment", "\"requests\":{\"cpu\":1,"),
            ("Deployment", "{\"name\":\"RUST_LOG\",\"value\":\"debug\"}"),
        ],
        lacks: &[("DaemonSet", "\"team\"")],
    },
];

/// A value, and what the refusal names.
const REFUSED: [(&str, &str); 28] = [
    ("image.registry=", "registry"),
    ("image.tag=a b", "tag"),
    ("image.pullPolicy=Sometimes", "pullPolicy"),
    ("image.pullSecrets=one", "pullSecrets"),
    ("createNamespace=maybe", "createNamespace"),
    ("userRoles=maybe", "userRoles"),
    ("trustDomain=Mesh.Example", "trustDomain"),
    ("certLifetime=29s", "certLifetime"),
    ("certLifetime=91d", "certLifetime"),
    ("control.replicas=0", "replicas"),
    ("control.podAnnotations.number=1", "podAnnotations"),
    ("metrics.port=65536", "port"),
    ("node.drainSeconds=3601", "drainSeconds"),
    ("node.connectionsPerPod=15", "connectionsPerPod"),
    ("node.connectionsPerPod=many", "connectionsPerPod"),
    ("node.flowsMax=63", "flowsMax"),
    ("node.flowsMax=1048577", "flowsMax"),
    ("node.maxUnavailable=0", "maxUnavailable"),
    ("node.maxUnavailable=101%", "maxUnavailable"),
    ("node.redirect=on", "redirect"),
    ("node.accessLog=some", "accessLog"),
    ("node.otel.ENDPOINT=http://collector:4317", "ENDPOINT"),
    ("node.otel.OTEL_TRACES_SAMPLER_ARG=1", "OTEL_TRACES_SAMPLER_ARG"),
    ("cni.binDir=opt/cni/bin", "binDir"),
    ("cni.excludeNamespaces={kube-system}", "excludeNamespaces"),
    ("cni.excludeNamespaces={weft-system,Not_A_Name}", "excludeNamespaces"),
    ("node.misspelt=1", "misspelt"),
    ("misspelt.enabled=true", "misspelt"),
];

fn template(values: &[&str]) -> Result<String> {
    let flag =
        |value: &&str| if value.starts_with("--") { (*value).to_owned() } else { format!("--set={value}") };
    let flags: Vec<String> = values.iter().map(flag).collect();
    rendered(&flags.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The objects of a kind, as the text of their JSON.
fn of_kind(objects: &[Value], kind: &str) -> Vec<String> {
    objects.iter().filter(|object| object["kind"] == kind).map(Value::to_string).collect()
}

#[test]
fn the_chart_does_what_its_values_say() -> Result<()> {
    for Good { values, has, lacks } in GOOD {
        let text = template(values).with_context(|| format!("{values:?}"))?;
        let documents = serde_yaml_ng::Deserializer::from_str(&text).map(Value::deserialize);
        let objects: Vec<Value> =
            documents.collect::<Result<_, _>>().with_context(|| format!("{values:?}"))?;
        for (kind, part) in has {
            let found = of_kind(&objects, kind);
            ensure!(found.iter().any(|object| object.contains(part)), "{values:?}: no {part} in {found:?}");
        }
        for (kind, part) in lacks {
            let found = of_kind(&objects, kind);
            ensure!(!found.iter().any(|object| object.contains(part)), "{values:?}: {part} in {found:?}");
        }
    }
    Ok(())
}

#[test]
fn the_chart_refuses_wrong_values_by_their_name() -> Result<()> {
    for (value, name) in REFUSED {
        let Err(error) = template(&[value]) else { bail!("{value} is accepted") };
        let told = error.to_string();
        // Of the schema: not because a template broke.
        let line = told.lines().find(|line| line.trim_start().starts_with("- ")).unwrap_or_default();
        ensure!(told.contains("schema") && line.contains(name), "{value}: {told}");
    }
    Ok(())
}
