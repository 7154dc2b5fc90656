//! Each fault of an installation leads to a finding that names it.

use serde_json::json;

use super::super::super::readiness::{Progress, Unready};
use super::super::finding::{Level, each_is_told};
use super::*;

const NOW: u64 = 1_800_000_000;

fn workload(name: &str, status: Value) -> Option<WorkloadFacts> {
    Some(WorkloadFacts {
        progress: Progress { wanted: 1, ready: 1, done: true },
        version: VERSION.into(),
        unready: Vec::new(),
        answers: vec![(name.into(), Ok(status))],
    })
}

fn unready(line: &str, passing: bool) -> Unready {
    Unready { line: line.into(), passing }
}

fn control_status() -> Value {
    json!({"version": VERSION, "nodes": {"node1": {"connected": true, "last_nack": null}},
           "source": {"errors": [], "warnings": []},
           "authority": {"store": "Secret weft-system/weft-ca", "not_after_unix_s": NOW + 1_000_000, "expired": false, "problem": null}})
}

fn node_status() -> Value {
    json!({
        "version": VERSION, "kernel_release": "6.1.0", "unready": [], "kernel": {"redirect": true, "error": null},
        "control": {"connected": true, "refused": [],
            "certificate": {"not_before_unix_s": NOW - 100, "not_after_unix_s": NOW + 100, "last_error": null}},
        "cni": {"installed": true, "configuration": "/etc/cni/net.d/10-bridge.conflist", "plugins": ["bridge", "weft-cni"],
                "written": 1, "error": null},
        "certificates": [{"identity": "spiffe://c/ns/a/sa/b", "not_after_unix_s": NOW + 100_000, "last_error": null}],
        "pods": [{"namespace": "shop", "name": "web", "state": "enrolled", "reason": null}],
    })
}

/// A self-signed certificate that ends in `days`.
fn root(days: i64) -> String {
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let end = i64::try_from(NOW).unwrap() + days * 86_400;
    parameters.not_before = time::OffsetDateTime::from_unix_timestamp(end - 86_400).unwrap();
    parameters.not_after = time::OffsetDateTime::from_unix_timestamp(end).unwrap();
    parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

fn good() -> InstalledFacts {
    InstalledFacts {
        now_unix_s: NOW,
        release: None,
        control: workload("weft-control-1", control_status()),
        node: workload("node1", node_status()),
        nodes_without: Vec::new(),
        definitions: vec![("trafficpolicies.weft.dev".into(), Some(true))],
        roles: vec![("ClusterRole weft-control".into(), None), ("Role weft-node".into(), None)],
        leader: Some(("weft-control-1".into(), 2)),
        trust_bundle: Some(root(3_650)),
    }
}

fn status_of(facts: &mut Option<WorkloadFacts>) -> &mut Value {
    facts.as_mut().unwrap().answers[0].1.as_mut().unwrap()
}

#[test]
fn an_installation_in_order_has_no_fault() {
    let findings = judge(&good());
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
    let text: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(
        text.iter()
            .any(|line| line.contains("weft-cni is the last plugin of /etc/cni/net.d/10-bridge.conflist")),
        "{text:?}"
    );
    assert!(text.iter().any(|line| line.contains("1 roots, the last ends in 3650 days")), "{text:?}");
}

#[test]
fn what_a_replica_last_knew_of_a_node_that_is_at_another_one_is_no_fault() {
    let mut facts = good();
    let nodes = &mut status_of(&mut facts.control)["nodes"];
    nodes["node1"] = json!({"connected": false, "last_nack": {"refusals": ["long ago"]},
        "elsewhere": {"replica": "weft-control-2", "in_sync": true}});
    assert!(judge(&facts).iter().all(|finding| finding.level == Level::Ok));
}

#[test]
fn what_all_replicas_find_is_one_finding() {
    let mut facts = good();
    let replica = |own: &str| {
        let mut status = control_status();
        status["source"]["warnings"] = json!([{"file": "Pod shop/a", "line": 0, "message": "label"}, {"file": own, "line": 0, "message": "own"}]);
        Ok(status)
    };
    facts.control.as_mut().unwrap().answers = vec![("a".into(), replica("x")), ("b".into(), replica("y"))];
    let warnings: Vec<String> = judge(&facts)
        .iter()
        .filter(|finding| finding.level == Level::Warning)
        .map(|finding| format!("{}: {}", finding.what, finding.detail))
        .collect();
    assert_eq!(
        warnings,
        ["weft-control (2 replicas): Pod shop/a: label", "weft-control a: x: own", "weft-control b: y: own"]
    );
}

#[test]
fn what_helm_installed_is_upgraded_by_helm() {
    let mut facts = good();
    facts.release = Some(Release { name: "mesh".into(), namespace: "ops".into() });
    facts.control.as_mut().unwrap().version = "0.0.1".into();
    status_of(&mut facts.node)["version"] = "0.0.1".into();
    facts.definitions.push(("authorizationpolicies.weft.dev".into(), None));
    facts.definitions[0].1 = Some(false);
    let command = "helm upgrade mesh deploy/helm/weft --namespace ops --reset-then-reuse-values";
    let crds = "kubectl apply --server-side --force-conflicts -f deploy/helm/weft/crds";
    let remedies = |facts: &InstalledFacts| -> Vec<String> {
        judge(facts).into_iter().filter_map(|finding| finding.remedy).collect()
    };
    let upgrades = format!("{command} upgrades");
    assert_eq!(
        remedies(&facts),
        [
            upgrades.clone(),
            format!("{upgrades}; or use the command of that version"),
            crds.into(),
            crds.into()
        ]
    );
    facts.node = None;
    assert!(remedies(&facts).contains(&command.to_owned()));
}

#[test]
fn each_fault_is_named_with_what_to_do() {
    type Spoil = fn(&mut InstalledFacts);
    let cases: [(Spoil, Level, &str); 35] = [
        (|f| f.control = None, Level::Error, "weft-control: is not there; weft install"),
        (
            |f| {
                let node = f.node.as_mut().unwrap();
                node.progress = Progress { wanted: 2, ready: 1, done: false };
                node.unready = vec![
                    unready("weft-node-x on node2: ErrImagePull", false),
                    unready("weft-node-y on node1: ends", true),
                ];
            },
            Level::Error,
            "1 of 2 ready: weft-node-x on node2: ErrImagePull; weft-node-y on node1: ends",
        ),
        (
            |f| {
                let node = f.node.as_mut().unwrap();
                node.progress = Progress { wanted: 2, ready: 1, done: false };
                node.unready = vec![unready("weft-node-x on node2: ContainerCreating", true)];
            },
            Level::Warning,
            "1 of 2 ready: weft-node-x on node2: ContainerCreating; it is being rolled out",
        ),
        (
            |f| f.control.as_mut().unwrap().progress = Progress { wanted: 2, ready: 1, done: false },
            Level::Warning,
            "weft-control: 1 of 2 ready: the others are still to be replaced; it is being rolled out",
        ),
        (|f| f.node.as_mut().unwrap().answers[0].1 = Err("no".into()), Level::Error, "does not answer: no"),
        (
            |f| status_of(&mut f.node)["version"] = "0.0.1".into(),
            Level::Warning,
            "runs 0.0.1, this command is",
        ),
        (
            |f| f.control.as_mut().unwrap().version = "0.0.1".into(),
            Level::Warning,
            "was installed by \"0.0.1\"",
        ),
        (|f| f.nodes_without.push("node9".into()), Level::Warning, "no weft-node on node9"),
        (|f| f.definitions[0].1 = Some(false), Level::Warning, "is of another version"),
        (|f| f.definitions[0].1 = None, Level::Error, "trafficpolicies.weft.dev is not there"),
        (
            |f| f.roles[0].1 = Some("lacks: list pods".into()),
            Level::Error,
            "roles: ClusterRole weft-control lacks: list pods; weft install sets it back",
        ),
        (
            |f| {
                f.roles[0].1 = Some("lacks: list pods".into());
                f.control.as_mut().unwrap().version = "0.0.1".into();
            },
            Level::Warning,
            "roles: ClusterRole weft-control lacks: list pods",
        ),
        (|f| f.leader = None, Level::Warning, "no replica has the Lease"),
        (|f| f.leader = Some(("a".into(), 100)), Level::Warning, "has not renewed its Lease for 100 s"),
        (|f| f.trust_bundle = None, Level::Error, "has no root.pem"),
        (|f| f.trust_bundle = Some(root(-1)), Level::Error, "every root has expired"),
        (|f| f.trust_bundle = Some(root(10)), Level::Warning, "the last root ends in 10 days"),
        (
            |f| {
                status_of(&mut f.control)["nodes"]["node1"]["last_nack"] =
                    json!({"refusals": ["no such port"]});
            },
            Level::Error,
            "node1 refused configuration: no such port",
        ),
        (
            |f| {
                let problem = json!([{"file": "shop/HTTPRoute/a", "line": 0, "message": "no rule"}]);
                status_of(&mut f.control)["source"]["errors"] = problem;
            },
            Level::Error,
            "shop/HTTPRoute/a: no rule",
        ),
        (
            |f| {
                status_of(&mut f.control)["authority"]["problem"] =
                    "tls.key of Secret weft-system/weft-ca: no key".into();
            },
            Level::Error,
            "the authority is not followed: tls.key of Secret weft-system/weft-ca: no key; the last good one signs",
        ),
        (
            |f| status_of(&mut f.control)["authority"]["not_after_unix_s"] = (NOW - 1).into(),
            Level::Error,
            "the authority of Secret weft-system/weft-ca has expired: no certificate is signed",
        ),
        (
            |f| status_of(&mut f.control)["authority"]["not_after_unix_s"] = (NOW + 2 * 3_600).into(),
            Level::Warning,
            "ends in 2 hours",
        ),
        (
            |f| {
                status_of(&mut f.node)["cni"]["plugins"] =
                    json!(["bridge", "weft-cni", "istio-cni", "bandwidth"]);
            },
            Level::Warning,
            "behind weft-cni in /etc/cni/net.d/10-bridge.conflist: istio-cni, bandwidth",
        ),
        (
            |f| status_of(&mut f.node)["cni"]["plugins"] = json!(["weft-cni", "bridge"]),
            Level::Error,
            "weft-cni is the first plugin of /etc/cni/net.d/10-bridge.conflist",
        ),
        (|f| status_of(&mut f.node)["unready"] = json!(["draining"]), Level::Error, "is not ready: draining"),
        (
            |f| status_of(&mut f.node)["cni"] = json!({"error": "no conflist"}),
            Level::Error,
            "plugin: no conflist",
        ),
        (
            |f| {
                let reason = "the CNI plugin is not installed, new pods start outside the mesh: no weft-cni in the image";
                status_of(&mut f.node)["unready"] = json!([reason]);
            },
            Level::Error,
            "is not ready: the CNI plugin is not installed, new pods start outside the mesh: no weft-cni",
        ),
        (
            |f| status_of(&mut f.node)["certificates"][0]["not_after_unix_s"] = (NOW - 1).into(),
            Level::Error,
            "the certificate of spiffe://c/ns/a/sa/b has expired: no renewal has been tried; its pods",
        ),
        (
            |f| {
                status_of(&mut f.node)["certificates"][0]["not_after_unix_s"] = (NOW + 10).into();
                status_of(&mut f.node)["certificates"][0]["last_error"] = "away".into();
            },
            Level::Error,
            "the certificate of spiffe://c/ns/a/sa/b ends in 10 s: away; its pods",
        ),
        (
            |f| {
                status_of(&mut f.control)["clock_unix_s"] = NOW.into();
                status_of(&mut f.node)["clock_unix_s"] = (NOW - 172_800).into();
            },
            Level::Error,
            "node node1: its wall clock is 2 d behind the others'; certificates are judged by it",
        ),
        (
            |f| status_of(&mut f.node)["control"]["certificate"]["not_after_unix_s"] = (NOW - 1).into(),
            Level::Error,
            "node node1: weft-node's own certificate has expired: no renewal has been tried; at its end",
        ),
        (
            |f| {
                status_of(&mut f.node)["control"]["certificate"] =
                    json!({"not_after_unix_s": NOW + 299, "last_error": "no such node"});
            },
            Level::Error,
            "weft-node's own certificate ends in 299 s: no such node",
        ),
        (
            |f| {
                status_of(&mut f.node)["kernel"]["events"] =
                    json!({"socket_inserted": 9, "socket_refused_busy": 3});
            },
            Level::Warning,
            "another user of sockmaps held 3 sockets of its pods so far (socket_refused_busy); these work",
        ),
        (
            |f| {
                status_of(&mut f.node)["pods"][0] =
                    json!({"namespace": "shop", "name": "web", "state": "shut", "reason": "port taken"});
            },
            Level::Error,
            "pods not set up: shop/web (shut): port taken",
        ),
        (
            |f| {
                status_of(&mut f.node)["kernel"] =
                    json!({"redirect": false, "redirect_reason": "--redirect=off"});
            },
            Level::Warning,
            "sk_msg redirect is off: --redirect=off",
        ),
    ];
    each_is_told(good, judge, cases);
}
