//! What a weft-node says of itself and of its node. Pure: its answer of `/status` in, findings out.

use serde_json::Value;

use super::after::{list, some, text};
use super::finding::{Finding, Level};

/// Certificates are renewed at half of their lifetime; with less than this share of the default day something is stuck.
const CERTIFICATE_LEFT_SECONDS_MIN: u64 = 300;
/// The plugin's type in a network configuration.
const PLUGIN: &str = "weft-cni";

pub(super) fn judge(name: &str, status: &Value, now_unix_s: u64) -> Vec<Finding> {
    let what = format!("node {name}");
    let mut findings: Vec<Finding> = errors(status, now_unix_s)
        .into_iter()
        .map(|(detail, remedy)| Finding::error(&what, detail, remedy))
        .collect();
    let order = order(&what, &status["cni"]);
    let healthy = findings.is_empty() && order.as_ref().is_none_or(|finding| finding.level != Level::Error);
    findings.extend(order);
    findings
        .extend(warnings(status).into_iter().map(|(detail, remedy)| Finding::warning(&what, detail, remedy)));
    if healthy {
        let kernel = text(&status["kernel_release"]);
        let enrolled = list(&status["pods"]).filter(|pod| pod["state"] == "enrolled").count();
        findings.push(Finding::ok(
            &what,
            format!("Linux {kernel}, {enrolled} pods in the mesh{}", cni(&status["cni"])),
        ));
    }
    findings
}

/// Details and remedies.
fn errors(status: &Value, now_unix_s: u64) -> Vec<(String, &'static str)> {
    let mut errors = Vec::new();
    let mut error = |detail: String, remedy| errors.push((detail, remedy));
    for reason in list(&status["unready"]) {
        error(format!("is not ready: {}", text(reason)), "its enrolled pods may be shut");
    }
    for refusal in list(&status["control"]["refused"]) {
        error(format!("refused configuration: {}", text(refusal)), "it keeps what it had; repair the object");
    }
    if let Some(failure) = status["kernel"]["error"].as_str() {
        error(format!("the kernel's maps cannot be read: {failure}"), "see the log of its weft-node");
    }
    // Readiness says it too, in a version that knows of it.
    let told = list(&status["unready"]).any(|reason| text(reason).contains("CNI plugin"));
    if let Some(failure) = status["cni"]["error"].as_str().filter(|_| !told) {
        error(
            format!("the CNI plugin: {failure}"),
            "new pods may start outside the mesh until that is repaired",
        );
    }
    for certificate in list(&status["certificates"]) {
        let of_pods = format!("the certificate of {}", text(&certificate["identity"]));
        if let Some(how) = certificate_ends(certificate, now_unix_s) {
            error(format!("{of_pods} {how}"), "its pods are cut off at its end; see weft-control's log");
        }
    }
    if let Some(how) = certificate_ends(&status["control"]["certificate"], now_unix_s) {
        let remedy = "at its end weft-control does not know the node any more, which goes on with what it has until its pods' certificates end; \
                      see the logs of both";
        error(format!("weft-node's own certificate {how}"), remedy);
    }
    let stuck = |pod: &&Value| matches!(pod["state"].as_str(), Some("shut" | "failed"));
    let pods: Vec<String> = list(&status["pods"])
        .filter(stuck)
        .map(|pod| {
            let reason = pod["reason"].as_str().unwrap_or("no reason given");
            format!("{}/{} ({}): {reason}", text(&pod["namespace"]), text(&pod["name"]), text(&pod["state"]))
        })
        .collect();
    if !pods.is_empty() {
        error(
            format!("pods not set up: {}", some(&pods)),
            "shut: they cannot connect; failed: they bypass the mesh",
        );
    }
    errors
}

/// Of a certificate that has ended, or is about to because it is not renewed.
fn certificate_ends(certificate: &Value, now_unix_s: u64) -> Option<String> {
    let left = certificate["not_after_unix_s"].as_u64()?.saturating_sub(now_unix_s);
    let failure = certificate["last_error"].as_str();
    match left {
        0 => Some(format!("has expired: {}", failure.unwrap_or("no renewal has been tried"))),
        left if left < CERTIFICATE_LEFT_SECONDS_MIN => Some(format!("ends in {left} s: {}", failure?)),
        _ => None,
    }
}

/// Details and remedies.
fn warnings(status: &Value) -> Vec<(String, &'static str)> {
    let mut warnings = Vec::new();
    if status["control"]["connected"] != true {
        let why = status["control"]["last_error"].as_str().unwrap_or("no reason given");
        let detail = format!("is not connected to weft-control: {why}");
        warnings.push((detail, "traffic goes on with what is known; new pods are not"));
    }
    if status["kernel"]["redirect"] == false {
        let detail = format!("sk_msg redirect is off: {}", text(&status["kernel"]["redirect_reason"]));
        warnings.push((detail, "everything works, local bytes pass the TCP/IP stack"));
    }
    let busy = status["kernel"]["events"]["socket_refused_busy"].as_u64().unwrap_or(0);
    if busy > 0 {
        let detail =
            format!("another user of sockmaps held {busy} sockets of its pods so far (socket_refused_busy)");
        let remedy = "these work, their bytes pass the TCP/IP stack; `bpftool map` on the node shows whose sockmaps and sockhashes there are";
        warnings.push((detail, remedy));
    }
    warnings
}

/// The plugins of the configuration that has ours; none in the answer of a version that does not tell them.
fn plugins(cni: &Value) -> Vec<&str> {
    list(&cni["plugins"]).map(text).collect()
}

/// What is wrong with the place of our plugin among the others.
fn order(what: &str, cni: &Value) -> Option<Finding> {
    let (plugins, file) = (plugins(cni), text(&cni["configuration"]));
    let at = plugins.iter().position(|plugin| *plugin == PLUGIN)?;
    let behind = &plugins[at + 1..];
    if at == 0 {
        let detail = format!("{PLUGIN} is the first plugin of {file}: no pod that waits for it can start");
        return Some(Finding::error(
            what,
            detail,
            "whoever wrote the file must put the network's plugin first",
        ));
    }
    if behind.is_empty() {
        return None;
    }
    let detail = format!("behind {PLUGIN} in {file}: {}", behind.join(", "));
    Some(Finding::warning(
        what,
        detail,
        "what they change in a pod's network comes after the pod is in the mesh: take them out, or chain them before it",
    ))
}

/// Which network configuration has our plugin.
fn cni(status: &Value) -> String {
    match status["configuration"].as_str() {
        Some(file) if plugins(status).last() == Some(&PLUGIN) => {
            format!(", {PLUGIN} is the last plugin of {file}")
        }
        Some(file) => format!(", {PLUGIN} is in {file}"),
        None => String::new(),
    }
}
