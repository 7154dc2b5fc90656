//! The rights that the chart gives weft-control are enough for all that it does, and no request is refused for want of one.

use std::path::Path;

use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::Client;
use kube::api::{Api, PostParams};

use super::api_server::ApiServer;
use super::cluster::{POLICY, ROUTE, apply, conditions, gateway_api, install, label, shop};
use super::control::{Control, until};
use super::events::{events_on, odd_pod};
use super::identity::{NAMESPACE, account, pod, published, token};
use super::node::Node;

const RIGHTS: [&str; 4] = ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];

/// The documents of the rendered manifest that are of these kinds.
fn rendered(kinds: &[&str]) -> Vec<String> {
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
        let user = format!("system:serviceaccount:{NAMESPACE}:weft-control");
        let review = serde_json::json!({"spec": {"user": user, "resourceAttributes": attributes}});
        let review: SubjectAccessReview = serde_json::from_value(review).unwrap();
        until(&format!("the right to {verb} {resource}"), || async {
            let answer = reviews.create(&PostParams::default(), &review).await.unwrap();
            answer.status.unwrap().allowed.then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_charts_rights_are_enough_and_none_is_missing() {
    let server = ApiServer::start(&[
        "--runtime-config=certificates.k8s.io/v1beta1/clustertrustbundles=true",
        "--feature-gates=ClusterTrustBundle=true",
    ])
    .await;
    let client = shop(&server).await;
    for kind in ["httproutes", "grpcroutes", "referencegrants"] {
        install(&client, &gateway_api(kind)).await;
    }
    apply(&client, &label("enabled")).await.unwrap();
    account(&client, NAMESPACE, "weft-control").await;
    account(&client, NAMESPACE, "weft-node").await;
    let rights = rendered(&RIGHTS);
    assert_eq!(rights.len(), 6, "{rights:?}");
    for document in &rights {
        apply(&client, document).await.unwrap();
    }
    known(&client).await;
    let own = token(&client, NAMESPACE, "weft-control", "https://kubernetes.default.svc", None).await;
    let control = Control::start_by(&server, &server.kubeconfig_of(&own), "control", &["--watch-time=4s"]);
    control.says("weft-control is up").await;
    control.says("published as a ClusterTrustBundle").await;

    // Every kind is listed and watched, or nodes would not be served.
    let mut node = Node::connect_when_served(control.address, &client, "node-1").await;
    apply(&client, ROUTE).await.unwrap();
    node.until("shop/split").await;
    apply(&client, POLICY).await.unwrap();
    node.until("shop/deny").await;
    let programmed = [("Programmed", "False", "1 of 2 nodes have it")];
    conditions(&client, POLICY, &programmed).await;
    conditions(&client, ROUTE, &[("Accepted", "True", "")]).await;

    // What is wrong with an object that has no status of Weft's.
    apply(&client, &odd_pod("odd", "maybe")).await.unwrap();
    until("an event", || async { (events_on(&client, "Pod", "odd").await.len() == 1).then_some(()) }).await;

    // Tokens, and a pod that the watch need not have brought yet.
    let agent = pod(&client, NAMESPACE, "agent", "node-2", "weft-node").await;
    let shown = token(&client, NAMESPACE, "weft-node", "weft-control", Some(("agent", agent.as_str()))).await;
    control.sign_node(&published(&client).await, &shown).await.unwrap();

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
}
