//! The gRPC side of the echo application, and a client for its four kinds of calls.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::{Stream, StreamExt as _, stream};
use serde_json::json;
use tonic::{Code, Request, Response, Status, Streaming};

use super::Server;
use super::load::{Latencies, input_ended};

#[allow(clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications, reason = "generated")]
mod generated {
    tonic::include_proto!("weft.echo.v1");
}
use generated::echo_client::EchoClient;
use generated::echo_server::{Echo, EchoServer};
use generated::{EchoReply, EchoRequest};

#[derive(Debug)]
pub(super) struct Service {
    server: Arc<Server>,
    peer: SocketAddr,
}

pub(super) fn service(server: Arc<Server>, peer: SocketAddr) -> EchoServer<Service> {
    EchoServer::new(Service { server, peer })
}

type Replies = Pin<Box<dyn Stream<Item = Result<EchoReply, Status>> + Send>>;

impl Service {
    fn reply(&self, payload: Vec<u8>, requests: u64) -> EchoReply {
        EchoReply {
            bytes: payload.len() as u64,
            payload,
            version: self.server.settings.version.clone(),
            pod: self.server.pod.clone(),
            peer: self.peer.to_string(),
            requests,
            metadata: Default::default(),
        }
    }
}

/// Waits and fails as the request asks.
async fn obey(request: &EchoRequest) -> Result<(), Status> {
    if request.delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(request.delay_ms.into())).await;
    }
    match request.fail_code {
        0 => Ok(()),
        code => Err(Status::new(Code::from(code.cast_signed()), "the request asked for it")),
    }
}

#[tonic::async_trait]
impl Echo for Service {
    type ServerStream = Replies;
    type BothStream = Replies;

    async fn unary(&self, request: Request<EchoRequest>) -> Result<Response<EchoReply>, Status> {
        let requests = self.server.count("grpc_unary", 1);
        if self.server.fails_now() {
            return Err(Status::unavailable("one of the failing share"));
        }
        let metadata = request.metadata().clone().into_headers();
        let text = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
        let request = request.into_inner();
        obey(&request).await?;
        let mut reply = self.reply(request.payload, requests);
        reply.metadata = metadata.iter().map(|(k, v)| (k.to_string(), text(v))).collect();
        Ok(Response::new(reply))
    }

    async fn server(&self, request: Request<EchoRequest>) -> Result<Response<Replies>, Status> {
        self.server.count("grpc_server", 1);
        let request = request.into_inner();
        obey(&request).await?;
        let replies: Vec<_> =
            (0..request.count).map(|n| Ok(self.reply(request.payload.clone(), n.into()))).collect();
        Ok(Response::new(Box::pin(stream::iter(replies))))
    }

    async fn client(&self, request: Request<Streaming<EchoRequest>>) -> Result<Response<EchoReply>, Status> {
        self.server.count("grpc_client", 1);
        let mut requests = request.into_inner();
        let (mut count, mut bytes) = (0, 0);
        while let Some(request) = requests.message().await? {
            obey(&request).await?;
            count += 1;
            bytes += request.payload.len() as u64;
        }
        let mut reply = self.reply(Vec::new(), count);
        reply.bytes = bytes;
        Ok(Response::new(reply))
    }

    async fn both(&self, request: Request<Streaming<EchoRequest>>) -> Result<Response<Replies>, Status> {
        self.server.count("grpc_both", 1);
        let about = self.reply(Vec::new(), 0);
        let replies = request.into_inner().scan(0, move |count, request| {
            *count += 1;
            let (about, requests) = (about.clone(), *count);
            async move {
                Some(match request {
                    Ok(r) => obey(&r).await.map(|()| EchoReply {
                        bytes: r.payload.len() as u64,
                        payload: r.payload,
                        requests,
                        ..about
                    }),
                    Err(e) => Err(e),
                })
            }
        });
        Ok(Response::new(Box::pin(replies)))
    }
}

/// Options of the gRPC client.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientSettings {
    /// Where to, such as http://backend:9090
    #[arg(long)]
    pub url: String,
    /// Unary calls to make
    #[arg(long, default_value_t = 1, conflicts_with = "until_eof")]
    pub requests: u32,
    /// Make unary calls until standard input ends
    #[arg(long)]
    pub until_eof: bool,
    /// Milliseconds between two unary calls
    #[arg(long, default_value_t = 0)]
    pub pause_ms: u64,
    /// Messages on each streaming call
    #[arg(long, default_value_t = 10)]
    pub messages: u32,
    /// Bytes of each message
    #[arg(long, default_value_t = 64)]
    pub bytes: usize,
    /// gRPC status code that the server is asked to fail the unary calls with
    #[arg(long, default_value_t = 0)]
    pub fail_code: u32,
    /// Metadata to send with the unary calls, as name:value
    #[arg(long)]
    pub header: Vec<String>,
}

/// Makes unary calls and one call of each streaming kind, checks what comes back, and tells about it.
pub async fn client(settings: &ClientSettings) -> Result<serde_json::Value> {
    let endpoint = tonic::transport::Endpoint::from_shared(settings.url.clone())?;
    let channel = endpoint.connect().await.with_context(|| format!("connecting to {}", settings.url))?;
    let mut client = EchoClient::new(channel);
    let unary = unary_calls(&mut client, settings).await?;
    let streamed =
        if settings.fail_code == 0 { streaming_calls(&mut client, settings).await? } else { json!(null) };
    Ok(json!({"unary": unary, "streams": streamed}))
}

type Channel = tonic::transport::Channel;

fn request(settings: &ClientSettings) -> EchoRequest {
    EchoRequest {
        payload: vec![7; settings.bytes],
        count: settings.messages,
        fail_code: settings.fail_code,
        delay_ms: 0,
    }
}

async fn unary_calls(
    client: &mut EchoClient<Channel>,
    settings: &ClientSettings,
) -> Result<serde_json::Value> {
    let (mut codes, mut versions) = (BTreeMap::<String, u64>::new(), BTreeMap::<String, u64>::new());
    let mut latencies = Latencies::default();
    let mut last = None;
    let ended = if settings.until_eof { input_ended() } else { Arc::default() };
    let mut made = 0;
    while if settings.until_eof { !ended.load(Ordering::Relaxed) } else { made < settings.requests } {
        made += 1;
        let mut message = Request::new(request(settings));
        for header in &settings.header {
            let (name, value) = header.split_once(':').context("a header is name:value")?;
            let name: tonic::metadata::MetadataKey<_> = name.trim().parse()?;
            message.metadata_mut().insert(name, value.trim().parse()?);
        }
        let start = Instant::now();
        match client.unary(message).await {
            Ok(reply) => {
                let reply = reply.into_inner();
                ensure!(reply.payload.len() == settings.bytes, "payload came back changed");
                *codes.entry("OK".into()).or_default() += 1;
                *versions.entry(reply.version.clone()).or_default() += 1;
                last = Some(json!({"peer": reply.peer, "pod": reply.pod, "metadata": reply.metadata}));
            }
            Err(status) => {
                *codes.entry(format!("{:?}", status.code())).or_default() += 1;
                last = Some(json!({"message": status.message()}));
            }
        }
        latencies.add(start.elapsed());
        tokio::time::sleep(Duration::from_millis(settings.pause_ms)).await;
    }
    Ok(json!({"codes": codes, "versions": versions, "last": last, "ms": latencies.summary()}))
}

async fn streaming_calls(
    client: &mut EchoClient<Channel>,
    settings: &ClientSettings,
) -> Result<serde_json::Value> {
    let messages = settings.messages;
    let down = client.server(request(settings)).await.context("server streaming")?.into_inner();
    let down = down.filter(|r| std::future::ready(r.is_ok())).count().await;
    let requests = || stream::iter(vec![request(settings); messages as usize]);
    let up = client.client(requests()).await.context("client streaming")?.into_inner();
    let both = client.both(requests()).await.context("bidirectional streaming")?.into_inner();
    let both = both.filter(|r| std::future::ready(r.is_ok())).count().await;
    ensure!(down == messages as usize, "{down} of {messages} messages of the server's stream came");
    ensure!(up.requests == u64::from(messages), "{} of {messages} messages of ours arrived", up.requests);
    ensure!(both == messages as usize, "{both} of {messages} messages came back");
    Ok(json!({"server": down, "client": up.requests, "both": both}))
}
