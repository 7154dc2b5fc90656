//! Who is let into the tunnel's port of a live node, what HTTP/2 in bad faith gets there, and certificates of a minute and of another authority.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use http::{Method, Request, StatusCode};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::runtime::Runtime;
use weft_e2e::fixture::{self, MESH, Running, Shared};
use weft_e2e::lab::{Lab, Options, netns, wait};
use weft_e2e::story::clients::{count, echo};

const WAIT_MAX: Duration = Duration::from_secs(10);
/// Certificates of a minute are renewed at half of it.
const ROTATION_WAIT_MAX: Duration = Duration::from_secs(60);
const TUNNEL_PORT: u16 = 15008;
/// What a node of the mesh would show for mesh/client.
const CLIENT_ID: &str = "spiffe://cluster.local/ns/mesh/sa/default";

type Requests = h2::client::SendRequest<bytes::Bytes>;

fn lab() -> Result<&'static Lab> {
    static LAB: Shared = Shared::new();
    LAB.lab("identity", MESH, Options::default())
}

/// What a client shows.
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

enum Signer {
    Mesh,
    Itself,
    Stranger,
}

/// A certificate with these URI names, valid for so many days from yesterday.
fn certificate(uris: &[&str], days: i64, signer: &Signer) -> Result<Shown> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    let uri = |uri: &&str| Ok(SanType::URI((*uri).try_into()?));
    params.subject_alt_names = uris.iter().map(uri).collect::<Result<_>>()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(1);
    params.not_after = params.not_before + time::Duration::days(days) - time::Duration::hours(1);
    let made = match signer {
        Signer::Itself => params.self_signed(&key)?,
        Signer::Mesh => {
            let state = lab()?.control_directory().join("state");
            let read = |file: &str| std::fs::read_to_string(state.join(file)).context(file.to_owned());
            let issuer = Issuer::from_ca_cert_pem(&read("ca.pem")?, KeyPair::from_pem(&read("ca.key")?)?)?;
            params.signed_by(&key, &issuer)?
        }
        Signer::Stranger => {
            let mut root = CertificateParams::default();
            root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let root_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
            params.signed_by(&key, &Issuer::new(root, root_key))?
        }
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| anyhow!(e))?;
    Ok(Shown { chain: vec![made.der().clone()], key })
}

/// The tests are about what the server believes, not about the server.
#[derive(Debug)]
struct Believe;

impl ServerCertVerifier for Believe {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ECDSA_NISTP384_SHA384]
    }
}

/// A tunnel from outside/stranger to the pod mesh/far.
async fn tunnel(shown: Option<Shown>) -> Result<Requests> {
    let to = SocketAddr::new(lab()?.pod("mesh/far")?.ips[0], TUNNEL_PORT);
    let tcp = netns::inside(&lab()?.pod("outside/stranger")?.netns, || TcpStream::connect(to))??;
    tcp.set_nonblocking(true)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believe));
    let mut config = match shown {
        Some(Shown { chain, key }) => config.with_client_auth_cert(chain, key)?,
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tls = connector.connect(ServerName::IpAddress(to.ip().into()), tokio::net::TcpStream::from_std(tcp)?);
    let (requests, connection) = h2::client::handshake(tls.await?).await?;
    tokio::spawn(connection);
    Ok(requests)
}

fn connect(authority: &str) -> Result<Request<()>> {
    Ok(Request::builder().method(Method::CONNECT).uri(authority).body(())?)
}

async fn status(requests: &Requests, request: Request<()>) -> Result<StatusCode> {
    let mut requests = requests.clone().ready().await?;
    let (response, _sender) = requests.send_request(request, false)?;
    Ok(tokio::time::timeout(WAIT_MAX, response).await??.status())
}

fn far(port: u16) -> Result<String> {
    Ok(SocketAddr::new(lab()?.pod("mesh/far")?.ips[0], port).to_string())
}

/// How one CONNECT to mesh/far went.
async fn asks(shown: Option<Shown>) -> Result<StatusCode> {
    status(&tunnel(shown).await?, connect(&far(8080)?)?).await
}

#[test]
fn only_a_workload_of_this_mesh_is_let_in() -> Result<()> {
    Runtime::new()?.block_on(async {
        let good = certificate(&[CLIENT_ID], 10, &Signer::Mesh)?;
        let answered = asks(Some(good)).await?;
        ensure!(answered == StatusCode::OK, "a workload of the mesh was answered {answered}");
        let other_domain = "spiffe://elsewhere.local/ns/mesh/sa/default";
        let second = "spiffe://cluster.local/ns/mesh/sa/other";
        for (what, shown) in [
            ("nothing", None),
            ("a self-signed certificate", Some(certificate(&[CLIENT_ID], 10, &Signer::Itself)?)),
            ("another authority's certificate", Some(certificate(&[CLIENT_ID], 10, &Signer::Stranger)?)),
            ("another trust domain", Some(certificate(&[other_domain], 10, &Signer::Mesh)?)),
            ("an expired certificate", Some(certificate(&[CLIENT_ID], 1, &Signer::Mesh)?)),
            ("two URI names", Some(certificate(&[CLIENT_ID, second], 10, &Signer::Mesh)?)),
            ("no URI name", Some(certificate(&[], 10, &Signer::Mesh)?)),
            ("a name of another form", Some(certificate(&["spiffe://cluster.local/x"], 10, &Signer::Mesh)?)),
        ] {
            if let Ok(status) = asks(shown).await {
                return Err(anyhow!("a client that shows {what} was answered {status}"));
            }
        }
        Ok(())
    })?;
    // Each is told once, with its reason.
    wait::until(WAIT_MAX, || {
        let log = std::fs::read_to_string(lab()?.access_log("node2"))?;
        let told = |reason: &str| log.lines().filter(|line| line.contains(reason)).count();
        let all = told("\"tls_failed\"") + told("\"peer_identity\"");
        ensure!(all >= 8, "{all} of 8 refusals are in the access log");
        Ok(())
    })
}

#[test]
fn http2_in_bad_faith_is_answered_and_harms_nobody() -> Result<()> {
    Runtime::new()?.block_on(async {
        let requests = tunnel(Some(certificate(&[CLIENT_ID], 10, &Signer::Mesh)?)).await?;
        let near = SocketAddr::new(lab()?.pod("mesh/near")?.ips[0], 8080).to_string();
        let get = Request::get(format!("https://{}/", far(8080)?)).body(())?;
        for (what, request, expected) in [
            ("no address", connect("far:80")?, StatusCode::BAD_REQUEST),
            ("another pod's address", connect(&near)?, StatusCode::BAD_REQUEST),
            ("not CONNECT", get, StatusCode::BAD_REQUEST),
            ("the tunnel's own port", connect(&far(TUNNEL_PORT)?)?, StatusCode::SERVICE_UNAVAILABLE),
            ("the outbound port", connect(&far(15001)?)?, StatusCode::SERVICE_UNAVAILABLE),
            ("the inbound port", connect(&far(15006)?)?, StatusCode::SERVICE_UNAVAILABLE),
            ("a port that is closed", connect(&far(9999)?)?, StatusCode::SERVICE_UNAVAILABLE),
            ("its application", connect(&far(8080)?)?, StatusCode::OK),
        ] {
            let answered = status(&requests, request).await.context(what)?;
            ensure!(answered == expected, "{what}: answered {answered}");
        }
        let mut large = connect(&far(8080)?)?;
        large.headers_mut().insert("baggage", "x".repeat(64 << 10).parse()?);
        let answered = status(&requests, large).await;
        ensure!(!matches!(answered, Ok(StatusCode::OK)), "64 KiB of headers: answered {answered:?}");

        // Streams that are held open: more than the bound are not served at the same time.
        let requests = tunnel(Some(certificate(&[CLIENT_ID], 10, &Signer::Mesh)?)).await?;
        let mut held = Vec::new();
        for _ in 0..200 {
            let mut requests = requests.clone().ready().await?;
            let (response, sender) = requests.send_request(connect(&far(9000)?)?, false)?;
            let response = tokio::time::timeout(WAIT_MAX, response).await??;
            ensure!(response.status() == StatusCode::OK, "stream {}: {}", held.len(), response.status());
            held.push((response, sender));
        }
        let one_more = async || status(&requests, connect(&far(9000)?)?).await;
        let waits = tokio::time::timeout(Duration::from_millis(300), one_more()).await;
        ensure!(waits.is_err(), "stream 201 was answered: {waits:?}");
        // It was the bound that it waited for: there is a place when the proxy is done with one of the others.
        held.pop();
        let served = async { while one_more().await.ok() != Some(StatusCode::OK) {} };
        tokio::time::timeout(WAIT_MAX, served).await.context("no stream in the place of another")?;
        drop(held);
        Ok(())
    })?;
    // Everybody else is served as before.
    let told = echo(lab()?, "mesh/client", &["load", "--url", "http://far/", "--requests", "50"])?;
    ensure!(told["failed"] == 0, "{told}");
    Ok(())
}

/// What the nodes show for their pods.
fn certificates(lab: &Lab) -> Result<Vec<Vec<String>>> {
    let of_node = |node: &String| {
        let status = lab.node_status(node)?;
        Ok(status["certificates"].as_array().into_iter().flatten().map(ToString::to_string).collect())
    };
    lab.nodes().iter().map(of_node).collect()
}

#[test]
fn certificates_of_a_minute_are_renewed_under_load() -> Result<()> {
    let options = Options { control_args: vec!["--cert-lifetime=60s".into()], ..Options::default() };
    let lab = fixture::up("minute", MESH, options)?;
    let before = certificates(&lab)?;
    ensure!(before.iter().all(|all| !all.is_empty()), "no certificates: {before:?}");
    let mut live = Running::start(&lab, "mesh/client", &["tcp", "--to", "far:9000", "--mode", "live"])?;
    // Longer than the first certificates live; new connections, and so new looks at them, all along.
    let load = ["load", "--url", "http://far/", "--duration", "66", "--rate", "100", "--connections", "2"];
    let running = Running::start(&lab, "mesh/client", &load)?;
    let fresh = ["tcp", "--to", "far:9000", "--mode", "short", "--count", "200", "--parallel", "2"];
    while Running::start(&lab, "mesh/client", &fresh)?.told().is_ok() {
        if certificates(&lab)?.iter().zip(&before).all(|(now, before)| now != before) {
            break;
        }
    }
    let told = running.told()?;
    ensure!(told["failed"] == 0 && count(&told, "/ok") > 1_000, "{told}");
    ensure!(live.runs()?, "a live stream ended when certificates were renewed");
    // The first ones are over: a new connection shows that the renewed ones are in use.
    echo(&lab, "mesh/client", &fresh)?;
    let after = certificates(&lab)?;
    ensure!(after.iter().zip(&before).all(|(now, before)| now != before), "never renewed: {after:?}");
    Ok(())
}

#[test]
fn an_authority_is_replaced_by_another_root_under_load() -> Result<()> {
    let options = Options { control_args: vec!["--cert-lifetime=60s".into()], ..Options::default() };
    let lab = fixture::up("rotation", MESH, options)?;
    let before = certificates(&lab)?;
    let mut live = Running::start(&lab, "mesh/client", &["tcp", "--to", "far:9000", "--mode", "live"])?;
    let load = ["load", "--url", "http://far/", "--duration", "60", "--rate", "100", "--connections", "2"];
    let running = Running::start(&lab, "mesh/client", &load)?;

    // As an operator does it, one file after the other: in between, the key is another one's, and the last good authority stays.
    let state = lab.control_directory().join("state");
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    std::fs::write(state.join("ca.key"), key.serialize_pem())?;
    std::fs::write(state.join("ca.pem"), params.self_signed(&key)?.pem())?;
    let nodes_trust = |roots: u64| {
        wait::until(ROTATION_WAIT_MAX, || {
            for node in lab.nodes() {
                let dump = lab.node_admin(&node).json("/config_dump")?;
                let mesh = dump["resources"].as_array().into_iter().flatten().find(|it| it["kind"] == "Mesh");
                ensure!(mesh.is_some_and(|mesh| mesh["content"]["roots"] == roots), "{node}: {mesh:?}");
            }
            Ok(())
        })
    };
    nodes_trust(2)?;
    let status = lab.control_status()?;
    ensure!(status["authority"]["rotating"] == true, "{}", status["authority"]);
    // Started again, it has the new key only, and signs with that at once.
    lab.kill_control()?;
    lab.start_control()?;
    wait::until(ROTATION_WAIT_MAX, || {
        let now = certificates(&lab)?;
        ensure!(now.iter().zip(&before).all(|(now, before)| now != before), "not renewed: {now:?}");
        Ok(())
    })?;
    ensure!(live.runs()?, "a live stream ended when another authority took over");
    // Whoever was let in by the old root is put out with it; requests go on by the new one.
    std::fs::write(state.join("previous.pem"), "")?;
    nodes_trust(1)?;
    wait::until(WAIT_MAX, || {
        ensure!(!live.runs()?, "a tunnel outlived the root that it was let in by");
        Ok(())
    })?;
    echo(&lab, "mesh/client", &["tcp", "--to", "far:9000", "--mode", "short", "--count", "200"])?;

    let told = running.told()?;
    ensure!(told["failed"] == 0 && count(&told, "/ok") > 3_000, "{told}");
    Ok(())
}
