//! What is wrong with a label or an annotation of a Pod or a Namespace is told where its owner looks: by one event on it.

use k8s_openapi::api::core::v1::Event;
use kube::Client;
use kube::api::{Api, ListParams};

use super::api_server::ApiServer;
use super::cluster::{apply, control, label, shop, until};

/// A pod of `shop` with this word as its label.
pub(super) fn odd_pod(name: &str, word: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{weft.dev/mesh: {word}}}}}, spec: \
         {{nodeName: node-1, containers: [{{name: c, image: i}}]}}}}"
    )
}

/// `<type> <reason>: <message>` of each event on an object, as kubectl finds them.
pub(super) async fn events_on(client: &Client, kind: &str, name: &str) -> Vec<String> {
    let api: Api<Event> = Api::namespaced(client.clone(), "shop");
    let on = ListParams::default().fields(&format!("involvedObject.kind={kind},involvedObject.name={name}"));
    let mut found: Vec<String> = api
        .list(&on)
        .await
        .unwrap()
        .items
        .into_iter()
        .map(|event| {
            assert!(event.involved_object.uid.is_some());
            let text = |text: Option<String>| text.unwrap_or_default();
            format!("{} {}: {}", text(event.type_), text(event.reason), text(event.message))
        })
        .collect();
    found.sort();
    found
}

async fn come(client: &Client, kind: &str, name: &str, wanted: &[&str]) {
    until(&format!("events on {kind} {name}"), async || {
        let found = events_on(client, kind, name).await;
        assert!(found.len() <= wanted.len(), "{found:?}");
        (found == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_wrong_label_is_told_by_one_event_on_its_object_whoever_writes_and_however_often_it_is_listed() {
    let mut server = ApiServer::start(&[]).await;
    let client = shop(&server).await;
    apply(&client, &label("enabel")).await.unwrap();
    apply(&client, &odd_pod("odd", "maybe")).await.unwrap();
    let (first, second) = (control(&server).await, control(&server).await);
    let maybe = "Warning InvalidMetadata: label weft.dev/mesh: \"maybe\" is not enabled or disabled; the namespace decides";
    let never = "Warning InvalidMetadata: label weft.dev/mesh: \"never\" is not enabled or disabled; the namespace decides";
    let enabel = "Warning InvalidMetadata: label weft.dev/mesh: \"enabel\" is not enabled or disabled; it counts as enabled";
    come(&client, "Pod", "odd", &[maybe]).await;
    come(&client, "Namespace", "shop", &[enabel]).await;
    // Another wrong word is another event.
    apply(&client, &odd_pod("odd", "never")).await.unwrap();
    come(&client, "Pod", "odd", &[maybe, never]).await;
    // An API server that was away is listed anew, and the other replica writes: what was told is not told again. They are told in
    // the order of their names, so with the last one's event all the others have been looked at.
    server.down();
    server.up().await;
    first.stop().await;
    apply(&client, &odd_pod("odd-too", "maybe")).await.unwrap();
    come(&client, "Pod", "odd-too", &[maybe]).await;
    come(&client, "Pod", "odd", &[maybe, never]).await;
    come(&client, "Namespace", "shop", &[enabel]).await;
    for right in ["frontend", "backend"] {
        come(&client, "Pod", right, &[]).await;
    }
    second.stop().await;
}
