//! What `weft status` shows by default: the state of the control plane and of each node in a few lines for people.
//!
//! Pure: answers of `/status` and the time in, text out. What an answer lacks is left out, never made up.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use crate::clocks;
use crate::replicas::is_elsewhere;
use crate::table::table;

/// A block for each answer, by name: the control plane's has `nodes`, a node's has `node`.
pub(crate) fn summaries<'a>(
    answers: impl IntoIterator<Item = (&'a str, Result<&'a Value, String>)>,
    now_unix_s: u64,
) -> String {
    let answers: Vec<_> = answers.into_iter().collect();
    let is_control = |status: &&Value| status["nodes"].is_object();
    let mut faults =
        Faults::of(answers.iter().filter_map(|(_, answer)| answer.clone().ok()).filter(is_control));
    let answered = answers.iter().filter_map(|(name, answer)| Some((*name, answer.clone().ok()?)));
    let wrong = clocks::wrong(answered);
    let clock = |name: &str| wrong.get(name).copied().map(clocks::shown);
    let blocks = answers.into_iter().map(|(name, answer)| match answer {
        Ok(status) if is_control(&status) => control(name, status, now_unix_s, clock(name), &mut faults),
        Ok(status) => node(name, status, now_unix_s, clock(name)),
        Err(error) => format!("{name}  NO ANSWER: {error}\n"),
    });
    blocks.map(|block| format!("{block}\n")).collect()
}

/// What is wrong with objects, and how many replicas of the control plane say so: all of them see the same objects.
#[derive(Default)]
struct Faults(BTreeMap<(&'static str, String), usize>);

impl Faults {
    fn of<'a>(controls: impl Iterator<Item = &'a Value>) -> Self {
        let mut all = Self::default();
        for fault in controls.flat_map(faults) {
            *all.0.entry(fault).or_default() += 1;
        }
        all
    }

    /// For the first who says it; None: it was told.
    fn tell(&mut self, fault: (&'static str, String)) -> Option<String> {
        let replicas = self.0.remove(&fault)?;
        let text = fault.1;
        Some(if replicas > 1 { format!("{text} ({replicas} replicas say so)") } else { text })
    }
}

/// Label and text of each.
fn faults(status: &Value) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    for (label, kind) in [("error", "errors"), ("warning", "warnings")] {
        all.extend(list(&status["source"][kind]).map(|problem| (label, place_and_message(problem))));
    }
    let authority = &status["authority"];
    if let Some(problem) = authority["problem"].as_str() {
        all.push(("authority", format!("is not followed, the last good one signs: {problem}")));
    }
    if authority["expired"] == true {
        let store = text(&authority["store"]);
        all.push(("authority", format!("{store} has EXPIRED: no certificate is signed")));
    }
    let bad = |route: &&Value| route["accepted"] != true || route["resolved_refs"] != true;
    for route in list(&status["routes"]).filter(bad) {
        let (kind, name) = (text(&route["kind"]), text(&route["route"]));
        let why = format!("{}: {}", text(&route["reason"]), text(&route["message"]));
        all.push(("route", format!("{kind} {name} at {}: {why}", text(&route["parent"]))));
    }
    for policy in list(&status["policies"]) {
        let (kind, name) = (text(&policy["kind"]), text(&policy["policy"]));
        all.push(("policy", format!("{kind} {name}: {}", text(&policy["message"]))));
    }
    all
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// `12 s`, `3 min`, `5 h`, `2 d`: as exact as anybody needs.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn ago(unix_s: u64, now_unix_s: u64) -> String {
    format!("{} ago", span(now_unix_s.saturating_sub(unix_s)))
}

/// As compilers print mistakes in files: an editor finds the place. An object of an API server has no lines.
pub(crate) fn place_and_message(problem: &Value) -> String {
    let (file, message) = (text(&problem["file"]), text(&problem["message"]));
    match problem["line"].as_u64() {
        None | Some(0) => format!("{file}: {message}"),
        Some(line) => format!("{file}:{line}: {message}"),
    }
}

fn line(out: &mut String, label: &str, shown: &str) {
    let _ = writeln!(out, "  {label:<13}{shown}");
}

fn control(name: &str, status: &Value, now: u64, clock: Option<String>, told: &mut Faults) -> String {
    let ready = match (status["ready"] == true, status["source"]["objects"].is_u64()) {
        (true, _) => "ready",
        (false, true) => "NOT READY: the objects of the API server are not listed yet",
        (false, false) => "NOT READY: the manifests are not read yet",
    };
    let mut out = format!("{name}  weft-control {}  {ready}\n", text(&status["version"]));
    line(&mut out, "trust domain", text(&status["trust_domain"]));
    if let Some(wrong) = clock {
        line(&mut out, "clock", &format!("WRONG: {wrong}"));
    }
    let nodes: Vec<_> = status["nodes"].as_object().into_iter().flatten().collect();
    let is_in_sync = |node: &Value| node["in_sync"] == true || node["elsewhere"]["in_sync"] == true;
    let in_sync = nodes.iter().filter(|(_, node)| is_in_sync(node)).count();
    let elsewhere = nodes.iter().filter(|(_, node)| is_elsewhere(node)).count();
    let revision = &status["revision"];
    let mut shown = match nodes.len() {
        0 => format!("none has connected yet; revision {revision}"),
        all => format!("{in_sync} of {all} in sync at revision {revision}"),
    };
    if elsewhere > 0 {
        let _ = write!(shown, ", {elsewhere} of them connected to another replica");
    }
    line(&mut out, "nodes", &shown);
    // What is at another replica is told there.
    for (node, state) in nodes.iter().filter(|(_, state)| !is_elsewhere(state)) {
        if state["connected"] != true {
            line(&mut out, "", &format!("{node} is not connected"));
        } else if state["in_sync"] != true {
            let behind = &state["revisions_behind"];
            line(&mut out, "", &format!("{node} is {behind} revisions behind"));
        }
        if let Some(nack) = state["last_nack"].as_object() {
            let when = ago(nack["unix_s"].as_u64().unwrap_or(now), now);
            let why: Vec<&str> = list(&nack["refusals"]).map(text).collect();
            line(&mut out, "refused", &format!("by {node}, {when}: {}", why.join("; ")));
        }
    }
    for fault in faults(status) {
        let label = fault.0;
        if let Some(shown) = told.tell(fault) {
            line(&mut out, label, &shown);
        }
    }
    out
}

fn node(name: &str, status: &Value, now: u64, clock: Option<String>) -> String {
    let reasons: Vec<&str> = list(&status["unready"]).map(text).collect();
    let ready = match (status["ready"] == true, status["draining"] == true) {
        (true, _) => "ready".to_owned(),
        (false, true) => "DRAINING".to_owned(),
        (false, false) => format!("NOT READY: {}", reasons.join("; ")),
    };
    let (version, kernel) = (text(&status["version"]), text(&status["kernel_release"]));
    let mut out = format!("{name}  weft-node {version}  Linux {kernel}  {ready}\n");
    if let Some(wrong) = clock {
        line(&mut out, "clock", &format!("WRONG: {wrong}"));
    }
    line(&mut out, "control", &control_connection(&status["control"], now));
    for refusal in list(&status["control"]["refused"]) {
        line(&mut out, "refused", text(refusal));
    }
    if let Some(installed) = cni(&status["cni"]) {
        line(&mut out, "cni", &installed);
    }
    line(&mut out, "redirect", &redirect(&status["kernel"]));
    if let Some(map) = fullest_map(&status["kernel"]["maps"]) {
        line(&mut out, "maps", &map);
    }
    if let Some(error) = status["kernel"]["error"].as_str() {
        line(&mut out, "hooks", error);
    }
    line(&mut out, "certificates", &certificates(&status["certificates"], now));
    for bad in list(&status["certificates"]).filter(|one| one["last_error"].is_string()) {
        line(&mut out, "", &format!("{}: {}", text(&bad["identity"]), text(&bad["last_error"])));
    }
    if let Some(endpoint) = status["traces"]["endpoint"].as_str() {
        let (sent, lost) = (&status["traces"]["exported"], &status["traces"]["dropped"]);
        line(&mut out, "traces", &format!("to {endpoint}, {sent} spans exported, {lost} dropped"));
    }
    line(&mut out, "connections", &format!("{} tasks live", status["connections_live"]));
    out.push_str(&pods(&status["pods"]));
    out
}

fn control_connection(control: &Value, now: u64) -> String {
    let mut shown = match control["last_error"].as_str() {
        _ if control["connected"] == true => "connected".to_owned(),
        Some(error) => format!("NOT CONNECTED ({error})"),
        None => "NOT CONNECTED".to_owned(),
    };
    if let Some(applied_ms) = control["applied_unix_ms"].as_u64() {
        let when = ago(applied_ms / 1_000, now);
        let _ = write!(shown, ", revision {} applied {when}", control["revision"]);
    }
    match (control["in_sync"].as_bool(), control["revisions_behind"].as_u64()) {
        (Some(true), _) => shown.push_str(", in sync"),
        (Some(false), Some(behind)) if behind > 0 => {
            let _ = write!(shown, ", {behind} revisions behind");
        }
        (Some(false), _) => shown.push_str(", not in sync yet"),
        (None, _) => {}
    }
    shown
}

/// None: new pods do not wait for this node's agent, and shall not.
fn cni(status: &Value) -> Option<String> {
    match (status["installed"].as_bool()?, status["configuration"].as_str()) {
        (true, Some(file)) => Some(format!("new pods wait for the mesh, by {file}")),
        (true, None) => None,
        (false, _) => {
            let why = status["error"].as_str().unwrap_or("not tried yet");
            Some(format!("NOT INSTALLED, new pods start outside the mesh: {why}"))
        }
    }
}

fn redirect(kernel: &Value) -> String {
    if kernel["redirect"] != true {
        return format!("off: {}", text(&kernel["redirect_reason"]));
    }
    let bytes = |outcome: &str| kernel["events"][outcome].as_u64().unwrap_or(0);
    let (past, stack) = (bytes("bytes_redirected"), bytes("bytes_stack"));
    // Wide enough: a counter of bytes times a hundred can be more than 64 bits.
    let (past, all) = (u128::from(past), u128::from(past) + u128::from(stack));
    let mut shown = match (past * 100).checked_div(all) {
        None => "on".to_owned(),
        Some(percent) => format!("on, {percent} % of local bytes"),
    };
    for (feature, what) in [
        ("redirect_to_applications_reason", "towards applications"),
        ("redirect_accepted_reason", "of accepted sockets"),
    ] {
        if let Some(reason) = kernel[feature].as_str() {
            let _ = write!(shown, "; not {what}: {reason}");
        }
    }
    shown
}

/// The map with the largest share of its entries in use.
fn fullest_map(maps: &Value) -> Option<String> {
    let share = |map: &Value| {
        let (used, most) = (map["entries"].as_u64()?, map["entries_max"].as_u64().filter(|most| *most > 0)?);
        Some((used * 1_000 / most, used, most))
    };
    let (map, (_, used, most)) = list(maps)
        .filter_map(|map| Some((map, share(map)?)))
        .max_by_key(|(_, (per_mille, ..))| *per_mille)?;
    let percent = used * 100 / most;
    Some(format!("fullest: {}, {used} of {most} ({percent} %)", text(&map["map"])))
}

fn certificates(all: &Value, now: u64) -> String {
    let ends: Vec<u64> = list(all).filter_map(|one| one["not_after_unix_s"].as_u64()).collect();
    match ends.iter().min() {
        None => "none".to_owned(),
        Some(next) if *next <= now => format!("{}, ONE HAS EXPIRED {}", ends.len(), ago(*next, now)),
        Some(next) => format!("{}, the next ends in {}", ends.len(), span(next - now)),
    }
}

fn pods(all: &Value) -> String {
    let row = |pod: &Value| {
        let ips: Vec<&str> = list(&pod["ips"]).map(text).collect();
        // The trust domain is the same for all.
        let identity = text(&pod["identity"]);
        let short = identity.strip_prefix("spiffe://").and_then(|id| id.split_once('/')).map(|(_, id)| id);
        let reason = pod["reason"].as_str().unwrap_or_default();
        vec![
            format!("{}/{}", text(&pod["namespace"]), text(&pod["name"])),
            text(&pod["state"]).to_owned(),
            ips.join(","),
            short.unwrap_or(identity).to_owned(),
            reason.to_owned(),
        ]
    };
    let mut rows: Vec<_> = list(all).map(row).collect();
    rows.sort();
    let table = table(&["POD", "STATE", "IP", "IDENTITY", "REASON"], rows);
    table.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    /// Of one that answered alone.
    fn summary(name: &str, status: &Value, now_unix_s: u64) -> String {
        let text = summaries([(name, Ok(status))], now_unix_s);
        text.strip_suffix('\n').unwrap().to_owned()
    }

    #[test]
    fn a_clock_that_is_wrong_is_told_where_it_is() {
        let control = json!({"nodes": {}, "clock_unix_s": NOW});
        let node = |ahead: i64| json!({"node": "n", "clock_unix_s": i64::try_from(NOW).unwrap() + ahead});
        let (right, wrong) = (node(3), node(200_000));
        let text = summaries([("control", Ok(&control)), ("node1", Ok(&right)), ("node2", Ok(&wrong))], NOW);
        let told: Vec<_> = text.split("\n\n").filter(|block| block.contains("clock")).collect();
        assert!(matches!(told[..], [block] if block.starts_with("node2")), "{text}");
        assert!(told[0].contains("clock        WRONG: 2 d ahead of the others'"), "{text}");
    }

    #[test]
    fn a_node_is_summed_up() {
        let status = json!({
            "node": "node1", "version": "0.1.0", "kernel_release": "6.1.0", "ready": true, "unready": [],
            "draining": false, "connections_live": 3,
            "kernel": {
                "redirect": true, "redirect_reason": null, "redirect_accepted_reason": "kernels before 6.18",
                "events": {"bytes_redirected": 750, "bytes_stack": 250}, "error": null,
                "maps": [{"map": "pods", "entries": 2, "entries_max": 1024},
                         {"map": "sockets", "entries": 500, "entries_max": 1000}],
            },
            "traces": {"endpoint": "http://127.0.0.1:4317/", "exported": 9, "dropped": 0, "failed_calls": 0},
            "control": {"connected": true, "synced": true, "revision": 12, "last_error": null, "refused": [],
                        "in_sync": false, "revisions_behind": 2, "applied_unix_ms": (NOW - 90) * 1_000},
            "certificates": [{"identity": "spiffe://cluster.local/ns/shop/sa/web",
                              "not_after_unix_s": NOW + 7_300, "last_error": null}],
            "pods": [
                {"namespace": "shop", "name": "web", "ips": ["10.0.0.2"], "state": "enrolled", "reason": null,
                 "identity": "spiffe://cluster.local/ns/shop/sa/web"},
                {"namespace": "shop", "name": "db", "ips": ["10.0.0.3", "fd00::3"], "state": "shut",
                 "reason": "cannot listen on port 15001 inside the pod", "identity": null},
            ],
        });
        assert_eq!(
            summary("node1", &status, NOW),
            "\
node1  weft-node 0.1.0  Linux 6.1.0  ready
  control      connected, revision 12 applied 90 s ago, 2 revisions behind
  redirect     on, 75 % of local bytes; not of accepted sockets: kernels before 6.18
  maps         fullest: sockets, 500 of 1000 (50 %)
  certificates 1, the next ends in 2 h
  traces       to http://127.0.0.1:4317/, 9 spans exported, 0 dropped
  connections  3 tasks live
  POD       STATE     IP                IDENTITY        REASON
  shop/db   shut      10.0.0.3,fd00::3  -               cannot listen on port 15001 inside the pod
  shop/web  enrolled  10.0.0.2          ns/shop/sa/web
"
        );
    }

    #[test]
    fn trouble_of_a_node_is_told_first() {
        let status = json!({
            "version": "0.1.0", "kernel_release": "5.15", "ready": false, "draining": false,
            "unready": ["no configuration yet: connection refused"], "connections_live": 0,
            "kernel": {"redirect": false, "redirect_reason": "switched off by --redirect=off"},
            "control": {"connected": false, "last_error": "connection refused"},
            "cni": {"installed": false, "configuration": null, "error": "/etc/cni/net.d has no network configuration yet"},
        });
        let shown = summary("n", &status, NOW);
        for part in [
            "cni          NOT INSTALLED, new pods start outside the mesh: /etc/cni/net.d has no",
            "NOT READY: no configuration yet: connection refused",
            "NOT CONNECTED (connection refused)",
            "off: switched off by --redirect=off",
            "certificates none",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }

    #[test]
    fn the_control_plane_names_what_is_wrong_and_where() {
        let status = json!({
            "version": "0.1.0", "ready": true, "trust_domain": "cluster.local", "revision": 7,
            "nodes": {
                "node1": {"connected": true, "in_sync": true, "last_nack": null},
                "node2": {"connected": true, "in_sync": false, "revisions_behind": 2,
                          "last_nack": {"unix_s": NOW - 5, "revision": 6, "refusals": ["no such port"]}},
                "node3": {"connected": false, "in_sync": false},
                "node4": {"connected": false, "in_sync": false, "elsewhere": {"replica": "other", "in_sync": true},
                          "last_nack": {"unix_s": NOW - 500, "revision": 1, "refusals": ["long ago"]}},
            },
            "source": {"files": 3, "errors": [{"file": "shop.yaml", "line": 4, "message": "no kind"}],
                       "warnings": [{"file": "Pod shop/a", "line": 0, "message": "label"}]},
            "routes": [
                {"kind": "HTTPRoute", "route": "shop/good", "parent": "shop/web", "accepted": true, "resolved_refs": true,
                 "reason": "Accepted", "message": ""},
                {"kind": "GRPCRoute", "route": "shop/bad", "parent": "shop/web", "accepted": true, "resolved_refs": false,
                 "reason": "BackendNotFound", "message": "backend shop/x:80 cannot be resolved"},
            ],
            "policies": [{"kind": "AuthorizationPolicy", "policy": "shop/no", "message": "selects no pod of namespace shop"}],
            "authority": {"store": "Secret weft-system/weft-ca", "expired": true, "problem": "tls.key of Secret weft-system/weft-ca: no key"},
        });
        assert_eq!(
            summary("control", &status, NOW),
            "\
control  weft-control 0.1.0  ready
  trust domain cluster.local
  nodes        2 of 4 in sync at revision 7, 1 of them connected to another replica
               node2 is 2 revisions behind
  refused      by node2, 5 s ago: no such port
               node3 is not connected
  error        shop.yaml:4: no kind
  warning      Pod shop/a: label
  authority    is not followed, the last good one signs: tls.key of Secret weft-system/weft-ca: no key
  authority    Secret weft-system/weft-ca has EXPIRED: no certificate is signed
  route        GRPCRoute shop/bad at shop/web: BackendNotFound: backend shop/x:80 cannot be resolved
  policy       AuthorizationPolicy shop/no: selects no pod of namespace shop
"
        );
    }

    #[test]
    fn what_all_replicas_say_is_told_once_with_their_number() {
        let replica = |nodes: Value, further: &str| {
            let errors = json!([{"file": "Pod shop/a", "line": 0, "message": "odd"},
                                {"file": "Pod shop/a", "line": 0, "message": further}]);
            json!({"version": "1", "ready": further == "yours", "trust_domain": "c", "revision": 7, "nodes": nodes,
                   "source": {"objects": 3, "errors": errors, "warnings": []}, "routes": []})
        };
        let (one, two) = (replica(json!({}), "mine"), replica(json!({}), "yours"));
        let shown = summaries([("c-1", Ok(&one)), ("c-2", Ok(&two)), ("n1", Err("it hangs".into()))], NOW);
        assert_eq!(
            shown,
            "\
c-1  weft-control 1  NOT READY: the objects of the API server are not listed yet
  trust domain c
  nodes        none has connected yet; revision 7
  error        Pod shop/a: odd (2 replicas say so)
  error        Pod shop/a: mine

c-2  weft-control 1  ready
  trust domain c
  nodes        none has connected yet; revision 7
  error        Pod shop/a: yours

n1  NO ANSWER: it hangs

"
        );
    }

    #[test]
    fn the_share_of_redirected_bytes_is_never_more_than_all() {
        for (past, stack, shown) in [
            (0, 0, "on"),
            (113, 0, "on, 100 % of local bytes"),
            (150, 49, "on, 75 % of local bytes"),
            (1, 2, "on, 33 % of local bytes"),
            (0, 7, "on, 0 % of local bytes"),
            (u64::MAX, u64::MAX, "on, 50 % of local bytes"),
        ] {
            let events = json!({"bytes_redirected": past, "bytes_stack": stack});
            assert_eq!(redirect(&json!({"redirect": true, "events": events})), shown, "{past} and {stack}");
        }
    }

    #[test]
    fn ages_are_short() {
        for (seconds, shown) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (172_800, "2 d")]
        {
            assert_eq!(span(seconds), shown);
        }
    }
}
