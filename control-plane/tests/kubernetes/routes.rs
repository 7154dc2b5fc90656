//! GRPCRoutes and ReferenceGrants of a real API server, one beside the other as their CRDs come.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject};

use super::api_server::ApiServer;
use super::cluster::{ROUTE, api_of, apply, conditions, control, gateway_api, install, label, shop, until};
use super::node::Node;

const GRPC: &str = "{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: split, namespace: shop}, spec: \
    {parentRefs: [{group: '', kind: Service, name: backend, port: 80}], rules: [{matches: [{method: {service: a.Greeter}}], \
    backendRefs: [{name: far, namespace: far, port: 80}]}]}}";
const GRANT: &str = "{apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {name: shop, namespace: far}, \
    spec: {from: [{group: gateway.networking.k8s.io, kind: GRPCRoute, namespace: shop}], to: [{group: '', kind: Service, name: far}]}}";
const FAR: &str = "\
{apiVersion: v1, kind: Namespace, metadata: {name: far}}
---
{apiVersion: v1, kind: Service, metadata: {name: far, namespace: far}, spec: {ports: [{port: 80}]}}
";

#[tokio::test]
async fn grpc_routes_and_grants_are_followed_as_their_crds_come() {
    let server = ApiServer::start(&[]).await;
    let client = shop(&server).await;
    apply(&client, &label("enabled")).await.unwrap();
    apply(&client, FAR).await.unwrap();
    install(&client, &gateway_api("httproutes")).await;
    apply(&client, ROUTE).await.unwrap();
    let control = control(&server).await;
    let mut node = Node::connect(control.grpc_address, &client, "node-1").await;
    // Two kinds are not installed: the third is served all the same.
    node.until("shop/split").await;
    let accepted = ("Accepted", "True", "Accepted");
    conditions(&client, ROUTE, &[accepted]).await;
    let report = control.world.report.borrow().clone();
    let absent = |kind: &str| report.warnings.iter().any(|warning| warning.to_string().contains(kind));
    assert!(absent("grpcroutes.gateway") && absent("referencegrants.gateway"), "{report:?}");

    install(&client, &gateway_api("grpcroutes")).await;
    apply(&client, GRPC).await.unwrap();
    conditions(&client, GRPC, &[accepted, ("ResolvedRefs", "False", "RefNotPermitted")]).await;
    let have = ("weft.dev/Programmed", "False", "1 of 2 nodes have it");
    node.until("shop/split").await;
    conditions(&client, GRPC, &[have]).await;
    // Of the same name, Service and port.
    conditions(&client, ROUTE, &[("Accepted", "False", "Conflicted")]).await;

    install(&client, &gateway_api("referencegrants")).await;
    apply(&client, GRANT).await.unwrap();
    node.until("shop/split").await;
    conditions(&client, GRPC, &[accepted, ("ResolvedRefs", "True", "ResolvedRefs")]).await;
    let grant: DynamicObject = serde_yaml_ng::from_str(GRANT).unwrap();
    api_of(&client, &grant).delete("shop", &DeleteParams::default()).await.unwrap();
    node.until("shop/split").await;
    conditions(&client, GRPC, &[("ResolvedRefs", "False", "RefNotPermitted")]).await;

    // The API server knows this feature and Weft does not: said, and what was good stays in force.
    let mirrored = GRPC.replace(
        "port: 80}]}]}}",
        "port: 80, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: backend, port: 80}}}]}]}]}}",
    );
    apply(&client, &mirrored).await.unwrap();
    conditions(&client, GRPC, &[("Accepted", "False", "UnsupportedValue")]).await;
    conditions(&client, ROUTE, &[("Accepted", "False", "Conflicted")]).await;
    let grpc: DynamicObject = serde_yaml_ng::from_str(GRPC).unwrap();
    api_of(&client, &grpc).delete("split", &DeleteParams::default()).await.unwrap();
    node.until("-shop/split").await;
    conditions(&client, ROUTE, &[accepted]).await;
    let well = async || control.world.report.borrow().warnings.is_empty().then_some(());
    until("an end of the warnings", well).await;

    // A CRD that is taken away takes its objects with it, and that is told; put back, it is followed without a restart.
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    crds.delete("httproutes.gateway.networking.k8s.io", &DeleteParams::default()).await.unwrap();
    node.until("-shop/split").await;
    let absent = async || {
        let report = control.world.report.borrow().clone();
        report.warnings.iter().any(|warning| warning.to_string().contains("httproutes.gateway")).then_some(())
    };
    until("a warning of the kind that went", absent).await;
    install(&client, &gateway_api("httproutes")).await;
    apply(&client, ROUTE).await.unwrap();
    node.until("shop/split").await;
    conditions(&client, ROUTE, &[accepted]).await;
    until("an end of the warnings", well).await;
    control.stop().await;
}
