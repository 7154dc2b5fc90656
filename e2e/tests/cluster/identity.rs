//! Who gets a certificate: a node with a token of its own pod, for the pods that run there.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use tonic::{Code, Status};
use weft_e2e::cluster::Cluster;
use weft_e2e::cluster::weft::NAMESPACE;
use weft_e2e::lab::wait;
use weft_e2e::story::identity::ask;

use crate::fixture::{CHANGE_WAIT_MAX, Shop, together};

/// Asks a replica of weft-control, with this token, for a certificate of this pod.
fn asked(cluster: &Cluster, token: &str, pod_uid: &str) -> Result<Result<usize, Status>> {
    // Not one that is still going away since the last test replaced it.
    let ready = "jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}";
    let slices = ["-l", "kubernetes.io/service-name=weft-control", "-o", ready];
    let ips = cluster.kubectl(&[&["-n", NAMESPACE, "get", "endpointslices"], &slices[..]].concat())?;
    let ip: IpAddr = ips.split(' ').next().unwrap_or_default().parse().context("no weft-control is ready")?;
    let bundle =
        ["-n", NAMESPACE, "get", "configmap", "weft-trust-bundle", "-o", "jsonpath={.data.root\\.pem}"];
    let authority = cluster.kubectl(&bundle)?;
    ask(
        &cluster.control_netns(),
        &format!("https://{}", SocketAddr::new(ip, 15012)),
        authority.as_bytes(),
        token,
        pod_uid,
    )
}

/// A token of weft-node's ServiceAccount, for this audience, bound to the weft-node pod of a node or to none.
fn token(cluster: &Cluster, audience: Option<&str>, node: Option<&str>) -> Result<String> {
    let mut arguments =
        vec!["-n".to_owned(), NAMESPACE.into(), "create".into(), "token".into(), "weft-node".into()];
    arguments.extend(audience.map(|a| format!("--audience={a}")));
    if let Some(node) = node {
        let on_node = format!("--field-selector=spec.nodeName={node}");
        let pods = ["-n", NAMESPACE, "get", "pods", "-l", "app.kubernetes.io/name=weft-node", &on_node];
        let pod = cluster.kubectl(&[&pods[..], &["-o", "jsonpath={.items[0].metadata.name}"]].concat())?;
        arguments.extend(["--bound-object-kind=Pod".to_owned(), format!("--bound-object-name={pod}")]);
    }
    cluster.kubectl(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_certificate_needs_the_right_token_and_a_pod_of_that_node() -> Result<()> {
    let cluster = together()?;
    let shop = Shop::enrolled(&cluster, "tokens")?;
    let uid = |pod: &str| shop.kubectl(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"]);
    let here = uid("client1")?;
    let good = token(&cluster, Some("weft-control"), Some("node1"))?;
    let chain = asked(&cluster, &good, &here)?.context("node1 asks for its own pod")?;
    ensure!(chain > 0);
    for (what, token, pod, code) in [
        ("a pod of another node", good.clone(), uid("client2")?, Code::PermissionDenied),
        (
            "no pod at all",
            good.clone(),
            "00000000-0000-0000-0000-000000000000".into(),
            Code::PermissionDenied,
        ),
        (
            "the API server's audience",
            token(&cluster, None, Some("node1"))?,
            here.clone(),
            Code::Unauthenticated,
        ),
        ("no node claim", token(&cluster, Some("weft-control"), None)?, here.clone(), Code::Unauthenticated),
        ("nonsense", "nonsense".into(), here.clone(), Code::Unauthenticated),
    ] {
        match asked(&cluster, &token, &pod)? {
            Err(refused) if refused.code() == code => {}
            other => bail!("{what}: expected {code:?}, got {other:?}"),
        }
    }
    // Out of the mesh, no more certificates for it.
    shop.kubectl(&["label", "pod", "client1", "weft.dev/mesh=disabled"])?;
    shop.wait_state(&["client1"], "not_enrolled")?;
    // The replica that is asked may hear of it after the one that the node is connected to.
    wait::until(CHANGE_WAIT_MAX, || {
        let refused = asked(&cluster, &good, &here)?;
        let code = refused.as_ref().err().map(Status::code);
        ensure!(code == Some(Code::PermissionDenied), "not enrolled: {refused:?}");
        Ok(())
    })
}
