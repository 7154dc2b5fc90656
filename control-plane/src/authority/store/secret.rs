//! An authority in a cluster: the Secret `weft-ca`, the ConfigMap `weft-trust-bundle`, a ClusterTrustBundle where there is such a thing.
//!
//! Replicas agree because the API server lets only one create the Secret, and only the writer of the newest version change the ConfigMap.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ApiResource, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use parking_lot::Mutex;

use super::super::AuthorityError;
use super::super::material::{Material, Part, certificates, to_pem};
use super::super::review::kind_of;
use super::{Created, Store};

const SECRET: &str = "weft-ca";
const SECRET_TYPE: &str = "kubernetes.io/tls";
const CONFIG_MAP: &str = "weft-trust-bundle";
const ROOT: &str = "root.pem";
const PREVIOUS: &str = "previous.pem";
const SIGNER: &str = "weft.dev/mesh";
const CLUSTER_BUNDLE: &str = "weft.dev:mesh:root";
const FIELD_MANAGER: &str = "weft-control";
/// Newest first.
const CLUSTER_BUNDLE_VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
/// By GET of one name each: a watch would ask for the right to list Secrets, and rotations are not in a hurry.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

pub(crate) struct InCluster {
    client: Client,
    namespace: String,
    /// The bundle that was last published as a ClusterTrustBundle, or found not to be.
    cluster_bundle: Mutex<String>,
}

impl InCluster {
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned(), cluster_bundle: Mutex::default() }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
    fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn error(&self, object: &str, error: &kube::Error) -> AuthorityError {
        AuthorityError::Unusable { file: format!("{object} in {}", self.namespace), problem: kind_of(error) }
    }

    fn part(&self, data: &BTreeMap<String, ByteString>, key: &str) -> Part {
        let of = format!("{key} of {}", self.name());
        let text = data.get(key).map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
        Part { of, text: text.unwrap_or_default() }
    }

    async fn publish_config_map(&self, bundle: String, previous: String) -> Result<(), AuthorityError> {
        let failed = |error: kube::Error| self.error("ConfigMap weft-trust-bundle", &error);
        let api = self.config_maps();
        let found = api.get_opt(CONFIG_MAP).await.map_err(failed)?;
        let exists = found.is_some();
        let mut map = found.unwrap_or_else(|| ConfigMap {
            metadata: ObjectMeta { name: Some(CONFIG_MAP.into()), ..ObjectMeta::default() },
            ..ConfigMap::default()
        });
        let data = map.data.get_or_insert_default();
        let present = |data: &BTreeMap<String, String>, key| data.get(key).cloned().unwrap_or_default();
        if present(data, ROOT) == bundle && present(data, PREVIOUS) == previous {
            return Ok(());
        }
        data.insert(ROOT.into(), bundle);
        if previous.is_empty() {
            data.remove(PREVIOUS);
        } else {
            data.insert(PREVIOUS.into(), previous);
        }
        // With the version that was read: another replica's write in between is an error here, and is seen at the next look.
        if exists {
            api.replace(CONFIG_MAP, &PostParams::default(), &map).await.map_err(failed)?;
        } else {
            api.create(&PostParams::default(), &map).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Err: why there is none.
    async fn publish_cluster_bundle(&self, bundle: &str) -> Result<(), String> {
        let mut why = "the cluster has no ClusterTrustBundle".to_owned();
        for version in CLUSTER_BUNDLE_VERSIONS {
            let kind = GroupVersionKind::gvk("certificates.k8s.io", version, "ClusterTrustBundle");
            let resource = ApiResource::from_gvk_with_plural(&kind, "clustertrustbundles");
            let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
            let wanted = serde_json::json!({
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "metadata": { "name": CLUSTER_BUNDLE },
                "spec": { "signerName": SIGNER, "trustBundle": bundle },
            });
            let parameters = PatchParams::apply(FIELD_MANAGER).force();
            match api.patch(CLUSTER_BUNDLE, &parameters, &Patch::Apply(&wanted)).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    why = format!("{version}: {}", kind_of(&error));
                    break;
                }
            }
        }
        Err(why)
    }
}

async fn bounded<T>(
    object: &str,
    work: impl Future<Output = Result<T, AuthorityError>>,
) -> Result<T, AuthorityError> {
    tokio::time::timeout(ANSWER_WAIT_MAX, work).await.unwrap_or_else(|_| {
        let problem = "the API server did not answer in time".to_owned();
        Err(AuthorityError::Unusable { file: object.to_owned(), problem })
    })
}

#[tonic::async_trait]
impl Store for InCluster {
    fn name(&self) -> String {
        format!("Secret {}/{SECRET}", self.namespace)
    }

    fn look_every(&self) -> Duration {
        LOOK_EVERY
    }

    async fn read(&self) -> Result<Option<Material>, AuthorityError> {
        let failed = |error: kube::Error| self.error("Secret weft-ca", &error);
        let found =
            bounded("Secret weft-ca", async { self.secrets().get_opt(SECRET).await.map_err(failed) }).await?;
        Ok(found.map(|secret| {
            let data = secret.data.unwrap_or_default();
            let part = |key| self.part(&data, key);
            Material { certificate: part("tls.crt"), key: part("tls.key"), roots: part("ca.crt") }
        }))
    }

    async fn create(&self, material: &Material) -> Result<Created, AuthorityError> {
        let bytes = |part: &Part| ByteString(part.text.clone().into_bytes());
        let data = [
            ("tls.crt".to_owned(), bytes(&material.certificate)),
            ("tls.key".to_owned(), bytes(&material.key)),
            ("ca.crt".to_owned(), bytes(&material.roots)),
        ];
        let secret = Secret {
            metadata: ObjectMeta { name: Some(SECRET.into()), ..ObjectMeta::default() },
            type_: Some(SECRET_TYPE.into()),
            data: Some(data.into()),
            ..Secret::default()
        };
        bounded("Secret weft-ca", async {
            match self.secrets().create(&PostParams::default(), &secret).await {
                Ok(_) => Ok(Created::Made),
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(Created::AlreadyThere),
                Err(error) => Err(self.error("Secret weft-ca", &error)),
            }
        })
        .await
    }

    async fn previous(&self) -> Result<Vec<Vec<u8>>, AuthorityError> {
        let failed = |error: kube::Error| self.error("ConfigMap weft-trust-bundle", &error);
        let read = async { self.config_maps().get_opt(CONFIG_MAP).await.map_err(failed) };
        let found = bounded("ConfigMap weft-trust-bundle", read).await?;
        let text = found.and_then(|map| map.data?.remove(PREVIOUS)).unwrap_or_default();
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        certificates(&Part { of: format!("{PREVIOUS} of ConfigMap {}/{CONFIG_MAP}", self.namespace), text })
    }

    async fn publish(&self, bundle: &[Vec<u8>], previous: &[Vec<u8>]) -> Result<(), AuthorityError> {
        let (bundle, previous) =
            (to_pem(bundle), if previous.is_empty() { String::new() } else { to_pem(previous) });
        bounded("ConfigMap weft-trust-bundle", self.publish_config_map(bundle.clone(), previous)).await?;
        if *self.cluster_bundle.lock() != bundle {
            match tokio::time::timeout(ANSWER_WAIT_MAX, self.publish_cluster_bundle(&bundle)).await {
                Err(_) => return Ok(()),
                Ok(Ok(())) => tracing::info!("the trust bundle is published as a ClusterTrustBundle"),
                Ok(Err(why)) => {
                    tracing::info!(why, "the trust bundle is not published as a ClusterTrustBundle");
                }
            }
            *self.cluster_bundle.lock() = bundle;
        }
        Ok(())
    }
}
