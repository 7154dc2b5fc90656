//! Changes of a directory that is mounted from a ConfigMap are seen at once, and not by the periodic read alone.

use std::time::Instant;

use super::*;

/// Half of the interval of the periodic read.
const AT_ONCE: Duration = Duration::from_secs(5);

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
    until(&world, dump, |dump| dump.contains("weight: 1")).await;
    // As the kubelet does it: the link to the directory is replaced, and no file of the mount is touched.
    link("..v2", "..next");
    let swapped = Instant::now();
    std::fs::rename(manifests.join("..next"), manifests.join("..data")).unwrap();
    until(&world, dump, |dump| dump.contains("weight: 2")).await;
    assert!(swapped.elapsed() < AT_ONCE, "{:?}", swapped.elapsed());
}
