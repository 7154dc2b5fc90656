//! An API server that answers wrongly, lately or not at all: nodes keep what they have, the log names the kind, and what changed
//! meanwhile arrives whole once it is well again.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::Client;
use kube::api::DeleteParams;
use tonic::Code;

use super::api_server::ApiServer;
use super::cluster::{POLICY, api_of, apply, conditions, label, shop, uid};
use super::control::{Control, until};
use super::identity::{NAMESPACE, account, pod, published, token};
use super::node::Node;
use super::proxy::{ERROR_500, Fault, Proxy};

/// Short, so that a dead connection is noticed after five seconds.
const WATCH_TIME: &str = "--watch-time=4s";
const OFTEN: usize = 1_000_000;

fn service(name: &str, port: u16) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{ports: [{{port: {port}}}]}}}}"
    )
}

async fn delete(client: &Client, yaml: &str) {
    let object: kube::api::DynamicObject = serde_yaml_ng::from_str(yaml).unwrap();
    let name = object.metadata.name.clone().unwrap();
    api_of(client, &object).delete(&name, &DeleteParams::default()).await.unwrap();
}

/// A control plane behind a proxy, with a node in sync.
struct Bed {
    server: ApiServer,
    client: Client,
    proxy: Proxy,
    control: Control,
    node: Node,
}

impl Bed {
    async fn new() -> Self {
        let server = ApiServer::start(&[]).await;
        let client = shop(&server).await;
        apply(&client, &label("enabled")).await.unwrap();
        apply(&client, &service("old", 80)).await.unwrap();
        let proxy = Proxy::start(client.clone()).await;
        let control =
            Control::start_by(&server, &server.kubeconfig_by(proxy.address), "control", &[WATCH_TIME]);
        control.says("weft-control is up").await;
        let mut node = Node::connect_when_served(control.address, &client, "node-1").await;
        let backend = uid(&client, "backend").await;
        node.until(&backend).await;
        Self { server, client, proxy, control, node }
    }

    /// The next delta is exactly this, whole and at once (`-`: taken away).
    async fn brings(&mut self, wanted: &[&str]) {
        let delta = self.node.delta().await;
        let came = delta.upserts.iter().map(|upsert| upsert.key.as_ref().unwrap().name.clone());
        let came: BTreeSet<String> =
            came.chain(delta.removals.iter().map(|removal| format!("-{}", removal.name))).collect();
        assert_eq!(came, wanted.iter().map(|name| (*name).to_owned()).collect());
    }

    async fn quiet(&mut self) {
        self.node.quiet(Duration::from_secs(1)).await;
    }

    /// Trouble of a kind is told in status, and its end.
    async fn trouble(&self, kind: &str, text: &str, there: bool) {
        until(&format!("{kind}: {text:?}: {there}"), || async {
            let status = self.control.status().await;
            let errors = status["source"]["errors"].as_array().unwrap().clone();
            let found = errors.iter().any(|error| {
                error["file"] == kind
                    && error["message"].as_str().is_some_and(|message| message.contains(text))
            });
            (found == there).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_watch_that_fails_loses_nothing_and_takes_nothing_away() {
    let mut bed = Bed::new().await;
    let client = bed.client.clone();

    // The changes that the watch would bring are no longer there (410), and the list fails (500): what is known stays.
    bed.proxy.spoil("list services", OFTEN, ERROR_500);
    bed.proxy.spoil("event services", 1, Fault::Expired);
    apply(&client, &service("new", 80)).await.unwrap();
    bed.control.says("etcdserver: no leader").await;
    bed.control.says("kind=\"services\"").await;
    bed.trouble("services", "last known state stays", true).await;
    apply(&client, &service("newer", 80)).await.unwrap();
    delete(&client, &service("old", 80)).await;
    bed.quiet().await;
    // The new list is one difference: nothing that stayed is touched, and no half of it is seen.
    bed.proxy.heal();
    bed.brings(&["-shop/old", "shop/new", "shop/newer"]).await;
    bed.trouble("services", "", false).await;
    bed.control.says("watching again").await;
    bed.quiet().await;

    // A line that is no JSON was a change: it is fetched by a new list.
    let lists = bed.proxy.calls("list services").len();
    bed.proxy.spoil("event services", 1, Fault::Line(r#"{"type":"MODIFIED","object":garbage"#));
    apply(&client, &service("new", 81)).await.unwrap();
    bed.brings(&["shop/new"]).await;
    assert!(bed.proxy.calls("list services").len() > lists);
    // So it is with a list that is no list, and one whose end is missing.
    for body in [
        "<html>a proxy's error page</html>",
        r#"{"kind":"ServiceList","apiVersion":"v1","items":[{"metadata":{"#,
    ] {
        let answer = Fault::Answer { code: 200, retry_after_s: None, body };
        bed.proxy.spoil("list services", OFTEN, answer);
        bed.proxy.spoil("event services", 1, Fault::Expired);
        let port = 82 + u16::try_from(body.len() % 100).unwrap();
        apply(&client, &service("new", port)).await.unwrap();
        bed.trouble("services", "last known state stays", true).await;
        bed.proxy.heal();
        bed.brings(&["shop/new"]).await;
        bed.trouble("services", "", false).await;
    }

    // A connection that breaks within a change: resumed from the change before, without a list.
    let lists = bed.proxy.calls("list services").len();
    bed.proxy.spoil("event services", 1, Fault::Cut);
    apply(&client, &service("newer", 81)).await.unwrap();
    bed.brings(&["shop/newer"]).await;
    assert_eq!(bed.proxy.calls("list services").len(), lists);

    // An API server that is busy is left alone for as long as it asks.
    let busy = Fault::Answer {
        code: 429,
        retry_after_s: Some(3),
        body: "Too many requests, please try again later.",
    };
    bed.proxy.spoil("watch services", 1, busy);
    bed.proxy.spoil("event services", 1, Fault::Cut);
    let watches = bed.proxy.calls("watch services").len();
    apply(&client, &service("newer", 82)).await.unwrap();
    bed.brings(&["shop/newer"]).await;
    // What brings it may be a list, which the watch follows.
    let stayed_away = until("the next watch", || async {
        let calls = bed.proxy.calls("watch services");
        calls.get(watches + 1).map(|next| *next - calls[watches])
    })
    .await;
    assert!(stayed_away >= Duration::from_secs(3), "{stayed_away:?}");

    // Half open: nothing comes any more, and no end either.
    bed.proxy.spoil("event services", 1, Fault::Silence);
    apply(&client, &service("newer", 83)).await.unwrap();
    bed.quiet().await;
    bed.brings(&["shop/newer"]).await;
    bed.quiet().await;
    bed.trouble("services", "", false).await;
    drop(bed.server);
}

#[tokio::test]
async fn writes_and_reviews_that_fail_are_told_by_name_and_made_good() {
    let mut bed = Bed::new().await;
    let client = bed.client.clone();
    apply(&client, POLICY).await.unwrap();
    bed.node.until("shop/deny").await;
    let programmed = [("Programmed", "False", "1 of 2 nodes have it")];
    conditions(&client, POLICY, &programmed).await;

    // Status: the object is named, and it is written in the end.
    bed.proxy.spoil("patch authorizationpolicies/status", OFTEN, ERROR_500);
    apply(&client, &POLICY.replace("8080", "9090")).await.unwrap();
    bed.node.until("shop/deny").await;
    bed.control.says("object=AuthorizationPolicy shop/deny").await;
    bed.proxy.heal();
    conditions(&client, POLICY, &programmed).await;

    // The Leases, and an API server that is busy.
    let busy = Fault::Answer {
        code: 429,
        retry_after_s: Some(1),
        body: "Too many requests, please try again later.",
    };
    for call in ["get leases", "update leases", "patch leases", "list leases"] {
        bed.proxy.spoil(call, OFTEN, busy.clone());
    }
    bed.control.says("the Lease cannot be read or renewed").await;
    bed.control.says("status cannot be written now").await;
    apply(&client, &POLICY.replace("8080", "9091")).await.unwrap();
    bed.node.until("shop/deny").await;
    bed.proxy.heal();
    bed.control.says("the Lease is read and renewed again").await;
    bed.control.says("status is written again").await;
    conditions(&client, POLICY, &programmed).await;

    // Tokens: nobody is let in or thrown out by an API server that cannot judge.
    account(&client, NAMESPACE, "weft-node").await;
    let agent = pod(&client, NAMESPACE, "agent", "node-2", "weft-node").await;
    let shown = token(&client, NAMESPACE, "weft-node", "weft-control", Some(("agent", agent.as_str()))).await;
    let root = published(&client).await;
    let nonsense = Fault::Answer {
        code: 201,
        retry_after_s: None,
        body: r#"{"kind":"TokenReview","status":{"authenticated":"yes"}"#,
    };
    let empty = Fault::Answer { code: 201, retry_after_s: None, body: "{}" };
    for (fault, told) in [
        (ERROR_500, "the API server answered 500"),
        (busy, "the API server answered 429"),
        (nonsense, "the API server's answer cannot be used"),
        (empty, "the API server's review says nothing"),
    ] {
        bed.proxy.spoil("create tokenreviews", 1, fault);
        let refused = bed.control.sign_node(&root, &shown).await.map(drop).unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{told}: {refused:?}");
        bed.control.says(told).await;
    }
    bed.control.sign_node(&root, &shown).await.unwrap();
    assert!(!bed.control.log().contains(&shown));

    // The authority's Secret cannot be read: told by its name, and what was good stays.
    bed.proxy.spoil("get secrets", OFTEN, ERROR_500);
    bed.control.says("Secret weft-ca in weft-system").await;
    bed.control.sign_node(&root, &shown).await.unwrap();
    bed.proxy.heal();
    until("the authority's store again", || async {
        bed.control.status().await["authority"]["problem"].is_null().then_some(())
    })
    .await;
}
