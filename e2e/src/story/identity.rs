//! Step 2: who spoke to whom, and who gets no certificate.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use weft_proto::v1::certificates_client::CertificatesClient;
use weft_proto::v1::{SignNodeRequest, SignRequest};

use super::{Evidence, clients};
use crate::lab::{Lab, netns, wait};

/// A record is written when its request ends; a loaded machine may take a moment.
const RECORD_WAIT_MAX: Duration = Duration::from_secs(10);
const FRONTEND: &str = "spiffe://cluster.local/ns/shop/sa/frontend";
const BACKEND: &str = "spiffe://cluster.local/ns/shop/sa/backend";

pub(super) fn verified(lab: &mut Lab) -> Result<Evidence> {
    let (status, body) = clients::get(lab, "shop/frontend", "http://backend/who-spoke", &[])?;
    ensure!(status == 200, "answered {status}: {body}");
    let mut evidence = Vec::new();
    for (node, end) in [("node1", "client"), ("node2", "server")] {
        let record = record_of(lab, node, "/who-spoke")?;
        let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
        let (source, destination) = (text("source_principal"), text("destination_principal"));
        ensure!(source == FRONTEND, "{node} names the client {source:?}: {record}");
        ensure!(destination == BACKEND, "{node} names the server {destination:?}: {record}");
        ensure!(text("security") == "mutual_tls", "not over mutual TLS: {record}");
        evidence
            .push(format!("{node}, the {end}'s side, over {}: {source} -> {destination}", text("security")));
    }

    let backend = lab.pod("shop/backend-v1")?.clone();
    let own = ask_certificate(lab, &backend.node, &backend.uid)?;
    ensure!(own.is_ok(), "{} was refused a certificate for its own pod: {own:?}", backend.node);
    evidence.push(format!("{} asks for a certificate of its pod {}: granted", backend.node, backend.key()));
    let refused = match ask_certificate(lab, "node1", &backend.uid)? {
        Err(status) if status.code() == Code::PermissionDenied => status,
        other => bail!("node1 asked for a certificate of {} and got {other:?}", backend.key()),
    };
    evidence.push(format!("node1 asks for one of the same pod: {:?}, {}", refused.code(), refused.message()));
    evidence.push(format!("weft-control's log: {}", refusal_in_log(lab, "node1", &backend.uid)?));
    Ok(evidence)
}

/// The access log's line of a request to `path`.
fn record_of(lab: &Lab, node: &str, path: &str) -> Result<Value> {
    let log = lab.access_log(node);
    wait::until(RECORD_WAIT_MAX, || {
        let text = fs::read_to_string(&log).with_context(|| log.display().to_string())?;
        let mut records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        records.find(|r| r["path"] == path).with_context(|| format!("{node} has no record of {path}"))
    })
}

/// Asks `weft-control` as a node of the lab would, from the node's namespace, for a certificate of a pod.
pub fn ask_certificate(lab: &Lab, node: &str, pod_uid: &str) -> Result<Result<usize, Status>> {
    let authority = fs::read(lab.control_authority())?;
    let token = fs::read_to_string(lab.join_token_file(node))?;
    ask(&lab.node_netns(node), &lab.control_address(), &authority, &token, pod_uid)
}

/// Asks `weft-control` from a namespace: with a node's token for a certificate of that node, and with that for one of a pod. The
/// number of certificates in the pod's chain, or the refusal of either.
pub fn ask(
    netns: &str,
    address: &str,
    authority: &[u8],
    token: &str,
    pod_uid: &str,
) -> Result<Result<usize, Status>> {
    let tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority)).domain_name("weft-control");
    let endpoint = |tls| anyhow::Ok(Endpoint::from_shared(address.to_owned())?.tls_config(tls)?);
    let csr = |key: &KeyPair| anyhow::Ok(CertificateParams::default().serialize_request(key)?.der().to_vec());
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut request = Request::new(SignNodeRequest { csr_der: csr(&key)? });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    netns::inside(netns, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let channel = endpoint(tls.clone())?.connect().await.context("connecting to weft-control")?;
            let answer = match CertificatesClient::new(channel).sign_node(request).await {
                Ok(answer) => answer.into_inner(),
                Err(refused) => return Ok(Err(refused)),
            };
            let blocks: Vec<_> =
                answer.chain_der.into_iter().map(|der| pem::Pem::new("CERTIFICATE", der)).collect();
            let shown = Identity::from_pem(pem::encode_many(&blocks), key.serialize_pem());
            let channel = endpoint(tls.identity(shown))?.connect().await.context("connecting as a node")?;
            let request =
                SignRequest { pod_uid: pod_uid.to_owned(), csr_der: csr(&key)?, ..Default::default() };
            let answer = CertificatesClient::new(channel).sign(request).await;
            Ok(answer.map(|signed| signed.into_inner().chain_der.len()))
        })
    })?
}

fn refusal_in_log(lab: &Lab, node: &str, pod_uid: &str) -> Result<String> {
    wait::until(RECORD_WAIT_MAX, || {
        let text = fs::read_to_string(lab.control_log())?;
        let mut lines = text.lines().map(clients::without_colours);
        let wanted = |l: &String| l.contains("refused") && l.contains(pod_uid) && l.contains(node);
        lines.find(wanted).with_context(|| format!("weft-control logged no refusal of {pod_uid}"))
    })
}
