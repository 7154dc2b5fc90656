//! `weft-control` as a process: its log, its admin endpoint, and the connections of nodes to it.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use weft_proto::v1::certificates_client::CertificatesClient;
use weft_proto::v1::{SignNodeRequest, SignResponse};

use super::api_server::{ApiServer, free_port};

const WAIT_MAX: Duration = Duration::from_secs(60);

/// A `weft-control` process.
pub(crate) struct Control {
    child: Child,
    pub(crate) address: SocketAddr,
    log: PathBuf,
    admin: PathBuf,
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Control {
    pub(crate) fn start(server: &ApiServer, name: &str) -> Self {
        Self::start_by(server, &server.kubeconfig(), name, &[])
    }

    /// By another way to the API server, with further arguments.
    pub(crate) fn start_by(server: &ApiServer, kubeconfig: &Path, name: &str, further: &[&str]) -> Self {
        Self::start_in(server, kubeconfig, name, further, &[])
    }

    /// In another environment, too.
    pub(crate) fn start_in(
        server: &ApiServer,
        kubeconfig: &Path,
        name: &str,
        further: &[&str],
        environment: &[(&str, &Path)],
    ) -> Self {
        let at = |suffix: &str| server.directory.path().join(format!("{name}.{suffix}"));
        let (log, admin) = (at("log"), at("sock"));
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let child = Command::new(env!("CARGO_BIN_EXE_weft-control"))
            .args([
                "--kubernetes",
                &format!("--listen={address}"),
                &format!("--admin=unix:{}", admin.display()),
            ])
            .args(further)
            .env("KUBECONFIG", kubeconfig)
            .env("NO_COLOR", "1")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, address, log, admin }
    }

    /// Seconds of processor time so far.
    pub(crate) fn processor_seconds(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Behind the name, which may hold anything: utime and stime are fields 14 and 15, in hundredths.
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>() / 100
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it as a kubelet does, and returns its log.
    pub(crate) async fn ended(mut self) -> String {
        let told = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(told.success());
        let end = tokio::time::Instant::now() + WAIT_MAX;
        while self.child.try_wait().unwrap().is_none() {
            assert!(tokio::time::Instant::now() < end, "weft-control does not end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.log()
    }

    /// Waits for a line of the log.
    pub(crate) async fn says(&self, wanted: &str) {
        until(&format!("{wanted:?} in the log"), || async { self.log().contains(wanted).then_some(()) })
            .await;
    }

    pub(crate) async fn status(&self) -> serde_json::Value {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::UnixStream::connect(&self.admin).await.unwrap();
        stream.write_all(b"GET /status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    pub(crate) async fn channel(&self, root: &str, shown: Option<Identity>) -> Channel {
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root)).domain_name("weft-control");
        if let Some(shown) = shown {
            tls = tls.identity(shown);
        }
        until("a connection", || async {
            let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
            endpoint.tls_config(tls.clone()).unwrap().connect().await.ok()
        })
        .await
    }

    pub(crate) async fn sign_node(&self, root: &str, token: &str) -> Result<Identity, Status> {
        Ok(self.sign_node_for(root, token).await?.0)
    }

    /// With the certificate's beginning and end.
    pub(crate) async fn sign_node_for(
        &self,
        root: &str,
        token: &str,
    ) -> Result<(Identity, Range<i64>), Status> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut request = Request::new(SignNodeRequest { csr_der: csr(&key) });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let mut client = CertificatesClient::new(self.channel(root, None).await);
        let answer: SignResponse = client.sign_node(request).await?.into_inner();
        let blocks: Vec<_> =
            answer.chain_der.into_iter().map(|der| pem::Pem::new("CERTIFICATE", der)).collect();
        let times = answer.not_before_unix_s..answer.not_after_unix_s;
        Ok((Identity::from_pem(pem::encode_many(&blocks), key.serialize_pem()), times))
    }
}

pub(crate) fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let end = tokio::time::Instant::now() + WAIT_MAX;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < end, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
