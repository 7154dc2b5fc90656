//! What runs where: two labs with the same pods, one with redirect and one without. In each, a client and two servers
//! in the mesh, and their twins outside it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::{Variant, Way};
use crate::lab::{Lab, Options, wait};

/// The mesh's answer to a first request: certificates may still be on their way.
const FIRST_ANSWER_WAIT_MAX: Duration = Duration::from_secs(20);

pub(super) const HTTP_PORT: u16 = 8080;
/// The same server on a port that is declared as bytes.
const OPAQUE_PORT: u16 = 8081;
const IPERF_PORT: u16 = 5201;

/// The labs, and the files of their pods. Their names are fixed: what a run that was killed left behind goes with the next one.
pub(super) struct Scene {
    redirect: Lab,
    plain: Lab,
    _files: TempDir,
}

/// Where one measurement's client is, and what it talks to.
pub(super) struct Place<'a> {
    pub(super) lab: &'a Lab,
    pub(super) client: &'static str,
    pub(super) web: SocketAddr,
    pub(super) iperf: SocketAddr,
}

impl Scene {
    pub(super) fn up() -> Result<Self> {
        let files = tempfile::tempdir()?;
        let conf = write_nginx_conf(files.path())?;
        let manifests = manifests(&conf);
        let lab = |kind: &str, redirect: &str| {
            let name = format!("bench-{kind}");
            let lab = Lab::up_with(&name, &manifests, options(redirect))?;
            await_answers(&lab)?;
            Ok::<_, anyhow::Error>(lab)
        };
        Ok(Self { redirect: lab("on", "auto")?, plain: lab("off", "off")?, _files: files })
    }

    pub(super) fn down(self) -> Result<()> {
        self.redirect.down()?;
        self.plain.down()
    }

    pub(super) fn place(&self, way: Way, variant: Variant) -> Place<'_> {
        let lab = match variant {
            Variant::NoMesh | Variant::L4 | Variant::L7 => &self.redirect,
            Variant::L4RedirectOff | Variant::L7RedirectOff => &self.plain,
        };
        place(lab, way, variant)
    }
}

pub(super) fn options(redirect: &str) -> Options {
    Options {
        // The log is off by default; `all` writes a line per request.
        node_args: vec![format!("--redirect={redirect}"), "--access-log=off".into()],
        ..Options::default()
    }
}

/// In the mesh a Service is addressed, so that every request is routed and balanced. Outside it the pod itself is:
/// nothing is translated on the way, which is the harder comparison.
fn place(lab: &Lab, way: Way, variant: Variant) -> Place<'_> {
    let (server, last) = match way {
        Way::CrossNode => ("far", 1),
        Way::SameNode => ("near", 2),
    };
    let service = |port: u16| SocketAddr::from(([10, 96, 1, last], port));
    let (client, web, iperf) = match variant {
        Variant::NoMesh => {
            let pod = lab.pod(&format!("outside/{server}")).expect("the manifests have it");
            let at = |port| SocketAddr::new(pod.ips[0], port);
            ("outside/client", at(HTTP_PORT), at(IPERF_PORT))
        }
        Variant::L4 | Variant::L4RedirectOff => ("inside/client", service(OPAQUE_PORT), service(IPERF_PORT)),
        Variant::L7 | Variant::L7RedirectOff => ("inside/client", service(HTTP_PORT), service(IPERF_PORT)),
    };
    Place { lab, client, web, iperf }
}

fn await_answers(lab: &Lab) -> Result<()> {
    for variant in [Variant::NoMesh, Variant::L4, Variant::L7] {
        for way in [Way::CrossNode, Way::SameNode] {
            let place = place(lab, way, variant);
            let url = format!("http://{}/", place.web);
            wait::until(FIRST_ANSWER_WAIT_MAX, || {
                lab.exec_ok(place.client, &["curl", "-sSf", "--max-time", "2", "-o", "/dev/null", &url])
            })
            .with_context(|| format!("first answer, {}, {variant:?}", way.name()))?;
        }
    }
    Ok(())
}

/// The web server's configuration: one process, an answer from memory.
pub(super) fn write_nginx_conf(directory: &Path) -> Result<String> {
    let file = directory.join("nginx.conf");
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {kind};"));
    let text = format!(
        "daemon off; master_process off; error_log stderr error; pid nginx.pid;\n\
         events {{ worker_connections 8192; }}\n\
         http {{\n  access_log off; keepalive_requests 100000000; {}\n\
         server {{ listen {HTTP_PORT} backlog=4096; listen {OPAQUE_PORT} backlog=4096; location / {{ return 200 \"weft\\n\"; }} }}\n}}\n",
        temporary.join(" ")
    );
    fs::write(&file, text).with_context(|| file.display().to_string())?;
    Ok(file.display().to_string())
}

fn manifests(nginx_conf: &str) -> String {
    let mut documents = vec![
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: inside, labels: {weft.dev/mesh: enabled}}\n"
            .into(),
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: outside}\n".to_owned(),
    ];
    for namespace in ["inside", "outside"] {
        documents.push(client(namespace, "client"));
        documents.push(server(namespace, "far", "node2", nginx_conf));
        documents.push(server(namespace, "near", "node1", nginx_conf));
    }
    documents.push(service("far", "10.96.1.1"));
    documents.push(service("near", "10.96.1.2"));
    documents.join("---\n")
}

/// A pod of node 1 in which clients are started.
pub(super) fn client(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  nodeName: node1\n  containers: [{{name: main, command: [sleep, infinity]}}]\n"
    )
}

pub(super) fn server(namespace: &str, name: &str, node: &str, nginx_conf: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}, tier: server}}}}\n\
         spec:\n  nodeName: {node}\n  containers:\n\
         \x20 - {{name: web, command: [nginx, -p, ., -c, {nginx_conf}], ports: [{{containerPort: {HTTP_PORT}}}, {{containerPort: {OPAQUE_PORT}}}]}}\n\
         \x20 - {{name: iperf, command: [iperf3, -s, -p, \"{IPERF_PORT}\"], ports: [{{containerPort: {IPERF_PORT}}}]}}\n"
    )
}

fn service(name: &str, address: &str) -> String {
    service_of(name, address, &format!("app: {name}"))
}

pub(super) fn service_of(name: &str, address: &str, selector: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: inside}}\n\
         spec:\n  clusterIP: {address}\n  selector: {{{selector}}}\n  ports:\n\
         \x20 - {{name: web, port: {HTTP_PORT}, appProtocol: http}}\n\
         \x20 - {{name: bytes, port: {OPAQUE_PORT}, appProtocol: tcp}}\n\
         \x20 - {{name: iperf, port: {IPERF_PORT}, appProtocol: tcp}}\n"
    )
}
