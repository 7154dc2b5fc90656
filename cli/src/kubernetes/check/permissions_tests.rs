//! What is said to be needed is what the manifest has and what the commands ask of an API server.

use std::collections::BTreeSet;

use clap::Parser;
use serde_json::{Value, json};

use super::super::super::fake::{self, Place, place};
use super::super::super::readiness::Workload;
use super::super::super::{block_on, exec, install, sources};
use super::super::facts;
use super::*;

/// `weft check` leaves out what depends on these where they may not be read, and says so; so does `weft uninstall` with routes' status.
const OPTIONAL: [(&str, &str, Option<&str>); 8] = [
    ("list daemonsets", "apps", None),
    ("list deployments", "apps", None),
    ("list networkpolicies", "networking.k8s.io", None),
    ("get configmaps", "", Some("kube-system")),
    ("get felixconfigurations", "crd.projectcalico.org", None),
    ("list events", "", Some(NAMESPACE)),
    ("list httproutes", "gateway.networking.k8s.io", None),
    ("list grpcroutes", "gateway.networking.k8s.io", None),
];

#[test]
fn every_kind_of_the_manifest_can_be_made_changed_seen_and_deleted() {
    let needed = needed().unwrap();
    let text = manifest::text(&Images::default()).unwrap();
    let kinds: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
    assert!(kinds.contains("PodDisruptionBudget") && kinds.len() > 10, "{kinds:?}");
    for kind in kinds {
        let plural = format!("{}s", kind.to_lowercase());
        for verb in ["create", "patch", "get", "delete"] {
            let found = needed.iter().any(|right| right.verb == verb && right.resource == plural);
            assert!(found, "{verb} {plural} in {needed:?}");
        }
    }
    for (verb, group, resource, namespaced) in [
        ("delete", "rbac.authorization.k8s.io", "clusterroles", false),
        ("patch", "apps", "daemonsets", true),
        ("delete", "", "secrets", true),
        ("delete", "certificates.k8s.io", "clustertrustbundles", false),
    ] {
        assert!(needed.contains(&Right::new(verb, group, resource, namespaced)), "{verb} {resource}");
    }
}

#[derive(Parser)]
struct Line<T: clap::Args> {
    #[command(flatten)]
    arguments: T,
}

/// An API server where Weft is, and everything succeeds. `gone`: what is deleted is not there at the next look.
fn answer(method: &str, path: &str, gone: bool) -> Option<Value> {
    let workload = json!({"metadata": {}, "spec": {"selector": {}, "template": {}}, "status": {
        "currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
        "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}});
    let definition = json!({"metadata": {}, "spec": {"group": "", "names": {"kind": "", "plural": ""}, "scope": "", "versions": []},
        "status": {"conditions": [{"type": "Established", "status": "True"}]}});
    match (method, place(path)?) {
        ("PATCH" | "DELETE", _) => Some(json!({"metadata": {}})),
        ("GET", Place { name: Some(_), .. }) if gone => None,
        ("GET", Place { resource: "daemonsets", name: None, .. }) => Some(
            json!({"metadata": {}, "items": [{"metadata": {"namespace": "kube-system", "name": "calico-node"}}]}),
        ),
        ("GET", Place { resource: "deployments" | "daemonsets", name: Some(_), .. }) => Some(workload),
        ("GET", Place { resource: "customresourcedefinitions", name: Some(_), .. }) => Some(definition),
        _ => fake::bare(method, path),
    }
}

/// The rights that a request takes.
fn taken(request: &str) -> Vec<(&'static str, String, String, Option<String>)> {
    let (method, path) = request.split_once(' ').unwrap();
    let Some(Place { group, namespace, resource, name }) = place(path) else { return Vec::new() };
    let verbs: &[&'static str] = match (method, name) {
        // Every user may ask this of himself.
        _ if resource == "selfsubjectaccessreviews" => &[],
        ("GET", None) => &["list"],
        ("GET", Some(_)) => &["get"],
        ("POST", _) => &["create"],
        // An apply makes what is not there.
        ("PATCH", _) => &["patch", "create"],
        ("DELETE", _) => &["delete"],
        other => panic!("{other:?}"),
    };
    let of =
        |verb: &&'static str| (*verb, group.to_owned(), resource.to_owned(), namespace.map(str::to_owned));
    verbs.iter().map(of).collect()
}

#[test]
fn every_request_of_the_commands_is_among_what_is_said_to_be_needed() {
    let asked = block_on(async {
        let (there, asked) = fake::cluster(|method, path| match path {
            "/version" => fake::bare(method, path),
            _ => answer(method, path, false),
        });
        let line = <Line<install::Arguments> as Parser>::parse_from(["install"]).arguments;
        install::into(&there, &line, &manifest::text(&Images::default())?).await?;
        facts::cluster(&there).await?;
        facts::installed(&there).await?.expect("Weft is there");
        for workload in [Workload::Control, Workload::Node] {
            sources::statuses(&there, workload, exec::STATUS_WAIT_MAX).await?;
        }
        let (going, deleted) = fake::cluster(|method, path| answer(method, path, true));
        let line = <Line<uninstall::Arguments> as Parser>::parse_from(["uninstall"]).arguments;
        uninstall::from(&going, &line).await?;
        let asked: BTreeSet<String> =
            asked.lock().unwrap().iter().chain(deleted.lock().unwrap().iter()).cloned().collect();
        Ok(asked)
    })
    .unwrap();
    let needed = needed().unwrap();
    assert!(asked.len() > needed.len() / 4, "the commands did run: {asked:?}");
    for request in &asked {
        for (verb, group, resource, namespace) in taken(request) {
            let optional = OPTIONAL.iter().any(|(what, of, place)| {
                *what == format!("{verb} {resource}") && *of == group && *place == namespace.as_deref()
            });
            let said = needed.iter().any(|right| {
                // Who may do it everywhere may do it in one namespace.
                let covers = right.namespace.is_none() || right.namespace == namespace.as_deref();
                (right.verb, &right.group, &right.resource) == (verb, &group, &resource) && covers
            });
            assert!(optional || said, "{request} takes {verb} {resource}, of which nothing is said");
        }
    }
}
