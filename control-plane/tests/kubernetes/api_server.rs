//! A real Kubernetes API server with its etcd, on loopback, for the tests of this folder: one per test, gone with it.
//!
//! No nodes, and no controllers but those that a test asks for: what it needs, it creates. The binaries are those of the test cluster (`make cluster-up` makes
//! them once); without them the tests fail, and say how to get them.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kube::Client;
use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};

/// A loaded machine takes long to start an API server.
const READY_WAIT_MAX: Duration = Duration::from_secs(120);
const ADMIN_TOKEN: &str = "the-admin-of-these-tests-0123456789";

pub(crate) struct ApiServer {
    pub(crate) directory: tempfile::TempDir,
    address: SocketAddr,
    etcd: Child,
    server: Child,
    arguments: Vec<String>,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in [&mut self.server, &mut self.etcd] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Of the cache that the test cluster's scripts fill.
fn binary(name: &str) -> PathBuf {
    let cache = PathBuf::from(std::env::var_os("HOME").expect("there is a home")).join(".cache/weft");
    let of_kubernetes = std::fs::read_dir(&cache).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut folders: Vec<_> = of_kubernetes
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kubernetes-")))
        .collect();
    folders.sort();
    folders.push(cache.join("cluster-tools"));
    let found = folders.iter().rev().map(|folder| folder.join("bin").join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is not in {}: `make cluster-up` makes it", cache.display()))
}

/// Free a moment ago, and below the ports that connections of other tests get (`ip_local_port_range`), which nobody asks
/// whether they suit a server that is still starting.
pub(crate) fn free_port() -> u16 {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 10_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mine = std::process::id().wrapping_mul(100);
    loop {
        let nth = mine.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + nth).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A process that ends with the value.
pub(crate) struct Part(Child);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn started(name: &str, log: &Path, arguments: &[String]) -> Child {
    let log = std::fs::File::create(log).unwrap();
    let errors = log.try_clone().unwrap();
    let mut command = Command::new(binary(name));
    command.args(arguments).stdin(Stdio::null()).stdout(log).stderr(errors);
    command.spawn().unwrap()
}

impl ApiServer {
    /// `further`: arguments of the API server.
    pub(crate) async fn start(further: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let (client_port, peer_port, port) = (free_port(), free_port(), free_port());
        let address: SocketAddr = ([127, 0, 0, 1], port).into();
        let etcd_url = format!("http://127.0.0.1:{client_port}");
        let peer_url = format!("http://127.0.0.1:{peer_port}");
        let etcd = started(
            "etcd",
            &directory.path().join("etcd.log"),
            &[
                format!("--data-dir={}", at("etcd")),
                "--unsafe-no-fsync".into(),
                format!("--listen-client-urls={etcd_url}"),
                format!("--advertise-client-urls={etcd_url}"),
                format!("--listen-peer-urls={peer_url}"),
                format!("--initial-advertise-peer-urls={peer_url}"),
                format!("--initial-cluster=default={peer_url}"),
            ],
        );
        certificates(directory.path());
        let admin = format!("{ADMIN_TOKEN},admin,admin,system:masters\n");
        std::fs::write(directory.path().join("tokens.csv"), admin).unwrap();
        let mut arguments = vec![
            format!("--etcd-servers={etcd_url}"),
            "--bind-address=127.0.0.1".into(),
            "--advertise-address=127.0.0.1".into(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", at("server.pem")),
            format!("--tls-private-key-file={}", at("server.key")),
            format!("--token-auth-file={}", at("tokens.csv")),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", at("accounts.pub")),
            format!("--service-account-signing-key-file={}", at("accounts.key")),
            "--disable-admission-plugins=ServiceAccount".into(),
        ];
        // The API server adds up what it is told twice.
        if !further.iter().any(|argument| argument.starts_with("--authorization-mode")) {
            arguments.push("--authorization-mode=RBAC".into());
        }
        arguments.extend(further.iter().map(|argument| (*argument).to_owned()));
        let server = started("kube-apiserver", &directory.path().join("server.log"), &arguments);
        let started = Self { directory, address, etcd, server, arguments };
        started.write_kubeconfig();
        started.ready().await;
        started
    }

    /// Until it says so, and until its own objects are there: it makes them after that, and tests that watch everything would
    /// see them come.
    async fn ready(&self) {
        let end = Instant::now() + READY_WAIT_MAX;
        for path in ["/readyz", "/api/v1/namespaces/default/services/kubernetes"] {
            loop {
                let request = http::Request::get(path).body(Vec::new()).unwrap();
                match self.client().await.request_text(request).await {
                    Ok(_) => break,
                    Err(error) if Instant::now() > end => {
                        panic!("the API server is not ready: {path}: {error}")
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            }
        }
    }

    fn write_kubeconfig(&self) {
        let ca = self.directory.path().join("ca.pem");
        let server = format!("'https://{}', certificate-authority: '{}'", self.address, ca.display());
        std::fs::write(self.kubeconfig(), kubeconfig_of(&server, ADMIN_TOKEN)).unwrap();
    }

    /// Of who has this token.
    pub(crate) fn kubeconfig_of(&self, token: &str) -> PathBuf {
        let text = std::fs::read_to_string(self.kubeconfig()).unwrap().replace(ADMIN_TOKEN, token);
        let file = self.directory.path().join("kubeconfig-of-a-token");
        std::fs::write(&file, text).unwrap();
        file
    }

    /// Of whoever has the token in this file.
    pub(crate) fn kubeconfig_of_file(&self, token: &Path) -> PathBuf {
        let text = std::fs::read_to_string(self.kubeconfig()).unwrap();
        let text =
            text.replace(&format!("token: {ADMIN_TOKEN}"), &format!("tokenFile: '{}'", token.display()));
        let file = self.directory.path().join("kubeconfig-of-a-file");
        std::fs::write(&file, text).unwrap();
        file
    }

    /// Of the same administrator, by way of a proxy on loopback.
    pub(crate) fn kubeconfig_by(&self, proxy: SocketAddr) -> PathBuf {
        let file = self.directory.path().join("kubeconfig-proxy");
        std::fs::write(&file, kubeconfig_of(&format!("'http://{proxy}'"), ADMIN_TOKEN)).unwrap();
        file
    }

    /// Of an administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    pub(crate) async fn client(&self) -> Client {
        let read = kube::config::Kubeconfig::read_from(self.kubeconfig()).unwrap();
        let config = kube::Config::from_custom_kubeconfig(read, &Default::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    /// Some of Kubernetes' controllers, by their names.
    pub(crate) fn controllers(&self, names: &str) -> Part {
        let arguments = [
            format!("--kubeconfig={}", self.kubeconfig().display()),
            format!("--controllers={names}"),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
        ];
        let log = self.directory.path().join("controllers.log");
        Part(started("kube-controller-manager", &log, &arguments))
    }

    /// The process ends; what is stored stays.
    pub(crate) fn down(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }

    pub(crate) async fn up(&mut self) {
        let log = self.directory.path().join("server-again.log");
        self.server = started("kube-apiserver", &log, &self.arguments);
        self.ready().await;
    }

    /// Stops answering, without closing: what a client sees of an API server that hangs.
    pub(crate) fn pause(&self, paused: bool) {
        let signal = if paused { "-STOP" } else { "-CONT" };
        let told = Command::new("kill").args([signal, &self.server.id().to_string()]).status().unwrap();
        assert!(told.success());
        // Only when one of its threads gets to run does it stop the others: on a busy machine they answer until then.
        let end = Instant::now() + READY_WAIT_MAX;
        while paused && !is_stopped(self.server.id()) {
            assert!(Instant::now() < end, "the API server does not stop");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether all threads of a process are stopped.
fn is_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut states = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    // The state follows the name, which is in parentheses.
    states.all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
}

fn kubeconfig_of(server: &str, token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: {server}}}}}]\n\
         users: [{{name: admin, user: {{token: {token}}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: admin}}}}]\n"
    )
}

/// An authority, the server's certificate, and the key of ServiceAccount tokens.
fn certificates(directory: &Path) {
    let write = |name: &str, text: String| std::fs::write(directory.join(name), text).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    write("ca.pem", ca.self_signed(&ca_key).unwrap().pem());
    let key = KeyPair::generate().unwrap();
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let server = CertificateParams::new(names).unwrap().signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    write("server.pem", server.pem());
    write("server.key", key.serialize_pem());
    let accounts = KeyPair::generate().unwrap();
    write("accounts.key", accounts.serialize_pem());
    // Of a private key the API server takes only the forms that OpenSSL once wrote.
    write("accounts.pub", accounts.public_key_pem());
}
