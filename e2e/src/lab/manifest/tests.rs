//! What a lab takes of manifests, and that no mistake in them is passed over.

use std::fs;

use super::*;

const SHOP: &str = r#"apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  nodeName: node1
  containers:
    - name: main
      command: [weft-echo]
      ports: [{name: http, containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports: [{port: 80, targetPort: http}, {port: 81, targetPort: 9000}, {port: 82}]
---
apiVersion: v1
kind: ConfigMap
"#;

const NODES: u16 = 2;

fn refusal(text: &str) -> String {
    format!("{:#}", Manifests::parse("shop.yaml", text, NODES).unwrap_err())
}

#[test]
fn pods_and_services_are_read_and_the_rest_is_left_to_the_control_plane() {
    let all = Manifests::parse("shop.yaml", SHOP, NODES).unwrap();
    let (pod, service) = (&all.pods["shop/web"], &all.services["shop/web"]);
    assert!(service.selects(pod));
    assert_eq!(service.vips(), vec!["10.96.0.10".parse::<std::net::IpAddr>().unwrap()]);
    let targets: Vec<_> = service.spec.ports.iter().map(|p| p.target(pod)).collect();
    assert_eq!(targets, [Some(8080), Some(9000), Some(82)]);
}

#[test]
fn a_pod_that_a_lab_cannot_run_is_refused_with_its_line_and_the_way_out() {
    for (old, new, expected) in [
        ("nodeName: node1", "restartPolicy: Always", "shop.yaml:4: Pod shop/web: a lab has no scheduler"),
        ("nodeName: node1", "nodeName: node3", "shop.yaml:5: Pod shop/web: no node3 in this lab"),
        ("nodeName: node1", "nodeName: worker", "shop.yaml:5: Pod shop/web: nodes of a lab are called"),
        ("command: [weft-echo]", "image: nginx", "shop.yaml:6: Pod shop/web: a lab runs no images"),
    ] {
        let said = refusal(&SHOP.replace(old, new));
        assert!(said.contains(expected), "{expected} in {said}");
    }
}

#[test]
fn a_service_without_an_address_or_with_anothers_is_refused_with_its_line() {
    for (new, expected) in [
        ("type: ClusterIP", "shop.yaml:14: Service shop/web: a lab gives no addresses"),
        ("clusterIP: ''", "shop.yaml:14: Service shop/web: a lab gives no addresses"),
    ] {
        let said = refusal(&SHOP.replace("clusterIP: 10.96.0.10", new));
        assert!(said.contains(expected), "{expected} in {said}");
    }
    for new in ["clusterIP: None", "clusterIPs: [\"fd00::1\"]", "type: ExternalName"] {
        Manifests::parse("shop.yaml", &SHOP.replace("clusterIP: 10.96.0.10", new), NODES).unwrap();
    }
    let twice = format!("{SHOP}---\n{}", SHOP.replace("name: web, n", "name: two, n"));
    let said = refusal(&twice);
    assert!(said.contains("shop.yaml:36: Service shop/two: Service shop/web has this address"), "{said}");
}

#[test]
fn a_mistake_is_told_with_file_and_line_whatever_stands_before_or_behind_it() {
    let broken = format!("{SHOP}---\nkind: Pod\nmetadata: {{name: [\n---\n{SHOP}");
    assert!(refusal(&broken).contains("shop.yaml:2"), "{}", refusal(&broken));
    let unknown = format!("{SHOP}---\napiVersion: weft.dev/v1alpha1\nkind: Policy\n");
    assert!(
        refusal(&unknown).contains("shop.yaml:23: weft.dev/v1alpha1 has no kind"),
        "{}",
        refusal(&unknown)
    );
}

/// One pod of this name, as JSON.
fn pod(name: &str) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}"}},
             "spec": {{"nodeName": "node1", "containers": [{{"name": "c", "command": ["x"]}}]}}}}"#
    )
}

#[test]
fn a_lab_reads_the_files_that_its_control_plane_reads() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir_all(path("deep/er")).unwrap();
    for (file, text) in [
        ("a.json", pod("json")),
        ("deep/er/b.yml", pod("deep")),
        (
            "list.yaml",
            format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{}, {}]}}"#, pod("one"), pod("two")),
        ),
        (".hidden.yaml", "not: [read".to_owned()),
        ("notes.txt", "not: [read".to_owned()),
    ] {
        fs::write(path(file), text).unwrap();
    }
    let all = Manifests::read(&[directory.path().to_owned()], NODES).unwrap();
    let found: Vec<&str> = all.pods.keys().map(String::as_str).collect();
    assert_eq!(found, ["default/deep", "default/json", "default/one", "default/two"]);

    fs::write(path("deep/wrong.yaml"), "kind: [").unwrap();
    let said = format!("{:#}", Manifests::read(&[directory.path().to_owned()], NODES).unwrap_err());
    assert!(said.contains("deep/wrong.yaml:1: "), "{said}");
}
