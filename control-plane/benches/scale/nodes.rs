//! A hundred nodes as the control plane sees them: a token that the API server reviews, a certificate, one Subscribe stream each,
//! every delta acknowledged. What is inside a delta is not unpacked beyond its keys: the nodes share the machine.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use prost::Message as _;
use rcgen::{CertificateParams, KeyPair};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use weft_proto::v1::certificates_client::CertificatesClient;
use weft_proto::v1::{self, node_message::Message};

pub(crate) const NODES: usize = 100;
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(120);

/// A delta whose resources are left as they came.
#[derive(Clone, PartialEq, prost::Message)]
struct Delta {
    #[prost(uint64, tag = "1")]
    nonce: u64,
    #[prost(uint64, tag = "2")]
    revision: u64,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    upserts: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "4")]
    removals: Vec<Bytes>,
    #[prost(bool, tag = "5")]
    more: bool,
}

#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = v1::NodeMessage;
    type Decode = (usize, Delta);
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = v1::NodeMessage;
    type Error = Status;
    fn encode(&mut self, item: v1::NodeMessage, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(into).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Raw {
    type Item = (usize, Delta);
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<(usize, Delta)>, Status> {
        let bytes = from.remaining();
        let delta = Delta::decode(from).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Some((bytes, delta)))
    }
}

/// Stands for a resource's key: to keep its bytes would keep the whole message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key(u64);

impl Key {
    pub(crate) fn new(kind: v1::Kind, name: &str) -> Self {
        Self::of(&v1::ResourceKey { kind: kind.into(), name: name.to_owned() }.encode_to_vec())
    }

    fn of(encoded: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        encoded.hash(&mut hasher);
        Self(hasher.finish())
    }

    /// A resource begins with its key.
    fn of_resource(resource: &[u8]) -> Self {
        assert!(resource[0] == 0x0a && resource[1] < 0x80, "a resource does not begin with a short key");
        Self::of(&resource[2..2 + usize::from(resource[1])])
    }
}

/// A delta that a node acknowledged.
#[derive(Debug)]
pub(crate) struct Acked {
    pub(crate) node: usize,
    pub(crate) at: Instant,
    pub(crate) bytes: usize,
    pub(crate) keys: Vec<Key>,
}

pub(crate) struct Nodes {
    acked: Mutex<mpsc::UnboundedReceiver<Result<Acked, String>>>,
    connected: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// The first state of all nodes.
pub(crate) struct First {
    pub(crate) last: Instant,
    pub(crate) bytes: usize,
    pub(crate) resources: usize,
}

impl Nodes {
    /// All at once, as after a restart of the control plane.
    pub(crate) async fn connect(client: &Client, address: SocketAddr, tokens: Vec<(String, String)>) -> Self {
        let root = root(client).await;
        let (out, acked) = mpsc::unbounded_channel();
        let connected = Arc::new(AtomicUsize::new(0));
        let of = |(at, (name, token)): (usize, (String, String))| {
            let (root, out, connected) = (root.clone(), out.clone(), connected.clone());
            tokio::spawn(async move {
                if let Err(status) = run(at, &name, &token, &root, address, &out, &connected).await {
                    let _ = out.send(Err(format!("{name} lost its stream: {status}")));
                }
                connected.fetch_sub(1, Ordering::Relaxed);
            })
        };
        let tasks = tokens.into_iter().enumerate().map(of).collect();
        Self { acked: Mutex::new(acked), connected, tasks }
    }

    pub(crate) fn connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    /// Waits until every node acknowledged its first delta.
    pub(crate) async fn first(&self, wait_max: Duration) -> First {
        let mut acked = self.acked.lock().await;
        let mut seen: HashMap<usize, (usize, usize)> = HashMap::new();
        let end = tokio::time::Instant::now() + wait_max;
        loop {
            let next =
                tokio::time::timeout_at(end, acked.recv()).await.expect("every node's first state in time");
            let next = next.unwrap().unwrap_or_else(|lost| panic!("{lost}"));
            seen.entry(next.node).or_insert((next.bytes, next.keys.len()));
            if seen.len() == NODES {
                let bytes = seen.values().map(|(bytes, _)| bytes).sum::<usize>() / NODES;
                let resources = seen.values().map(|(_, resources)| resources).sum::<usize>() / NODES;
                return First { last: next.at, bytes, resources };
            }
        }
    }

    /// The next acknowledged delta; None: none within this time.
    pub(crate) async fn next(&self, wait: Duration) -> Option<Acked> {
        let next = tokio::time::timeout(wait, self.acked.lock().await.recv()).await.ok().flatten();
        next.map(|next| next.unwrap_or_else(|lost| panic!("{lost}")))
    }
}

/// The published trust bundle.
async fn root(client: &Client) -> String {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "weft-system");
    let end = Instant::now() + CONNECT_WAIT_MAX;
    loop {
        if let Ok(Some(map)) = api.get_opt("weft-trust-bundle").await
            && let Some(root) = map.data.and_then(|mut data| data.remove("root.pem"))
        {
            return root;
        }
        assert!(Instant::now() < end, "no trust bundle was published");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn channel(at: usize, root: &str, address: SocketAddr, shown: Option<Identity>) -> Channel {
    let mut tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root)).domain_name("weft-control");
    if let Some(shown) = shown {
        tls = tls.identity(shown);
    }
    // An address of its own for each node, as in a cluster: the listener counts connections by address.
    let own = IpAddr::V4(Ipv4Addr::new(127, 0, 1, u8::try_from(at + 1).unwrap()));
    let end = Instant::now() + CONNECT_WAIT_MAX;
    loop {
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
        let endpoint = endpoint.local_address(Some(own)).tls_config(tls.clone()).unwrap();
        match endpoint.initial_stream_window_size(1 << 20).connect().await {
            Ok(channel) => return channel,
            Err(error) => assert!(Instant::now() < end, "node {at} cannot connect: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A certificate for the node that the token names.
async fn sign(at: usize, token: &str, root: &str, address: SocketAddr) -> Result<Identity, Status> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap();
    let mut client = CertificatesClient::new(channel(at, root, address, None).await);
    let end = Instant::now() + CONNECT_WAIT_MAX;
    loop {
        let mut request = Request::new(v1::SignNodeRequest { csr_der: csr.der().to_vec() });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        match client.sign_node(request).await {
            Ok(answer) => {
                let chain = answer.into_inner().chain_der.into_iter();
                let blocks: Vec<_> = chain.map(|der| pem::Pem::new("CERTIFICATE", der)).collect();
                return Ok(Identity::from_pem(pem::encode_many(&blocks), key.serialize_pem()));
            }
            Err(status) if Instant::now() > end => return Err(status),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

async fn run(
    at: usize,
    name: &str,
    token: &str,
    root: &str,
    address: SocketAddr,
    acked: &mpsc::UnboundedSender<Result<Acked, String>>,
    connected: &AtomicUsize,
) -> Result<(), Status> {
    connected.fetch_add(1, Ordering::Relaxed);
    let shown = sign(at, token, root, address).await?;
    let channel = channel(at, root, address, Some(shown)).await;
    let (out, stream) = mpsc::channel(8);
    let hello = v1::Hello { node: name.into(), agent_version: "scale".into(), known: Vec::new() };
    let say = |message| v1::NodeMessage { message: Some(message) };
    out.send(say(Message::Hello(hello))).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static("/weft.v1.Discovery/Subscribe");
    let request = Request::new(ReceiverStream::new(stream));
    let mut inbound = grpc.streaming(request, path, Raw).await?.into_inner();
    let (mut bytes, mut keys) = (0, Vec::new());
    while let Some((size, delta)) = inbound.message().await? {
        bytes += size;
        keys.extend(delta.upserts.iter().map(|resource| Key::of_resource(resource)));
        keys.extend(delta.removals.iter().map(|key| Key::of(key)));
        if delta.more {
            continue;
        }
        let ack = v1::Ack { nonce: delta.nonce, revision: delta.revision };
        out.send(say(Message::Ack(ack))).await.map_err(|_| Status::cancelled("the stream ended"))?;
        let told = Acked { node: at, at: Instant::now(), bytes, keys: std::mem::take(&mut keys) };
        bytes = 0;
        if acked.send(Ok(told)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
