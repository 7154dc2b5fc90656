//! Nodes by their ServiceAccount tokens, the authority in a Secret that replicas share, the bundle in a ConfigMap, and rotation.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, NamespaceResourceScope};
use kube::{Api, Client, Resource};
use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Code;
use weft_proto::v1::SignRequest;
use weft_proto::v1::certificates_client::CertificatesClient;

use super::api_server::ApiServer;
use super::control::{Control, csr, until};
use super::node::Node;

pub(super) const NAMESPACE: &str = "weft-system";

async fn create<K>(client: &Client, namespace: &str, value: serde_json::Value)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + DeserializeOwned
        + Serialize
        + Clone
        + std::fmt::Debug,
{
    let object: K = serde_json::from_value(value).unwrap();
    Api::<K>::namespaced(client.clone(), namespace).create(&PostParams::default(), &object).await.unwrap();
}

pub(super) async fn namespace(client: &Client, name: &str, enrolled: bool) {
    let labels =
        if enrolled { serde_json::json!({"weft.dev/mesh": "enabled"}) } else { serde_json::json!({}) };
    let object = serde_json::json!({ "metadata": { "name": name, "labels": labels } });
    let object: Namespace = serde_json::from_value(object).unwrap();
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &object).await.unwrap();
}

pub(super) async fn pod(client: &Client, namespace: &str, name: &str, node: &str, account: &str) -> String {
    let object = serde_json::json!({
        "metadata": { "name": name },
        "spec": { "nodeName": node, "serviceAccountName": account, "containers": [{ "name": "c", "image": "none" }] },
    });
    create::<Pod>(client, namespace, object).await;
    let created = Api::<Pod>::namespaced(client.clone(), namespace).get(name).await.unwrap();
    created.metadata.uid.unwrap()
}

pub(super) async fn account(client: &Client, namespace: &str, name: &str) {
    create::<ServiceAccount>(client, namespace, serde_json::json!({ "metadata": { "name": name } })).await;
}

/// A token of a ServiceAccount, bound to a pod if one is named.
pub(super) async fn token(
    client: &Client,
    namespace: &str,
    account: &str,
    audience: &str,
    pod: Option<(&str, &str)>,
) -> String {
    let bound_object_ref = pod.map(|(name, uid)| BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: Some(name.into()),
        uid: Some(uid.into()),
    });
    let spec =
        TokenRequestSpec { audiences: vec![audience.into()], bound_object_ref, expiration_seconds: None };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let answer = api.create_token_request(account, &PostParams::default(), &request).await.unwrap();
    answer.status.unwrap().token
}

async fn bundle(client: &Client) -> Option<BTreeMap<String, String>> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    api.get_opt("weft-trust-bundle").await.unwrap()?.data
}

pub(super) async fn published(client: &Client) -> String {
    until("the published bundle", || async { bundle(client).await?.remove("root.pem") }).await
}

/// What the ClusterTrustBundle says, in the version that 1.36 serves.
pub(super) async fn cluster_bundle(client: &Client) -> Option<serde_json::Value> {
    let kind = GroupVersionKind::gvk("certificates.k8s.io", "v1beta1", "ClusterTrustBundle");
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    let found = api.get_opt("weft.dev:mesh:root").await.unwrap()?;
    Some(found.data["spec"].clone())
}

async fn secret(client: &Client) -> BTreeMap<String, ByteString> {
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let found = api.get("weft-ca").await.unwrap();
    assert_eq!(found.type_.as_deref(), Some("kubernetes.io/tls"));
    found.data.unwrap()
}

async fn replace_secret(client: &Client, certificate: &str, key: &str) {
    replace_authority(client, certificate, key, certificate).await;
}

async fn replace_authority(client: &Client, certificate: &str, key: &str, root: &str) {
    let change =
        serde_json::json!({ "stringData": { "tls.crt": certificate, "tls.key": key, "ca.crt": root } });
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    api.patch("weft-ca", &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
}

/// As an operator who brings another root.
pub(super) async fn replace_root(client: &Client) {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().pem();
    replace_secret(client, &root, &key.serialize_pem()).await;
}

#[tokio::test]
async fn a_node_is_who_the_api_server_says_and_its_pods_are_looked_up() {
    let server = ApiServer::start(&[]).await;
    let client = server.client().await;
    namespace(&client, NAMESPACE, false).await;
    namespace(&client, "shop", true).await;
    for (space, name) in
        [(NAMESPACE, "weft-node"), (NAMESPACE, "other"), ("shop", "weft-node"), ("shop", "web")]
    {
        account(&client, space, name).await;
    }
    let agent = pod(&client, NAMESPACE, "agent", "node-1", "weft-node").await;
    let other = pod(&client, NAMESPACE, "other", "node-1", "other").await;
    let elsewhere = pod(&client, "shop", "agent", "node-1", "weft-node").await;
    let web = pod(&client, "shop", "web", "node-1", "web").await;
    let far = pod(&client, "shop", "far", "node-2", "web").await;
    let control = Control::start(&server, "control");
    let root = published(&client).await;

    control.says("the cluster has no ClusterTrustBundle").await;
    let own = Some(("agent", agent.as_str()));
    let good = token(&client, NAMESPACE, "weft-node", "weft-control", own).await;
    let no_audience = token(&client, NAMESPACE, "weft-node", "https://kubernetes.default.svc", own).await;
    let no_node = token(&client, NAMESPACE, "weft-node", "weft-control", None).await;
    let of_other = token(&client, NAMESPACE, "other", "weft-control", Some(("other", &other))).await;
    let of_shop = token(&client, "shop", "weft-node", "weft-control", Some(("agent", &elsewhere))).await;
    for (what, shown) in [
        ("another audience", no_audience.as_str()),
        ("no node", &no_node),
        ("another account", &of_other),
        ("another namespace", &of_shop),
        ("no token of this cluster", "eyJhbGciOiJub25lIn0.e30."),
    ] {
        let refused = control.sign_node(&root, shown).await.map(drop).unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{what}: {refused:?}");
    }
    control.says("names no node").await;
    control.says("system:serviceaccount:shop:weft-node").await;
    let shown = control.sign_node(&root, &good).await.unwrap();
    let log = control.log();
    assert!([&good, &no_audience, &no_node, &of_other].iter().all(|token| !log.contains(token.as_str())));

    let channel = control.channel(&root, Some(shown)).await;
    let sign = |uid: &str, name: &str| {
        let mut client = CertificatesClient::new(channel.clone());
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let request = SignRequest {
            pod_uid: uid.into(),
            csr_der: csr(&key),
            pod_namespace: "shop".into(),
            pod_name: name.into(),
        };
        async move { client.sign(request).await.map(drop).map_err(|status| status.code()) }
    };
    assert_eq!(sign(&web, "web").await, Ok(()));
    assert_eq!(sign(&far, "far").await, Err(Code::PermissionDenied), "a pod of another node");
    // Asked at once after its creation: whether the watch or the look-up knows it first, it is granted.
    for i in 0..10 {
        let name = format!("new-{i}");
        let uid = pod(&client, "shop", &name, "node-1", "web").await;
        assert_eq!(sign(&uid, &name).await, Ok(()), "{name}");
    }
    // A hint is no more than that: the UID counts.
    assert_eq!(sign("11111111-2222-3333-4444-555555555555", "web").await, Err(Code::PermissionDenied));
    // All at once: one after the other they could be slower than the quota is filled again. Of so many, more than a whole quota comes
    // before or after any pause of this machine.
    let unknown = || sign("11111111-2222-3333-4444-555555555555", "web");
    let codes = futures_util::future::join_all((0..60).map(|_| unknown())).await;
    assert!(codes.contains(&Err(Code::ResourceExhausted)), "{codes:?}");
    assert_eq!(sign(&web, "web").await, Ok(()), "known pods are not concerned");

    server.pause(true);
    let unavailable = control.sign_node(&root, &good).await.map(drop).unwrap_err();
    assert_eq!(unavailable.code(), Code::Unavailable, "{unavailable:?}");
    assert_eq!(sign(&web, "web").await, Ok(()), "who has a certificate goes on");
    server.pause(false);
    until("a certificate again", || async { control.sign_node(&root, &good).await.ok() }).await;

    // The agent's pod is gone: so is its token.
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    pods.delete("agent", &kube::api::DeleteParams::default().grace_period(0)).await.unwrap();
    until("a refusal", || async {
        let asked = control.sign_node(&root, &good).await.map(drop);
        (asked.err()?.code() == Code::Unauthenticated).then_some(())
    })
    .await;
}

#[tokio::test]
async fn replicas_share_one_authority_and_follow_it_through_a_rotation() {
    let server = ApiServer::start(&[
        "--runtime-config=certificates.k8s.io/v1beta1/clustertrustbundles=true",
        "--feature-gates=ClusterTrustBundle=true",
    ])
    .await;
    let client = server.client().await;
    namespace(&client, NAMESPACE, false).await;
    let replicas = [Control::start(&server, "one"), Control::start(&server, "two")];
    for replica in &replicas {
        replica.says("weft-control is up").await;
    }
    let made = replicas.iter().filter(|replica| replica.log().contains("a root was made")).count();
    assert_eq!(made, 1, "one makes the root, the other takes it");
    let (first, data) = (published(&client).await, secret(&client).await);
    assert_eq!(String::from_utf8(data["ca.crt"].0.clone()).unwrap().trim(), first.trim());
    for replica in &replicas {
        // Its listener's certificate chains to the published root.
        replica.channel(&first, None).await;
        replica.says("published as a ClusterTrustBundle").await;
    }

    let of_old = Node::connect(replicas[0].address, &client, "node-1").await;

    // What cannot sign is told by name, and nothing changes.
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let next = params.self_signed(&key).unwrap().pem();
    let stranger = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
    replace_secret(&client, &next, &stranger).await;
    for replica in &replicas {
        replica.says("tls.crt of Secret weft-system/weft-ca: does not belong to the key").await;
        let problem = replica.status().await["authority"]["problem"].clone();
        assert!(problem.as_str().is_some_and(|text| text.contains("tls.crt")), "{problem}");
    }
    assert_eq!(published(&client).await, first);

    // Another authority: both are trusted, the old one still signs.
    replace_secret(&client, &next, &key.serialize_pem()).await;
    let both = until("both roots", || async {
        let text = published(&client).await;
        (text.matches("BEGIN CERTIFICATE").count() == 2).then_some(text)
    })
    .await;
    for replica in &replicas {
        until("a rotation", || async {
            let authority = replica.status().await["authority"].clone();
            (authority["rotating"] == true && authority["roots"].as_array()?.len() == 2).then_some(())
        })
        .await;
        replica.channel(&first, None).await;
        replica.channel(&both, None).await;
    }
    // A replica that starts meanwhile trusts both, too.
    let third = Control::start(&server, "three");
    third.says("weft-control is up").await;
    assert_eq!(third.status().await["authority"]["roots"].as_array().unwrap().len(), 2);
    // All who had the old key are gone in the middle of it: what it signed is believed still, also at a new connection.
    drop(replicas);
    let mut again = of_old.again(third.address, &both).await;
    again.delta().await;
    // The old root is taken out by hand, and stays out once it no longer signs.
    let change = serde_json::json!({ "data": { "previous.pem": null } });
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    maps.patch("weft-trust-bundle", &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
    until("one root", || async {
        (published(&client).await.matches("BEGIN CERTIFICATE").count() == 1).then_some(())
    })
    .await;
    third.channel(&next, None).await;
}

/// An intermediate as cert-manager writes it by default: RSA, in PKCS#1.
fn intermediate(root: &Issuer<'_, KeyPair>, until_year: i32) -> (String, String) {
    let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "weft");
    params.not_after = rcgen::date_time_ymd(until_year, 1, 1);
    let certificate = params.signed_by(&key, root).unwrap().pem();
    let pkcs8 = key.serialize_der();
    let (_, whole) = x509_parser::der_parser::parse_der(&pkcs8).unwrap();
    let pkcs1 = whole[2].as_slice().unwrap().to_vec();
    (certificate, pem::encode(&pem::Pem::new("RSA PRIVATE KEY", pkcs1)))
}

#[tokio::test]
async fn an_intermediate_as_cert_manager_writes_it_signs_and_is_renewed_under_its_root() {
    let server = ApiServer::start(&[]).await;
    let client = server.client().await;
    namespace(&client, NAMESPACE, false).await;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "root");
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let root = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let (certificate, key) = intermediate(&issuer, 2096);
    let object = serde_json::json!({
        "metadata": { "name": "weft-ca" },
        "type": "kubernetes.io/tls",
        "stringData": { "tls.crt": certificate, "tls.key": key, "ca.crt": root },
    });
    create::<Secret>(&client, NAMESPACE, object).await;

    let control = Control::start(&server, "control");
    let same = |published: String| published.lines().eq(root.lines());
    assert!(same(published(&client).await), "the root alone is to be trusted");
    // Its listener sends the intermediate.
    control.channel(&root, None).await;
    assert!(!control.log().contains("a root was made"));

    let ends = |year: i32| {
        let control = &control;
        async move {
            let end = rcgen::date_time_ymd(year, 1, 1).unix_timestamp();
            until(&format!("an authority until {year}"), || async {
                let authority = control.status().await["authority"].clone();
                (authority["not_after_unix_s"] == end && authority["rotating"] == false).then_some(())
            })
            .await;
        }
    };
    ends(2096).await;
    let (certificate, key) = intermediate(&issuer, 2097);
    replace_authority(&client, &certificate, &key, &root).await;
    ends(2097).await;
    assert!(same(published(&client).await), "another intermediate is no other root");

    replace_authority(&client, &certificate, "nonsense", &root).await;
    control.says("tls.key of Secret weft-system/weft-ca: is not a private key that can be used").await;
    control.channel(&root, None).await;
}
