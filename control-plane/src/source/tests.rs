//! What the directory source promises: last good stays, places are named, nothing panics.

use std::fs;

use proptest::prelude::*;

use super::*;

const NAMESPACE: &str =
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {weft.dev/mesh: enabled}}\n";

fn namespace(name: &str) -> String {
    NAMESPACE.replace("shop", name)
}

/// Its state directory is within the directory of the manifests.
fn scanner(directory: &Path) -> Scanner {
    Scanner::new(vec![directory.to_owned()]).keeping(&directory.join("state"))
}

fn keys(events: &[Event]) -> Vec<String> {
    let mut keys: Vec<String> = events
        .iter()
        .flat_map(|event| match event {
            Event::Reset(objects) => objects.iter().map(|o| format!("={}", o.key())).collect::<Vec<_>>(),
            Event::Apply(object) => vec![format!("+{}", object.key())],
            Event::Delete(key) => vec![format!("-{key}")],
        })
        .collect();
    keys.sort();
    keys
}

#[test]
fn a_change_is_told_as_a_difference() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("a.yaml"), namespace("a") + "---\n" + &namespace("b")).unwrap();
    let mut scanner = scanner(directory.path());
    assert_eq!(keys(&scanner.scan(true)), ["=Namespace a", "=Namespace b"]);
    assert!(scanner.scan(true).is_empty());
    fs::create_dir(path("deep")).unwrap();
    fs::write(path("deep/c.yml"), namespace("c")).unwrap();
    fs::write(path("a.yaml"), namespace("a")).unwrap();
    assert_eq!(keys(&scanner.scan(false)), ["+Namespace c", "-Namespace b"]);
    // As editors save, and as ConfigMaps change.
    fs::write(path(".next"), namespace("d")).unwrap();
    fs::rename(path(".next"), path("a.yaml")).unwrap();
    assert_eq!(keys(&scanner.scan(false)), ["+Namespace d", "-Namespace a"]);
    fs::remove_file(path("deep/c.yml")).unwrap();
    assert_eq!(keys(&scanner.scan(false)), ["-Namespace c"]);
}

#[test]
fn a_broken_file_keeps_its_last_good_objects_and_names_the_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, namespace("a")).unwrap();
    let mut scanner = scanner(directory.path());
    scanner.scan(true);
    fs::write(&file, namespace("a") + "---\nkind: [\nx: y\n").unwrap();
    fs::write(directory.path().join("b.yaml"), namespace("b")).unwrap();
    assert_eq!(keys(&scanner.scan(false)), ["+Namespace b"]);
    let report = scanner.report();
    assert_eq!(report.errors.len(), 1);
    assert!(report.errors[0].file.ends_with("a.yaml"));
    assert!((5..=7).contains(&report.errors[0].line), "{}", report.errors[0]);
    fs::write(&file, namespace("a")).unwrap();
    assert!(scanner.scan(false).is_empty());
    assert!(scanner.report().errors.is_empty());
}

#[test]
fn a_restart_while_a_file_is_broken_keeps_its_last_good_objects() {
    for broken in ["kind: [\n", "", "# half saved\n---\n \n", "\u{0}"] {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a.yaml"), directory.path().join("b.yaml"));
        fs::write(&a, namespace("a")).unwrap();
        fs::write(&b, namespace("b")).unwrap();
        scanner(directory.path()).scan(true);
        fs::write(&a, broken).unwrap();
        let mut restarted = scanner(directory.path());
        assert_eq!(keys(&restarted.scan(true)), ["=Namespace a", "=Namespace b"], "{broken:?}");
        let report = restarted.report();
        assert_eq!(
            (report.read, report.errors.len(), report.warnings.len()),
            (Read::Files(2), 1, 1),
            "{report:?}"
        );
        assert!(report.warnings[0].to_string().contains("its last good content"), "{report:?}");
        // Also where it is a restart's second, and until the file is mended or deleted.
        assert_eq!(keys(&scanner(directory.path()).scan(true)).len(), 2);
        fs::remove_file(&a).unwrap();
        assert_eq!(keys(&restarted.scan(true)), ["-Namespace a"]);
        fs::write(&a, broken).unwrap();
        assert!(scanner(directory.path()).scan(true).is_empty());
    }
}

#[test]
fn a_start_waits_for_what_was_never_good() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("a.yaml"), namespace("a")).unwrap();
    fs::write(path("b.yaml"), namespace("b") + "---\nkind: [\n").unwrap();
    let mut scanner = scanner(directory.path());
    assert!(scanner.scan(true).is_empty() && scanner.waits());
    assert!(scanner.report().errors[0].file.ends_with("b.yaml"));
    // Nor does it choose between two files.
    fs::write(path("b.yaml"), namespace("a")).unwrap();
    assert!(scanner.scan(false).is_empty() && scanner.waits());
    // Of another length than before, here and below: a clock of the file system that ticks slowly may give two writes one time.
    fs::write(path("b.yaml"), namespace("bb")).unwrap();
    assert_eq!(keys(&scanner.scan(false)), ["=Namespace a", "=Namespace bb"]);
    assert!(!scanner.waits() && scanner.report().errors.is_empty());
    // From now on a file that is broken from the beginning holds nothing up.
    fs::write(path("c.yaml"), "").unwrap();
    fs::write(path("b.yaml"), namespace("d")).unwrap();
    assert_eq!(keys(&scanner.scan(false)), ["+Namespace d", "-Namespace bb"]);
    assert!(scanner.report().errors[0].message.contains("is empty"));
}

#[test]
fn what_was_deleted_or_changed_meanwhile_is_not_brought_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for name in ["a", "b"] {
        fs::write(path(&format!("{name}.yaml")), namespace(name)).unwrap();
    }
    scanner(directory.path()).scan(true);
    fs::remove_file(path("a.yaml")).unwrap();
    fs::write(path("b.yaml"), namespace("c")).unwrap();
    assert_eq!(keys(&scanner(directory.path()).scan(true)), ["=Namespace c"]);
    fs::write(path("a.yaml"), "").unwrap();
    assert!(scanner(directory.path()).scan(true).is_empty());
    fs::remove_file(path("a.yaml")).unwrap();
    fs::write(path("b.yaml"), "").unwrap();
    assert_eq!(keys(&scanner(directory.path()).scan(true)), ["=Namespace c"]);
}

#[test]
fn a_file_that_is_as_it_was_is_good_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, namespace("a")).unwrap();
    let mut scanner = scanner(directory.path());
    scanner.scan(true);
    for broken in [b"\xff".as_slice(), b""] {
        fs::write(&file, broken).unwrap();
        assert!(scanner.scan(true).is_empty() && scanner.report().errors.len() == 1);
        fs::write(&file, namespace("a")).unwrap();
        assert!(scanner.scan(true).is_empty() && scanner.report().errors.is_empty());
    }
}

#[test]
fn a_name_in_two_files_is_an_error_that_names_both() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("b.yaml"), namespace("a")).unwrap();
    let mut scanner = scanner(directory.path());
    scanner.scan(true);
    fs::write(directory.path().join("a.yaml"), namespace("a").replace("enabled", "disabled")).unwrap();
    // The file that had it first keeps it.
    assert!(scanner.scan(false).is_empty());
    let error = scanner.report().errors[0].to_string();
    assert!(error.contains("a.yaml") && error.contains("b.yaml") && error.contains("Namespace a"), "{error}");
}

#[test]
fn a_configmap_s_swapped_links_are_read_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, path(name)).unwrap();
    for (version, name) in [("..v1", "a"), ("..v2", "b")] {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("mesh.yaml"), namespace(name)).unwrap();
    }
    link("..v1", "..data");
    link("..data/mesh.yaml", "mesh.yaml");
    let mut scanner = scanner(directory.path());
    assert_eq!(keys(&scanner.scan(true)), ["=Namespace a"]);
    link("..v2", "..next");
    fs::rename(path("..next"), path("..data")).unwrap();
    assert_eq!(keys(&scanner.scan(false)), ["+Namespace b", "-Namespace a"]);
}

#[test]
fn links_in_a_circle_end_and_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), namespace("a")).unwrap();
    let mut scanner = scanner(directory.path());
    assert_eq!(keys(&scanner.scan(true)), ["=Namespace a"]);
    for name in ["x", "y"] {
        std::os::unix::fs::symlink(directory.path(), directory.path().join(name)).unwrap();
    }
    // What was good stays.
    assert!(!keys(&scanner.scan(false)).contains(&"-Namespace a".to_owned()));
    assert!(scanner.report().errors.iter().any(|e| e.message.contains("directories")));
}

#[test]
fn more_manifests_than_fit_are_a_problem_and_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let files = BYTES_MAX / FILE_BYTES_MAX;
    for i in 0..files {
        // Sparse: it has a length and nothing else.
        fs::File::create(directory.path().join(format!("{i}.yaml")))
            .unwrap()
            .set_len(FILE_BYTES_MAX)
            .unwrap();
    }
    let listed = || list(directory.path(), 0, &mut Counted::default(), &mut BTreeMap::new());
    assert!(listed().is_ok());
    fs::write(directory.path().join("last.yaml"), namespace("a")).unwrap();
    assert!(listed().unwrap_err().message.contains("bytes of manifests"));
}

fn error_of(text: &str) -> String {
    manifest::parse("f.yaml", text).unwrap_err()[0].to_string()
}

#[test]
fn what_is_misspelt_is_an_error_in_own_kinds_and_a_warning_in_core_kinds() {
    let policy = "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  action: DENY\n  \
                  rules:\n  - from:\n    - principal: [a]\n";
    let error = error_of(policy);
    assert!(error.starts_with("f.yaml:") && error.contains("principal"), "{error}");
    let service =
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  clusterIP: None\n  selectr: {a: b}\n";
    let manifest = manifest::parse("f.yaml", service).unwrap();
    assert_eq!(manifest.warnings[0].line, 6);
    assert!(manifest.warnings[0].message.contains("spec.selectr"), "{}", manifest.warnings[0]);
    let unknown =
        manifest::parse("f.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n").unwrap();
    assert!(unknown.objects.is_empty() && unknown.warnings[0].message.contains("Deployment"));
}

#[test]
fn what_is_misspelt_beside_or_in_the_metadata_is_an_error_in_every_kind() {
    let policy = "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\n";
    for (text, told) in [
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labls: {weft.dev/mesh: enabled}\n",
            "f.yaml:5: there is no field metadata.labls",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\nlabels: {weft.dev/mesh: enabled}\n",
            "f.yaml:4: there is no field labels",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, Annotations: {}}\nspec: {}\n",
            "f.yaml:3: there is no field metadata.Annotations",
        ),
        (
            &format!(
                "{policy}metadata: {{name: p, namepsace: shop}}\nspec: {{action: DENY, rules: [{{}}]}}\n"
            ),
            "f.yaml:3: there is no field metadata.namepsace",
        ),
    ] {
        assert_eq!(error_of(text), told);
    }
    // As `kubectl get -o yaml --show-managed-fields` prints it.
    let printed = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  creationTimestamp: null\n  resourceVersion: '1'\n  managedFields:\n  \
                   - apiVersion: v1\n    fieldsType: FieldsV1\n    fieldsV1: {'f:metadata': {'f:labels': {}}}\n    manager: kubectl\n    operation: Update\n\
                   spec: {finalizers: [kubernetes]}\nstatus: {phase: Active}\n";
    assert_eq!(manifest::parse("f.yaml", printed).unwrap().warnings, []);
}

#[test]
fn what_is_misspelt_in_kind_or_version_is_no_other_kind_of_somebody_elses() {
    for (version, kind, line) in [
        ("weft.dev/v1", "AuthorizationPolicy", 1),
        ("weft.dev/v1alpha2", "TrafficPolicy", 1),
        ("weft.dev/v1alpha1", "AuthorizationPolicies", 2),
        ("v1", "Namespac", 2),
        ("V1", "Namespace", 1),
        ("v1beta1", "Pod", 1),
        ("gateway.networking.k8s.io/v1beta1", "HTTPRoute", 1),
        ("gateway.networking.k8s.io/v1", "HTTPRout", 2),
        ("gateway.networking.k8s.io/v1alpha2", "GRPCRoute", 1),
        ("discovery.k8s.io/v1beta1", "EndpointSlice", 1),
    ] {
        let error = error_of(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n"));
        assert!(error.starts_with(&format!("f.yaml:{line}: ")), "{error}");
    }
    for (version, kind) in [
        ("v1", "ConfigMap"),
        ("v1", "PodList"),
        ("batch/v1", "Job"),
        ("gateway.networking.k8s.io/v1alpha2", "TCPRoute"),
        ("gateway.networking.k8s.io/v1", "Gateway"),
        ("security.istio.io/v1", "AuthorizationPolicy"),
    ] {
        let manifest = manifest::parse("f.yaml", &format!("apiVersion: {version}\nkind: {kind}\n")).unwrap();
        assert_eq!((manifest.objects.len(), manifest.warnings.len()), (0, 1), "{version} {kind}");
    }
}

#[test]
fn what_is_misspelt_and_no_error_is_a_warning() {
    for (text, told) in [
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labels: {weft.dev/mehs: enabled}\n",
            "f.yaml:5: label weft.dev/mehs",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  annotations: {weft.dev/mesh: enabled}\n",
            "f.yaml:5: annotation weft.dev/mesh",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations: {weft.dev/exclude-ports: '1'}\n",
            "f.yaml:5: annotation weft.dev/exclude-ports",
        ),
    ] {
        let warnings = manifest::parse("f.yaml", text).unwrap().warnings;
        assert!(warnings.len() == 1 && warnings[0].to_string().starts_with(told), "{warnings:?}");
    }
    let known = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {weft.dev/mesh: enabled, weft.dev/mtls: strict, app: x}}\n";
    assert_eq!(manifest::parse("f.yaml", known).unwrap().warnings, []);

    let policy = |principal: &str, method: &str| {
        let text = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec:\n  action: DENY\n  rules:\n  \
             - from:\n    - principals: ['{principal}']\n    to:\n    - methods: ['{method}']\n"
        );
        let warnings = manifest::parse("f.yaml", &text).unwrap().warnings;
        warnings.iter().map(|warning| warning.line).collect::<Vec<_>>()
    };
    for (principal, method, lines) in [
        ("cluster.local/ns/a/sa/b", "GET", vec![]),
        ("spiffe://cluster.local/ns/a/sa/b", "PURGE", vec![]),
        ("*/sa/b", "purge", vec![]),
        ("ns/a/sa/b", "get", vec![8, 10]),
        ("b", "Post", vec![8, 10]),
    ] {
        assert_eq!(policy(principal, method), lines, "{principal} {method}");
    }
}

#[test]
fn values_are_refused_with_line_and_value() {
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec:\n  \
                 parentRefs:\n  - {group: '', kind: Service, name: backend, port: 80}\n  rules:\n  - matches:\n    - path: \
                 {type: RegularExpression, value: '('}\n";
    let error = error_of(route);
    assert!(error.contains("rules[0].matches[0].path.regex") && error.contains("\"(\""), "{error}");
    let traffic = "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: t}\nspec:\n  connectTimeout: 5\n";
    assert!(error_of(traffic).starts_with("f.yaml:5:"), "{}", error_of(traffic));
    let traffic = traffic.replace("connectTimeout: 5", "connectTimeout: 5 s");
    assert!(error_of(&traffic).contains("\"5 s\" is not a duration"), "{}", error_of(&traffic));
}

#[test]
fn a_pod_takes_its_addresses_from_the_status_of_the_same_name() {
    let directory = tempfile::tempdir().unwrap();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\nspec: {nodeName: n1, containers: []}\n";
    fs::write(directory.path().join("pod.yaml"), pod).unwrap();
    let status = r#"{"apiVersion":"weft.dev/v1alpha1","kind":"PodStatus","metadata":{"namespace":"shop","name":"a"},
        "spec":{"uid":"u-1","nodeName":"n2","podIPs":["10.0.0.1"],"ready":true}}"#;
    fs::write(directory.path().join("status.yaml"), status).unwrap();
    let events = scanner(directory.path()).scan(true);
    let [Event::Reset(objects)] = events.as_slice() else { panic!("{events:?}") };
    let [Object::Pod(pod)] = objects.as_slice() else { panic!("{objects:?}") };
    assert_eq!((pod.uid.as_str(), pod.node.as_deref(), pod.ips.len()), ("u-1", Some("n2"), 1));
}

#[test]
fn a_token_never_shows() {
    let text = "apiVersion: v1\nkind: Secret\ntype: weft.dev/join-token\nmetadata: {name: j, namespace: weft-system}\n\
                stringData: {node: n1, token: very-secret-very-secret}\n";
    let manifest = manifest::parse("f.yaml", text).unwrap();
    assert!(!format!("{manifest:?}").contains("very-secret"));
    // Nor where it is not even a string, and the parser would quote it.
    let yaml = "apiVersion: v1\nkind: Secret\ntype: weft.dev/join-token\nmetadata: {name: j}\n";
    let json =
        r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"j"},"stringData":{"token":4815162342}}"#;
    for (file, text, hidden) in [
        ("t.json", json.to_owned(), "4815162342"),
        ("t.yaml", format!("{yaml}stringData: very-secret-very-secret\n"), "very-secret"),
        ("t.yaml", format!("{yaml}data: {{node: bjE=, token: \"very-secret-!\"}}\n"), "very-secret"),
    ] {
        let problems = manifest::parse(file, &text).unwrap_err();
        assert!(!format!("{problems:?}").contains(hidden), "{problems:?}");
        assert!(problems[0].message.contains("not shown"), "{problems:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "[ -~\n\t\u{e9}-]{0,200}") {
        let _ = manifest::parse("f.yaml", &text);
        let _ = manifest::parse("f.json", &text);
    }

    #[test]
    fn a_manifest_with_bytes_changed_never_panics(at in 0usize..400, with in any::<char>(), kind in 0usize..4) {
        let kinds = ["AuthorizationPolicy", "TrafficPolicy", "PodStatus", "X"];
        let text = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: {}\nmetadata: {{name: p, namespace: shop}}\nspec:\n  action: DENY\n  \
             inbound: {{mode: STRICT}}\n  rules:\n  - from:\n    - principals: ['*/sa/x']\n", kinds[kind]);
        let changed: String = text.chars().enumerate().map(|(i, c)| if i == at { with } else { c }).collect();
        let _ = manifest::parse("f.yaml", &changed);
    }
}

/// A node's kernel tables have room for so many of each pod, and for no more.
#[test]
fn a_pod_excludes_so_many_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let ports = |count: u16| (1..=count).map(|port| port.to_string()).collect::<Vec<_>>().join(", ");
    let cidrs = |count: u8| (1..=count).map(|n| format!("10.{n}.0.0/16")).collect::<Vec<_>>().join(",");
    for (annotation, most, more) in [
        ("exclude-inbound-ports", ports(32), ports(33)),
        ("exclude-outbound-ports", ports(32), ports(33)),
        ("exclude-outbound-cidrs", cidrs(32), cidrs(33)),
    ] {
        for (value, refused) in [(most, false), (more, true)] {
            let pod = format!(
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations: {{weft.dev/{annotation}: \"{value}\"}}\n"
            );
            fs::write(directory.path().join("a.yaml"), pod).unwrap();
            let mut scanner = Scanner::new(vec![directory.path().to_owned()]);
            scanner.scan(true);
            let report = scanner.report();
            assert_eq!(report.errors.len(), usize::from(refused), "{annotation}: {:?}", report.errors);
            if refused {
                let told = format!("{:?}", report.errors[0]);
                assert!(told.contains("33 entries are more than 32"), "{told}");
            }
        }
    }
}
