//! Gathers what `weft check` judges. It decides nothing; what the user may not read is noted and left out.

use std::collections::BTreeMap;
use std::time::SystemTime;

use anyhow::Result;
use futures_util::future::{OptionFuture, join};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;

use super::super::manifest::{self, Images};
use super::super::readiness::{self, Progress, Unready, Workload};
use super::super::release::Release;
use super::super::sources;
use super::super::words::{Words as _, is_missing};
use super::super::{CONTROL, Cluster, NAMESPACE, NODE, VERSION_LABEL, exec};
use super::other_meshes;
use super::permissions::{self, Permission};
use super::roles::{self, Lacking};
use crate::replicas;

/// Definitions of the Gateway API's kinds that weft-control reads: name, kind, the version that it reads.
pub(super) const GATEWAY_KINDS: [(&str, &str, &str); 3] = [
    ("httproutes.gateway.networking.k8s.io", "HTTPRoute", "v1"),
    ("grpcroutes.gateway.networking.k8s.io", "GRPCRoute", "v1"),
    ("referencegrants.gateway.networking.k8s.io", "ReferenceGrant", "v1beta1"),
];

/// What there is before Weft.
#[derive(Debug, Default)]
pub(super) struct ClusterFacts {
    pub(super) server: String,
    /// Major, minor.
    pub(super) server_version: (u32, u32),
    pub(super) permissions: Vec<Permission>,
    /// Served versions of kinds that are of interest.
    pub(super) definitions: BTreeMap<String, Vec<String>>,
    /// Namespace and name of every DaemonSet and Deployment.
    pub(super) workloads: Vec<(String, String)>,
    /// Cilium's settings, if it is there.
    pub(super) cilium: BTreeMap<String, String>,
    /// The settings of Calico's agents, if it is there.
    pub(super) felix: Value,
    pub(super) nodes: Vec<Node>,
    /// With what puts them into another one.
    pub(super) namespaces_in_two_meshes: Vec<(String, String)>,
    /// Those in the mesh that have NetworkPolicies.
    pub(super) namespaces_with_network_policies: Vec<String>,
    /// The level of Pod Security that weft-system enforces, if it is there and enforces one.
    pub(super) own_namespace_enforces: Option<String>,
    /// What the user may not read, as resources: nothing is known of these.
    pub(super) unreadable: Vec<&'static str>,
}

pub(super) async fn cluster(cluster: &Cluster) -> Result<ClusterFacts> {
    let client = &cluster.client;
    let version =
        client.apiserver_version().await.doing(&format!("ask {} for its version", cluster.server))?;
    // Some add a plus sign: "32+".
    let number = |text: &str| text.trim_end_matches('+').parse().unwrap_or(0);
    let mut facts = ClusterFacts {
        server: cluster.server.clone(),
        server_version: (number(&version.major), number(&version.minor)),
        permissions: permissions::ask(client).await?,
        ..ClusterFacts::default()
    };
    let mut unreadable = Vec::new();
    let mut noted = Noted(&mut unreadable);
    for (name, ..) in GATEWAY_KINDS {
        let definition = read::<CustomResourceDefinition>(Api::all(client.clone()), name).await;
        if let Some(definition) = noted.or_default("customresourcedefinitions", definition)? {
            let served = definition.spec.versions.into_iter().filter(|version| version.served);
            facts.definitions.insert(name.into(), served.map(|version| version.name).collect());
        }
    }
    facts.workloads = noted.or_default("daemonsets", names::<DaemonSet>(client).await)?;
    facts.workloads.extend(noted.or_default("deployments", names::<Deployment>(client).await)?);
    let cilium = Api::<ConfigMap>::namespaced(client.clone(), "kube-system");
    let cilium = noted.or_default("configmaps of kube-system", read(cilium, "cilium-config").await)?;
    facts.cilium = cilium.and_then(|map| map.data).unwrap_or_default();
    if facts.workloads.iter().any(|workload| workload.1 == "calico-node") {
        let kind = GroupVersionKind::gvk("crd.projectcalico.org", "v1", "FelixConfiguration");
        let felix = Api::<DynamicObject>::all_with(client.clone(), &ApiResource::from_gvk(&kind));
        let felix = noted.or_default("felixconfigurations", read(felix, "default").await)?;
        facts.felix = felix.map(|felix| felix.data["spec"].clone()).unwrap_or_default();
    }
    facts.nodes = noted.or_default("nodes", list::<Node>(client).await)?;
    let policies = noted.or_default("networkpolicies", names::<NetworkPolicy>(client).await)?;
    for namespace in noted.or_default("namespaces", list::<Namespace>(client).await)? {
        let label = |key: &str| namespace.labels().get(key).map(String::as_str);
        if namespace.name_any() == NAMESPACE {
            facts.own_namespace_enforces = label("pod-security.kubernetes.io/enforce").map(str::to_owned);
        }
        let in_mesh = label("weft.dev/mesh").is_some_and(|value| value != "disabled");
        if in_mesh && policies.iter().any(|policy| policy.0 == namespace.name_any()) {
            facts.namespaces_with_network_policies.push(namespace.name_any());
        }
        if in_mesh && let Some(mark) = other_meshes::mark(&namespace) {
            facts.namespaces_in_two_meshes.push((namespace.name_any(), mark));
        }
    }
    facts.unreadable = unreadable;
    Ok(facts)
}

/// Notes what may not be read, so that nothing is said of it.
struct Noted<'a>(&'a mut Vec<&'static str>);

impl Noted<'_> {
    fn or_default<T: Default>(&mut self, what: &'static str, read: Result<T, kube::Error>) -> Result<T> {
        match read {
            Err(kube::Error::Api(status)) if status.code == 403 => {
                if !self.0.contains(&what) {
                    self.0.push(what);
                }
                Ok(T::default())
            }
            other => other.doing(&format!("read {what}")),
        }
    }
}

/// None: it is not there, or its kind is not.
async fn read<K>(api: Api<K>, name: &str) -> Result<Option<K>, kube::Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    match api.get(name).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn list<K>(client: &Client) -> Result<Vec<K>, kube::Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    Ok(Api::<K>::all(client.clone()).list(&ListParams::default()).await?.items)
}

async fn names<K>(client: &Client) -> Result<Vec<(String, String)>, kube::Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let list = Api::<K>::all(client.clone()).list_metadata(&ListParams::default()).await?;
    let of = |object: kube::core::PartialObjectMeta<K>| {
        (object.namespace().unwrap_or_default(), object.name_any())
    };
    Ok(list.items.into_iter().map(of).collect())
}

/// One of Weft's two workloads.
#[derive(Debug)]
pub(super) struct WorkloadFacts {
    pub(super) progress: Progress,
    /// As the manifest labelled it.
    pub(super) version: String,
    /// What keeps it from being ready.
    pub(super) unready: Vec<Unready>,
    /// What each of its pods answered on `/status`, by pod or node; but for those that begin or end.
    pub(super) answers: Vec<(String, Result<Value, String>)>,
}

/// Weft itself.
#[derive(Debug)]
pub(super) struct InstalledFacts {
    pub(super) now_unix_s: u64,
    /// None: not installed by Helm.
    pub(super) release: Option<Release>,
    /// None: it is not there.
    pub(super) control: Option<WorkloadFacts>,
    pub(super) node: Option<WorkloadFacts>,
    /// Schedulable Linux nodes without a weft-node.
    pub(super) nodes_without: Vec<String>,
    /// The definitions of this version: whether the cluster's are the same; None: not there.
    pub(super) definitions: Vec<(String, Option<bool>)>,
    /// The roles and bindings of this version.
    pub(super) roles: Vec<Lacking>,
    /// Who writes status, and how long ago that was renewed.
    pub(super) leader: Option<(String, u64)>,
    /// PEM.
    pub(super) trust_bundle: Option<String>,
}

/// None: Weft is not installed.
pub(super) async fn installed(cluster: &Cluster) -> Result<Option<InstalledFacts>> {
    let client = &cluster.client;
    let deployment = read(Api::<Deployment>::namespaced(client.clone(), NAMESPACE), CONTROL).await;
    let deployment = deployment.doing("read weft-control")?;
    let daemon_set = read(Api::<DaemonSet>::namespaced(client.clone(), NAMESPACE), NODE).await;
    let daemon_set = daemon_set.doing("read weft-node")?;
    if deployment.is_none() && daemon_set.is_none() {
        return Ok(None);
    }
    let now_unix_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let metadata = [daemon_set.as_ref().map(|it| &it.metadata), deployment.as_ref().map(|it| &it.metadata)];
    let release = metadata.into_iter().flatten().find_map(Release::of);
    let control = OptionFuture::from(deployment.map(|object| {
        let progress = readiness::deployment(&object);
        workload(cluster, Workload::Control, progress, object.metadata.labels.unwrap_or_default())
    }));
    let node = OptionFuture::from(daemon_set.map(|object| {
        let progress = readiness::daemon_set(&object);
        workload(cluster, Workload::Node, progress, object.metadata.labels.unwrap_or_default())
    }));
    let (control, node) = join(control, node).await;
    let lease = read(Api::<Lease>::namespaced(client.clone(), NAMESPACE), CONTROL).await;
    let leader = lease.doing("read Lease weft-control")?.and_then(|lease| lease.spec).and_then(|spec| {
        let renewed = u64::try_from(spec.renew_time?.0.as_second()).unwrap_or(0);
        Some((spec.holder_identity?, now_unix_s.saturating_sub(renewed)))
    });
    let bundle = read(Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE), "weft-trust-bundle").await;
    let bundle = bundle.doing("read ConfigMap weft-trust-bundle")?;
    Ok(Some(InstalledFacts {
        now_unix_s,
        release,
        control: control.transpose()?,
        node: node.transpose()?,
        nodes_without: nodes_without(cluster).await?,
        definitions: definitions(client).await?,
        roles: roles::lacking(client).await?,
        leader,
        trust_bundle: bundle.and_then(|map| map.data).and_then(|mut data| data.remove("root.pem")),
    }))
}

async fn workload(
    cluster: &Cluster,
    of: Workload,
    progress: Progress,
    labels: BTreeMap<String, String>,
) -> Result<WorkloadFacts> {
    let mut answers = sources::statuses(cluster, of, exec::STATUS_WAIT_MAX).await?;
    replicas::join(answers.iter_mut().filter_map(|one| Some((one.name.as_str(), one.value.as_mut().ok()?))));
    let told = |answer: sources::Answer| (answer.name, answer.value.map_err(|error| format!("{error:#}")));
    let unready = readiness::unready(cluster, of, progress.wanted).await?;
    Ok(WorkloadFacts {
        progress,
        version: labels.get(VERSION_LABEL).cloned().unwrap_or_default(),
        unready,
        answers: answers.into_iter().filter(|answer| !answer.passing).map(told).collect(),
    })
}

async fn nodes_without(cluster: &Cluster) -> Result<Vec<String>> {
    let pods = readiness::pods(cluster, Workload::Node).await?;
    let served: Vec<&str> = pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref()).collect();
    let nodes = list::<Node>(&cluster.client).await.doing("list nodes")?;
    let linux = |node: &Node| {
        let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
        info.is_none_or(|info| info.operating_system == "linux")
    };
    let names = nodes.iter().filter(|node| linux(node)).map(kube::ResourceExt::name_any);
    Ok(names.filter(|name| !served.contains(&name.as_str())).collect())
}

/// Compared is what matters to users: the schemas.
async fn definitions(client: &Client) -> Result<Vec<(String, Option<bool>)>> {
    let mut all = Vec::new();
    for object in manifest::objects(&manifest::text(&Images::default())?)? {
        if manifest::kind(&object) != "CustomResourceDefinition" {
            continue;
        }
        let name = manifest::name(&object);
        let found = read::<CustomResourceDefinition>(Api::all(client.clone()), name).await;
        let found = found.doing(&format!("read {name}"))?;
        let own: CustomResourceDefinition = serde_json::from_value(serde_json::to_value(&object)?)?;
        let schemas = |definition: &CustomResourceDefinition| -> Vec<_> {
            let versions = definition.spec.versions.iter();
            versions.map(|version| (version.name.clone(), version.schema.clone())).collect()
        };
        all.push((name.to_owned(), found.map(|found| schemas(&found) == schemas(&own))));
    }
    Ok(all)
}
