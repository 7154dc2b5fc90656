//! What a live stream costs and carries: large first syncs, small changes, a changing trust bundle, renewed certificates.

use prost::Message as _;

use super::*;

/// Below what one message may have (512 KiB), with room for its framing.
const MESSAGE_BYTES_MAX: usize = 520 * 1024;
const PODS: usize = 2000;

fn pod(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: uid-{name}, labels: {{app: {name}}}}}\nspec: \
         {{nodeName: node-2, serviceAccountName: backend, containers: [{{name: c}}]}}\nstatus: {{podIPs: [{{ip: {ip}}}]}}\n---\n"
    )
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: {ip}, selector: \
         {{app: {name}}}, ports: [{{port: 80, targetPort: 8080, appProtocol: http}}]}}\n---\n"
    )
}

#[tokio::test]
async fn a_large_first_sync_is_cut_and_a_changed_endpoint_costs_little() {
    let world = World::start().await;
    let large: String = (0..PODS)
        .map(|i| {
            let name = format!("a-workload-with-a-name-of-usual-length-{i}");
            pod(&name, &format!("10.1.{}.{}", i / 250, i % 250 + 1))
                + &service(&name, &format!("10.97.{}.{}", i / 250, i % 250 + 1))
        })
        .collect();
    world.write("one.yaml", &(pod("one", "10.2.0.1") + &service("one", "10.98.0.1")));
    world.write("large.yaml", &large);
    let last = format!("length-{}\"", PODS - 1);
    until(&world, "/config_dump?node=node-1", |dump| dump.contains(&last)).await;
    until(&world, "/config_dump?node=node-1", |dump| dump.contains("uid-one")).await;
    let mut node = Node::connect(&world, "node-1", TOKEN_1, Vec::new()).await.unwrap();
    let (mut messages, mut bytes, mut resources) = (0, 0, 0);
    let end = loop {
        let part = node.inbound.message().await.unwrap().unwrap();
        assert!(part.encoded_len() <= MESSAGE_BYTES_MAX, "{}", part.encoded_len());
        (messages, bytes, resources) =
            (messages + 1, bytes + part.encoded_len(), resources + part.upserts.len());
        if !part.more {
            break part;
        }
    };
    assert!(messages >= 3 && bytes > 1024 * 1024, "{messages} messages, {bytes} bytes");
    // Workload, Service and endpoint of each; the mesh, and five of the small world and "one".
    assert!(resources >= 3 * PODS + 6, "{resources}");
    // One answer to the last message settles all of it: the next delta is the change alone.
    node.ack(&end).await;
    world.write("one.yaml", &(pod("one", "10.2.0.2") + &service("one", "10.98.0.1")));
    let change = node.delta().await.unwrap();
    assert_eq!(names(&change), ["shop/one/10.2.0.2", "uid-one"]);
    assert_eq!(change.removals.len(), 1);
    assert!(change.encoded_len() < 1024, "{}", change.encoded_len());
}

/// As when an upgrade is taken back, or half of weft-control's replicas are upgraded.
#[tokio::test]
async fn a_node_of_a_newer_version_is_served_what_is_known_here() {
    let world = World::start().await;
    let known = [(99, "shop/of-tomorrow"), (v1::Kind::Service.into(), "shop/gone")].map(|(kind, name)| {
        v1::KnownResource { key: Some(v1::ResourceKey { kind, name: name.into() }), version: 1 }
    });
    let mut node = Node::connect(&world, "node-1", TOKEN_1, known.to_vec()).await.unwrap();
    let delta = node.delta().await.unwrap();
    assert!(names(&delta).contains(&"mesh"), "{:?}", names(&delta));
    let removed: Vec<_> = delta.removals.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(removed, ["shop/gone"], "what is of no kind known here stays");
}

fn root() -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&key).unwrap().pem()
}

#[tokio::test]
async fn the_trust_bundle_follows_the_extra_roots_over_a_live_stream() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("manifests")).unwrap();
    std::fs::write(directory.path().join("manifests/mesh.yaml"), MESH).unwrap();
    let extra = directory.path().join("extra.pem");
    let (first, second) = (root(), root());
    std::fs::write(&extra, &first).unwrap();
    let mut settings = settings(directory.path());
    settings.extra_roots = Some(extra.clone());
    let world = World { running: weft_control::start(settings).await.unwrap(), directory };
    let mut node = Node::connect(&world, "node-1", TOKEN_1, Vec::new()).await.unwrap();
    let initial = node.delta().await.unwrap();
    node.ack(&initial).await;
    for (text, roots) in [(first.clone() + &second, 3), (first, 2)] {
        std::fs::write(&extra, text).unwrap();
        let change = node.delta().await.unwrap();
        assert_eq!(names(&change), ["mesh"]);
        let Some(v1::resource::Body::Mesh(mesh)) = &change.upserts[0].body else { panic!("no mesh") };
        assert_eq!(mesh.roots_der.len(), roots);
        node.ack(&change).await;
    }
}
