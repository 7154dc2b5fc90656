//! A node of the test: its certificate is made with the authority's own key, its answers are what the test says.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use weft_proto::v1::discovery_client::DiscoveryClient;
use weft_proto::v1::{self, node_message::Message};

pub(crate) const WAIT_MAX: Duration = Duration::from_secs(40);

pub(crate) struct Node {
    name: String,
    shown: Identity,
    out: mpsc::Sender<v1::NodeMessage>,
    inbound: Streaming<v1::Delta>,
}

/// The authority's own Secret, as every replica reads it.
async fn authority(client: &Client) -> impl Fn(&str) -> String {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "weft-system");
    let data = secrets.get("weft-ca").await.unwrap().data.unwrap();
    move |name| String::from_utf8(data[name].0.clone()).unwrap()
}

fn identity(read: &impl Fn(&str) -> String, node: &str) -> Identity {
    let issuer =
        Issuer::from_ca_cert_pem(&read("tls.crt"), KeyPair::from_pem(&read("tls.key")).unwrap()).unwrap();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    let uri = format!("spiffe://cluster.local/weft/node/{node}");
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = OffsetDateTime::now_utc() - time::Duration::hours(1);
    params.not_after = OffsetDateTime::now_utc() + time::Duration::hours(1);
    Identity::from_pem(params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
}

impl Node {
    /// Waits until the control plane has read everything and lets nodes in.
    pub(crate) async fn connect_when_served(
        address: std::net::SocketAddr,
        client: &Client,
        name: &str,
    ) -> Self {
        super::control::until("a listener", || async { tokio::net::TcpStream::connect(address).await.ok() })
            .await;
        Self::connect(address, client, name).await
    }

    pub(crate) async fn connect(address: std::net::SocketAddr, client: &Client, name: &str) -> Self {
        let read = authority(client).await;
        let root = read("ca.crt");
        Self::show(address, &root, name, identity(&read, name)).await
    }

    /// The same node with the certificate that it has, at another replica.
    pub(crate) async fn again(self, address: std::net::SocketAddr, root: &str) -> Self {
        Self::show(address, root, &self.name, self.shown).await
    }

    /// With a certificate that was made elsewhere.
    pub(crate) async fn show(address: std::net::SocketAddr, root: &str, name: &str, shown: Identity) -> Self {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(root))
            .domain_name("weft-control")
            .identity(shown.clone());
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap();
        let (out, stream) = mpsc::channel(8);
        let hello = v1::Hello { node: name.into(), agent_version: "test".into(), known: Vec::new() };
        out.send(v1::NodeMessage { message: Some(Message::Hello(hello)) }).await.unwrap();
        let channel = endpoint.connect().await.unwrap();
        let answer = DiscoveryClient::new(channel).subscribe(ReceiverStream::new(stream)).await.unwrap();
        Self { name: name.into(), shown, out, inbound: answer.into_inner() }
    }

    /// The next delta, whole and acknowledged.
    pub(crate) async fn delta(&mut self) -> v1::Delta {
        let mut whole = v1::Delta::default();
        loop {
            let next = tokio::time::timeout(WAIT_MAX, self.inbound.message()).await.expect("a delta in time");
            let part = next.unwrap().expect("an open stream");
            whole.upserts.extend(part.upserts);
            whole.removals.extend(part.removals);
            if !part.more {
                let ack = v1::Ack { nonce: part.nonce, revision: part.revision };
                self.out.send(v1::NodeMessage { message: Some(Message::Ack(ack)) }).await.unwrap();
                return whole;
            }
        }
    }

    /// Takes deltas until one brings or (`-name`) takes away this resource; what came until then, in order.
    pub(crate) async fn until(&mut self, wanted: &str) -> Vec<String> {
        let mut came = Vec::new();
        while !came.iter().any(|name| name == wanted) {
            let delta = self.delta().await;
            came.extend(delta.upserts.iter().map(|upsert| upsert.key.as_ref().unwrap().name.clone()));
            came.extend(delta.removals.iter().map(|removal| format!("-{}", removal.name)));
        }
        came
    }

    /// Nothing is sent for this long.
    pub(crate) async fn quiet(&mut self, time: Duration) {
        let next = tokio::time::timeout(time, self.inbound.message()).await;
        assert!(next.is_err(), "{next:?}");
    }
}
