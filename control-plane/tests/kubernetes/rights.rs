//! The rights that the chart gives weft-control are those that it uses: no request is refused for want of one, and each is needed. Of
//! weft-node's: `node-proxy/src/uninstall/tests.rs`.

use std::path::Path;

use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::Client;
use kube::api::{Api, PostParams};
use rcgen::KeyPair;
use serde_json::Value;
use tonic::Code;
use weft_proto::v1::SignRequest;
use weft_proto::v1::certificates_client::CertificatesClient;

use super::api_server::ApiServer;
use super::authorizer::{Authorizer, Question};
use super::cluster::{POLICY, ROUTE, apply, conditions, gateway_api, install, label, shop};
use super::control::{Control, csr, until};
use super::events::{events_on, odd_pod};
use super::identity::{NAMESPACE, account, cluster_bundle, pod, published, replace_root, token};
use super::node::Node;

const RIGHTS: [&str; 4] = ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
const USER: &str = "system:serviceaccount:weft-system:weft-control";
/// To a Service that is not there: its status says so.
const GRPC: &str = "{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: nowhere, namespace: shop}, spec: \
    {parentRefs: [{group: '', kind: Service, name: nowhere}]}}";
const TRAFFIC: &str = "{apiVersion: weft.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: eject, namespace: shop}, spec: \
    {targetRefs: [{group: '', kind: Service, name: backend}], ejection: {consecutiveFailures: 3}}}";

/// One verb on one resource, of which a rule may name one object.
#[derive(Debug, PartialEq, Eq)]
struct Right {
    verb: String,
    group: String,
    /// With its subresource.
    resource: String,
    name: Option<String>,
    /// None: in all.
    namespace: Option<String>,
}

impl Right {
    fn allows(&self, asked: &Question) -> bool {
        (&self.verb, &self.group, &self.resource) == (&asked.verb, &asked.group, &asked.resource)
            && self.name.as_ref().is_none_or(|name| *name == asked.name)
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == asked.namespace)
    }
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|one| one.as_str().unwrap().to_owned()).collect()
}

/// What the roles of this name give, one by one.
fn granted(name: &str) -> Vec<Right> {
    let mut all = Vec::new();
    for document in rendered(&["ClusterRole", "Role"]) {
        let role: Value = serde_yaml_ng::from_str(&document).unwrap();
        if role["metadata"]["name"] != name {
            continue;
        }
        let namespace = role["metadata"]["namespace"].as_str().map(str::to_owned);
        for rule in role["rules"].as_array().unwrap() {
            let mut names: Vec<_> = texts(&rule["resourceNames"]).into_iter().map(Some).collect();
            if names.is_empty() {
                names.push(None);
            }
            let verbs = texts(&rule["verbs"]);
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for (verb, name) in
                        verbs.iter().flat_map(|verb| names.iter().map(move |name| (verb, name)))
                    {
                        all.push(Right {
                            verb: verb.clone(),
                            group: group.clone(),
                            resource: resource.clone(),
                            name: name.clone(),
                            namespace: namespace.clone(),
                        });
                    }
                }
            }
        }
    }
    all
}

/// Those that nothing of what was asked needs: none of it, or only what another right allows too.
fn unneeded<'a>(granted: &'a [Right], asked: &[Question]) -> Vec<&'a Right> {
    let needs = |right: &Right, asked: &Question| {
        right.allows(asked) && granted.iter().filter(|other| other.allows(asked)).count() == 1
    };
    granted.iter().filter(|right| !asked.iter().any(|asked| needs(right, asked))).collect()
}

/// The documents of the rendered manifest that are of these kinds.
pub(super) fn rendered(kinds: &[&str]) -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/weft.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    let is_wanted = |document: &&str| {
        let kind = document.lines().find_map(|line| line.strip_prefix("kind: "));
        kind.is_some_and(|kind| kinds.contains(&kind.trim()))
    };
    text.split("\n---\n").filter(is_wanted).map(Into::into).collect()
}

/// Until the API server's authorizer, which follows roles and bindings by watches of its own, knows of those that were just made.
async fn known(client: &Client) {
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    for (namespace, group, resource, verb) in
        [("", "", "pods", "list"), (NAMESPACE, "coordination.k8s.io", "leases", "create")]
    {
        let attributes =
            serde_json::json!({"namespace": namespace, "group": group, "resource": resource, "verb": verb});
        let review = serde_json::json!({"spec": {"user": USER, "resourceAttributes": attributes}});
        let review: SubjectAccessReview = serde_json::from_value(review).unwrap();
        until(&format!("the right to {verb} {resource}"), || async {
            let answer = reviews.create(&PostParams::default(), &review).await.unwrap();
            answer.status.unwrap().allowed.then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_charts_rights_are_enough_and_each_is_needed() {
    let authorizer = Authorizer::start().await;
    let mut further = vec![
        "--runtime-config=certificates.k8s.io/v1beta1/clustertrustbundles=true",
        "--feature-gates=ClusterTrustBundle=true",
    ];
    further.extend(authorizer.arguments.iter().map(String::as_str));
    let server = ApiServer::start(&further).await;
    let client = shop(&server).await;
    for kind in ["httproutes", "grpcroutes", "referencegrants"] {
        install(&client, &gateway_api(kind)).await;
    }
    apply(&client, &label("enabled")).await.unwrap();
    account(&client, NAMESPACE, "weft-control").await;
    account(&client, NAMESPACE, "weft-node").await;
    let rights = rendered(&RIGHTS);
    assert_eq!(rights.len(), 8, "{rights:?}");
    for document in &rights {
        apply(&client, document).await.unwrap();
    }
    known(&client).await;
    authorizer.begin();
    let own = token(&client, NAMESPACE, "weft-control", "https://kubernetes.default.svc", None).await;
    let control = Control::start_by(&server, &server.kubeconfig_of(&own), "control", &["--watch-time=4s"]);
    control.says("weft-control is up").await;
    control.says("published as a ClusterTrustBundle").await;
    let first = published(&client).await;
    let spec = serde_json::json!({"signerName": "weft.dev/mesh", "trustBundle": first});
    assert_eq!(cluster_bundle(&client).await, Some(spec));

    // Every kind is listed and watched, or nodes would not be served.
    let mut node = Node::connect_when_served(control.address, &client, "node-1").await;
    apply(&client, ROUTE).await.unwrap();
    node.until("shop/split").await;
    apply(&client, POLICY).await.unwrap();
    node.until("shop/deny").await;
    let programmed = [("Programmed", "False", "1 of 2 nodes have it")];
    conditions(&client, POLICY, &programmed).await;
    conditions(&client, ROUTE, &[("Accepted", "True", "")]).await;
    apply(&client, GRPC).await.unwrap();
    conditions(&client, GRPC, &[("Accepted", "False", "NoMatchingParent")]).await;
    apply(&client, TRAFFIC).await.unwrap();
    conditions(&client, TRAFFIC, &[("Accepted", "True", "")]).await;

    // What is wrong with an object that has no status of Weft's.
    apply(&client, &odd_pod("odd", "maybe")).await.unwrap();
    until("an event", || async { (events_on(&client, "Pod", "odd").await.len() == 1).then_some(()) }).await;

    // Tokens, and a pod that the watch need not have brought yet.
    let agent = pod(&client, NAMESPACE, "agent", "node-2", "weft-node").await;
    let shown = token(&client, NAMESPACE, "weft-node", "weft-control", Some(("agent", agent.as_str()))).await;
    let root = published(&client).await;
    let shown = control.sign_node(&root, &shown).await.unwrap();
    let request = SignRequest {
        pod_uid: "11111111-2222-3333-4444-555555555555".into(),
        csr_der: csr(&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()),
        pod_namespace: "shop".into(),
        pod_name: "backend".into(),
    };
    let refused = CertificatesClient::new(control.channel(&root, Some(shown)).await).sign(request).await;
    assert_eq!(refused.map(drop).unwrap_err().code(), Code::PermissionDenied);

    // Another root: the bundle that is published changes, and the ClusterTrustBundle with it.
    replace_root(&client).await;
    let both = until("two roots", || async {
        let text = published(&client).await;
        (text.matches("BEGIN CERTIFICATE").count() == 2).then_some(text)
    })
    .await;
    until("both roots in the ClusterTrustBundle", || async {
        (cluster_bundle(&client).await?["trustBundle"] == both).then_some(())
    })
    .await;

    // A second replica: whose nodes are counted, and whose Lease is taken away by name.
    let second = Control::start_by(&server, &server.kubeconfig_of(&own), "second", &["--watch-time=4s"]);
    let mut other = Node::connect_when_served(second.address, &client, "node-2").await;
    other.until("shop/deny").await;
    conditions(&client, POLICY, &[("Programmed", "True", "2 of 2 nodes have it")]).await;
    for replica in [control, second] {
        let log = replica.ended().await;
        // The reason alone: the number of the status may be part of a time.
        assert!(!log.to_lowercase().contains("forbidden"), "{log}");
    }
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let left = leases.list(&kube::api::ListParams::default()).await.unwrap();
    let names: Vec<_> = left.items.iter().filter_map(|lease| lease.metadata.name.as_deref()).collect();
    assert_eq!(names, ["weft-control"]);

    let (granted, asked) = (granted("weft-control"), authorizer.asked_by(USER));
    let refused: Vec<_> = asked.iter().filter(|one| !granted.iter().any(|right| right.allows(one))).collect();
    assert!(refused.is_empty(), "no right to {refused:#?}");
    let unneeded = unneeded(&granted, &asked);
    assert!(unneeded.is_empty(), "nothing needs {unneeded:#?} in {asked:#?}");
}
