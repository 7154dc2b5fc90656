//! What Weft says of itself. Pure: facts in, findings out.
//!
//! Answers of `/status` are read leniently: those of another version lack some fields.

use serde_json::Value;
use x509_parser::pem::Pem;

use super::super::readiness::Unready;
use super::super::release::Release;
use super::facts::{InstalledFacts, WorkloadFacts};
use super::finding::{Finding, Level};
use super::node;
use crate::clocks;
use crate::replicas::is_elsewhere;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A root's successor is to be known to all nodes well before it ends.
const ROOT_LEFT_SECONDS_MIN: u64 = 30 * 24 * 3_600;
/// A leader renews every few seconds.
const LEASE_SECONDS_MAX: u64 = 60;
/// The authority signs nothing beyond its own end: an intermediate whose owner renews it is followed within seconds.
const AUTHORITY_LEFT_SECONDS_MIN: u64 = 24 * 3_600;
/// More lines of one sort are counted, not listed.
const LISTED_MAX: usize = 5;

pub(super) fn judge(facts: &InstalledFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let upgrade = upgrade(facts.release.as_ref());
    for (name, workload) in [("weft-control", &facts.control), ("weft-node", &facts.node)] {
        match workload {
            Some(workload) => findings.extend(rollout(name, workload, &upgrade)),
            None => findings.push(Finding::error(name, "is not there", upgrade.as_str())),
        }
    }
    findings.extend(coverage(facts));
    findings.extend(definitions(facts));
    findings.extend(roles(facts, &upgrade));
    findings.push(leader(facts));
    findings.extend(roots(facts));
    findings.extend(controls(answered(facts.control.as_ref()), facts.now_unix_s));
    for (name, status) in answered(facts.node.as_ref()) {
        findings.extend(node::judge(name, status, facts.now_unix_s));
    }
    findings.extend(wall_clocks(facts));
    findings
}

/// Certificates are judged by them.
fn wall_clocks(facts: &InstalledFacts) -> Vec<Finding> {
    let named = |kind: &'static str, workload| {
        answered(workload).map(move |(name, answer)| (format!("{kind} {name}"), answer))
    };
    let answers = named("weft-control", facts.control.as_ref()).chain(named("node", facts.node.as_ref()));
    let answers: Vec<_> = answers.collect();
    let wrong = clocks::wrong(answers.iter().map(|(name, answer)| (name.as_str(), *answer)));
    let told = wrong.into_iter().map(|(name, ahead)| {
        let detail = format!("its wall clock is {}", clocks::shown(ahead));
        Finding::error(
            name,
            detail,
            "certificates are judged by it: set it right (NTP); docs/identity.md, Clocks",
        )
    });
    told.collect()
}

/// Brings what is installed to the version of this command.
fn upgrade(release: Option<&Release>) -> String {
    release.map_or_else(|| "weft install".to_owned(), Release::upgrade)
}

fn answered(workload: Option<&WorkloadFacts>) -> impl Iterator<Item = (&str, &Value)> {
    let answers = workload.into_iter().flat_map(|workload| &workload.answers);
    answers.filter_map(|(name, answer)| Some((name.as_str(), answer.as_ref().ok()?)))
}

fn rollout(name: &str, workload: &WorkloadFacts, upgrade: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let progress = &workload.progress;
    let shown = format!("{} of {} ready", progress.ready, progress.wanted);
    if progress.done {
        findings.push(Finding::ok(name, shown));
    } else {
        findings.push(underway(name, &shown, &workload.unready));
    }
    for (asked, answer) in &workload.answers {
        match answer {
            Err(error) => findings.push(Finding::error(
                format!("{name} {asked}"),
                format!("does not answer: {error}"),
                "what it would say was not checked",
            )),
            Ok(status) if status["version"] != VERSION => findings.push(Finding::warning(
                format!("{name} {asked}"),
                format!("runs {}, this command is {VERSION}", text(&status["version"])),
                format!("{upgrade} upgrades; or use the command of that version"),
            )),
            Ok(_) => {}
        }
    }
    if workload.version != VERSION {
        findings.push(Finding::warning(
            name,
            format!("was installed by {:?}, this command is {VERSION}", workload.version),
            format!("{upgrade} upgrades"),
        ));
    }
    findings
}

/// A roll-out that is not done: at fault is what is in trouble, not what begins or ends.
fn underway(name: &str, shown: &str, unready: &[Unready]) -> Finding {
    let lines: Vec<&str> = unready.iter().map(|pod| pod.line.as_str()).collect();
    let detail = match lines.is_empty() {
        true => format!("{shown}: the others are still to be replaced"),
        false => format!("{shown}: {}", lines.join("; ")),
    };
    if unready.iter().all(|pod| pod.passing) {
        return Finding::warning(name, detail, "it is being rolled out; check again in a minute");
    }
    let remedy = format!("kubectl --namespace weft-system logs --selector app.kubernetes.io/name={name}");
    Finding::error(name, detail, remedy)
}

fn coverage(facts: &InstalledFacts) -> Option<Finding> {
    if facts.nodes_without.is_empty() {
        return None;
    }
    Some(Finding::warning(
        "nodes",
        format!("no weft-node on {}", some(&facts.nodes_without)),
        "pods of labelled namespaces are outside the mesh there, or shut where one ran before: see the DaemonSet's nodeSelector and tolerations",
    ))
}

fn definitions(facts: &InstalledFacts) -> Vec<Finding> {
    // Helm makes them once, and leaves them alone from then on.
    let remedy = match facts.release {
        Some(_) => "kubectl apply --server-side --force-conflicts -f deploy/helm/weft/crds",
        None => "weft install applies this one's",
    };
    let finding = |(name, same): &(String, Option<bool>)| match same {
        Some(true) => Finding::ok("kinds", format!("{name} is of this version")),
        Some(false) => Finding::warning("kinds", format!("{name} is of another version"), remedy),
        None => Finding::error("kinds", format!("{name} is not there"), remedy),
    };
    facts.definitions.iter().map(finding).collect()
}

/// An earlier version may need less.
fn roles(facts: &InstalledFacts, upgrade: &str) -> Vec<Finding> {
    let lacking = |(shown, how): &(String, Option<String>)| Some(format!("{shown} {}", how.as_ref()?));
    let faults: Vec<String> = facts.roles.iter().filter_map(lacking).collect();
    let is_of_this = facts.control.as_ref().is_some_and(|control| control.version == VERSION);
    let remedy = format!("{upgrade} sets it back");
    match (faults.is_empty(), is_of_this) {
        (true, _) => {
            vec![Finding::ok("roles", format!("{} are as this version needs them", facts.roles.len()))]
        }
        (false, true) => faults.iter().map(|fault| Finding::error("roles", fault, &remedy)).collect(),
        (false, false) => faults.iter().map(|fault| Finding::warning("roles", fault, &remedy)).collect(),
    }
}

fn leader(facts: &InstalledFacts) -> Finding {
    let remedy = "status of routes and policies is not written; see the log of weft-control";
    match &facts.leader {
        Some((holder, age_s)) if *age_s <= LEASE_SECONDS_MAX => {
            Finding::ok("leader", format!("{holder} writes status"))
        }
        Some((holder, age_s)) => {
            Finding::warning("leader", format!("{holder} has not renewed its Lease for {age_s} s"), remedy)
        }
        None => Finding::warning("leader", "no replica has the Lease weft-control", remedy),
    }
}

fn roots(facts: &InstalledFacts) -> Vec<Finding> {
    let Some(bundle) = &facts.trust_bundle else {
        let remedy = "weft-control makes it when it starts; the nodes wait for it";
        return vec![Finding::error(
            "trust bundle",
            "the ConfigMap weft-trust-bundle has no root.pem",
            remedy,
        )];
    };
    let mut ends: Vec<u64> = Vec::new();
    for pem in Pem::iter_from_buffer(bundle.as_bytes()) {
        let end = pem.ok().and_then(|pem| {
            let certificate = pem.parse_x509().ok()?;
            u64::try_from(certificate.validity().not_after.timestamp()).ok()
        });
        match end {
            Some(end) => ends.push(end),
            None => {
                let remedy = "weft-control writes it from the Secret weft-ca: look there";
                return vec![Finding::error(
                    "trust bundle",
                    "holds something that is no certificate",
                    remedy,
                )];
            }
        }
    }
    let Some(last) = ends.iter().max() else {
        return vec![Finding::error(
            "trust bundle",
            "is empty",
            "see the Secret weft-ca and the log of weft-control",
        )];
    };
    let rotate = "rotate it: docs/identity.md";
    vec![match last.checked_sub(facts.now_unix_s) {
        None => Finding::error("trust bundle", "every root has expired: no connection is accepted", rotate),
        Some(left) if left < ROOT_LEFT_SECONDS_MIN => {
            Finding::warning("trust bundle", format!("the last root ends in {} days", left / 86_400), rotate)
        }
        Some(left) => Finding::ok(
            "trust bundle",
            format!("{} roots, the last ends in {} days", ends.len(), left / 86_400),
        ),
    }]
}

/// What several replicas find, all of them, is one finding: they see the same objects.
fn controls<'a>(answers: impl Iterator<Item = (&'a str, &'a Value)>, now_unix_s: u64) -> Vec<Finding> {
    let mut merged: Vec<(Finding, usize)> = Vec::new();
    for finding in answers.flat_map(|(name, status)| control(name, status, now_unix_s)) {
        let same = |(other, _): &&mut (Finding, usize)| {
            finding.level != Level::Ok && other.level == finding.level && other.detail == finding.detail
        };
        match merged.iter_mut().find(same) {
            Some((_, replicas)) => *replicas += 1,
            None => merged.push((finding, 1)),
        }
    }
    let named = merged.into_iter().map(|(finding, replicas)| match replicas {
        1 => finding,
        _ => Finding { what: format!("weft-control ({replicas} replicas)"), ..finding },
    });
    named.collect()
}

/// Whether it can sign, and for how long.
fn authority(what: &str, status: &Value, now_unix_s: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let store = text(&status["store"]);
    if let Some(problem) = status["problem"].as_str() {
        findings.push(Finding::error(
            what,
            format!("the authority is not followed: {problem}"),
            "the last good one signs until it ends; repair what is named: docs/identity.md",
        ));
    }
    let left = status["not_after_unix_s"].as_u64().map(|end| end.saturating_sub(now_unix_s));
    match left {
        Some(0) => findings.push(Finding::error(
            what,
            format!("the authority of {store} has expired: no certificate is signed"),
            "put a new one there: docs/identity.md",
        )),
        Some(left) if left < AUTHORITY_LEFT_SECONDS_MIN => findings.push(Finding::warning(
            what,
            format!("the authority of {store} ends in {} hours, and with it every certificate", left / 3_600),
            "put a new one there: docs/identity.md",
        )),
        _ => {}
    }
    findings
}

fn control(name: &str, status: &Value, now_unix_s: u64) -> Vec<Finding> {
    let what = format!("weft-control {name}");
    let mut findings = authority(&what, &status["authority"], now_unix_s);
    let mut connected = 0;
    for (node, state) in status["nodes"].as_object().into_iter().flatten() {
        connected += usize::from(state["connected"] == true);
        if let Some(nack) = state["last_nack"].as_object().filter(|_| !is_elsewhere(state)) {
            let why: Vec<&str> = list(&nack["refusals"]).map(text).collect();
            findings.push(Finding::error(
                &what,
                format!("{node} refused configuration: {}", why.join("; ")),
                "it keeps what it had; repair the object that is named",
            ));
        }
    }
    for (kind, level) in [("errors", true), ("warnings", false)] {
        for problem in list(&status["source"][kind]) {
            let place = match problem["file"].as_str() {
                Some(file) => format!("{file}: "),
                None => String::new(),
            };
            let detail = format!("{place}{}", text(&problem["message"]));
            let remedy = "repair the object; the rest goes on";
            findings.push(if level {
                Finding::error(&what, detail, remedy)
            } else {
                Finding::warning(&what, detail, remedy)
            });
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(what, format!("{connected} nodes connected, nothing refused")));
    }
    findings
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(super) fn some(all: &[String]) -> String {
    let listed = all[..all.len().min(LISTED_MAX)].join(", ");
    match all.len().saturating_sub(LISTED_MAX) {
        0 => listed,
        more => format!("{listed} and {more} more"),
    }
}

#[cfg(test)]
#[path = "after_tests.rs"]
mod tests;
