//! Who is taken for a node: certificates that are refused and why, sessions that end, renewals that interrupt nothing.

use rcgen::{ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use weft_control::authority::Lifetimes;

use super::*;

const NODE_1: &str = "spiffe://cluster.local/weft/node/node-1";

enum Signer {
    Mesh,
    Itself,
    Stranger,
}

impl World {
    async fn with(lifetimes: Lifetimes) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let manifests = directory.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        std::fs::write(manifests.join("mesh.yaml"), MESH).unwrap();
        let running = weft_control::start_with(settings(directory.path()), lifetimes).await.unwrap();
        Self { directory, running }
    }

    /// A client certificate for a URI name, over since `minutes` (negative: still good for so long).
    fn forged(&self, uri: &str, over_for_minutes: i64, signer: &Signer) -> Identity {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = OffsetDateTime::now_utc() - time::Duration::days(1);
        params.not_after = OffsetDateTime::now_utc() - time::Duration::minutes(over_for_minutes);
        let made = match signer {
            Signer::Itself => params.self_signed(&key).unwrap(),
            Signer::Mesh => {
                let read = |file: &str| std::fs::read_to_string(self.directory.path().join(file)).unwrap();
                let ca_key = KeyPair::from_pem(&read("state/ca.key")).unwrap();
                let issuer = Issuer::from_ca_cert_pem(&read("state/ca.pem"), ca_key).unwrap();
                params.signed_by(&key, &issuer).unwrap()
            }
            Signer::Stranger => {
                let mut root = CertificateParams::default();
                root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
                params.signed_by(&key, &Issuer::new(root, KeyPair::generate().unwrap())).unwrap()
            }
        };
        Identity::from_pem(made.pem(), key.serialize_pem())
    }

    /// A connection where the refusal of the certificate may come at once.
    async fn try_channel(&self, shown: &Identity) -> Result<Channel, tonic::transport::Error> {
        let root = std::fs::read(self.directory.path().join("state/root.pem")).unwrap();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(root))
            .domain_name("weft-control")
            .identity(shown.clone());
        let address = format!("https://{}", self.running.grpc_address);
        Endpoint::from_shared(address).unwrap().tls_config(tls).unwrap().connect().await
    }
}

#[tokio::test]
async fn only_a_nodes_certificate_of_this_authority_opens_a_connection() {
    let world = World::start().await;
    until(&world, "/readyz", |answer| answer.contains("200 OK")).await;
    let good = world.forged(NODE_1, -60, &Signer::Mesh);
    let mut node =
        Node::subscribe(world.try_channel(&good).await.unwrap(), "node-1", Vec::new()).await.unwrap();
    node.delta().await.unwrap();
    for (what, uri, over, signer) in [
        ("expired", NODE_1, 1, Signer::Mesh),
        ("foreign", NODE_1, -60, Signer::Stranger),
        ("self-signed", NODE_1, -60, Signer::Itself),
        ("a workload's", "spiffe://cluster.local/ns/shop/sa/frontend", -60, Signer::Mesh),
        ("of another trust domain", "spiffe://elsewhere/weft/node/node-1", -60, Signer::Mesh),
    ] {
        let shown = world.forged(uri, over, &signer);
        let Ok(channel) = world.try_channel(&shown).await else { continue };
        let subscribed = Node::subscribe(channel.clone(), "node-1", Vec::new()).await;
        assert!(subscribed.is_err(), "subscribed with a certificate that is {what}");
        assert!(sign(channel, "uid-frontend", request()).await.is_err(), "{what}");
    }
    // A client may have tried again.
    let count = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("weft_control_handshakes_refused_total "));
        line.and_then(|count| count.parse::<u32>().ok())
    };
    until(&world, "/metrics", |text| count(text) >= Some(5)).await;
}

#[tokio::test]
async fn a_node_is_who_its_certificate_says_and_no_other() {
    let world = World::start().await;
    let (one, two) = (world.node(TOKEN_1).await.unwrap(), world.node(TOKEN_2).await.unwrap());
    let of_one = world.channel(Some(&one)).await;
    let mut as_two = Node::subscribe(of_one.clone(), "node-2", Vec::new()).await.unwrap();
    assert_eq!(as_two.delta().await.unwrap_err().code(), Code::PermissionDenied);
    let code = |result: Result<v1::SignResponse, Status>| result.unwrap_err().code();
    assert_eq!(code(sign(of_one.clone(), "uid-backend", request()).await), Code::PermissionDenied);
    assert!(sign(world.channel(Some(&two)).await, "uid-backend", request()).await.is_ok());
    // A token on another node's connection, no certificate, a token in place of one.
    let mixed = sign_node(of_one, TOKEN_2).await.map(|_| ());
    assert_eq!(mixed.unwrap_err().code(), Code::PermissionDenied);
    let stranger = world.channel(None).await;
    assert_eq!(code(sign(stranger.clone(), "uid-frontend", request()).await), Code::Unauthenticated);
    let with_token =
        with_token(v1::SignRequest { pod_uid: "uid-frontend".into(), ..Default::default() }, TOKEN_1);
    let answered = CertificatesClient::new(stranger.clone()).sign(with_token).await.map(|_| ());
    assert_eq!(answered.unwrap_err().code(), Code::Unauthenticated);
    let subscribed = Node::subscribe(stranger, "node-1", Vec::new()).await;
    assert_eq!(subscribed.err().unwrap().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_live_session_ends_when_the_nodes_token_is_removed() {
    let world = World::start().await;
    let mut node = Node::connect(&world, "node-1", TOKEN_1, Vec::new()).await.unwrap();
    let mut other = Node::connect(&world, "node-2", TOKEN_2, Vec::new()).await.unwrap();
    let first = node.delta().await.unwrap();
    node.ack(&first).await;
    other.delta().await.unwrap();
    let shown = world.node(TOKEN_1).await.unwrap();
    world.write("mesh.yaml", &MESH.replace("{node: node-1,", "{node: node-9,"));
    let ended = node.delta().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unauthenticated);
    assert!(ended.message().contains("token was removed"), "{ended}");
    // Neither does the certificate open another session, nor sign.
    let channel = world.channel(Some(&shown)).await;
    assert_eq!(
        sign(channel.clone(), "uid-frontend", request()).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    assert!(Node::subscribe(channel, "node-1", Vec::new()).await.is_err());
    let status = world.admin("/status").await;
    assert!(status.contains("node-2"), "{status}");
}

#[tokio::test]
async fn a_session_lasts_as_long_as_the_newest_certificate_granted_over_it() {
    // Of which the renewals take a third: a machine that stops for as long as the rest proves nothing.
    let life = Duration::from_secs(12);
    let world = World::with(Lifetimes { node_max: life, ..Lifetimes::default() }).await;
    let (renewed, silent) = (world.node(TOKEN_1).await.unwrap(), world.node(TOKEN_2).await.unwrap());
    let renewed = world.channel(Some(&renewed)).await;
    let mut one = Node::subscribe(renewed.clone(), "node-1", Vec::new()).await.unwrap();
    let mut two = Node::subscribe(world.channel(Some(&silent)).await, "node-2", Vec::new()).await.unwrap();
    for node in [&mut one, &mut two] {
        let first = node.delta().await.unwrap();
        node.ack(&first).await;
    }
    let renewal = tokio::spawn(async move {
        loop {
            sign_node(renewed.clone(), TOKEN_1).await.unwrap();
            tokio::time::sleep(life / 3).await;
        }
    });
    let ended = two.delta().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unauthenticated);
    assert!(ended.message().contains("expired"), "{ended}");
    // The other one's first certificate is as old.
    world.write("route.yaml", &route(1));
    assert_eq!(names(&one.delta().await.unwrap()), ["shop/split"]);
    renewal.abort();
    let expired = world.try_channel(&silent).await;
    if let Ok(channel) = expired {
        assert!(sign(channel, "uid-backend", request()).await.is_err());
    }
}

#[tokio::test]
async fn the_listeners_certificate_changes_for_new_connections_and_closes_none() {
    // Renewed at half of it: the rest is for a machine that stops for a while.
    let lifetimes = Lifetimes { server: Duration::from_secs(12), ..Lifetimes::default() };
    let world = World::with(lifetimes).await;
    until(&world, "/readyz", |answer| answer.contains("200 OK")).await;
    let mut node = Node::connect(&world, "node-1", TOKEN_1, Vec::new()).await.unwrap();
    let first = node.delta().await.unwrap();
    node.ack(&first).await;
    let before = presented(&world).await;
    let end = tokio::time::Instant::now() + WAIT_MAX;
    while presented(&world).await == before {
        assert!(tokio::time::Instant::now() < end, "the listener still shows its first certificate");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.write("route.yaml", &route(1));
    assert_eq!(names(&node.delta().await.unwrap()), ["shop/split"], "the connection is the old one");
}

/// The certificate that the listener shows.
async fn presented(world: &World) -> Vec<u8> {
    let mut roots = rustls::RootCertStore::empty();
    let file = world.directory.path().join("state/root.pem");
    for root in CertificateDer::pem_file_iter(file).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let tcp = tokio::net::TcpStream::connect(world.running.grpc_address).await.unwrap();
    let tls = connector.connect("weft-control".try_into().unwrap(), tcp).await.unwrap();
    tls.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// What a handshake may take: whoever had to wait for one that says nothing would wait for so long.
const HANDSHAKE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn connections_that_say_nothing_do_not_delay_a_node() {
    let world = World::start().await;
    until(&world, "/readyz", |answer| answer.contains("200 OK")).await;
    // Before the first of them, whose time begins when it is accepted.
    let began = tokio::time::Instant::now();
    let mut idle = Vec::new();
    for source in 2..=7 {
        for _ in 0..64 {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(([127, 0, 0, source], 0).into()).unwrap();
            idle.push(socket.connect(world.running.grpc_address).await.unwrap());
        }
    }
    let mut node = Node::connect(&world, "node-1", TOKEN_1, Vec::new()).await.unwrap();
    assert!(names(&node.delta().await.unwrap()).contains(&"mesh"));
    assert!(began.elapsed() < HANDSHAKE, "{:?}", began.elapsed());
    // What is beyond the share of an address is closed at once.
    let (last, mut byte) = (idle.last_mut().unwrap(), [0; 1]);
    let closed = last.read(&mut byte);
    assert!(!matches!(tokio::time::timeout_at(began + HANDSHAKE, closed).await.unwrap(), Ok(1..)));
}
