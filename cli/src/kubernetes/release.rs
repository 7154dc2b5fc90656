//! Whether Helm installed what is there. The values of an installation are in its release: `helm upgrade` keeps them, and `weft install`,
//! which applies the manifest of the default ones, would set them back.

use std::fmt;

use anyhow::Result;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;

use super::words::{Words as _, is_missing};
use super::{CONTROL, Cluster, NAMESPACE, NODE};

/// Helm writes both on each object that it makes.
const NAME: &str = "meta.helm.sh/release-name";
const RELEASE_NAMESPACE: &str = "meta.helm.sh/release-namespace";

/// Of Helm; its namespace need not be Weft's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Release {
    pub(super) name: String,
    pub(super) namespace: String,
}

impl Release {
    /// None: the object is not Helm's.
    pub(super) fn of(object: &ObjectMeta) -> Option<Self> {
        let annotation = |key: &str| object.annotations.as_ref()?.get(key).cloned();
        let namespace = annotation(RELEASE_NAMESPACE).unwrap_or_else(|| "default".to_owned());
        Some(Self { name: annotation(NAME)?, namespace })
    }

    /// The command that upgrades it: its own values stay, whatever is set besides.
    pub(super) fn upgrade(&self) -> String {
        let Self { name, namespace } = self;
        format!("helm upgrade {name} deploy/helm/weft --namespace {namespace} --reset-then-reuse-values")
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Helm's release {} (namespace {})", self.name, self.namespace)
    }
}

/// None: Weft is not there, or not by Helm.
pub(super) async fn find(cluster: &Cluster) -> Result<Option<Release>> {
    let node = Api::<DaemonSet>::namespaced(cluster.client.clone(), NAMESPACE);
    if let Some(release) = release(node, NODE).await? {
        return Ok(Some(release));
    }
    // What an installation that was broken off may have left alone.
    release(Api::<Deployment>::namespaced(cluster.client.clone(), NAMESPACE), CONTROL).await
}

async fn release<K>(api: Api<K>, name: &str) -> Result<Option<Release>>
where
    K: Clone + fmt::Debug + serde::de::DeserializeOwned,
{
    match api.get_metadata(name).await {
        Ok(object) => Ok(Release::of(&object.metadata)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error).doing(&format!("read {name}")),
    }
}

/// `weft-node` as Helm leaves it.
#[cfg(test)]
pub(super) fn of_helm() -> serde_json::Value {
    serde_json::json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "spec": {"selector": {}, "template": {}},
        "metadata": {"name": NODE, "annotations": {NAME: "mesh", RELEASE_NAMESPACE: "ops"}}})
}
