//! What Weft has on the nodes, in the kernel and in the API, and that nothing of it is left.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapInfo, loaded_maps};
use aya::programs::{ProgramInfo, loaded_programs};
use weft_e2e::cluster::Cluster;
use weft_e2e::lab::wait;

use crate::fixture::{CHANGE_WAIT_MAX, START_WAIT_MAX, Shop};

const FILES: [&str; 5] = [
    "/sys/fs/bpf/weft",
    "/run/weft/admin.sock",
    "/run/weft/cni.sock",
    "/run/weft/cni.sock.waiting",
    "/opt/cni/bin/weft-cni",
];
/// Of no namespace; the kinds of Weft's own have no labels.
const CLUSTER_WIDE: [&str; 5] = [
    "clusterrole.rbac.authorization.k8s.io/weft-control",
    "clusterrole.rbac.authorization.k8s.io/weft-edit",
    "clusterrole.rbac.authorization.k8s.io/weft-view",
    "clusterrolebinding.rbac.authorization.k8s.io/weft-control",
    "namespace/weft-system",
];
/// Whose status says what Weft makes of it.
const ROUTE: &str = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: through, namespace: @NS@}, spec: {parentRefs: [{group: '', kind: Service, name: server}],
  rules: [{backendRefs: [{name: server, port: 80}]}]}}";
const CONTROLLER: &str = "weft.dev/mesh-controller";
const ANOTHER: &str = "example.com/gateway";
/// What another controller says of the route, before what Weft says.
const ANOTHERS_ENTRY: &str = r#"[{"op": "add", "path": "/status/parents/0", "value": {"controllerName": "example.com/gateway",
  "parentRef": {"group": "", "kind": "Service", "name": "server"}, "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted",
  "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}]"#;
/// Some of the programs that are loaded while pods are in the mesh.
const PROGRAMS: [&str; 3] = ["weft_connect4", "weft_sock_ops", "weft_sk_lookup"];

/// What one cluster's Weft has or had in the kernel: ids, which are not used again, and names. The kernel belongs to other clusters and
/// labs of this machine too, so these are found by the nodes' pins, while there are any.
#[derive(Default)]
pub(crate) struct Loaded {
    maps: BTreeMap<u32, String>,
    programs: BTreeMap<u32, String>,
}

impl Loaded {
    /// Adds what there is now: pinned maps, the programs that use one of them, and the other maps of these.
    pub(crate) fn note(&mut self, cluster: &Cluster) -> Result<()> {
        for node in cluster.nodes() {
            for pin in fs::read_dir(cluster.node_file(&node, "/sys/fs/bpf/weft/maps")?)? {
                let path = pin?.path();
                let map = MapInfo::from_pin(&path).with_context(|| path.display().to_string())?;
                self.maps.insert(map.id(), format!("map {}", name(map.name_as_str())));
            }
        }
        for program in loaded_programs().filter_map(Result::ok) {
            let maps = program.map_ids().ok().flatten().unwrap_or_default();
            if maps.iter().any(|id| self.maps.contains_key(id)) {
                self.programs.insert(program.id(), format!("program {}", name(program.name_as_str())));
                for id in maps {
                    self.maps.entry(id).or_insert_with(|| "map".into());
                }
            }
        }
        for wanted in PROGRAMS {
            let found = self.programs.values().filter(|found| found.contains(wanted)).count();
            ensure!(
                found >= cluster.nodes().len(),
                "{wanted} is not found on all nodes: {:?}",
                self.programs
            );
        }
        Ok(())
    }

    /// What of it the kernel still has.
    fn left(&self) -> Vec<&String> {
        let maps = loaded_maps().filter_map(Result::ok).filter_map(|map| self.maps.get(&map.id()));
        let id = |program: ProgramInfo| self.programs.get(&program.id());
        maps.chain(loaded_programs().filter_map(Result::ok).filter_map(id)).collect()
    }
}

fn name(known: Option<&str>) -> &str {
    known.unwrap_or_default()
}

/// What Weft has on a node: pins, sockets, the plugin and its entry. `/run/weft` itself, which a container cannot remove while it
/// is mounted there, stays as an empty directory.
fn on_node(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in FILES {
        if cluster.node_file(node, path)?.exists() {
            found.push(path.to_owned());
        }
    }
    let conflist = fs::read_to_string(cluster.node_file(node, "/etc/cni/net.d/10-pods.conflist")?)?;
    if conflist.contains("weft") {
        found.push(format!("in the conflist: {conflist}"));
    }
    Ok(found)
}

/// What carries Weft's label and belongs to no namespace, whatever its kind.
fn cluster_wide(cluster: &Cluster) -> Result<Vec<String>> {
    let kinds = cluster.kubectl(&["api-resources", "--namespaced=false", "--verbs=list", "-o", "name"])?;
    let kinds = kinds.lines().collect::<Vec<_>>().join(",");
    let found = cluster.kubectl(&["get", &kinds, "-l", "app.kubernetes.io/part-of=weft", "-o", "name"])?;
    Ok(found.lines().map(str::to_owned).collect())
}

/// Weft's own, by name. The cluster has others.
pub(crate) fn kinds_of_weft(cluster: &Cluster) -> Result<Vec<String>> {
    let all = cluster.kubectl(&["get", "crds", "-o", "name"])?;
    ensure!(all.contains("gateway"), "the kinds of others are there: {all}");
    Ok(all.lines().filter(|kind| kind.ends_with(".weft.dev")).map(str::to_owned).collect())
}

/// So that what is found gone later was looked for in the right place.
pub(crate) fn everything_there(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let found = on_node(cluster, &node)?;
        ensure!(found.len() == FILES.len() + 1, "{node} has only {found:?}");
    }
    let found = cluster_wide(cluster)?;
    ensure!(CLUSTER_WIDE.iter().all(|object| found.iter().any(|it| it == object)), "there is only {found:?}");
    ensure!(kinds_of_weft(cluster)?.len() == 2);
    Ok(())
}

/// But for its kinds.
pub(crate) fn nothing_left(cluster: &Cluster, loaded: &Loaded) -> Result<()> {
    for node in cluster.nodes() {
        let left = on_node(cluster, &node)?;
        ensure!(left.is_empty(), "{node} still has {left:?}");
    }
    // The kernel frees them after the last processor has left them.
    wait::until(CHANGE_WAIT_MAX, || {
        let left = loaded.left();
        ensure!(left.is_empty(), "the kernel still has {left:?}");
        Ok(())
    })?;
    let left = cluster_wide(cluster)?;
    ensure!(left.is_empty(), "the cluster still has {left:?}");
    Ok(())
}

/// Who has entries in the status of routes: of one, or of all that there are.
fn controllers(cluster: &Cluster, of: &[&str], path: &str) -> Result<Vec<String>> {
    let output = format!("jsonpath={{{path}.status.parents[*].controllerName}}");
    let told = cluster.kubectl(&[&["get"], of, &["-o", &output]].concat())?;
    Ok(told.split_whitespace().map(str::to_owned).collect())
}

fn controllers_of_route(shop: &Shop<'_>) -> Result<Vec<String>> {
    controllers(shop.cluster, &["-n", shop.namespace, "httproute", "through"], "")
}

/// A route of the shop, with entries of Weft's and of another controller's in its status.
pub(crate) fn route_of_two_controllers(shop: &Shop<'_>) -> Result<()> {
    shop.apply(ROUTE)?;
    let has = |wanted: &[&str]| {
        wait::until(START_WAIT_MAX, || {
            let found = controllers_of_route(shop)?;
            ensure!(found == wanted, "the route's status is {found:?}'s, not {wanted:?}'s");
            Ok(())
        })
    };
    has(&[CONTROLLER])?;
    shop.kubectl(&[
        "patch",
        "httproute",
        "through",
        "--subresource=status",
        "--type=json",
        "-p",
        ANOTHERS_ENTRY,
    ])?;
    has(&[ANOTHER, CONTROLLER])
}

/// Takes that route away.
pub(crate) fn nothing_left_in_routes(shop: &Shop<'_>) -> Result<()> {
    let found = controllers_of_route(shop)?;
    ensure!(found == [ANOTHER], "the route's status is {found:?}'s");
    let all = controllers(shop.cluster, &["httproutes,grpcroutes", "--all-namespaces"], ".items[*]")?;
    ensure!(!all.iter().any(|one| one == CONTROLLER), "routes still have entries of Weft's: {all:?}");
    shop.kubectl(&["delete", "httproute", "through"]).map(drop)
}
