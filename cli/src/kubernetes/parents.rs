//! What weft-control wrote into objects that are not Weft's: its entries in `status.parents` of routes. `weft uninstall` takes them away once
//! nobody writes them any more. What fails is told, and stops nothing: routes work without.

use futures_util::{StreamExt as _, stream};
use kube::Api;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use super::manifest::name;
use super::words::{is_missing, words};
use super::{CONTROL, Cluster};

const CONTROLLER: &str = "weft.dev/mesh-controller";
const ROUTES: [&str; 2] = ["HTTPRoute", "GRPCRoute"];
/// Another controller may write at the same time, over and over.
const TRIES: u32 = 5;
/// Routes that are written at the same time.
const AT_ONCE_MAX: usize = 16;

/// How many routes had any.
pub(super) async fn withdraw(cluster: &Cluster) -> usize {
    let mut withdrawn = 0;
    for kind in ROUTES {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", kind));
        let all: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let routes = match all.list(&ListParams::default()).await {
            Ok(routes) => routes.items,
            Err(error) if is_missing(&error) => continue,
            Err(error) => {
                tell!(
                    "left: what Weft wrote into the status of {kind}s, which cannot be listed: {}",
                    words(&error)
                );
                continue;
            }
        };
        let of_weft = routes.into_iter().filter(|route| without_ours(route).is_some());
        let done: Vec<Result<(), String>> =
            stream::iter(of_weft.map(|route| clear(cluster, &resource, route)))
                .buffer_unordered(AT_ONCE_MAX)
                .collect()
                .await;
        let failed: Vec<&String> = done.iter().filter_map(|one| one.as_ref().err()).collect();
        let cleared = done.len() - failed.len();
        if cleared > 0 {
            tell!("removed Weft's entries from the status of {kind}s: {cleared}");
        }
        if let Some(first) = failed.first() {
            tell!("left: Weft's entries in the status of {kind}s: {}, as of {first}", failed.len());
        }
        withdrawn += cleared;
    }
    withdrawn
}

/// `status.parents` without Weft's entries, which others' stand beside. None: there are none of Weft's.
fn without_ours(route: &DynamicObject) -> Option<Vec<Value>> {
    let parents = route.data["status"]["parents"].as_array()?;
    let others: Vec<Value> =
        parents.iter().filter(|parent| parent["controllerName"] != CONTROLLER).cloned().collect();
    (others.len() < parents.len()).then_some(others)
}

/// As weft-control writes it: in its name, and against the version that was read. The error names the route.
async fn clear(cluster: &Cluster, resource: &ApiResource, mut route: DynamicObject) -> Result<(), String> {
    let namespace = route.metadata.namespace.clone().unwrap_or_default();
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), &namespace, resource);
    let parameters = PatchParams { field_manager: Some(CONTROL.to_owned()), ..PatchParams::default() };
    let mut tries = 1;
    while let Some(others) = without_ours(&route) {
        let patch = json!({
            "metadata": { "resourceVersion": route.metadata.resource_version },
            "status": { "parents": others },
        });
        match api.patch_status(name(&route), &parameters, &Patch::Merge(&patch)).await {
            Ok(_) => return Ok(()),
            Err(error) if is_missing(&error) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 && tries < TRIES => {
                tries += 1;
                match api.get(name(&route)).await {
                    Ok(found) => route = found,
                    Err(error) if is_missing(&error) => return Ok(()),
                    Err(error) => return Err(told(&route, &error)),
                }
            }
            Err(error) => return Err(told(&route, &error)),
        }
    }
    Ok(())
}

fn told(route: &DynamicObject, error: &kube::Error) -> String {
    let namespace = route.metadata.namespace.as_deref().unwrap_or_default();
    format!("{namespace}/{}: {}", name(route), words(error))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use clap::Parser;

    use super::super::{block_on, fake, uninstall};
    use super::*;

    const API: &str = "/apis/gateway.networking.k8s.io/v1";

    fn route(name: &str, controllers: &[&str]) -> Value {
        let parent = |controller: &&str| json!({"parentRef": {"name": "web"}, "controllerName": controller});
        let parents: Vec<Value> = controllers.iter().map(parent).collect();
        json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": "1"}, "status": {"parents": parents}})
    }

    fn error(code: u16, reason: &str) -> Option<Value> {
        Some(json!({"code": code, "reason": reason, "message": "no"}))
    }

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: uninstall::Arguments,
    }

    #[test]
    fn only_wefts_own_entries_are_taken_out() {
        let (ours, other) = (CONTROLLER, "example.com/gateway");
        for (controllers, left) in
            [(&[][..], None), (&[other], None), (&[ours], Some(0)), (&[other, ours, ours, other], Some(2))]
        {
            let found: DynamicObject = serde_json::from_value(route("r", controllers)).unwrap();
            let others = without_ours(&found);
            assert_eq!(others.as_ref().map(Vec::len), left, "{controllers:?}");
            assert!(others.into_iter().flatten().all(|parent| parent["controllerName"] == other));
        }
        let fresh = json!({"metadata": {"name": "fresh"}, "spec": {}});
        assert_eq!(without_ours(&serde_json::from_value(fresh).unwrap()), None);
    }

    #[test]
    fn routes_are_written_when_weft_control_is_gone_and_again_after_a_conflict() {
        let asked = block_on(async {
            let written = AtomicU32::new(0);
            let (cluster, asked) = fake::cluster(move |method, path| {
                match (method, path.strip_prefix(API)) {
                    ("GET", Some("/httproutes")) => {
                        let theirs = route("theirs", &["example.com/gateway"]);
                        Some(json!({"metadata": {}, "items": [route("ours", &[CONTROLLER]), theirs]}))
                    }
                    ("GET", Some("/namespaces/shop/httproutes/ours")) => Some(route("ours", &[CONTROLLER])),
                    ("PATCH", Some(_)) if written.fetch_add(1, Ordering::Relaxed) == 0 => {
                        error(409, "Conflict")
                    }
                    ("PATCH", Some(_)) => Some(route("ours", &[])),
                    // The kind is not installed.
                    (_, Some(_)) => None,
                    ("DELETE", None) => Some(json!({"metadata": {}})),
                    _ => fake::bare(method, path),
                }
            });
            let line = Line::parse_from(["uninstall", "--keep-crds"]);
            uninstall::from(&cluster, &line.arguments).await?;
            let asked = asked.lock().unwrap().clone();
            Ok(asked)
        })
        .unwrap();
        let ours = format!("{API}/namespaces/shop/httproutes/ours");
        let patch = format!("PATCH {ours}/status");
        let expected = [
            format!("GET {API}/httproutes"),
            patch.clone(),
            format!("GET {ours}"),
            patch,
            format!("GET {API}/grpcroutes"),
        ];
        let on_routes: Vec<&String> = asked.iter().filter(|one| one.contains(API)).collect();
        assert_eq!(on_routes, expected.iter().collect::<Vec<_>>());
        let first = asked.iter().position(|one| one.contains(API));
        let last_deleted = asked.iter().rposition(|one| one.starts_with("DELETE "));
        assert!(last_deleted.is_some() && last_deleted < first, "{asked:?}");
    }

    #[test]
    fn what_cannot_be_listed_or_written_stops_nothing() {
        let withdrawn = block_on(async {
            let (cluster, _) = fake::cluster(|method, path| match (method, path.strip_prefix(API)?) {
                ("GET", "/httproutes") => error(403, "Forbidden"),
                ("GET", "/grpcroutes") => {
                    let (one, two) = (route("one", &[CONTROLLER]), route("two", &[CONTROLLER]));
                    Some(json!({"metadata": {}, "items": [one, two]}))
                }
                ("GET", _) => Some(route("one", &[CONTROLLER])),
                ("PATCH", "/namespaces/shop/grpcroutes/one/status") => error(409, "Conflict"),
                _ => Some(route("two", &[])),
            });
            Ok(withdraw(&cluster).await)
        });
        assert_eq!(withdrawn.unwrap(), 1, "the one that somebody else writes all the time stays");
    }
}
