//! Changes of a directory that is mounted from a ConfigMap are seen at once, and not by the periodic read alone.

use std::time::Instant;

use super::*;

/// Less than the interval of the periodic read (10 s), which begins when the change before was read.
const AT_ONCE: Duration = Duration::from_secs(9);

#[tokio::test]
async fn a_configmaps_swapped_link_is_seen_by_inotify() {
    let world = World::start().await;
    let manifests = world.directory.path().join("manifests");
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, manifests.join(name)).unwrap();
    for (version, weight) in [("..v1", 1), ("..v2", 2)] {
        std::fs::create_dir(manifests.join(version)).unwrap();
        std::fs::write(manifests.join(version).join("route.yaml"), route(weight)).unwrap();
    }
    link("..v1", "..data");
    link("..data/route.yaml", "route.yaml");
    let dump = "/config_dump?node=node-1";
    until(&world, dump, |dump| dump.contains("\"weight\": 1")).await;
    // As the kubelet does it: the link to the directory is replaced, and no file of the mount is touched.
    link("..v2", "..next");
    let swapped = Instant::now();
    std::fs::rename(manifests.join("..next"), manifests.join("..data")).unwrap();
    until(&world, dump, |dump| dump.contains("\"weight\": 2")).await;
    assert!(swapped.elapsed() < AT_ONCE, "{:?}", swapped.elapsed());
}

#[tokio::test]
async fn a_restart_while_a_manifest_is_broken_takes_nothing_from_the_nodes() {
    let World { directory, running } = World::start().await;
    let mut world = World { directory, running };
    let mut node = Node::connect(&world, "node-1", TOKEN_1, Vec::new()).await.unwrap();
    let first = node.delta().await.unwrap();
    node.ack(&first).await;
    let known = node.known.clone();
    world.write("mesh.yaml", "apiVersion: v1\nkind: [\n");
    world.running.stop().await;
    // A child that another test is just making may hold a copy of the listener.
    std::fs::remove_file(world.directory.path().join("admin.sock")).unwrap();
    world.running = weft_control::start(settings(world.directory.path())).await.unwrap();
    until(&world, "/readyz", |answer| answer.contains("200 OK")).await;
    // The token is of the broken file too.
    let mut node = Node::connect(&world, "node-1", TOKEN_1, known).await.unwrap();
    let again = node.delta().await.unwrap();
    assert_eq!((again.upserts.len(), again.removals.len()), (0, 0), "{again:?}");
    assert!(world.admin("/status").await.contains("its last good content stays in use"));
}

#[tokio::test]
async fn a_manifest_that_was_never_good_keeps_weft_control_from_serving_until_it_is_mended() {
    let directory = tempfile::tempdir().unwrap();
    let manifests = directory.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    std::fs::write(manifests.join("mesh.yaml"), MESH).unwrap();
    std::fs::write(manifests.join("deny.yaml"), "").unwrap();
    let world = World { running: weft_control::start(settings(directory.path())).await.unwrap(), directory };
    let answer = until(&world, "/readyz", |answer| answer.contains("deny.yaml:1: is empty")).await;
    assert!(answer.contains("503") && world.admin("/status").await.contains("\"ready\": false"), "{answer}");
    std::fs::remove_file(manifests.join("deny.yaml")).unwrap();
    until(&world, "/readyz", |answer| answer.contains("200 OK")).await;
    let mut node = Node::connect(&world, "node-1", TOKEN_1, Vec::new()).await.unwrap();
    assert!(names(&node.delta().await.unwrap()).contains(&"mesh"));
}

#[tokio::test]
async fn a_policy_that_is_in_force_for_nobody_is_told() {
    let world = World::start().await;
    let policies = |namespace: &str, app: &str, service: &str| {
        let deny = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: no, namespace: {namespace}}}\n\
             spec:\n  selector: {{matchLabels: {{app: {app}}}}}\n  action: DENY\n  rules: [{{}}]\n"
        );
        let retries = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: again, namespace: shop}}\n\
             spec: {{targetRefs: [{{name: {service}}}], connectTimeout: 1s}}\n"
        );
        format!("{deny}---\n{retries}")
    };
    world.write("policies.yaml", &policies("shop", "bakend", "backend"));
    until(&world, "/status", |status| status.contains("selects no pod of namespace shop")).await;
    world.write("policies.yaml", &policies("shpo", "backend", "backend"));
    until(&world, "/status", |status| status.contains("selects no pod of namespace shpo")).await;
    world.write("policies.yaml", &policies("shop", "backend", "bakend"));
    let status = until(&world, "/status", |status| status.contains("there is no Service shop/bakend")).await;
    assert!(!status.contains("selects no pod"), "{status}");
    world.write("policies.yaml", &policies("shop", "backend", "backend"));
    until(&world, "/status", |status| status.contains("\"policies\": []")).await;
}
